"""The files directly in a folder, local or remote: name, size, and a stamp that changes when the content does. One request a folder."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISREG
from typing import Any

from upath import UPath

from paired_index_assets.files.storage import is_local

LOOKS_AT_ONCE = 16
# what object stores and servers call the version of a file's content, best first
_VERSIONS = ("ETag", "etag", "md5Hash", "content_md5", "version_id", "generation", "blob_id", "last_commit")
_DATES = ("LastModified", "Last-Modified", "mtime", "created")


@dataclass(frozen=True)
class Entry:
    name: str
    size: int
    stamp: str


def list_entries(folder: UPath) -> list[Entry]:
    """Files of `folder`, links followed, hidden ones too. Raises FileNotFoundError if there is no such folder."""
    if is_local(folder):
        with os.scandir(folder.path) as found:
            entries = (_local_entry(Path(item.path)) for item in found)
            return [entry for entry in entries if entry]
    fs = folder.fs
    fs.invalidate_cache()  # a sensor's process lives for days, and fsspec remembers listings
    listed = [item for item in fs.ls(folder.path, detail=True) if item["type"] == "file"]
    if any(item["size"] is None for item in listed):  # an HTML index names files without their sizes
        with ThreadPoolExecutor(LOOKS_AT_ONCE) as pool:
            listed = list(pool.map(lambda item: fs.info(item["name"]), listed))
    return [_remote_entry(item) for item in listed]


def entry_at(path: UPath) -> Entry:
    """Raises FileNotFoundError, also for a folder."""
    if is_local(path):
        found = _local_entry(Path(path.path))
        if found is None:
            raise FileNotFoundError(str(path))
        return found
    path.fs.invalidate_cache()
    return _remote_entry(path.fs.info(path.path))


def _local_entry(path: Path) -> Entry | None:
    """None for what is no file, and for what has gone since it was listed."""
    try:
        facts = path.stat()
    except OSError:
        return None
    return Entry(path.name, facts.st_size, str(facts.st_mtime_ns)) if S_ISREG(facts.st_mode) else None


def _remote_entry(item: dict[str, Any]) -> Entry:
    if item["type"] != "file":
        raise FileNotFoundError(str(item["name"]))
    versions = (str(item[key]) for key in (*_VERSIONS, *_DATES) if item.get(key))
    size = int(item["size"] or 0)
    return Entry(str(item["name"]).rstrip("/").rsplit("/", 1)[-1], size, next(versions, str(size)))
