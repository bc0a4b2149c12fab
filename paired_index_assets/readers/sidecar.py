"""What img2dataset recorded beside a tar: ``00000.parquet`` (a row a download, with its status) and ``00000_stats.json`` (their counts)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from paired_index_assets.files.listing import ListedFile, list_entries
from paired_index_assets.files.storage import as_path

MAX_MISSING = 1_000_000  # rows that a record may add: img2dataset writes tars of ten thousand
SUCCESS = "success"


@dataclass(frozen=True)
class Recorded:
    """Either the keys that were downloaded, or how many."""

    keys: Sequence[str] | None
    successes: int

    def missing(self, seen: set[str], rows: int) -> Iterator[str | None]:
        """The key of each sample that is recorded and not among `seen`; None where only the count says that one is missing."""
        if self.keys is None:
            yield from [None] * min(max(self.successes - rows, 0), MAX_MISSING)
            return
        bare = {key.rpartition("/")[2] for key in seen}
        yield from [key for key in self.keys if key not in bare][:MAX_MISSING]


def stamps_beside(files: list[ListedFile]) -> dict[str, list[str]]:
    """By the URL of each tar: a stamp of each record beside it. One listing a folder; a folder that cannot be listed has no records."""
    found: dict[str, list[str]] = {}
    folders: dict[str, dict[str, str]] = {}
    for file in files:
        parent = as_path(file.url).parent
        if str(parent) not in folders:
            try:
                folders[str(parent)] = {entry.name: f"{entry.name} {entry.stamp}" for entry in list_entries(parent)}
            except Exception:  # a server without listings, a folder that may not be read: each file system has its own
                folders[str(parent)] = {}
        there = folders[str(parent)]
        found[file.url] = [there[name] for name in record_names(file) if name in there]
    return found


def recorded_beside(file: ListedFile) -> Recorded | None:
    """None where nothing is recorded, or nothing that can be read."""
    tar = as_path(file.url)
    parquet, stats = (tar.parent / name for name in record_names(file))
    try:
        with parquet.open("rb") as stream, pq.ParquetFile(stream, pre_buffer=False) as table:
            if {"key", "status"} <= set(table.schema_arrow.names):
                rows = table.read(["key", "status"], use_threads=False).to_pylist()
                keys = [str(row["key"]) for row in rows if row["status"] == SUCCESS]
                return Recorded(keys, len(keys))
    except (OSError, pa.ArrowException, ValueError):
        pass
    try:
        content = json.loads(stats.read_bytes())
        successes = content.get("successes") if isinstance(content, dict) else None
        return Recorded(None, successes) if isinstance(successes, int) else None
    except (OSError, ValueError, RecursionError):
        return None


def record_names(file: ListedFile) -> tuple[str, str]:
    base = as_path(file.url).name
    stem = base[: base.lower().index(".t")] if ".t" in base.lower() else base  # .tar, .tar.gz, .tgz
    return f"{stem}.parquet", f"{stem}_stats.json"
