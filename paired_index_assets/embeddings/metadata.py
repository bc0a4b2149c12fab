"""The Parquet beside each part: key, caption and outcome of every row, then the source's own columns. This module owns its format."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from upath import UPath

from paired_index_assets.embeddings.fates import Fates
from paired_index_assets.embeddings.sets import EmbeddingSet
from paired_index_assets.errors import BadInput, DamagedArtifact, OutOfDisk, SourceUnavailable
from paired_index_assets.files.npy import read_header
from paired_index_assets.files.storage import digest_of_parts
from paired_index_assets.files.tables import CONTENT, DAMAGE, digest_of_table, read_parquet
from paired_index_assets.readers.sample import Sample

BASE = pa.schema([("key", pa.string()), ("caption", pa.string()), ("outcome", pa.string())])
FINGERPRINT = b"paired_index.fingerprint"
SKIPPED = b"paired_index.skipped"  # what the source held that is part of no sample: {"counts": {kind: n}, "first": [names]}
FLUSH_ROWS = 10_000  # rows held in memory, and of one row group


class MetadataWriter:
    """Rows in, one Parquet out; it says what the part was made from (`fingerprint`)."""

    def __init__(self, path: Path, columns: pa.Schema, fingerprint: str) -> None:
        self._schema = pa.schema([*BASE, *columns]).with_metadata({FINGERPRINT: fingerprint.encode()})
        self._writer = pq.ParquetWriter(path, self._schema, write_page_checksum=True)
        self._digests: list[str] = []
        self._rows: list[dict[str, Any]] = []
        self.fates = Fates()

    def append(self, samples: Sequence[Sample], outcomes: Sequence[str]) -> None:
        self.fates.add_rows((sample.key for sample in samples), outcomes)
        for sample, outcome in zip(samples, outcomes, strict=True):
            self.fates.add_skipped(sample.skipped)
            self._rows.append({**sample.columns, "key": sample.key, "caption": sample.caption, "outcome": outcome})
        while len(self._rows) >= FLUSH_ROWS:
            self._write(FLUSH_ROWS)

    def _write(self, rows: int) -> None:
        table = pa.Table.from_pylist(self._rows[:rows], self._schema)
        self._digests.append(digest_of_table(table.replace_schema_metadata(None)))
        self._writer.write_table(table)
        del self._rows[:rows]

    def __enter__(self) -> MetadataWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None and self._rows:
            self._write(len(self._rows))
        if kind is None and self.fates.skipped:
            self._writer.add_key_value_metadata({SKIPPED: json.dumps({"counts": self.fates.skipped, "first": self.fates.left}).encode()})
        if kind is None:
            self._writer.add_key_value_metadata({CONTENT: digest_of_parts(*self._digests).encode()})
        self._writer.close()


def finished_part(vectors: UPath, metadata: UPath, fingerprint: str) -> Fates | None:
    """What became of the samples of a finished part; None if the part is not complete or was made from something else."""
    if not (vectors.exists() and metadata.exists()):
        return None
    try:
        table, keys = read_parquet(metadata), _file_keys(metadata)
        if keys.get(FINGERPRINT) != fingerprint.encode() or keys.get(CONTENT) != _digest(table):
            return None
        skipped = json.loads(keys.get(SKIPPED, b"{}"))
        found = Fates(skipped=Counter(skipped.get("counts", {})), left=list(skipped.get("first", [])))
        found.add_rows(table["key"].to_pylist(), table["outcome"].to_pylist())
        return found if read_header(vectors).rows == found.rows else None
    except (SourceUnavailable, OutOfDisk):
        raise
    except (BadInput, *DAMAGE):
        return None  # damaged: it will be made again


def check_metadata(embeddings: EmbeddingSet) -> None:
    """Hold all metadata of a set against the digests it carries. Raises DamagedArtifact naming a file and the cure."""
    for path in (part.metadata for part in embeddings.parts if part.metadata is not None):
        cure = "delete it, and materialise the embeddings again: only its part is made again"
        try:
            recorded, found = _file_keys(path).get(CONTENT), _digest(read_parquet(path))
        except (SourceUnavailable, OutOfDisk, FileNotFoundError):
            raise
        except DAMAGE as error:
            raise DamagedArtifact(f"{path}: damaged ({' '.join(str(error).split())[:200]}); {cure}") from error
        if recorded not in (None, found):
            raise DamagedArtifact(f"{path}: altered since it was written; {cure}")


def _digest(table: pa.Table) -> bytes:
    """Of the content of a part's metadata, row group by row group."""
    table = table.replace_schema_metadata(None)
    groups = (table.slice(start, FLUSH_ROWS) for start in range(0, table.num_rows, FLUSH_ROWS))
    return digest_of_parts(*(digest_of_table(group) for group in groups)).encode()


def fates_of(embeddings: EmbeddingSet) -> Fates:
    """What became of the samples of a whole set; nothing for features that were taken over, which have no metadata."""
    found = Fates()
    for table in read_metadata(embeddings, ["key", "outcome"]):
        found.add_rows(table["key"].to_pylist(), table["outcome"].to_pylist())
    return found


def read_metadata(embeddings: EmbeddingSet, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """The metadata part by part, in row order."""
    for part in embeddings.parts:
        if part.metadata is not None:
            yield read_parquet(part.metadata, columns)


def _file_keys(path: UPath) -> dict[bytes, bytes]:
    """What the writer put into the file's own metadata at its end: a schema shows only what was there at the start."""
    with path.open("rb") as stream, pq.ParquetFile(stream, pre_buffer=False) as parquet:
        return dict(parquet.metadata.metadata or {})
