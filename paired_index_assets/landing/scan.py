"""Headers of a folder of `.npy` files, and how files are dealt to shards."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from upath import UPath

from paired_index_assets.errors import BadInput, MissingInput
from paired_index_assets.files.listing import entry_at, list_entries, natural_order
from paired_index_assets.files.npy import HEAD_BYTES, NpyHeader, whole_header
from paired_index_assets.files.storage import as_path
from paired_index_assets.progress import Progress, silent

HEADERS_AT_ONCE = 256


@dataclass(frozen=True)
class Piece:
    """Rows [offset, offset + rows) of the .npy file `name` belong to `shard`."""

    name: str
    header: NpyHeader
    shard: int
    offset: int
    rows: int


def _is_wanted(name: str, names: str | Collection[str]) -> bool:
    return name in names if not isinstance(names, str) else fnmatchcase(name, names) and not name.startswith(".")


def scan_headers(
    url: UPath | Path | str, *, names: str | Collection[str] = "*.npy", progress: Progress = silent
) -> list[tuple[str, NpyHeader]]:
    """(name, header) of the .npy files in a folder that match a pattern or are named, or of the one file `url`, in natural order of names.

    Each header is held against the file's size and the others' width. Raises BadInput naming every bad file.
    """
    place = as_path(url)
    alone = place.name.endswith(".npy") and place.is_file()
    try:
        entries = [entry_at(place)] if alone else list_entries(place)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MissingInput(f"{url}: no such file or folder") from error
    folder = place.parent if alone else place
    wanted = [entry for entry in entries if alone or _is_wanted(entry.name, names)]
    wanted.sort(key=lambda entry: natural_order(entry.name))
    if not wanted:
        raise BadInput(f"{url}: no file matches {names!r}")
    found: list[tuple[str, NpyHeader]] = []
    faults: list[str] = []
    for at in range(0, len(wanted), HEADERS_AT_ONCE):
        some = wanted[at : at + HEADERS_AT_ONCE]
        paths = [folder / entry.name for entry in some]
        ends = [min(HEAD_BYTES, entry.size) for entry in some]
        heads = folder.fs.cat_ranges([path.path for path in paths], [0] * len(some), ends, on_error="return")
        for entry, path, head in zip(some, paths, heads, strict=True):
            try:
                found.append((entry.name, _checked(head, entry.size, str(path))))
            except BadInput as fault:
                faults.append(str(fault))
        progress("headers", at + len(some), len(wanted))
    widths = {header.dimensions for _, header in found}
    if len(widths) > 1:
        first_name, first = found[0]
        other_name, other = next((name, header) for name, header in found if header.dimensions != first.dimensions)
        faults.append(f"{other_name}: {other.dimensions} dimensions; {first_name} has {first.dimensions}. All files must have one width")
    if faults:
        raise BadInput("\n".join(faults))
    return found


def _checked(head: bytes | Exception, size: int, path: str) -> NpyHeader:
    if isinstance(head, Exception):
        raise BadInput(f"{path}: cannot be read ({head})")
    header = whole_header(head, size, path)
    if not header.rows:
        raise BadInput(f"{path}: expected at least one row, found none; leave the file out")
    return header


def deal(headers: Sequence[tuple[str, NpyHeader]], shards: int) -> list[Piece]:
    """Whole files in contiguous runs over 1 <= shards <= len(headers) shards, none without a file."""
    files = len(headers)
    run = -(-files // shards)
    equal = -(-files // run) == shards
    return [Piece(name, header, at // run if equal else at * shards // files, 0, header.rows) for at, (name, header) in enumerate(headers)]


def cut(headers: Sequence[tuple[str, NpyHeader]], shards: int, total: int) -> list[Piece]:
    """Row slices such that shard s holds rows [s total // shards, (s + 1) total // shards) of all rows, shards <= total."""
    pieces = []
    shard, row = 0, 0
    for name, header in headers:
        offset = 0
        while offset < header.rows:
            count = min(header.rows - offset, (shard + 1) * total // shards - row)
            pieces.append(Piece(name, header, shard, offset, count))
            offset += count
            row += count
            if row == (shard + 1) * total // shards:
                shard += 1
    return pieces
