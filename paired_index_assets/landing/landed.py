"""What has landed: which catalogued files are complete in a folder, and the validated rows inside them.

A file is complete when its size is the catalog's. Folders are listed with one call, so that an object store sees one request and not
one a file. Rows are read through a stream, never a memory map: a file that shrinks while it is read is an error, not a dead process.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from upath import UPath

from paired_index_assets.errors import BadInput, MissingInput
from paired_index_assets.files.listing import ListedFile, entry_at, list_entries
from paired_index_assets.files.npy import HEAD_BYTES, header_of
from paired_index_assets.files.storage import CHUNK_BYTES, as_path, digest_of_parts, is_local
from paired_index_assets.landing.catalog import Catalog, CatalogFile
from paired_index_assets.landing.origin import is_origin, name_of_origin, read_origin
from paired_index_assets.rows import NORM_TOLERANCE, Bool, Int64, squared_norms, usable_squares

BLOCK_ROWS = 1 << 16
SAMPLE_BYTES = 1 << 16  # asked of an object store for one row of a sample
# vectors normalised in half precision (LAION's) are off by about 1e-3; ten times that is another kind of vector


@dataclass(frozen=True)
class LandedFile:
    """A file that is there. `stamp` changes when its content does (files.stamp)."""

    name: str
    path: UPath
    size: int
    stamp: str
    lossy: bool = False  # rebuilt from a compressed index, see reconstruct.py
    outcomes: bool = False  # each row has an outcome: those that are zero were refused, named and counted where they were made


Listing = dict[str, LandedFile]


def list_folder(folder: UPath | Path | str) -> Listing:
    """Every file directly in `folder` by name, from one listing call; empty if there is no such folder."""
    place = as_path(folder)
    try:
        entries = list_entries(place)
    except FileNotFoundError:
        return {}
    described = {name_of_origin(entry.name) for entry in entries if is_origin(entry.name)} if is_local(place) else set()
    return {
        entry.name: _landed(place / entry.name, entry, lossy=entry.name in described and _is_lossy(place / entry.name))
        for entry in entries
        if not entry.name.startswith(".")
    }


def landed_file(path: UPath | Path | str) -> LandedFile:
    """One file that is there. Raises FileNotFoundError."""
    place = as_path(path)
    return _landed(place, entry_at(place), lossy=is_local(place) and _is_lossy(place))


def first_complete(listings: Iterable[Listing], catalog: Catalog) -> Listing:
    """One listing out of several folders': for each catalogued name the first complete file; incomplete files are left out."""
    chosen: Listing = {}
    for listing in listings:
        for name, landed in listing.items():
            if name not in chosen and is_complete(landed, catalog):
                chosen[name] = landed
    return chosen


def is_complete(landed: LandedFile, catalog: Catalog) -> bool:
    slices = catalog.by_name.get(landed.name)
    return slices is not None and landed.size == slices[0].bytes


def landed_by_shard(listing: Listing, catalog: Catalog) -> dict[int, list[LandedFile]]:
    """Complete files of every shard that has any, in catalog order. A file cut in slices is in each of its shards."""
    shards: dict[int, list[LandedFile]] = {}
    for file in catalog:
        landed = listing.get(file.name)
        if landed is not None and landed.size == file.bytes:
            shards.setdefault(file.shard, []).append(landed)
    return shards


def complete_shards(listing: Listing, catalog: Catalog) -> list[int]:
    """The shards all of whose files are complete."""
    landed = landed_by_shard(listing, catalog)
    return [shard for shard in range(catalog.shards) if len(landed.get(shard, ())) == len(catalog.files(shard))]


def version_of(files: Iterable[LandedFile]) -> str:
    """A short digest over names, sizes and stamps, whatever the order of `files`."""
    parts = sorted((file.name, str(file.size), file.stamp) for file in files)
    return digest_of_parts(*(part for three in parts for part in three))[:16]


@dataclass(frozen=True)
class LandedBlock:
    """Consecutive rows of a catalogued file.

    `vectors` (n, d) in the file's dtype; `valid` (n,) is False for rows that must not be searchable (`rows.usable_rows`): not finite, or zero.
    """

    start_row: int  # global id of the first row
    vectors: npt.NDArray[Any]
    valid: Bool
    not_finite: int
    zero: int
    off_norm: int  # valid rows whose norm is not within NORM_TOLERANCE of 1


def read_blocks(file: CatalogFile, path: UPath | Path | str, *, block_rows: int = BLOCK_ROWS) -> Iterator[LandedBlock]:
    """The rows of `file` in order, `block_rows` at a time.

    Raises MissingInput if there is no file, BadInput naming it if its size, header, dtype or width are not the catalog's, or if it
    ends early.
    """
    place = as_path(path)
    with _missing_named(file, place), place.open("rb") as stream:
        _seek_first_row(file, stream, str(place))
        for at in range(0, file.rows, block_rows):
            count = min(block_rows, file.rows - at)
            data = stream.read(count * file.row_bytes)
            if len(data) != count * file.row_bytes:
                raise BadInput(f"{place}: ended inside row {file.offset + at + len(data) // file.row_bytes}; it changed while it was read")
            vectors = np.frombuffer(data, dtype=file.dtype).reshape(count, file.dimensions)
            yield inspect_rows(vectors, file.start_row + at)


def digest_of_rows(file: CatalogFile, path: UPath | Path | str) -> str:
    """The sha256 of the rows of `file` as they lie in it. Raises as read_blocks does."""
    place, left, sha = as_path(path), file.rows * file.row_bytes, hashlib.sha256()
    with _missing_named(file, place), place.open("rb") as stream:
        _seek_first_row(file, stream, str(place))
        while left and (data := stream.read(min(left, CHUNK_BYTES))):
            sha.update(data)
            left -= len(data)
    if left:
        raise BadInput(f"{place}: ended {left} bytes early; it changed while it was read")
    return sha.hexdigest()


def read_block(file: CatalogFile, path: UPath | Path | str) -> LandedBlock:
    """All rows of `file` at once (file.rows x file.dimensions in memory); see read_blocks."""
    (block,) = read_blocks(file, path, block_rows=file.rows)
    return block


def read_rows(file: CatalogFile, path: UPath | Path | str, rows: Int64) -> npt.NDArray[Any]:
    """(n, dimensions) some rows of `file`, ascending numbers inside its slice; raises as read_blocks. For a sample: one read a row."""
    place = as_path(path)
    try:
        stream = place.open("rb") if is_local(place) else place.fs.open(place.path, "rb", block_size=SAMPLE_BYTES)
    except FileNotFoundError as error:
        raise MissingInput(f"{place}: no such file; it should hold rows {file.start_row} to {file.stop_row - 1}") from error
    with stream:
        _seek_first_row(file, stream, str(place))
        start, out = stream.tell(), np.empty((len(rows), file.dimensions), file.dtype)
        for number, row in enumerate(rows):
            stream.seek(start + int(row) * file.row_bytes)
            data = stream.read(file.row_bytes)
            if len(data) != file.row_bytes:
                raise BadInput(f"{place}: ended inside row {file.offset + int(row)}; it changed while it was read")
            out[number] = np.frombuffer(data, file.dtype)
    return out


def check_file(file: CatalogFile, path: UPath | Path | str) -> None:
    """Hold size and header against the catalog; raises as read_blocks does, without reading rows."""
    place = as_path(path)
    with _missing_named(file, place), place.open("rb") as stream:
        _seek_first_row(file, stream, str(place))


def inspect_rows(vectors: npt.NDArray[Any], start_row: int = 0) -> LandedBlock:
    """Find the rows that cannot be searched. vectors (n, d) float16 or float32."""
    squares = squared_norms(vectors)
    valid = usable_squares(squares)
    with np.errstate(invalid="ignore"):
        off = valid & ~(np.abs(np.sqrt(squares) - 1) <= NORM_TOLERANCE)
        zero = ~valid & (squares <= 1)
    return LandedBlock(start_row, vectors, valid, int((~valid & ~zero).sum()), int(zero.sum()), int(off.sum()))


@contextmanager
def _missing_named(file: CatalogFile, place: UPath) -> Iterator[None]:
    """One line for a file that was never there, or that a store or a network file system loses while it is read."""
    try:
        yield
    except FileNotFoundError as error:
        raise MissingInput(f"{place}: no such file; it should hold rows {file.start_row} to {file.stop_row - 1}") from error


def _seek_first_row(file: CatalogFile, stream: BinaryIO, name: str) -> None:
    size = stream.seek(0, 2)
    stream.seek(0)
    header = header_of(stream.read(HEAD_BYTES), name)
    if (header.dtype.str, header.dimensions) != (file.dtype, file.dimensions):
        raise BadInput(
            f"{name}: rows of {header.dimensions} x {header.dtype.str}; the catalog expects {file.dimensions} x {file.dtype}. "
            "Replace the file, or scan a new catalog"
        )
    if size != file.bytes or header.file_bytes != size:
        raise BadInput(
            f"{name}: {size} bytes and a header that promises {header.file_bytes}; the catalog expects {file.bytes}. "
            "Copy or download it again"
        )
    if header.rows < file.offset + file.rows:
        raise BadInput(f"{name}: {header.rows} rows; the catalog expects {file.offset + file.rows}. Scan a new catalog")
    stream.seek(header.header_bytes + file.offset * file.row_bytes)


def _landed(path: UPath, entry: ListedFile, *, lossy: bool) -> LandedFile:
    return LandedFile(entry.name, path, entry.size, entry.stamp, lossy)


def _is_lossy(path: UPath) -> bool:
    origin = read_origin(Path(path.path))
    return origin is not None and origin.lossy
