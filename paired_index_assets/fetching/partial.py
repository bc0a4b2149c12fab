"""A download on its way: the bytes so far, and a small JSON that says of what they are a part and how many are surely on disk.

After a kill the bytes up to the recorded mark are trusted and no others: a file that was being appended to when the power went may have
its length and not its content.
"""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from paired_index_assets.errors import Busy, OutOfDisk
from paired_index_assets.files.locks import only_writer
from paired_index_assets.files.storage import write_json
from paired_index_assets.landing.origin import record_origin

_SUFFIX = ".part"
POLL_S = 0.2
LOCKS = ".locks"  # they stay: a lock file that is unlinked can be held twice
NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK}  # exFAT, some network and FUSE mounts


@dataclass
class PartialFile:
    """`size` bytes so far, `durable` of them flushed; of the content `version` at `source`; `expected` bytes in all."""

    path: Path
    source: str | None = None
    version: str | None = None
    expected: int = 0
    durable: int = 0
    reserved: bool = False  # its full size is held against the disk budget
    size: int = 0
    _handle: int = -1

    @classmethod
    def of(cls, target: Path) -> PartialFile:
        part = cls(target.with_name(f".{target.name}{_SUFFIX}"))
        try:
            state = json.loads(part._state.read_text())
            part.source, part.version, part.expected = state["source"], state["version"], int(state["expected"])
            part.reserved = bool(state["reserved"])
            part.durable = part.size = min(int(state["durable"]), part.path.stat().st_size)
        except (OSError, ValueError, KeyError, TypeError):
            return cls(part.path)
        return part

    @property
    def _state(self) -> Path:
        return self.path.with_name(f"{self.path.name}.json")

    @property
    def held_bytes(self) -> int:
        """What this part takes of a disk budget: its full size while it is downloaded, its bytes afterwards."""
        return self.expected if self.reserved else self.durable

    def reserve(self, expected: int) -> None:
        if self.expected != expected:
            self.discard()
        self.expected, self.reserved = expected, True
        self._record()

    def rest(self) -> None:
        """Stop for now: keep what there is, and hold no more of the budget than that."""
        self.reserved = False
        if not self.size:
            return self.discard()
        with suppress(OutOfDisk):  # already reported by the writer
            self._record()

    def restart(self, source: str | None, version: str | None) -> None:
        """Drop the bytes; those to come are of another content."""
        self.source, self.version, self.durable, self.size = source, version, 0, 0
        if self._handle >= 0:
            os.ftruncate(self._handle, 0)
            os.lseek(self._handle, 0, os.SEEK_SET)
        else:
            self.path.unlink(missing_ok=True)
        self._record()

    def discard(self) -> None:
        self.path.unlink(missing_ok=True)
        self._state.unlink(missing_ok=True)
        self.source, self.version, self.expected, self.durable, self.size, self.reserved = None, None, 0, 0, 0, False

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Append from `size` on; whatever ends the block, the bytes written are flushed and recorded."""
        self._handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            os.ftruncate(self._handle, self.size)
            os.lseek(self._handle, self.size, os.SEEK_SET)
            try:
                yield
            finally:
                self.sync()
        finally:
            os.close(self._handle)
            self._handle = -1

    def append(self, chunk: bytes) -> None:
        view = memoryview(chunk)
        while view:
            written = os.write(self._handle, view)
            self.size += written
            view = view[written:]

    def sync(self) -> None:
        os.fsync(self._handle)
        self.durable = self.size
        self._record()

    def become(self, target: Path) -> None:
        """Give the finished bytes their name, unless something has taken it meanwhile (FileExistsError)."""
        give_name(self.path, target, self.source or "")
        self.discard()

    def _record(self) -> None:
        facts = {"source": self.source, "version": self.version, "expected": self.expected, "durable": self.durable}
        write_json(self._state, facts | {"reserved": self.reserved})


def reserved_bytes(folder: Path) -> int:
    """What the parts in `folder` take of a disk budget."""
    targets = (folder / state.name[1 : -len(f"{_SUFFIX}.json")] for state in folder.glob(f".*{_SUFFIX}.json"))
    return sum(PartialFile.of(target).held_bytes for target in targets if not target.exists())


def give_name(finished: Path, target: Path, source: str, *, lossy: bool = False) -> None:
    """Turn the flushed file `finished` into `target` and record that it is ours. FileExistsError if the name is taken."""
    record_origin(target, finished, source, lossy=lossy)
    try:
        os.link(finished, target)  # a rename would overwrite
        finished.unlink()
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        if target.exists():
            raise FileExistsError(errno.EEXIST, "taken meanwhile", str(target)) from error
        os.rename(finished, target)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def only_one(lock: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold `lock` for the block; call `waiting` now and then while another process or thread has it."""
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(only_writer(lock))
                break
            except Busy:
                waiting()
                time.sleep(POLL_S)
        yield


@contextmanager
def turn_to_write(target: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """The one writer of `target`. Whoever waited must look whether it is there now."""
    with only_one(target.parent / LOCKS / target.name, waiting):
        yield
