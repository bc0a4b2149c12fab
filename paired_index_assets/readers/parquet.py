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
from paired_index_assets.readers.sample import HeldImage, ImageFile, ModalityName, Sample, SourcePart, cut, located, stamp_of_pieces

# Tried in this order.
KNOWN_COLUMNS = {
    "image": (
        "image",
        "jpg",
        "jpeg",
        "png",
        "webp",
        "img",
        "image_bytes",
        "bytes",
        "image_path",
        "path",
        "file",
        "filename",
        "filepath",
        "file_name",
    ),
    "caption": ("caption", "text", "TEXT", "txt", "prompt", "alt"),
    "key": ("key", "__key__", "id", "uid", "row_id", "image_path", "name"),
}
RESERVED = ("key", "caption", "outcome")  # the metadata's own columns
BATCH_ROWS = 1024
IMAGE_BATCH_ROWS = 64  # pictures of megabytes each must not be held by the thousand


class ParquetSource:
    """Rows of one or many Parquet files. The scalar columns that all of them have alike are kept for the metadata."""

    def __init__(self, name: str, files: list[ListedFile]) -> None:
        self.name = name
        self._counts: list[tuple[ListedFile, int]] = []
        opened = [(file, *_opened(file)) for file in files]
        if not opened:
            raise MissingInput(f"{name}: expected Parquet files, found none")
        self._counts += [(file, rows) for file, _, rows in opened]
        # A part without rows, as Spark writes them, says nothing about the others.
        schemas = [(file, schema) for file, schema, rows in opened if rows] or [opened[0][:2]]
        self._image = _column(schemas, "image", _holds_image)
        self._caption = _column(schemas, "caption", _holds_text)
        self._key = _column(schemas, "key", _is_scalar)
        roles: dict[ModalityName, str | None] = {"images": self._image, "captions": self._caption}
        self.has: frozenset[ModalityName] = frozenset(modality for modality, column in roles.items() if column)
        taken = {self._image, self._caption, *RESERVED}
        kept = [field for field in schemas[0][1] if field.name not in taken and _is_scalar(field.type)]
        # Only what all files have alike can be a column of the metadata; a column that is not used may be of any type, or missing.
        others = [schema for _, schema in schemas[1:]]
        alike = [field for field in kept if all(_same(field, other) for other in others)]
        self.columns = pa.schema([(field.name, pa.string() if pa.types.is_temporal(field.type) else field.type) for field in alike])
        self._by_path = self._image is not None and all(_holds_text(schema.field(self._image).type) for _, schema in schemas)

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
                for row in _rows(batch):
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
    with damage_named(file.url), as_path(file.url).open("rb") as stream, pq.ParquetFile(stream) as parquet:
        return parquet.schema_arrow.remove_metadata(), parquet.metadata.num_rows


@contextmanager
def damage_named(name: str) -> Iterator[None]:
    """Whatever Arrow says of a file it cannot read, as BadInput in one line."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk or the network, not the file: Arrow raises OSError without number for damaged pages
        raise BadInput(f"{name}: expected a Parquet file, found one that cannot be read ({' '.join(str(error).split())[:160]})") from error


def _batches(file: ListedFile, start: int, stop: int, columns: list[str], batch_rows: int) -> Iterator[pa.RecordBatch]:
    """Rows start..stop of one file: row groups before them are skipped unread."""
    with damage_named(file.url), as_path(file.url).open("rb") as stream, pq.ParquetFile(stream) as parquet:
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


def _rows(batch: pa.RecordBatch) -> Iterator[dict[str, Any]]:
    columns = [_values(column) for column in batch.columns]
    for values in zip(*columns, strict=True) if columns else [()] * batch.num_rows:
        yield dict(zip(batch.schema.names, values, strict=True))


def _values(column: pa.Array) -> list[Any]:
    if pa.types.is_temporal(column.type):
        column = column.cast(pa.string())  # a date that Python has not stays one
    try:
        return list(column.to_pylist())
    except (ValueError, OverflowError):  # one of them is no UTF-8
        return [_value(scalar) for scalar in column]


def _value(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        return scalar.as_buffer().to_pybytes().decode("utf-8", "replace") if hasattr(scalar, "as_buffer") else None
    except (ValueError, OverflowError):
        return None


def _column(schemas: list[tuple[ListedFile, pa.Schema]], role: str, fits: Callable[[pa.DataType], bool]) -> str | None:
    """The first known name whose column fits `role` in every file, or is null throughout.

    Raises BadInput naming a file where the pictures or captions that others have do not fit.
    """
    for name in KNOWN_COLUMNS[role]:
        types = [(file, schema.field(name).type if name in schema.names else None) for file, schema in schemas]
        fitting = [(file, kind) for file, kind in types if kind is not None and fits(kind)]
        others = [(file, kind) for file, kind in types if kind is None or not (fits(kind) or pa.types.is_null(kind))]
        if fitting and not others:
            return name
        if fitting and role != "key":
            (like, wanted), (file, found) = fitting[0], others[0]
            raise BadInput(f"{file.url}: expected column {name!r} of {wanted} as in {like.url}, found {found or 'no such column'}")
    return None


def _same(field: pa.Field, schema: pa.Schema) -> bool:
    return field.name in schema.names and schema.field(field.name).type == field.type


def _holds_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _holds_text(kind.value_type)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(
        pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind) or pa.types.is_binary_view(kind)
    )


def _holds_image(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(kind.field(i).name == "bytes" and _is_bytes(kind.field(i).type) for i in range(kind.num_fields))
    return _is_bytes(kind) or _holds_text(kind)


def _is_scalar(kind: pa.DataType) -> bool:
    """What a column of the metadata, or a key, can be made of."""
    plain = pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    dates = pa.types.is_date(kind) or pa.types.is_timestamp(kind) or pa.types.is_time(kind)
    return plain or dates or (_holds_text(kind) and not pa.types.is_dictionary(kind))
