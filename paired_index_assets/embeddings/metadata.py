"""The Parquet beside each part: key, caption and outcome of every row, then the source's own columns. This module owns its format."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from upath import UPath

from paired_index_assets.embeddings.sets import EmbeddingSet
from paired_index_assets.errors import BadInput
from paired_index_assets.files.npy import read_header
from paired_index_assets.files.storage import read_parquet
from paired_index_assets.readers.sample import Sample, name_of

BASE = pa.schema([("key", pa.string()), ("caption", pa.string()), ("outcome", pa.string())])
FINGERPRINT = b"paired_index.fingerprint"
FLUSH_ROWS = 10_000  # rows held in memory, and of one row group


class MetadataWriter:
    """Rows in, one Parquet out; it says what the part was made from (`fingerprint`)."""

    def __init__(self, path: Path, columns: pa.Schema, fingerprint: str) -> None:
        self._schema = pa.schema([*BASE, *columns]).with_metadata({FINGERPRINT: fingerprint.encode()})
        self._writer = pq.ParquetWriter(path, self._schema)
        self._rows: list[dict[str, Any]] = []

    def append(self, samples: Sequence[Sample], outcomes: Sequence[str]) -> None:
        for sample, outcome in zip(samples, outcomes, strict=True):
            self._rows.append({**sample.columns, "key": sample.key, "caption": sample.caption, "outcome": outcome})
        while len(self._rows) >= FLUSH_ROWS:
            self._write(FLUSH_ROWS)

    def _write(self, rows: int) -> None:
        self._writer.write_table(pa.Table.from_pylist(self._rows[:rows], self._schema))
        del self._rows[:rows]

    def __enter__(self) -> MetadataWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None and self._rows:
            self._write(len(self._rows))
        self._writer.close()


def finished_outcomes(vectors: UPath, metadata: UPath, fingerprint: str) -> Counter[str] | None:
    """How many rows of a finished part have which outcome; None if the part is not complete or was made from something else."""
    if not (vectors.exists() and metadata.exists()):
        return None
    try:
        table = read_parquet(metadata, ["outcome"])
        if (table.schema.metadata or {}).get(FINGERPRINT) != fingerprint.encode():
            return None
        found = _counts(table)
        return found if read_header(vectors).rows == found.total() else None
    except (pa.ArrowException, BadInput, OSError):
        return None  # damaged: it will be made again


def read_metadata(embeddings: EmbeddingSet, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """The metadata part by part, in row order."""
    for part in embeddings.parts:
        if part.metadata is not None:
            yield read_parquet(part.metadata, columns)


def _counts(table: pa.Table) -> Counter[str]:
    found: Counter[str] = Counter()
    for counted in table["outcome"].value_counts():
        found[name_of(str(counted["values"]))] += int(counted["counts"].as_py())
    return found
