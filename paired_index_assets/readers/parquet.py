"""Parquet with pictures as bytes (a binary column, or a struct with `bytes` as datasets writes it) or as paths, and captions as text."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from paired_index_assets.errors import BadInput, MissingInput
from paired_index_assets.files.listing import ListedFile
from paired_index_assets.files.storage import as_path
from paired_index_assets.readers.sample import HeldImage, ImageFile, Modality, Sample, SourcePart, cut, located, stamp_of_pieces

# Tried in this order.
KNOWN_COLUMNS = {
    "image": ("image", "jpg", "jpeg", "png", "webp", "img", "image_bytes", "bytes", "image_path", "path", "file", "filename", "filepath"),
    "caption": ("caption", "text", "TEXT", "txt", "prompt", "alt"),
    "key": ("key", "__key__", "id", "uid", "row_id", "image_path", "name"),
}
RESERVED = ("key", "caption", "outcome")  # the metadata's own columns
BATCH_ROWS = 1024
IMAGE_BATCH_ROWS = 64  # pictures of megabytes each must not be held by the thousand


class ParquetSource:
    """Rows of one or many Parquet files of one schema. All scalar columns but the picture's are kept for the metadata."""

    def __init__(self, name: str, files: list[ListedFile]) -> None:
        self.name = name
        self._counts: list[tuple[ListedFile, int]] = []
        schema: pa.Schema | None = None
        for file in files:
            found, rows = _opened(file)
            schema = found if schema is None else schema
            for field in schema:
                if field.name not in found.names or found.field(field.name).type != field.type:
                    other = found.field(field.name).type if field.name in found.names else "no such column"
                    raise BadInput(f"{file.url}: expected column {field.name!r} of {field.type} as in {files[0].url}, found {other}")
            self._counts.append((file, rows))
        if schema is None:
            raise MissingInput(f"{name}: expected Parquet files, found none")
        self._image = _column(schema, "image", _holds_image)
        self._caption = _column(schema, "caption", _holds_text)
        self._key = _column(schema, "key", _is_scalar)
        roles: dict[Modality, str | None] = {"images": self._image, "captions": self._caption}
        self.has: frozenset[Modality] = frozenset(modality for modality, column in roles.items() if column)
        kept = [f for f in schema if f.name not in (self._image, self._caption) and f.name not in RESERVED and _is_scalar(f.type)]
        self.columns = pa.schema([pa.field(f.name, f.type) for f in kept])
        self._by_path = self._image is not None and _holds_text(schema.field(self._image).type)

    def parts(self, part_rows: int) -> list[SourcePart]:
        roles = f"{self._image} {self._caption} {self._key}"
        return [
            SourcePart(sum(b - a for _, a, b in part), stamp_of_pieces(part, roles), partial(self._read, part))
            for part in cut(self._counts, part_rows)
        ]

    def _read(self, pieces: list[tuple[ListedFile, int, int]], images: bool) -> Iterator[Sample]:
        needed = {c for c in (self._caption, self._key, self._image if images else None) if c} | set(self.columns.names)
        held = images and not self._by_path and self._image is not None
        for file, start, stop in pieces:
            folder = str(as_path(file.url).parent)
            number = start
            for batch in _batches(file, start, stop, sorted(needed), IMAGE_BATCH_ROWS if held else BATCH_ROWS):
                for row in batch.to_pylist():
                    yield self._sample(row, f"{file.name}:{number}", folder)
                    number += 1

    def _sample(self, row: dict[str, Any], fallback: str, folder: str) -> Sample:
        key = row.get(self._key) if self._key else None
        image: HeldImage | ImageFile | None = None
        content: Any = row.get(self._image) if self._image else None
        if isinstance(content, dict):
            content, path = content.get("bytes"), content.get("path")
            content = path if content is None else content
        if isinstance(content, str):
            image = ImageFile(located(content, folder)) if content else None
        elif content is not None:
            image = HeldImage(content)
        caption = row.get(self._caption) if self._caption else None
        return Sample(fallback if key is None else str(key), image, caption, {n: row[n] for n in self.columns.names})


def _opened(file: ListedFile) -> tuple[pa.Schema, int]:
    with _damage_named(file), as_path(file.url).open("rb") as stream, pq.ParquetFile(stream) as parquet:
        return parquet.schema_arrow.remove_metadata(), parquet.metadata.num_rows


@contextmanager
def _damage_named(file: ListedFile) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk or the network, not the file: Arrow raises OSError without number for damaged pages
        raise BadInput(f"{file.url}: expected a Parquet file, found one that can not be read ({str(error).strip()[:160]})") from error


def _batches(file: ListedFile, start: int, stop: int, columns: list[str], batch_rows: int) -> Iterator[pa.RecordBatch]:
    """Rows start..stop of one file: row groups before them are skipped unread."""
    with _damage_named(file), as_path(file.url).open("rb") as stream, pq.ParquetFile(stream) as parquet:
        first = 0
        for group in range(parquet.num_row_groups):
            rows = parquet.metadata.row_group(group).num_rows
            if first < stop and first + rows > start:
                at = first
                for batch in parquet.iter_batches(batch_rows, row_groups=[group], columns=columns):
                    a, b = max(start - at, 0), min(stop - at, batch.num_rows)
                    if a < b:
                        yield batch.slice(a, b - a)
                    at += batch.num_rows
                    if at >= stop:
                        break
            first += rows


def _column(schema: pa.Schema, role: str, fits: Callable[[pa.DataType], bool]) -> str | None:
    """The first of the known names of a role that is there, and holds such a thing."""
    return next((name for name in KNOWN_COLUMNS[role] if name in schema.names and fits(schema.field(name).type)), None)


def _holds_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _holds_image(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(kind.field(i).name == "bytes" and _is_bytes(kind.field(i).type) for i in range(kind.num_fields))
    return _is_bytes(kind) or _holds_text(kind)


def _is_scalar(kind: pa.DataType) -> bool:
    return not (pa.types.is_nested(kind) or _is_bytes(kind) or pa.types.is_dictionary(kind))
