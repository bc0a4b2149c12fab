"""Local copies of remote files, for what has to be mapped: within a budget of bytes, the least recently used goes first.

A copy gets its name when it is whole: of the size the store says, of the sha256 where one is known, and of one version of the file.
Its name is made from the file's URL and version, so a file that is replaced is another copy. Who downloads holds a lock on the part
file, who uses a copy one on the copy: both end with the process, whatever ended it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from upath import UPath

from paired_index_assets.errors import DamagedArtifact, MissingInput, OutOfDisk, SourceUnavailable
from paired_index_assets.files.storage import FULL_DISK, as_path, digest_of, digest_of_parts, is_local, patiently
from paired_index_assets.progress import Progress, silent

CACHE_FOLDER = "~/.cache/paired-index"
PIECE_BYTES = 8 << 20  # of one request: a broken connection costs no more
STREAMS = 8  # requests at once: one connection to an object store gives a small part of the line
CHANGES = 3  # downloads of a file that is replaced, or damaged on its way, each time


@dataclass(frozen=True)
class LocalFile:
    """A local file that stays as it is while this object lives: a copy in use is not evicted."""

    path: Path
    _held: BinaryIO | None = field(default=None, repr=False, compare=False)


class _Changed(Exception):
    """What arrived is not the file that was asked for."""


@dataclass(frozen=True)
class Cache:
    """`budget_bytes`: most that copies may take (None: what the disk has)."""

    folder: Path = field(default_factory=lambda: Path(CACHE_FOLDER).expanduser())
    budget_bytes: int | None = None

    def local(self, source: UPath | Path | str, *, sha256: str | None = None, progress: Progress = silent) -> LocalFile:
        """`source` as a local file: itself if it is one, else its copy, downloaded if it is not there.

        Another process that wants the same copy waits for the first. Raises MissingInput; SourceUnavailable; OutOfDisk if it does
        not fit beside what is in use; DamagedArtifact if it has not the `sha256`.
        """
        source = as_path(source)
        if is_local(source):
            return LocalFile(Path(source.path))
        self.folder.mkdir(parents=True, exist_ok=True)
        reason = ""
        for _ in range(CHANGES):
            version = sha256 or _version(source)
            target = self.folder / f"{digest_of_parts(str(source), version)[:32]}-{source.name}"
            try:
                held = _in_use(target) or self._downloaded(source, target, version, sha256, progress)
            except _Changed as changed:
                reason = str(changed)
                continue
            os.utime(target)
            return LocalFile(target, held)
        if sha256 is not None:
            raise DamagedArtifact(f"{source}: {reason}, expected {sha256}; delete it and build it again")
        raise SourceUnavailable(f"{source}: {reason}; try again when it is quiet")

    def _downloaded(self, source: UPath, target: Path, version: str, sha256: str | None, progress: Progress) -> BinaryIO:
        part = target.with_name(f".{target.name}.part")
        while True:
            with _only_downloader(part) as handle:
                if (held := _in_use(target)) is not None:  # another process was first
                    part.unlink(missing_ok=True)
                    return held
                try:
                    size = int(_info(source)["size"])
                    self._reserve(source, handle, size)
                    _receive(source, handle, size, progress)
                    if sha256 is not None and (found := digest_of(part)) != sha256:
                        raise _Changed(f"sha256 {found}")
                    if sha256 is None and _version(source) != version:
                        raise _Changed("it was replaced while it was downloaded")
                except BaseException:
                    part.unlink(missing_ok=True)
                    raise
                os.replace(part, target)
            if (held := _in_use(target)) is not None:  # unless it was evicted in this moment
                return held

    def _reserve(self, source: UPath, handle: BinaryIO, size: int) -> None:
        """Give the part file its full size, so that it counts, after evicting what is in its way."""
        if not size:
            return
        with (self.folder / ".budget").open("a") as turn:
            fcntl.flock(turn, fcntl.LOCK_EX)
            files = sorted(self._files(), key=lambda file: file[0].st_mtime_ns)
            used = sum(facts.st_size for facts, _ in files)
            for facts, path in files:
                if self._fits(used, size):
                    break
                used -= facts.st_size if _evicted(path) else 0
            if not self._fits(used, size):
                limit = f"cache_budget_gb of {self.budget_bytes / 1e9:g}" if self.budget_bytes is not None else "the disk"
                raise OutOfDisk(
                    f"{source}: {size} bytes do not fit {limit} in {self.folder}: {used} bytes are in use there, "
                    f"{shutil.disk_usage(self.folder).free} are free on the disk; raise cache_budget_gb, or set cache to a larger disk"
                )
            try:
                os.posix_fallocate(handle.fileno(), 0, size)
            except OSError as error:
                if error.errno in FULL_DISK:
                    raise OutOfDisk(f"{source}: no space left in {self.folder} for {size} bytes; set cache to a larger disk") from error
                raise

    def _files(self) -> Iterator[tuple[os.stat_result, Path]]:
        """Copies and parts; a part counts with the full size of its file."""
        for path in self.folder.iterdir():
            if path.name != ".budget" and path.is_file():
                yield path.stat(), path

    def _fits(self, used: int, size: int) -> bool:
        return (self.budget_bytes is None or used + size <= self.budget_bytes) and size <= shutil.disk_usage(self.folder).free


def _info(source: UPath) -> dict[str, Any]:
    try:
        info: dict[str, Any] = patiently(source, lambda: source.fs.info(source.path))
    except FileNotFoundError as error:
        raise MissingInput(f"{source}: no such file") from error
    return info


def _version(source: UPath) -> str:
    return str(sorted(_info(source).items()))


def _receive(source: UPath, handle: BinaryIO, size: int, progress: Progress) -> None:
    def receive(start: int) -> int:
        stop = min(start + PIECE_BYTES, size)
        return os.pwrite(handle.fileno(), patiently(source, lambda: _range(source, start, stop)), start)

    with ThreadPoolExecutor(STREAMS, thread_name_prefix="cache") as pool:
        pieces = [pool.submit(receive, start) for start in range(0, size, PIECE_BYTES)]
        done = 0
        try:
            for piece in as_completed(pieces):
                done += piece.result()
                progress(f"copying {source.name}", done, size)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    os.fsync(handle.fileno())


def _range(source: UPath, start: int, stop: int) -> bytes:
    data: bytes = source.fs.cat_file(source.path, start=start, end=stop)
    if len(data) != stop - start:
        raise OSError(f"{len(data)} bytes came of {stop - start}")
    return data


def _in_use(path: Path) -> BinaryIO | None:
    """The copy at `path`, open and safe from eviction; None where there is none."""
    try:
        handle = path.open("rb")
    except FileNotFoundError:
        return None
    fcntl.flock(handle, fcntl.LOCK_SH)
    if _is_at(handle, path):
        return handle
    handle.close()
    return None


@contextmanager
def _only_downloader(part: Path) -> Iterator[BinaryIO]:
    """The part file, empty, and nobody else's until it is closed."""
    while True:
        with os.fdopen(os.open(part, os.O_RDWR | os.O_CREAT, 0o644), "rb+") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            if _is_at(handle, part):  # else finished or evicted while we waited
                handle.truncate(0)
                yield handle
                return


def _evicted(path: Path) -> bool:
    """Delete a copy that nobody uses, or a part that nobody downloads any more; False if somebody does."""
    try:
        with path.open("rb") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
            return True
    except (BlockingIOError, FileNotFoundError):
        return False


def _is_at(handle: BinaryIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle.fileno()), path.stat())
    except FileNotFoundError:
        return False
