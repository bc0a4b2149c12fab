"""What documents say of the code is what the code says: `make docs` writes it, and here is found what is out of date."""

import re
import runpy
from pathlib import Path

import tables  # docs/tables.py

DOCS = Path(tables.__file__).parent
ROOT = DOCS.parent


def test_the_table_of_rooms_is_what_the_code_imports():
    text = (DOCS / "architecture.md").read_text()
    assert text == tables.architecture(text), "run `make docs`"


def test_no_room_imports_one_of_its_own_floor_or_of_a_higher_one():
    floors = {room: int(floor) for floor, room in re.findall(r"^\| (\d+) \| `(\w+)`", (DOCS / "architecture.md").read_text(), re.MULTILINE)}
    assert len(floors) > 20
    upwards = {(a, b) for a, others in tables.imports_by_room().items() for b in others if floors[b] >= floors[a]}
    assert not upwards


def test_every_setting_is_documented_as_it_is():
    assert (DOCS / "settings.md").read_text() == tables.settings(), "run `make docs`"


def test_links_between_documents_lead_somewhere():
    for document in [*ROOT.glob("*.md"), *DOCS.glob("*.md"), ROOT / "deploy/README.md"]:
        for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#]+)[^)]*\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_every_make_command_of_the_documents_is_a_target():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for document in [*ROOT.glob("*.md"), *DOCS.glob("*.md")]:
        named = set(re.findall(r"`make ([\w-]+)`|^make ([\w-]+)", document.read_text(), re.MULTILINE))
        assert {a or b for a, b in named} <= targets, document.name


def test_on_a_package_index_no_link_and_no_picture_of_the_readme_is_a_path_of_the_repository():
    text = (ROOT / "README.md").read_text()
    relative = r"\]\((?!https?:|#)"
    assert re.search(relative, text)
    shown = runpy.run_path(str(ROOT / "setup.py"))["for_an_index"]
    unknown, known = shown(text, None), shown(text, "https://example.org/paired-index")
    assert not re.search(relative, unknown)
    assert "![" not in unknown
    assert not re.search(relative, known)
    assert "](https://example.org/paired-index/raw/HEAD/docs/pictures/results.png)" in known
    assert "[docs/serving.md](https://example.org/paired-index/blob/HEAD/docs/serving.md)" in known
