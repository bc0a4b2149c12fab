"""What must not be searchable any more: an append-only log of removed rows, with what identifies each, why, when and who asked.

An id means a row of one data set only. So the log keeps what else is known of the row (its file, key, url, md5, digests of its caption and
vector), and the name of the data set that its id is of; when the data of a build change, the row is looked for there and logged again
under its new id (builds/following.py). Only the ids of one data set are ever left out of it.

The log is one small Parquet file, rewritten atomically with rows added at its end; no row ever leaves it, and a log that has lost some is
refused. On an object store, where two writers cannot take turns, each addition is a file of its own. Searches leave these ids out at once
(they read the log), the next rebuild leaves them out of the lists.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from upath import UPath

from paired_index_assets.errors import BadInput, DamagedArtifact
from paired_index_assets.files.locks import only_writer
from paired_index_assets.files.stamp import stamp_of
from paired_index_assets.files.storage import digest_of_parts, is_local, read_json, write_json
from paired_index_assets.files.tables import read_table, write_table
from paired_index_assets.layout import BuildRoot
from paired_index_assets.rows import Int64
from paired_index_assets.shards.manifest import any_taken_down

CURE = "restore it from a copy: searches need it to leave out what was taken down"
LOST = -1  # the id of a removed row that is no longer in the data set, as its owner says
TRAITS = pa.schema(  # what identifies a row whatever its id
    [
        pa.field("file", pa.string()),  # the landed file it was in
        pa.field("file_row", pa.int64()),
        pa.field("key", pa.string()),
        pa.field("url", pa.string()),
        pa.field("md5", pa.string()),
        pa.field("caption", pa.string()),  # a digest
        pa.field("vector", pa.string()),  # a digest, see builds/following.py
    ]
)
REMOVED_SCHEMA = pa.schema(
    [
        pa.field("id", pa.int64(), nullable=False),  # global row id in that data set, or LOST
        pa.field("why", pa.string(), nullable=False),
        pa.field("when", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("source", pa.string(), nullable=False),  # who or what list asked for it
        pa.field("data_set", pa.string(), nullable=False),  # Catalog.data_set
        pa.field("removal", pa.string(), nullable=False),  # names the row in all data sets
        *TRAITS,
    ]
)

Traits = Mapping[str, Sequence[Any]]


def read_log(root: BuildRoot) -> pa.Table:
    """Every removal in the order it was asked for; empty if there was none. Raises DamagedArtifact, also for a log that has shrunk."""
    try:
        log = pa.concat_tables([REMOVED_SCHEMA.empty_table(), *(_as_now(read_table(file, CURE)) for file in _files(root))])
    except (pa.ArrowException, KeyError) as error:
        raise DamagedArtifact(f"{root.removed}: not the log of removed rows ({error}); restore it from a copy") from error
    promised = _promised(root) if root.removals.exists() else 0 if len(log) else int(any_taken_down(root))
    if len(log) < promised:
        raise DamagedArtifact(
            f"{root.removed}: {len(log)} removals, expected at least {promised}; rows that were taken down would come back. Restore it from a "
            f"copy, or, if all of them may be found again, delete {root.removals if root.removals.exists() else root.manifest}"
        )
    return log


def log_stamp(root: BuildRoot) -> str:
    """What changes when something is removed."""
    return stamp_of(root.removed) if is_local(root.removed) else " ".join(file.name for file in _files(root))


def read_removed(root: BuildRoot, data_set: str) -> Int64:
    """(n,) the removed ids of a data set (Catalog.data_set), ascending, each once."""
    log = read_log(root)
    ids = np.asarray(log.filter(pc.equal(log["data_set"], data_set))["id"].to_numpy(), dtype=np.int64)
    return np.unique(ids[ids != LOST])


def add_removed(
    root: BuildRoot,
    ids: Int64,
    why: str,
    *,
    when: datetime,
    source: str = "",
    total_rows: int | None = None,
    data_set: str = "",
    traits_of: Callable[[Int64], Traits] | None = None,
) -> int:
    """Append removals to the log; ids that are in it already are not written twice. Returns how many are new.

    `ids` are of `data_set`; `traits_of` says what identifies such rows (columns of TRAITS). `when` must know its time zone. Raises
    BadInput for an id that is negative or not below `total_rows`; Busy if another process is writing the log.
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
        fresh = np.setdiff1d(ids, read_removed(root, data_set), assume_unique=True)
        if not len(fresh):
            return 0
        count = len(fresh)
        columns = {"id": fresh, "why": [why] * count, "when": [when] * count, "source": [source] * count, "data_set": [data_set] * count}
        names = [removal_name(data_set, row) for row in fresh.tolist()]
        traits = traits_of(fresh) if traits_of is not None else {}
        _append(root, log, _filled(columns | {"removal": names} | dict(traits), count), when)
    return len(fresh)


def add_moved(root: BuildRoot, moved: Sequence[Mapping[str, Any]], when: datetime) -> None:
    """Append rows that were removed before, as they are in another data set; what is in the log already is not written twice."""
    with only_writer(root.removed.with_name(".removed.lock")):
        log = read_log(root)
        known = set(zip(log["data_set"].to_pylist(), log["removal"].to_pylist(), log["id"].to_pylist(), strict=True))
        fresh = [row for row in moved if (row["data_set"], row["removal"], row["id"]) not in known]
        if fresh:
            _append(root, log, pa.Table.from_pylist(fresh, REMOVED_SCHEMA), when)


def removal_name(data_set: str, row: int) -> str:
    return digest_of_parts(data_set, str(row))[:16]


def _append(root: BuildRoot, log: pa.Table, added: pa.Table, when: datetime) -> None:
    whole, file = pa.concat_tables([log, added]), root.removed
    if not is_local(file):
        file = file.with_name(f"removed-{when.astimezone(UTC):%Y%m%dT%H%M%S.%f}-{secrets.token_hex(4)}.parquet")
    write_table(file, whole if is_local(file) else added)
    write_json(root.removals, {"entries": len(whole)})


def _filled(columns: Mapping[str, Any], count: int) -> pa.Table:
    return pa.table({field.name: columns.get(field.name, [None] * count) for field in REMOVED_SCHEMA}, schema=REMOVED_SCHEMA)


def _as_now(table: pa.Table) -> pa.Table:
    """A log as it is written now; before November 2026 it had the first four columns."""
    if "data_set" not in table.column_names:
        ids = table["id"].to_pylist()
        table = _filled(
            {name: table[name] for name in ("id", "why", "when", "source")}
            | {"data_set": [""] * len(ids), "removal": [removal_name("", row) for row in ids]},
            len(ids),
        )
    return table.select(REMOVED_SCHEMA.names).cast(REMOVED_SCHEMA)


def _promised(root: BuildRoot) -> int:
    """How many removals the log must have: said beside its folder, so that who deletes the one does not delete the other."""
    content = read_json(root.removals)
    entries = content.get("entries") if isinstance(content, dict) else None
    if not isinstance(entries, int):
        raise DamagedArtifact(
            f"{root.removals}: expected the number of entries in {root.removed}, found {content!r}; restore it from a copy"
        )
    return entries


def _files(root: BuildRoot) -> list[UPath]:
    """In the order they were written."""
    return sorted(root.removed.parent.glob("removed*.parquet"), key=lambda file: file.name)


def removed_version(removed: Int64, first: int, stop: int) -> str:
    """A digest of the removed ids (sorted) in [first, stop): a removal makes stale the shards it touches and no other."""
    low, high = np.searchsorted(removed, [first, stop])
    return digest_of_parts(np.ascontiguousarray(removed[low:high]).tobytes())[:16]
