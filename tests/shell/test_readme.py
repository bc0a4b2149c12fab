"""The README's settings table is the settings."""

from pathlib import Path

from paired_index_assets.settings import Settings

README = Path(__file__).parents[2] / "README.md"


def settings_table() -> str:
    rows = ["| setting | default | what it is |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = "" if field.default is None else f"`{field.default}`"
        rows.append(f"| `{name}` | {default} | {field.description.replace('|', chr(92) + '|')} |")
    return "\n".join(rows)


def test_the_settings_table_in_the_readme_is_complete():
    assert settings_table() in README.read_text()


def test_the_commands_in_the_readme_are_targets_of_the_makefile():
    makefile = (README.parent / "Makefile").read_text()
    for target in ("install", "demo", "test", "ui"):
        assert f"make {target}" in README.read_text()
        assert f"\n{target}:" in makefile
