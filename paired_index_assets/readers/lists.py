"""Lists of pictures and captions: CSV, TSV, JSON lines (Hugging Face's ``metadata.jsonl`` among them) and JSON arrays of objects.

Every value is text: a caption "007" stays one. A line that cannot be read is a row that says so. Paths start at the list's folder.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice
from typing import Any, TextIO

import pyarrow as pa

from paired_index_assets.errors import BadInput
from paired_index_assets.files.listing import ListedFile
from paired_index_assets.files.storage import as_path
from paired_index_assets.readers.captions import MARK_BYTES, encoding_of, whole
from paired_index_assets.readers.parquet import KNOWN_COLUMNS, RESERVED
from paired_index_assets.readers.sample import ImageFile, ModalityName, Sample, SourcePart, cut, located, stamp_of_pieces

LIST_SUFFIXES = frozenset({".csv", ".tsv", ".jsonl", ".ndjson", ".json"})
BATCH_ROWS = 10_000
BROKEN_LINE = "line that cannot be read"
MAX_FIELD = 1 << 24  # characters: Python's csv takes 128 k, which a long caption passes
NAMES_FROM = 1000  # lines of JSON that say which columns there are
PROBLEM = "\0problem"  # a column that no list can have

Row = dict[str, str | None]


class ListSource:
    """Rows of one or many lists; held in memory as Arrow text. All columns but the picture's and the caption's go to the metadata."""

    def __init__(self, name: str, files: list[ListedFile]) -> None:
        self.name = name
        self._tables = [(file, _table(file)) for file in files]
        found = [column for _, table in self._tables for column in table.column_names if column != PROBLEM]
        self._image = next((column for column in KNOWN_COLUMNS["image"] if column in found), None)
        self._caption = next((column for column in KNOWN_COLUMNS["caption"] if column in found), None)
        if self._image is None and self._caption is None:
            raise BadInput(
                f"{files[0].url}: expected a column of pictures ({', '.join(KNOWN_COLUMNS['image'][:1])}, image_path, file_name, ...) or of "
                f"captions (caption, text, ...), found {', '.join(dict.fromkeys(found)) or 'none'}; name them in the first line"
            )
        self._key = next((column for column in KNOWN_COLUMNS["key"] if column in found), None)
        roles: dict[ModalityName, str | None] = {"images": self._image, "captions": self._caption}
        self.has: frozenset[ModalityName] = frozenset(modality for modality, column in roles.items() if column)
        taken = {self._image, self._caption, *RESERVED}
        self.columns = pa.schema([(column, pa.string()) for column in dict.fromkeys(found) if column not in taken])

    def parts(self, part_rows: int) -> list[SourcePart]:
        roles = f"{self._image} {self._caption} {self._key}"
        tables = {file.url: table for file, table in self._tables}
        return [
            SourcePart(
                sum(b - a for _, a, b in part),
                stamp_of_pieces(part, roles),
                partial(self._read, [(file, tables[file.url].slice(a, b - a), a) for file, a, b in part]),
            )
            for part in cut([(file, table.num_rows) for file, table in self._tables], part_rows)
        ]

    def _read(self, pieces: list[tuple[ListedFile, pa.Table, int]], images: bool) -> Iterator[Sample]:
        for file, table, first in pieces:
            folder = str(as_path(file.url).parent)
            number = first
            for batch in table.to_batches(BATCH_ROWS):
                for row in batch.to_pylist():
                    yield self._sample(row, f"{file.name}:{number}", folder)
                    number += 1

    def _sample(self, row: Row, fallback: str, folder: str) -> Sample:
        path = (row.get(self._image) or "").strip() if self._image else ""
        return Sample(
            (row.get(self._key) if self._key else None) or fallback,
            ImageFile(located(path, folder)) if path else None,
            row.get(self._caption) if self._caption else None,
            {column: row.get(column) for column in self.columns.names},
            row.get(PROBLEM),
        )


def _table(file: ListedFile) -> pa.Table:
    with as_path(file.url).open("rb") as raw:
        head = raw.read(2)
        raw.seek(0)
        stream: Any = gzip.GzipFile(fileobj=raw) if head == b"\x1f\x8b" else raw
        try:
            encoding, mark = encoding_of(stream.read(MARK_BYTES))
            stream.seek(mark)
            text = io.TextIOWrapper(stream, encoding, errors="replace", newline="")
            names, rows = (_separated if _kind(file) in (".csv", ".tsv") else _objects)(file, text)
            batches = []
            while some := list(islice(rows, BATCH_ROWS)):
                batches.append(pa.RecordBatch.from_pylist(some, _schema(names)))
            text.detach()
        except (EOFError, gzip.BadGzipFile) as error:
            raise BadInput(f"{file.url}: expected a list compressed by gzip, found one that is damaged ({error})") from error
    return pa.Table.from_batches(batches, _schema(names))


def _kind(file: ListedFile) -> str:
    name = file.name.lower().removesuffix(".gz")
    return name[name.rindex(".") :]


def _schema(names: Iterable[str]) -> pa.Schema:
    return pa.schema([(name, pa.string()) for name in (*names, PROBLEM)])


def _separated(file: ListedFile, text: TextIO) -> tuple[list[str], Iterator[Row]]:
    csv.field_size_limit(MAX_FIELD)
    first = text.readline()
    separator = (
        "\t" if _kind(file) == ".tsv" or first.count("\t") > first.count(",") else ";" if first.count(";") > first.count(",") else ","
    )
    names = [whole(name.strip()) for name in next(csv.reader([first], delimiter=separator), [])]
    quotes = separator != "\t" or '"' in first  # captions in a TSV hold lone quotes

    def rows() -> Iterator[Row]:
        reader = csv.reader(text, delimiter=separator, quoting=csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE)
        while True:
            try:
                values = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield {PROBLEM: f"{BROKEN_LINE}: line {reader.line_num + 1} ({error})"}
                continue
            if len(values) != len(names):
                if values:  # an empty line is none
                    yield {PROBLEM: f"{BROKEN_LINE}: {len(values)} values for {len(names)} columns in line {reader.line_num + 1}"}
                continue
            yield {name: whole(value) for name, value in zip(names, values, strict=True)}

    return list(dict.fromkeys(names)), rows()


def _objects(file: ListedFile, text: TextIO) -> tuple[list[str], Iterator[Row]]:
    rows = _json_array(file, text) if _kind(file) == ".json" else _json_lines(text)
    first = list(islice(rows, NAMES_FROM))
    names = list(dict.fromkeys(name for row in first for name in row if name != PROBLEM))
    return names, iter([*first, *rows])


def _json_lines(text: TextIO) -> Iterator[Row]:
    for number, line in enumerate(text, 1):
        if line.strip():
            try:
                yield _texts(json.loads(line))
            except (ValueError, RecursionError) as error:
                yield {PROBLEM: f"{BROKEN_LINE}: line {number} ({str(error)[:80]})"}


def _json_array(file: ListedFile, text: TextIO) -> Iterator[Row]:
    try:
        found = json.load(text)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{file.url}: expected a JSON array of objects, found something else ({str(error)[:80]})") from error
    if not isinstance(found, list):
        raise BadInput(f"{file.url}: expected a JSON array of objects, one a picture, found {type(found).__name__}; write it as JSON lines")
    for number, value in enumerate(found):
        try:
            yield _texts(value)
        except ValueError as error:
            yield {PROBLEM: f"{BROKEN_LINE}: object {number} ({error})"}


def _texts(found: Any) -> Row:
    if not isinstance(found, dict):
        raise ValueError(f"expected an object, found {type(found).__name__}")
    scalars = {name: value for name, value in found.items() if not isinstance(value, dict | list)}
    return {whole(name): None if value is None else whole(str(value)) for name, value in scalars.items()}
