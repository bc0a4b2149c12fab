"""Files that get their name only when they are complete and on disk.

Local files are written under a temporary name beside the target, flushed, and renamed. Object stores have no rename: there the
finished local file is uploaded with one put, which is atomic per object.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from upath import UPath

from paired_index_assets.errors import Busy, DamagedArtifact, MissingInput, OutOfDisk

CHUNK_BYTES = 1 << 22
FULL_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def as_path(url: str | Path | UPath) -> UPath:
    """A local path or any fsspec URL (s3://, gs://, hf://, http://) as a path object; ``~`` is expanded."""
    return UPath(url).expanduser() if "://" not in str(url) else UPath(url)


def is_local(path: UPath) -> bool:
    return path.protocol in ("", "file", "local")


def nearest_folder(path: UPath) -> Path:
    """The local folder `path`, or the first above it that exists: on its disk."""
    folder = Path(path.path).absolute()
    while not folder.exists():
        folder = folder.parent
    return folder


@contextmanager
def atomic_file(target: UPath | Path) -> Iterator[Path]:
    """Yield a local temporary path; on a clean exit it becomes `target` in one step, otherwise it is gone.

    Raises OutOfDisk (naming `target`) when the disk is full.
    """
    target = as_path(target)
    local = is_local(target)
    folder = Path(target.path).parent if local else _scratch_folder()
    folder.mkdir(parents=True, exist_ok=True)
    if local:
        _sweep(folder, target.name)
    temporary = folder / f".{target.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp"
    try:
        yield temporary
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        if local:
            os.replace(temporary, Path(target.path))
            _sync_folder(folder)
        else:
            target.fs.put_file(str(temporary), target.path)
    except OSError as error:
        if error.errno in FULL_DISK:
            raise OutOfDisk(f"{target}: no space left on the disk; free some and start again, finished files are kept") from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(target: UPath | Path, content: bytes) -> None:
    with atomic_file(target) as temporary:
        temporary.write_bytes(content)


def write_json(target: UPath | Path, content: Any) -> None:
    write_bytes(target, (json.dumps(content, indent=1, sort_keys=True) + "\n").encode())


def read_json(source: UPath | Path) -> Any:
    """Raises MissingInput if there is no such file, DamagedArtifact if it is not JSON."""
    source = as_path(source)
    try:
        return json.loads(source.read_text())
    except FileNotFoundError as error:
        raise MissingInput(f"{source}: no such file") from error
    except ValueError as error:
        raise DamagedArtifact(f"{source}: not JSON ({error}); delete it and build again") from error


def digest_of(source: UPath | Path) -> str:
    """The sha256 of a file's bytes, hexadecimal."""
    sha = hashlib.sha256()
    with as_path(source).open("rb") as stream:
        while chunk := stream.read(CHUNK_BYTES):
            sha.update(chunk)
    return sha.hexdigest()


def digest_of_parts(*parts: str | bytes) -> str:
    """A sha256 over parts, each preceded by its length so that no two lists of parts collide."""
    sha = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        sha.update(len(data).to_bytes(8, "little"))
        sha.update(data)
    return sha.hexdigest()


def read_parquet(source: UPath | Path) -> pa.Table:
    """A whole table. Raises FileNotFoundError, and ArrowException where it is not Parquet.

    Not pq.read_table: its I/O threads hold the Python stream, and abort the process if one lets go of it during exit.
    """
    with as_path(source).open("rb") as stream, pq.ParquetFile(stream, pre_buffer=False) as parquet:
        return parquet.read(use_threads=False)


@contextmanager
def only_writer(lock: Path) -> Iterator[None]:
    """Hold `lock` (a local file, left in place) for the time of the block; the kernel frees it when the process dies.

    Raises Busy at once if another process holds it.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a+") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            handle.seek(0)
            raise Busy(f"{lock}: held by process {handle.read().strip() or 'unknown'}; wait for it, or stop it") from error
        handle.truncate(0)
        handle.write(str(os.getpid()))
        handle.flush()
        yield


def _scratch_folder() -> Path:
    import tempfile

    return Path(tempfile.gettempdir()) / "paired-index"


def _sweep(folder: Path, name: str) -> None:
    """Remove what killed writers of the same file left behind; a living writer's file stays."""
    for leftover in folder.glob(f".{name}.*.tmp"):
        pid = leftover.name.removeprefix(f".{name}.").split(".")[0]
        if not (pid.isdigit() and Path(f"/proc/{pid}").exists()):
            leftover.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
