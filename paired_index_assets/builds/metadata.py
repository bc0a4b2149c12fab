"""id -> row of the metadata Parquet files, reading only the row groups and columns that hold it.

Row r of a file describes the global id ``start + r``. Which row group that is, the footer's row counts say; its wanted columns are read
once and kept while they are in use. A row group too large to keep is read in batches up to the last wanted row. A file that is held
(files.held) answers as it was, also when another has its name.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from upath import UPath

from paired_index_assets.embeddings.sets import EmbeddingSet
from paired_index_assets.errors import BadInput, MissingInput
from paired_index_assets.files.held import HeldFile
from paired_index_assets.files.listing import list_files
from paired_index_assets.files.storage import as_path
from paired_index_assets.landing.catalog import Catalog
from paired_index_assets.layout import BuildRoot
from paired_index_assets.readers.members import PLACE_COLUMNS

KEPT_BYTES = 128 << 20  # of decoded row groups
BATCH_ROWS = 8192
VECTORS, METADATA = "img_emb", "metadata"  # clip-retrieval's and LAION's names for the two siblings

Row = dict[str, Any]


@dataclass(frozen=True)
class MetadataFile:
    """A Parquet file whose row 0 describes the global id `start`; `held` where it is to stay as it is."""

    url: str
    start: int
    rows: int
    held: HeldFile | None = None

    def open(self) -> BinaryIO:
        """Raises FileNotFoundError."""
        return as_path(self.url).open("rb") if self.held is None else self.held.open()


class Metadata:
    """Rows by global id. Safe to use from many threads."""

    def __init__(self, files: Sequence[MetadataFile]) -> None:
        self._files = sorted(files, key=lambda file: file.start)
        self._starts = [file.start for file in self._files]
        self._footers: dict[MetadataFile, tuple[pq.FileMetaData, pa.Schema]] = {}
        self._kept: OrderedDict[tuple[MetadataFile, int, tuple[str, ...]], pa.Table] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def files(self) -> tuple[MetadataFile, ...]:
        """In order of ids."""
        return tuple(self._files)

    @classmethod
    def in_order(cls, files: Sequence[str | Path | UPath], *, hold: bool = False) -> Metadata:
        """Files that follow each other: the first row of one has the id after the last row of the one before it."""
        found = cls([])
        start = 0
        for file in files:
            unplaced = MetadataFile(str(file), 0, 0, HeldFile(file) if hold else None)
            rows = found._footer(unplaced)[0].num_rows
            placed = replace(unplaced, start=start, rows=rows)
            found._footers[placed] = found._footers.pop(unplaced)
            found._add(placed)
            start += rows
        return found

    @classmethod
    def beside(cls, folder: str | Path | UPath, catalog: Catalog, *, hold: bool = False) -> Metadata:
        """`metadata_NNNN.parquet` for the catalogued `img_emb_NNNN.npy`. Files that are not there leave their ids without a row."""
        place = as_path(folder)
        there = {path.name for path in place.iterdir()} if place.exists() else set()
        files = []
        for name, slices in catalog.by_name.items():
            sibling = name.replace(VECTORS, METADATA).removesuffix(".npy") + ".parquet"
            if sibling in there:
                url, start = str(place / sibling), slices[0].start_row - slices[0].offset
                files.append(MetadataFile(url, start, sum(part.rows for part in slices), HeldFile(url) if hold else None))
        return cls(files)

    def __len__(self) -> int:
        """Ids that have a row."""
        return sum(file.rows for file in self._files)

    @property
    def columns(self) -> list[str]:
        """The columns of the first file that are not bytes, nor of where a picture lies."""
        return [name for name, is_bytes in self._first_columns() if not is_bytes and name not in PLACE_COLUMNS.names]

    @property
    def bytes_columns(self) -> list[str]:
        """The others: of bytes, or structs (as datasets writes pictures)."""
        return [name for name, is_bytes in self._first_columns() if is_bytes]

    def rows(self, ids: Sequence[int], columns: Sequence[str] | None = None) -> list[Row | None]:
        """The row of each id, None for an id that no file describes. `columns` that a file lacks are left out; None means `columns`.

        Raises BadInput naming a file that is not Parquet or has other rows than it should.
        """
        wanted = self.columns if columns is None else list(columns)
        found: dict[int, Row] = {}
        for file, inside in self._by_file(sorted({int(i) for i in ids})):
            for group, first, offsets in self._by_group(file, inside):
                for offset, row in zip(offsets, self._read(file, group, offsets, wanted), strict=True):
                    found[file.start + first + offset] = row
        return [found.get(int(i)) for i in ids]

    def _first_columns(self) -> list[tuple[str, bool]]:
        schema = self._footer(self._files[0])[1] if self._files else []
        return [(field.name, _is_bytes(field.type)) for field in schema]

    def _add(self, file: MetadataFile) -> None:
        self._files.append(file)
        self._starts.append(file.start)

    def _by_file(self, ids: list[int]) -> Iterator[tuple[MetadataFile, list[int]]]:
        inside: dict[int, list[int]] = {}
        for row_id in ids:
            at = bisect_right(self._starts, row_id) - 1
            if at >= 0 and row_id < self._files[at].start + self._files[at].rows:
                inside.setdefault(at, []).append(row_id - self._files[at].start)
        for at, rows in inside.items():
            yield self._files[at], rows

    def _by_group(self, file: MetadataFile, rows: list[int]) -> Iterator[tuple[int, int, list[int]]]:
        """(row group, its first row, wanted rows counted from there)."""
        footer = self._footer(file)[0]
        if footer.num_rows != file.rows:
            raise BadInput(f"{file.url}: expected {file.rows} rows, found {footer.num_rows}; it is not the metadata of these embeddings")
        firsts = np.cumsum([0] + [footer.row_group(g).num_rows for g in range(footer.num_row_groups)])
        groups = np.searchsorted(firsts, rows, side="right") - 1
        for group in np.unique(groups):
            first = int(firsts[group])
            yield int(group), first, [row - first for row, g in zip(rows, groups, strict=True) if g == group]

    def _read(self, file: MetadataFile, group: int, offsets: list[int], columns: list[str]) -> list[Row]:
        footer, schema = self._footer(file)
        columns = [name for name in columns if name in schema.names]
        if not columns:
            return [{} for _ in offsets]
        key = (file, group, tuple(columns))
        with self._lock:
            table = self._kept.get(key)
            if table is not None:
                self._kept.move_to_end(key)
        if table is None:
            size = sum(_column_bytes(footer.row_group(group), name) for name in columns)
            table = self._load(file, group, columns, None if size <= KEPT_BYTES // 4 else offsets)
            if size > KEPT_BYTES // 4:
                return [dict(row) for row in table.to_pylist()]
            self._keep(key, table)
        return [dict(row) for row in table.take(pa.array(offsets)).to_pylist()]

    def _load(self, file: MetadataFile, group: int, columns: list[str], only: list[int] | None) -> pa.Table:
        """The row group's columns, or the rows `only` (ascending) of it."""
        with _named(file.url), file.open() as stream, pq.ParquetFile(stream, metadata=self._footer(file)[0], pre_buffer=False) as parquet:
            if only is None:
                return parquet.read_row_group(group, columns=columns)
            parts, first, left = [], 0, list(only)
            for batch in parquet.iter_batches(BATCH_ROWS, row_groups=[group], columns=columns):
                inside = [row - first for row in left if row < first + batch.num_rows]
                parts.append(batch.take(pa.array(inside, pa.int64())))
                left, first = left[len(inside) :], first + batch.num_rows
                if not left:
                    break
            return pa.Table.from_batches(parts)

    def _keep(self, key: tuple[MetadataFile, int, tuple[str, ...]], table: pa.Table) -> None:
        with self._lock:
            self._kept[key] = table
            while len(self._kept) > 1 and sum(kept.nbytes for kept in self._kept.values()) > KEPT_BYTES:
                self._kept.popitem(last=False)

    def _footer(self, file: MetadataFile) -> tuple[pq.FileMetaData, pa.Schema]:
        if file not in self._footers:
            with _named(file.url), file.open() as stream, pq.ParquetFile(stream, pre_buffer=False) as parquet:
                self._footers[file] = parquet.metadata, parquet.schema_arrow
        return self._footers[file]


def metadata_of(
    build: BuildRoot, texts: str | None = None, catalog: Catalog | None = None, *, landing: str | None = None
) -> Metadata | None:
    """What describes the rows of a build: the metadata written with its image embeddings, if these are what it indexed; else `texts`,
    a Parquet whose row i describes id i (or what the build kept of captions in another format), or a folder of `metadata_NNNN.parquet`
    for the catalogued files; else such a folder `metadata` beside the folder `landing`, as LAION lays them out; else None. `catalog` is the
    build's, unless it is given.

    Texts of another number of rows than the catalog's are of a sample that was trained on: they describe none of its ids.
    """
    if catalog is None and build.catalog.exists():
        catalog = Catalog.load(build.catalog)
    if build.image_set.exists():
        images = EmbeddingSet.open(build.image_set)
        parts = [(name, part.rows) for name, part in zip(images.names, images.parts, strict=True)]
        indexed = None if catalog is None else [(name, sum(part.rows for part in cuts)) for name, cuts in catalog.by_name.items()]
        files = [part.metadata for part in images.parts if part.metadata is not None]
        if len(files) == len(parts) and indexed in (None, parts):
            return Metadata.in_order(files)
    if texts is not None and catalog is not None and as_path(texts).is_dir():
        return Metadata.beside(texts, catalog)
    if texts is not None and (given := _of_texts(build, texts)) is not None and (catalog is None or len(given) == catalog.total_rows):
        return given
    if landing is not None and catalog is not None:
        beside = Metadata.beside(as_path(landing).parent / METADATA, catalog)
        return beside if len(beside) else None
    return None


def _of_texts(build: BuildRoot, texts: str) -> Metadata | None:
    described = [file.url for file in list_files(texts) if file.suffix == ".parquet"]
    if not described and build.caption_texts.exists():
        described = [str(build.caption_texts)]
    return Metadata.in_order(described) if described else None


class _named:
    """Whatever Arrow or a file system says becomes one line that names the file."""

    def __init__(self, url: str) -> None:
        self._url = url

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, FileNotFoundError):
            raise MissingInput(f"{self._url}: no such file, but ids point into it") from error
        if isinstance(error, pa.ArrowException | OSError):
            raise BadInput(f"{self._url}: expected a Parquet file, found {' '.join(str(error).split())[:200]}") from error


def _column_bytes(group: pq.RowGroupMetaData, name: str) -> int:
    chunks = (group.column(i) for i in range(group.num_columns))
    return sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema.split(".")[0] == name)


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_struct(kind))
