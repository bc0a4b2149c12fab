"""What must not be searchable any more: an append-only log of global row ids, with why, when and who asked.

The log is one small Parquet file, rewritten atomically with rows added at its end; no row ever leaves it. On an object store, where two
writers can not take turns, each addition is a file of its own. Searches leave these ids out at once (they read the log), the next
rebuild leaves them out of the lists.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from upath import UPath

from paired_index_assets.errors import BadInput, DamagedArtifact
from paired_index_assets.files.locks import only_writer
from paired_index_assets.files.stamp import stamp_of
from paired_index_assets.files.storage import as_path, atomic_file, digest_of_parts, is_local, read_parquet
from paired_index_assets.layout import BuildRoot
from paired_index_assets.progress import Progress, silent
from paired_index_assets.rows import Int64

REMOVED_SCHEMA = pa.schema(
    [
        pa.field("id", pa.int64(), nullable=False),  # global row id
        pa.field("why", pa.string(), nullable=False),
        pa.field("when", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("source", pa.string(), nullable=False),  # who or what list asked for it
    ]
)
KEYS_AT_ONCE = 1 << 16  # rows of metadata matched together


def read_log(root: BuildRoot) -> pa.Table:
    """Every removal in the order it was asked for; empty if there was none. Raises DamagedArtifact."""
    try:
        return pa.concat_tables([REMOVED_SCHEMA.empty_table(), *(read_parquet(file).cast(REMOVED_SCHEMA) for file in _files(root))])
    except pa.ArrowException as error:
        raise DamagedArtifact(f"{root.removed}: not the log of removed rows ({error}); restore it from a copy") from error


def log_stamp(root: BuildRoot) -> str:
    """What changes when something is removed."""
    return stamp_of(root.removed) if is_local(root.removed) else " ".join(file.name for file in _files(root))


def read_removed(root: BuildRoot) -> Int64:
    """(n,) the removed ids, ascending, each once."""
    return np.unique(np.asarray(read_log(root)["id"].to_numpy(), dtype=np.int64))


def add_removed(root: BuildRoot, ids: Int64, why: str, *, when: datetime, source: str = "", total_rows: int | None = None) -> int:
    """Append removals to the log; ids that are in it already are not written twice. Returns how many are new.

    `when` must know its time zone. Raises BadInput for an id that is negative or not below `total_rows`; Busy if another process is
    writing the log.
    """
    ids = np.unique(np.asarray(ids, dtype=np.int64))
    if when.tzinfo is None:
        raise BadInput(f"when: {when} has no time zone; give one in UTC")
    limit = np.iinfo(np.int64).max if total_rows is None else total_rows
    if len(ids) and (ids[0] < 0 or ids[-1] >= limit):
        wrong = ids[0] if ids[0] < 0 else ids[-1]
        raise BadInput(f"row id {wrong}: expected ids from 0 to {limit - 1}; nothing was removed")
    with only_writer(root.removed.with_name(".removed.lock")):
        log = read_log(root)
        fresh = np.setdiff1d(ids, np.asarray(log["id"].to_numpy(), dtype=np.int64), assume_unique=False)
        if not len(fresh):
            return 0
        count = len(fresh)
        columns = {"id": fresh, "why": [why] * count, "when": [when] * count, "source": [source] * count}
        added, file = pa.table(columns, schema=REMOVED_SCHEMA), root.removed
        if is_local(file):
            added = pa.concat_tables([log, added])
        else:
            file = file.with_name(f"removed-{when.astimezone(UTC):%Y%m%dT%H%M%S.%f}-{secrets.token_hex(4)}.parquet")
        with atomic_file(file) as temporary:
            pq.write_table(added, temporary, compression="zstd")
    return len(fresh)


def _files(root: BuildRoot) -> list[UPath]:
    """In the order they were written."""
    return sorted(root.removed.parent.glob("removed*.parquet"), key=lambda file: file.name)


def removed_version(removed: Int64, first: int, stop: int) -> str:
    """A digest of the removed ids (sorted) in [first, stop): a removal makes stale the shards it touches and no other."""
    low, high = np.searchsorted(removed, [first, stop])
    return digest_of_parts(np.ascontiguousarray(removed[low:high]).tobytes())[:16]


def ids_of(
    metadata: Sequence[tuple[UPath | Path | str, int]], column: str, values: Iterable[str], *, progress: Progress = silent
) -> tuple[Int64, list[str]]:
    """The ids whose metadata has one of `values` in `column` (such as url or md5): ids ascending, and the values found nowhere.

    `metadata` is (Parquet file, global id of its first row); row i of a file describes id start + i. Read by row group, one column,
    never a whole file. Raises BadInput naming a file that has no such column.
    """
    wanted = pa.array(sorted(set(values)), pa.string())
    found: list[Int64] = []
    seen: set[str] = set()
    for done, (file, start) in enumerate(metadata, start=1):
        for offset, keys in _column(file, column):
            hits = np.flatnonzero(pc.is_in(keys, value_set=wanted).to_numpy(zero_copy_only=False))
            if len(hits):
                found.append(hits.astype(np.int64) + start + offset)
                seen.update(keys.take(pa.array(hits)).to_pylist())
        progress("match", done, len(metadata), found=sum(map(len, found)))
    ids = np.unique(np.concatenate(found)) if found else np.empty(0, dtype=np.int64)
    return ids, [value for value in wanted.to_pylist() if value not in seen]


def _column(file: UPath | Path | str, column: str) -> Iterator[tuple[int, pa.Array]]:
    """(row, values) of one text column, piece by piece."""
    with as_path(file).open("rb") as stream:
        try:
            parquet = pq.ParquetFile(stream)
        except pa.ArrowException as error:
            raise BadInput(f"{file}: not a Parquet file ({error}); expected the metadata of an embedding file") from error
        if column not in parquet.schema_arrow.names:
            raise BadInput(f"{file}: no column {column!r}; it has {', '.join(parquet.schema_arrow.names)}")
        row = 0
        for batch in parquet.iter_batches(batch_size=KEYS_AT_ONCE, columns=[column]):
            yield row, batch.column(0).cast(pa.string())
            row += batch.num_rows
