"""`make docs`: the tables that say what the code says, written from it. tests/shell/test_documents.py finds what is out of date."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

import grimp

from paired_index_assets.assets.built import BuiltAsset, BuiltCheck
from paired_index_assets.assets.code_location import ASSETS, CHECKS
from paired_index_assets.assets.resources import OF_THE_RUN
from paired_index_assets.settings import Settings

DOCS = Path(__file__).parent
PACKAGE = "paired_index_assets"
ROW = re.compile(r"^(\| \d+ \| `(\w+)` \| .+ \| )[\w, -]+ \|$", re.MULTILINE)

SETTINGS_HEAD = """# Settings

<!-- written by `make docs` from paired_index_assets/settings.py -->

One list for the command line, the environment and Dagster: `--nlist 1024`, `PAIRED_INDEX_NLIST=1024`, and in the launchpad of an asset that
uses it `ops: paired_centroids: config: nlist: 1024`. What is not given comes from the environment, then from the `settings.json` of the last build
in the root, then from the default. `paired-index build --help` says the same.
"""


def imports_by_room() -> dict[str, set[str]]:
    """Room -> the rooms it imports, from the code."""
    graph, rooms = grimp.build_graph(PACKAGE, cache_dir=None), defaultdict[str, set[str]](set)
    for module in graph.modules - {PACKAGE}:
        room = module.split(".")[1]
        rooms[room] |= {other.split(".")[1] for other in graph.find_modules_directly_imported_by(module) if "." in other} - {room}
    return dict(rooms)


def architecture(text: str) -> str:
    """docs/architecture.md with the last column of its table as the code has it, in the order of its rows."""
    imports, order = imports_by_room(), [room for _, room in ROW.findall(text)]
    if missing := imports.keys() ^ set(order):
        raise SystemExit(f"docs/architecture.md: the table and the code differ in the rooms {', '.join(sorted(missing))}; mend the table")
    return ROW.sub(lambda row: f"{row[1]}{', '.join(room for room in order if room in imports[row[2]]) or '-'} |", text)


def settings() -> str:
    """docs/settings.md."""
    groups: dict[str, list[str]] = {}
    places = defaultdict[str, list[str]](list, {name: ["build"] for name in OF_THE_RUN})
    everything: list[BuiltAsset | BuiltCheck] = [*ASSETS, *CHECKS]
    for built in everything:
        for name in built.takes:
            places[name].append(built.name)
    for name, field in Settings.model_fields.items():
        extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        default = "" if field.default is None else f"`{field.default}`"
        where = ", ".join(f"`{place}`" for place in places[name]) or "the code location"
        row = f"| `{name}` | {default} | {str(field.description).replace('|', chr(92) + '|')} | {where} |"
        groups.setdefault(str(extra.get("group")), []).append(row)
    tables = [
        "\n".join([f"\n## {group}\n", "| setting | default | what it is | in the launchpad, config of |", "|---|---|---|---|", *rows])
        for group, rows in groups.items()
    ]
    return SETTINGS_HEAD + "\n".join(tables) + "\n"


def main() -> None:
    place = DOCS / "architecture.md"
    place.write_text(architecture(place.read_text()))
    (DOCS / "settings.md").write_text(settings())


if __name__ == "__main__":
    main()
