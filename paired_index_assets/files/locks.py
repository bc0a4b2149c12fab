"""Who may write what, among the processes of one machine: the kernel frees a lock when its process dies.

An object store has no locks: there the block is run, and what it writes has to be right, whichever writer is last.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from upath import UPath

from paired_index_assets.errors import Busy
from paired_index_assets.files.storage import as_path, is_local


@contextmanager
def only_writer(lock: UPath | Path) -> Iterator[None]:
    """Hold `lock` (a local file, left in place) for the time of the block. Raises Busy at once if another process holds it."""
    with _held(lock, fcntl.LOCK_EX, f"process {os.getpid()}"):
        yield


@contextmanager
def one_of_writers(lock: UPath | Path) -> Iterator[None]:
    """Hold `lock` together with others that write other files. Raises Busy at once if an `only_writer` holds it, as that one does now."""
    with _held(lock, fcntl.LOCK_SH, "runs that share the work"):
        yield


def shared(lock: UPath | Path) -> BinaryIO | None:
    """Hold `lock` together with other readers, until the handle is closed or forgotten; None where that is not possible (an object
    store, a folder one can only read, a writer's turn): readers are many, and none waits for a lock."""
    lock = as_path(lock)
    if not is_local(lock):
        return None
    try:
        handle = Path(lock.path).open("a+b")  # noqa: SIM115, it is the caller's
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        handle.close()
        return None
    return handle


@contextmanager
def _held(lock: UPath | Path, how: int, holder: str) -> Iterator[None]:
    lock = as_path(lock)
    if not is_local(lock):
        yield
        return
    lock = Path(lock.path)
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a+") as handle:
        try:
            fcntl.flock(handle, how | fcntl.LOCK_NB)
        except BlockingIOError as error:
            handle.seek(0)
            raise Busy(f"{lock}: held by {handle.read().strip() or 'another process'}; wait for it, or stop it") from error
        with suppress(OSError):  # a full disk: the lock is still held
            os.ftruncate(handle.fileno(), 0)
            os.write(handle.fileno(), holder.encode())
        yield
