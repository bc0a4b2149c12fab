"""Files, listed: those directly in a folder, in one request; and those that a user means by a folder, a glob or numbered braces."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import PurePosixPath
from stat import S_ISREG
from typing import Any

from fsspec.utils import glob_translate
from upath import UPath

from paired_index_assets.errors import BadInput, MissingInput
from paired_index_assets.files.stamp import modified_at, stamp_of_local, stamp_of_remote
from paired_index_assets.files.storage import as_path, is_local

LOOKS_AT_ONCE = 16
GLOB = re.compile(r"[*?\[]")
BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")


@dataclass(frozen=True)
class ListedFile:
    """`name` is relative to the folder that was listed; `stamp` changes when the content does; `modified` is when it did, in seconds since
    1970, None where that is not known."""

    url: str
    name: str
    size: int
    stamp: str
    modified: float | None = None

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.name).suffix.lower()


def natural_order(name: str) -> tuple[tuple[str | int, ...], str]:
    """A sort key by which part_2 comes before part_10, as the people who number files mean it. No two names are equal."""
    pieces = re.split(r"([0-9]+)", name)  # text and number by turns
    return tuple(int(piece) if at % 2 else piece for at, piece in enumerate(pieces)), name


def list_entries(folder: UPath) -> list[ListedFile]:
    """Files directly in `folder`, links followed, hidden ones too. Raises FileNotFoundError if there is no such folder."""
    if is_local(folder):
        with os.scandir(folder.path) as found:
            entries = (_local_file(item.path, item.name) for item in found)
            return [entry for entry in entries if entry]
    fs = folder.fs
    fs.invalidate_cache()  # a sensor's process lives for days, and fsspec remembers listings
    listed = [item for item in fs.ls(folder.path, detail=True) if item["type"] == "file"]
    if any(item["size"] is None for item in listed):  # an HTML index names files without their sizes
        with ThreadPoolExecutor(LOOKS_AT_ONCE) as pool:
            listed = list(pool.map(lambda item: fs.info(item["name"]), listed))
    return [_remote_file(fs, item) for item in listed]


def entry_at(path: UPath) -> ListedFile:
    """Raises FileNotFoundError, also for a folder."""
    if is_local(path):
        found = _local_file(path.path, path.name)
        if found is None:
            raise FileNotFoundError(str(path))
        return found
    path.fs.invalidate_cache()
    return _remote_file(path.fs, path.fs.info(path.path))


def list_files(spec: str) -> list[ListedFile]:
    """The files `spec` names, hidden ones left out, sorted by name (numbers by value).

    `spec`: a file, a folder (searched to the bottom), a glob (``*``, ``?``, ``[]``, ``**``), ``name{0000..0057}.tar``, or
    several of them with commas between.
    Raises MissingInput if there is none.
    """
    found = []
    for single in several(spec):
        found += [entry for one in ([single] if _exists_here(single) else _braces(single)) for entry in _one(one)]
    if not found:
        raise MissingInput(f"{spec}: no such file; expected a file, a folder with files, or a pattern that matches some")
    return found


def is_folder(spec: str) -> bool:
    """An existing folder, whatever is in its name; never a pattern that matches some."""
    return _exists_here(spec) and as_path(spec).is_dir() if is_local(as_path(spec)) else not GLOB.search(spec) and as_path(spec).is_dir()


def several(spec: str) -> list[str]:
    """The paths or patterns of a list ``a.npy,b.npy``; a comma that is part of an existing name separates nothing."""
    pieces, found = spec.split(","), []
    while pieces:
        length = next((n for n in range(len(pieces), 1, -1) if _exists_here(",".join(pieces[:n]))), 1)
        found.append(",".join(pieces[:length]))
        del pieces[:length]
    return [one.strip() if len(found) > 1 else one for one in found if one.strip()] or [spec]


def is_there(spec: str) -> bool:
    """Whether a user's `spec` names at least one file or folder, as `list_files` would find it."""
    try:
        return _exists_here(spec) or bool(list_files(spec))
    except MissingInput:
        return False


def _exists_here(spec: str) -> bool:
    path = as_path(spec)
    return is_local(path) and os.path.exists(path.path)


def _local_file(path: str, name: str) -> ListedFile | None:
    """None for what is no file, and for what has gone since it was listed."""
    try:
        facts = os.stat(path)
    except OSError:
        return None
    return ListedFile(path, name, facts.st_size, stamp_of_local(facts), facts.st_mtime) if S_ISREG(facts.st_mode) else None


def _remote_file(fs: Any, item: dict[str, Any], name: str | None = None) -> ListedFile:
    """`name` where it is not the last piece of the path."""
    if item["type"] != "file":
        raise FileNotFoundError(str(item["name"]))
    path = str(item["name"]).rstrip("/")
    name = name or path.rsplit("/", 1)[-1]
    return ListedFile(fs.unstrip_protocol(path), name, int(item["size"] or 0), stamp_of_remote(item), modified_at(item))


def _one(spec: str) -> list[ListedFile]:
    path = as_path(spec)
    files = (_local_matches if is_local(path) else _remote_matches)(path)
    return sorted(files, key=lambda file: natural_order(file.name))


def _local_matches(path: UPath) -> list[ListedFile]:
    text = os.path.abspath(path.path)
    if os.path.exists(text):  # an existing name wins over its reading as a pattern: `set [v2]/i.npy`
        root, depth, wanted = (text, None, None) if os.path.isdir(text) else (os.path.dirname(text), 0, re.compile(re.escape(text) + r"\Z"))
    elif pattern := GLOB.search(text):
        root = text[: pattern.start()].rpartition("/")[0] or "/"
        depth = None if "**" in text else text[len(root) :].strip("/").count("/")
        wanted = re.compile(glob_translate(text))
    else:
        return []
    files = []
    for place in _walk(root, depth):
        name = place.removeprefix(root.rstrip("/") + "/")
        if wanted is None or wanted.match(place):
            files.append(_local_file(place, name))
            if files[-1] is None and os.path.islink(place):  # it leads nowhere: its reader says so
                files[-1] = ListedFile(place, name, 0, "")
    return [file for file in files if file]


def _walk(root: str, depth: int | None) -> Iterator[str]:
    """What is no folder under `root`, hidden names left out; links to folders are followed, each folder once, by its own name if it is there.

    `depth` is that of the deepest folder looked into, None for all.
    """
    seen: set[tuple[int, int]] = set()
    links = [(root, 0)]
    while links:
        folders, links = sorted(links, reverse=True), []
        while folders:
            folder, level = folders.pop()
            facts = os.stat(folder)
            if (facts.st_dev, facts.st_ino) in seen:
                continue
            seen.add((facts.st_dev, facts.st_ino))
            with os.scandir(folder) as found:
                for item in found:
                    if item.name.startswith("."):
                        continue
                    if not item.is_dir():
                        yield item.path
                    elif depth is None or level < depth:
                        (links if item.is_symlink() else folders).append((item.path, level + 1))


def _remote_matches(path: UPath) -> list[ListedFile]:
    fs, text = path.fs, path.path
    if pattern := GLOB.search(text):
        root = text[: pattern.start()].rpartition("/")[0]
        entries = {name: info for name, info in fs.glob(text, detail=True).items() if info["type"] == "file"}
    elif path.is_dir():
        root, entries = text, fs.find(text, detail=True)
    elif path.exists():
        root, entries = text.rpartition("/")[0], {text: fs.info(text)}
    else:
        return []
    root = root.rstrip("/") + "/"
    names = {place: place.removeprefix(root) for place in entries}
    return [_remote_file(fs, info, names[place]) for place, info in entries.items() if not _hidden(names[place])]


def _hidden(name: str) -> bool:
    return any(piece.startswith(".") for piece in name.split("/"))


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
