"""What changes when a file does: one answer for the whole project, found without reading the file.

Locally its inode, size and both times: a copy that keeps the time of change, or a rename over the name, is another file. On an object store or a
server the version it names (an ETag, a generation), else its date; never only the size where there is more.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from upath import UPath

from paired_index_assets.files.storage import as_path, is_local

# what object stores and servers call the version of a file's content, best first
VERSIONS = ("ETag", "etag", "md5Hash", "content_md5", "Content-MD5", "version_id", "generation", "blob_id", "last_commit")
DATES = ("LastModified", "last_modified", "Last-Modified", "updated", "mtime", "created")


def stamp_of(path: UPath | Path | str) -> str:
    """The stamp of a file, local or remote; empty where there is none."""
    place = as_path(path)
    try:
        return stamp_of_local(os.stat(place.path)) if is_local(place) else stamp_of_remote(place.fs.info(place.path))
    except (FileNotFoundError, NotADirectoryError):
        return ""


def stamp_of_local(facts: os.stat_result) -> str:
    return f"{facts.st_ino} {facts.st_size} {facts.st_mtime_ns} {facts.st_ctime_ns}"


def stamp_of_remote(info: Mapping[str, Any]) -> str:
    """From what fsspec says of a file."""
    return next((str(info[key]) for key in (*VERSIONS, *DATES) if info.get(key)), str(info.get("size") or 0))


def modified_at(info: Mapping[str, Any]) -> float | None:
    """When a remote file was last written, in seconds since 1970, from what fsspec says of it; None where that is no date."""
    found = next((info[key] for key in DATES if info.get(key)), None)
    if isinstance(found, int | float):
        return float(found)
    try:
        date = found if isinstance(found, datetime) else datetime.fromisoformat(str(found))
    except ValueError:
        return None
    return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
