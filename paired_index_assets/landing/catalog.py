"""The catalog: every embedding file there should be, its shard, its place in the global row numbering, its size.

The only module that names the catalog's columns. Global row ids are int64 and count all catalogued rows in file order, whether or not
a file is there: an id never depends on what has landed. A shard is a contiguous range of ids.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as csv
from upath import UPath

from paired_index_assets.errors import BadInput, DamagedArtifact, MissingInput
from paired_index_assets.files.npy import NpyHeader
from paired_index_assets.files.storage import as_path
from paired_index_assets.files.tables import read_table, write_table
from paired_index_assets.landing.scan import Piece, cut, deal, scan_headers
from paired_index_assets.progress import Progress, silent
from paired_index_assets.rows import Int64

DEFAULT_SHARDS = 58

# LAION-2B-en, ViT-L/14 image embeddings as published
LAION_DIMENSIONS = 768
LAION_DTYPE = "<f2"
LAION_HEADER_BYTES = 128
LAION_FILES_PER_SHARD = 40
LAION_ROWS_CSV = "laion2B-en_vit-l-14_rows.csv"
# absent from the server in May 2024 (github Chris210634/laion-index)
LAION_MISSING = (667, 904, 1055, 1357, 1438, 1552, 1559, 1615, 1640, 1668, 1689, 1798, 1865, 2044, 2129, 2261)

DATA_SET = b"paired_index.data_set"
CATALOG_SCHEMA = pa.schema(
    [
        pa.field("file_id", pa.int32(), nullable=False),  # position in the catalog
        pa.field("name", pa.string(), nullable=False),  # file name inside its folder
        pa.field("shard", pa.int32(), nullable=False),
        pa.field("start_row", pa.int64(), nullable=False),  # global id of the first row
        pa.field("rows", pa.int64(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),  # first row inside the .npy file: a big file may be cut in slices
        pa.field("dimensions", pa.int32(), nullable=False),
        pa.field("dtype", pa.string(), nullable=False),
        pa.field("bytes", pa.int64(), nullable=False),  # size of the whole .npy file
        pa.field("known_missing", pa.bool_(), nullable=False),
    ]
)


@dataclass(frozen=True)
class CatalogFile:
    """One row of the catalog: rows [offset, offset + rows) of the .npy file `name` are global ids [start_row, start_row + rows)."""

    file_id: int
    name: str
    shard: int
    start_row: int
    rows: int
    offset: int
    dimensions: int
    dtype: str
    bytes: int
    known_missing: bool = False

    @property
    def stop_row(self) -> int:
        return self.start_row + self.rows

    @property
    def row_bytes(self) -> int:
        return self.dimensions * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Catalog:
    """A checked table of CATALOG_SCHEMA, in order of global rows."""

    table: pa.Table

    def __post_init__(self) -> None:
        fault = _fault_of(self.table)
        if fault:
            raise BadInput(f"catalog: {fault}")

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __iter__(self) -> Iterator[CatalogFile]:
        return iter(self.all_files)

    @classmethod
    def of(cls, files: Sequence[CatalogFile]) -> Catalog:
        columns = {name: [getattr(file, name) for file in files] for name in CATALOG_SCHEMA.names}
        return cls(pa.table(columns, schema=CATALOG_SCHEMA))

    @property
    def data_set(self) -> str:
        """Names the rows that the ids mean, where a build says so: another name after rows moved (shards/removals.py)."""
        return ((self.table.schema.metadata or {}).get(DATA_SET) or b"").decode()

    def of_data_set(self, name: str) -> Catalog:
        return Catalog(self.table.replace_schema_metadata({DATA_SET: name.encode()}))

    @classmethod
    def load(cls, path: UPath | Path | str) -> Catalog:
        path = as_path(path)
        try:
            return cls(read_table(path, "make it again with `paired-index catalog scan`, or delete it and build again"))
        except FileNotFoundError as error:
            raise MissingInput(f"{path}: no such catalog; make one with `paired-index catalog scan`") from error
        except BadInput as error:
            raise DamagedArtifact(f"{path}: not a catalog ({error}); make it again with `paired-index catalog scan`") from error

    def save(self, path: UPath | Path | str) -> None:
        write_table(as_path(path), self.table)

    @classmethod
    def laion2b(cls) -> Catalog:
        """LAION-2B-en ViT-L/14: 2314 files, 58 shards, 2,170,337,258 rows."""
        with resources.files("paired_index_assets.landing").joinpath("data", LAION_ROWS_CSV).open("rb") as stream:
            rows = csv.read_csv(stream)["rows"].to_pylist()
        start, files = 0, []
        for file_id, count in enumerate(rows):
            size = LAION_HEADER_BYTES + count * LAION_DIMENSIONS * np.dtype(LAION_DTYPE).itemsize
            shard = file_id // LAION_FILES_PER_SHARD
            missing = file_id in LAION_MISSING
            name = f"img_emb_{file_id:04d}.npy"
            files.append(CatalogFile(file_id, name, shard, start, count, 0, LAION_DIMENSIONS, LAION_DTYPE, size, missing))
            start += count
        return cls.of(files)

    @classmethod
    def scan(
        cls, url: UPath | Path | str, *, shards: int = DEFAULT_SHARDS, names: str | Collection[str] = "*.npy", progress: Progress = silent
    ) -> Catalog:
        """The catalog of a folder of .npy files, or of one .npy file; only headers are read.

        Files are taken in natural order (part_2 before part_10) and dealt to the shards in contiguous runs: equal runs with a shorter
        last one where that fills every shard, else runs that differ by one file. With fewer files than shards the files are cut in row
        slices so that every shard has rows. Raises BadInput naming every file that cannot be used.
        """
        return cls.of_headers(scan_headers(url, names=names, progress=progress), shards, str(url))

    @classmethod
    def of_headers(cls, headers: Sequence[tuple[str, NpyHeader]], shards: int, source: str) -> Catalog:
        """The catalog of (name, header) of files in this order, dealt to shards as `scan` says; `source` names them in messages."""
        total = sum(header.rows for _, header in headers)
        if shards < 1:
            raise BadInput(f"shards: {shards}; expected at least 1")
        if total < shards:
            raise BadInput(f"{source}: {total} rows for {shards} shards; expected at least one row a shard. Ask for fewer shards")
        pieces = deal(headers, shards) if len(headers) >= shards else cut(headers, shards, total)
        return cls.of(_number(pieces, 0, 0))

    def extend(self, url: UPath | Path | str, *, names: str | Collection[str] = "*.npy", progress: Progress = silent) -> Catalog:
        """This catalog with the files of a folder that it does not know appended to its last shard; no earlier id moves.

        Raises BadInput if a known file now has another size (its rows would move later ids), or if a new one has another width.
        """
        known = {file.name: file for file in self.all_files}
        fresh = []
        for name, header in scan_headers(url, names=names, progress=progress):
            if name not in known:
                fresh.append(Piece(name, header, self.shards - 1, 0, header.rows))
            elif known[name].bytes != header.file_bytes:
                raise BadInput(
                    f"{name}: {header.file_bytes} bytes; the catalog has {known[name].bytes}. "
                    "A file with another number of rows would move later ids: restore it, or give the new rows a new file name"
                )
        for piece in fresh:
            if piece.header.dimensions != self.dimensions:
                raise BadInput(f"{piece.name}: {piece.header.dimensions} dimensions; the catalog has {self.dimensions}")
        return self.of([*self.all_files, *_number(fresh, len(self), self.total_rows)]).of_data_set(self.data_set) if fresh else self

    @cached_property
    def all_files(self) -> list[CatalogFile]:
        return [CatalogFile(**row) for row in self.table.to_pylist()]

    def files(self, shard: int) -> list[CatalogFile]:
        """The files (or slices of files) of a shard in order of global rows; a name occurs once."""
        if not 0 <= shard < self.shards:
            raise BadInput(f"shard {shard}: this catalog has shards 0 to {self.shards - 1}")
        return self._by_shard[shard]

    @cached_property
    def _by_shard(self) -> list[list[CatalogFile]]:
        runs: list[list[CatalogFile]] = [[] for _ in range(self.shards)]
        for file in self.all_files:
            runs[file.shard].append(file)
        return runs

    @cached_property
    def by_name(self) -> dict[str, list[CatalogFile]]:
        """File name -> its slices; one for a file that is not cut."""
        slices: dict[str, list[CatalogFile]] = {}
        for file in self.all_files:
            slices.setdefault(file.name, []).append(file)
        return slices

    @cached_property
    def rows(self) -> Int64:
        """(files,) rows of each catalog entry."""
        return np.asarray(self.table["rows"].to_numpy(), dtype=np.int64)

    @cached_property
    def start_rows(self) -> Int64:
        """(files,) global id of each entry's first row."""
        return np.asarray(self.table["start_row"].to_numpy(), dtype=np.int64)

    @cached_property
    def shards(self) -> int:
        return int(self.table["shard"][-1].as_py()) + 1

    @cached_property
    def total_rows(self) -> int:
        return int(self.rows.sum())

    @property
    def dimensions(self) -> int:
        return self.all_files[0].dimensions

    @property
    def missing(self) -> list[CatalogFile]:
        return [file for file in self.all_files if file.known_missing]

    def shard_range(self, shard: int) -> tuple[int, int]:
        """The global ids [first, stop) of a shard."""
        files = self.files(shard)
        return files[0].start_row, files[-1].stop_row

    def file_of(self, global_ids: Int64) -> tuple[Int64, Int64]:
        """For global ids (n,): file ids (n,) and row numbers inside those .npy files (n,), both int64."""
        ids = np.asarray(global_ids, dtype=np.int64)
        outside = (ids < 0) | (ids >= self.total_rows)
        if outside.any():
            raise BadInput(f"row id {ids[outside][0]}: this catalog has ids 0 to {self.total_rows - 1}")
        file_ids = np.searchsorted(self.start_rows, ids, side="right").astype(np.int64) - 1
        offsets = np.asarray(self.table["offset"].to_numpy(), dtype=np.int64)
        return file_ids, ids - self.start_rows[file_ids] + offsets[file_ids]


def _number(pieces: Sequence[Piece], first_id: int, first_row: int) -> list[CatalogFile]:
    files, row = [], first_row
    for file_id, piece in enumerate(pieces, start=first_id):
        header = piece.header
        files.append(
            CatalogFile(
                file_id, piece.name, piece.shard, row, piece.rows, piece.offset, header.dimensions, header.dtype.str, header.file_bytes
            )
        )
        row += piece.rows
    return files


def _fault_of(table: pa.Table) -> str | None:
    """What is wrong with a catalog table, or None."""
    if not table.schema.equals(CATALOG_SCHEMA):
        return f"columns {table.schema.to_string()!r}; expected {CATALOG_SCHEMA.to_string()!r}"
    if table.num_rows == 0:
        return "no files"
    column = {name: table[name].to_numpy() for name in CATALOG_SCHEMA.names if name not in ("name", "dtype", "known_missing")}
    if any(part.null_count for part in table.columns):
        return "it has null values"
    if (column["rows"] < 1).any() or (column["offset"] < 0).any():
        return "a file with no rows or a negative offset"
    if (column["file_id"] != np.arange(table.num_rows)).any():
        return "file ids are not 0, 1, 2, ..."
    if (column["start_row"] != np.cumsum(column["rows"]) - column["rows"]).any():
        return "start rows are not the sums of the rows before"
    steps = np.diff(column["shard"], prepend=0)
    if column["shard"][0] != 0 or ((steps != 0) & (steps != 1)).any():
        return "shards are not 0, 0, ..., 1, 1, ... without a gap"
    if (column["dimensions"] != column["dimensions"][0]).any():
        return "files of different dimensions"
    return None
