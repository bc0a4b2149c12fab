"""One catalogued file from the first source that gives it whole, into a cache folder.

Bytes go to a part file that survives a crash and is resumed; the file gets its name when its size and header are the catalog's. What
the user put in the folder is never overwritten; what we put there has a record (origin.py) and may be released again.
"""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from upath import UPath

from paired_index_assets.errors import BadInput, OutOfDisk, SourceUnavailable
from paired_index_assets.fetching.partial import LOCKS, PartialFile, only_one, reserved_bytes, turn_to_write
from paired_index_assets.fetching.sources import (
    Answer,
    Changed,
    FileSource,
    NotAtSource,
    Patience,
    Politeness,
    TemporaryFault,
    is_folder,
    shown,
    source_at,
)
from paired_index_assets.files.npy import HEAD_BYTES, header_of
from paired_index_assets.files.storage import FULL_DISK, as_path, is_local
from paired_index_assets.landing.catalog import CatalogFile
from paired_index_assets.landing.landed import LandedFile, check_file, landed_file
from paired_index_assets.landing.origin import origin_path, origins_in, read_origin
from paired_index_assets.progress import Progress, silent

# a download that got this share of the file further has its attempts counted from the start again: 3 TB over a line that drops every minute
PROGRESS_SHARE = 0.01
REPORT_SHARE = 0.01


@dataclass(frozen=True)
class FetchRules:
    """How hard to try, and how much disk downloaded files may take (None: all there is)."""

    attempts: int = 6  # at each source, without getting further
    backoff_s: float = 1.0  # doubled at each attempt, times a random 0.5 to 1
    longest_backoff_s: float = 120.0
    budget_bytes: int | None = None
    sync_bytes: int = 64 << 20  # a power cut loses at most this much of a download
    patience: Patience = field(default_factory=Patience)


def fetch(
    file: CatalogFile,
    sources: Sequence[str],
    folder: UPath | Path | str,
    *,
    rules: FetchRules | None = None,
    politeness: Politeness | None = None,
    progress: Progress = silent,
) -> LandedFile:
    """`file` from the first of `sources` (URLs of folders) that has it. Local sources are used in place, others land in `folder`.

    A second process that wants the same file waits for the first. Raises SourceUnavailable naming every source and its reason,
    OutOfDisk when the disk or the budget is full (the part is kept), BadInput when the user's own file of that name is not the
    catalogued one.
    """
    rules, politeness = rules or FetchRules(), politeness or Politeness()
    place = as_path(folder)
    if not is_local(place):
        raise BadInput(f"{folder}: expected a local folder to download to")
    target = Path(place.path) / file.name
    reasons: list[str] = []
    with turn_to_write(target, lambda: progress(f"wait for another download of {file.name}", 0, file.bytes)):
        if landed := _already_there(file, target):
            PartialFile.of(target).discard()
            return landed
        for url in sources:
            try:
                if is_folder(url):
                    return _in_place(file, as_path(url) / file.name)
                _download(file, source_at(url), target, rules, politeness, progress)
                check_file(file, target)
                return landed_file(target)
            except (NotAtSource, TemporaryFault) as refusal:
                reasons.append(f"{shown(url)}: {refusal}")
    raise SourceUnavailable(f"{file.name}: no source gives it; {'; '.join(reasons) or 'there are no sources'}")


def release(path: UPath | Path | str) -> bool:
    """Delete a file if this project downloaded or rebuilt it; True if it did. What the user supplied stays."""
    place = as_path(path)
    target = Path(place.path)
    if not is_local(place) or read_origin(target) is None:
        return False
    PartialFile.of(target).discard()  # a kill right after the file got its name leaves the part as a second name
    target.unlink(missing_ok=True)
    origin_path(target).unlink(missing_ok=True)
    return True


def used_bytes(folder: UPath | Path | str) -> int:
    """What the budget counts: our own finished files and the full size of those on their way."""
    return finished_bytes(folder) + reserved_bytes(Path(as_path(folder).path))


def finished_bytes(folder: UPath | Path | str) -> int:
    """The size of the finished files in `folder` that are ours to release."""
    return sum(origin.size for origin in origins_in(Path(as_path(folder).path)).values())


def _already_there(file: CatalogFile, target: Path) -> LandedFile | None:
    if not target.exists():
        return None
    try:
        check_file(file, target)
        return landed_file(target)
    except BadInput as fault:
        if release(target):  # ours, of an older catalog
            return None
        raise BadInput(f"{fault}. It was not downloaded by this project and is left as it is: move it away to have it fetched") from fault


def _in_place(file: CatalogFile, path: UPath) -> LandedFile:
    try:
        check_file(file, path)
    except BadInput as fault:
        raise NotAtSource(str(fault)) from fault
    except OSError as error:
        raise NotAtSource(f"{type(error).__name__}: {error}") from error
    return landed_file(path)


def _download(file: CatalogFile, source: FileSource, target: Path, rules: FetchRules, politeness: Politeness, progress: Progress) -> None:
    part = PartialFile.of(target)
    failures, furthest = 0, 0
    try:
        while True:
            _reserve(file, part, rules)
            ours = part.source == source.url
            start, version = (part.size, part.version) if ours else (0, None)
            try:
                if start < file.bytes:
                    with politeness.turn(source.url), source.open(file.name, start, version, rules.patience) as answer:
                        _receive(file, source.url, answer, part, rules, progress)
                _finish(file, part, target)
                return
            except TemporaryFault as fault:
                if isinstance(fault, Changed) and part.source == source.url:
                    part.restart(None, None)
                if part.size > furthest + PROGRESS_SHARE * file.bytes:
                    failures = 0
                furthest = max(furthest, part.size)
                failures += 1
                if failures >= rules.attempts:
                    raise TemporaryFault(f"{fault} ({failures} attempts, {furthest} of {file.bytes} bytes)") from fault
                backoff = rules.backoff_s * 2 ** (failures - 1) * random.uniform(0.5, 1.0)
                _wait(file, min(max(backoff, fault.retry_after_s), rules.longest_backoff_s), furthest, str(fault), progress)
    finally:
        part.rest()


def _wait(file: CatalogFile, seconds: float, done: int, reason: str, progress: Progress) -> None:
    """Sleep, saying so every second: a caller that has given up says so by raising from its progress."""
    while seconds > 0:
        progress(f"fetch {file.name}", done, file.bytes, retry=reason, retry_in_s=round(seconds, 1))
        time.sleep(min(1.0, seconds))
        seconds -= 1.0


def _reserve(file: CatalogFile, part: PartialFile, rules: FetchRules) -> None:
    """Hold the file's full size against the budget and the disk before asking for its first byte."""
    folder = part.path.parent
    with only_one(folder / LOCKS / ".budget"):
        if rules.budget_bytes is not None:
            others = used_bytes(folder) - part.held_bytes
            if others + file.bytes > rules.budget_bytes:
                raise OutOfDisk(
                    f"{file.name}: {file.bytes} bytes do not fit the download budget of {rules.budget_bytes}, "
                    f"{others} are taken in {folder}; raise the budget, or let files go that are already encoded"
                )
        free = shutil.disk_usage(folder).free
        if free < file.bytes - part.size:
            raise OutOfDisk(
                f"{folder / file.name}: {file.bytes - part.size} more bytes to come, the disk has {free}; "
                "free some and start again, what is downloaded is kept"
            )
        part.reserve(file.bytes)


def _receive(file: CatalogFile, url: str, answer: Answer, part: PartialFile, rules: FetchRules, progress: Progress) -> None:
    if answer.size is not None and answer.size != file.bytes:
        raise Changed(f"{answer.size} bytes there; the catalog expects {file.bytes}")
    if part.source != url or answer.start != part.size or answer.version != part.version:
        part.restart(url, answer.version)
    head = min(HEAD_BYTES, file.bytes)
    checked = part.size >= head
    reported = -file.bytes
    try:
        with part.writing():
            for chunk in answer.chunks:
                if part.size + len(chunk) > file.bytes:
                    raise Changed(f"more than the {file.bytes} bytes the catalog expects")
                part.append(chunk)
                if not checked and part.size >= head:
                    _check_head(file, part)
                    checked = True
                if part.size - part.durable >= rules.sync_bytes:
                    part.sync()
                if part.size - reported >= REPORT_SHARE * file.bytes:
                    progress(f"fetch {file.name}", part.size, file.bytes)
                    reported = part.size
    except (OSError, OutOfDisk) as error:
        if isinstance(error, OutOfDisk) or error.errno in FULL_DISK:
            raise OutOfDisk(
                f"{part.path.parent / file.name}: no space left on the disk after {part.size} of {file.bytes} bytes; "
                "free some and start again, what is downloaded is kept"
            ) from error
        raise
    if part.size < file.bytes:
        raise TemporaryFault(f"the connection ended after {part.size} of {file.bytes} bytes")


def _check_head(file: CatalogFile, part: PartialFile) -> None:
    """Refuse another kind of file after its first bytes, not after its last."""
    with part.path.open("rb") as stream:
        head = stream.read(HEAD_BYTES)
    try:
        header = header_of(head, file.name)
    except BadInput as fault:
        raise Changed(str(fault)) from fault
    if (header.dtype.str, header.dimensions, header.file_bytes) != (file.dtype, file.dimensions, file.bytes):
        raise Changed(
            f"a matrix of {header.rows} x {header.dimensions} {header.dtype.str}; the catalog expects {file.bytes} bytes "
            f"of {file.dimensions} x {file.dtype} rows"
        )


def _finish(file: CatalogFile, part: PartialFile, target: Path) -> None:
    try:
        check_file(file, part.path)
    except BadInput as fault:
        raise Changed(str(fault)) from fault
    try:
        part.become(target)
    except FileExistsError:  # the user has put theirs here meanwhile: theirs stays
        part.discard()
