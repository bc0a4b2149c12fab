"""From what a user types (a file, a folder, a glob, numbered braces; local or any fsspec URL) to files in a fixed order."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import PurePosixPath
from typing import Any

from paired_index_assets.errors import BadInput, MissingInput
from paired_index_assets.files.storage import as_path

BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")
MARKS_OF_CHANGE = ("mtime", "ETag", "etag", "LastModified", "last_modified", "updated")  # whichever the file system knows


@dataclass(frozen=True)
class ListedFile:
    """`name` is relative to the folder that was listed; `stamp` changes when the file does."""

    url: str
    name: str
    stamp: str

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.name).suffix.lower()


def natural(name: str) -> list[tuple[int, str]]:
    """Sort key by which part_9 precedes part_10, as the people who number files mean it."""
    return [(int(piece), "") if piece.isdigit() else (-1, piece) for piece in re.split(r"(\d+)", name)]


def list_files(spec: str) -> list[ListedFile]:
    """The files `spec` names, hidden ones left out, sorted by name (numbers by value).

    `spec`: a file, a folder (searched to the bottom), a glob (``*``, ``?``, ``[]``, ``**``) or ``name{0000..0057}.tar``.
    Raises MissingInput if there is none.
    """
    found = [entry for one in _braces(spec) for entry in _one(one)]
    if not found:
        raise MissingInput(f"{spec}: no such file; expected a file, a folder with files, or a pattern that matches some")
    return found


def is_folder(spec: str) -> bool:
    return not any(c in spec for c in "*?[{") and as_path(spec).is_dir()


def _one(spec: str) -> list[ListedFile]:
    path = as_path(spec)
    fs, text = path.fs, path.path
    if any(c in text for c in "*?["):
        root = text[: re.search(r"[*?\[]", text).start()].rpartition("/")[0]  # type: ignore[union-attr]
        entries = {name: info for name, info in fs.glob(text, detail=True).items() if info["type"] == "file"}
    elif path.is_dir():
        root, entries = text, fs.find(text, detail=True)
    elif path.exists():
        root, entries = text.rpartition("/")[0], {text: fs.info(text)}
    else:
        return []
    local = path.protocol in ("", "file", "local")
    root = root.rstrip("/") + "/"
    files = []
    for name, info in entries.items():
        relative = name.removeprefix(root)
        if not any(piece.startswith(".") for piece in relative.split("/")):
            files.append(ListedFile(name if local else fs.unstrip_protocol(name), relative, _stamp(info)))
    return sorted(files, key=lambda f: natural(f.name))


def _stamp(info: dict[str, Any]) -> str:
    mark = next((str(info[key]) for key in MARKS_OF_CHANGE if info.get(key) is not None), "")
    return f"{info.get('size')} {mark}"


def _braces(spec: str) -> Iterator[str]:
    pieces = BRACES.split(spec)
    if len(pieces) == 1:
        yield spec
        return
    ranges = []
    for first, last in zip(pieces[1::3], pieces[2::3], strict=True):
        if int(last) < int(first):
            raise BadInput(f"{spec}: expected {{first..last}} in rising order, found {{{first}..{last}}}")
        ranges.append([f"{n:0{len(first)}d}" for n in range(int(first), int(last) + 1)])
    for numbers in product(*ranges):
        yield "".join(text + number for text, number in zip(pieces[::3], (*numbers, ""), strict=True))
