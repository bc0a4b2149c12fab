"""The record of each shard (`generations/{fingerprint}/records/index7.json`): what it was made from and what is in it. It is what
makes a shard finished.

It has no times and no settings of the machine, so that two builds of the same inputs write the same record.

Locally a shard is replaced by three renames: its next record gets a name, the shard gets its own, the next record becomes the record.
Killed between any two, one of both records is of the file that is there. On an object store each content of a shard is a file of its
own (`shard_file`), and the record says which one counts: who reads while it is rewritten has the old shard or the new one, and of two
that build the same shard both write the same.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from upath import UPath

from paired_index_assets.errors import DamagedArtifact, MissingInput
from paired_index_assets.files.cache import Cache
from paired_index_assets.files.storage import digest_of, digest_of_parts, is_local, publish, read_json, versioned, write_json
from paired_index_assets.landing.catalog import CatalogFile
from paired_index_assets.landing.landed import LandedFile
from paired_index_assets.layout import Generation, ShardPlace

FORMAT = 1


@dataclass(frozen=True)
class FileRecord:
    """One landed file (or slice) inside a shard. `rows` = indexed + not_finite + zero + taken_down."""

    file_id: int
    name: str
    offset: int  # first row of the slice in the file
    start_row: int  # global id of its first row
    rows: int
    indexed: int
    not_finite: int
    zero: int
    taken_down: int
    lossy: bool
    size: int  # bytes of the whole file
    stamp: str
    content: str  # sha256 of the slice's rows

    def stands_for(self, file: CatalogFile, landed: LandedFile | None) -> bool:
        """Whether these rows are still the catalogued ones, and the file (if it is still there) the one that was read."""
        place = (self.file_id, self.name, self.offset, self.start_row, self.rows)
        same = place == (file.file_id, file.name, file.offset, file.start_row, file.rows)
        return same and (landed is None or (self.size, self.stamp, self.lossy) == (landed.size, landed.stamp, landed.lossy))


@dataclass(frozen=True)
class ShardRecord:
    """One finished shard file."""

    shard: int
    trained: str  # fingerprint of the trained index
    codec: str
    method: str
    model: str | None
    removed: str  # version of the removed ids inside the shard's rows, see takedown.removed_version
    bytes: int
    sha256: str
    files: tuple[FileRecord, ...]
    format: int = FORMAT

    @property
    def rows(self) -> int:
        return sum(file.rows for file in self.files)

    @property
    def indexed(self) -> int:
        return sum(file.indexed for file in self.files)

    @property
    def inputs(self) -> str:
        """A digest of all that decides the shard's bytes; when and from which disk its files were read does not."""
        parts = [str(FORMAT), self.trained, self.removed]
        for file in self.files:
            parts += [str(part) for part in (file.file_id, file.name, file.offset, file.start_row, file.rows, file.lossy, file.content)]
        return digest_of_parts(*parts)

    def is_of(self, files: Sequence[CatalogFile]) -> bool:
        """Whether its ids are those of a shard of these catalogued files, or of the first of them: a shard may be appended to."""
        mine = [(file.file_id, file.name, file.offset, file.start_row, file.rows) for file in self.files]
        return mine == [(file.file_id, file.name, file.offset, file.start_row, file.rows) for file in files][: len(mine)]

    def stands_for(self, trained: str, removed: str, files: Sequence[CatalogFile], landed: Sequence[LandedFile | None]) -> bool:
        """Whether a build with these inputs would make the same shard."""
        return self.is_made_of(trained, removed, files) and all(
            mine.stands_for(file, there) for mine, file, there in zip(self.files, files, landed, strict=True)
        )

    def is_made_of(self, trained: str, removed: str, files: Sequence[CatalogFile]) -> bool:
        """Whether it is of these catalogued files, whatever rows they have now."""
        return (self.trained, self.removed, len(self.files)) == (trained, removed, len(files)) and self.is_of(files)


def shard_file(place: ShardPlace, record: ShardRecord) -> UPath:
    """The file that the record of the shard at `place` speaks of."""
    return versioned(place.file, record.sha256)


def write_record(place: ShardPlace, record: ShardRecord) -> None:
    write_json(place.record, asdict(record))


def publish_shard(draft: Path, place: ShardPlace, record: ShardRecord) -> None:
    """Give a finished shard file its name and its record; at no moment is there none where there was one before."""
    file = shard_file(place, record)
    if not is_local(file):
        publish(draft, file)
        write_record(place, record)
        return
    Path(file.path).parent.mkdir(parents=True, exist_ok=True)
    write_json(place.next_record, asdict(record))
    publish(draft, file)
    publish(Path(place.next_record.path), place.record)


def read_record(place: ShardPlace) -> ShardRecord | None:
    """The record of a shard, None where there is none or it is not one. The shard's bytes are not looked at."""
    return _read(place.record)


def _read(path: UPath) -> ShardRecord | None:
    try:
        content = read_json(path)
        if content["format"] != FORMAT:
            return None
        return ShardRecord(**{**content, "files": tuple(FileRecord(**file) for file in content["files"])})
    except (MissingInput, DamagedArtifact, KeyError, TypeError):
        return None


def finished_record(place: ShardPlace) -> ShardRecord | None:
    """The record of a shard whose file is the one it speaks of, else None.

    A local shard younger than its record is what a build killed between the two left behind (then the next record is its own), or a
    file that somebody copied or altered: there the checksum decides.
    """
    record = read_record(place)
    if record is not None and not is_local(place.file):
        return record if _has_size(shard_file(place, record), record.bytes) else None
    if record is not None and _is_of(place.file, record, place.record):
        return record
    following = _read(place.next_record)
    if following is not None and _is_of(place.file, following, place.next_record):
        return following
    return record if record is not None and _is_altogether(place, record) else None


def settle_records(place: ShardPlace) -> None:
    """Take up what a build killed between its renames left: its record if its shard got its name, else nothing. By the writer alone."""
    if not is_local(place.file) or not place.next_record.exists():
        return
    record, following = read_record(place), _read(place.next_record)
    kept = record is not None and _is_of(place.file, record, place.record)
    if not kept and following is not None and _is_of(place.file, following, place.next_record):
        publish(Path(place.next_record.path), place.record)
    else:
        place.next_record.unlink(missing_ok=True)


def _has_size(file: UPath, size: int) -> bool:
    try:
        return int(file.stat().st_size) == size
    except FileNotFoundError:
        return False


def _is_of(file: UPath, record: ShardRecord, written: UPath) -> bool:
    """Whether a local file has the record's size and is not younger than it."""
    try:
        facts, of_record = file.stat(), written.stat()
    except FileNotFoundError:
        return False
    return bool(facts.st_size == record.bytes and facts.st_mtime_ns <= of_record.st_mtime_ns)


def _is_altogether(place: ShardPlace, record: ShardRecord) -> bool:
    """Whether a local shard has the record's bytes. If so, the record is touched, so that they are not read for this again."""
    if not _has_size(place.file, record.bytes) or digest_of(place.file) != record.sha256:
        return False
    with suppress(OSError):
        os.utime(place.record.path)
    return True


def verify_shard(place: ShardPlace, cache: Cache | None = None) -> ShardRecord:
    """Hold every byte of a finished shard, or of its local copy, against its record. Raises MissingInput or DamagedArtifact."""
    record = finished_record(place) or read_record(place)
    if record is None:
        raise MissingInput(f"{place.record}: no record of shard {place.number}; build it")
    file = shard_file(place, record)
    if not file.exists():
        raise MissingInput(f"{file}: no such file, but its record is there; build the shard again")
    local = (cache or Cache()).local(file, sha256=record.sha256)
    if (found := digest_of(local.path)) != record.sha256:
        cure = "build the shard again" if is_local(file) else f"delete this copy of {file}"
        raise DamagedArtifact(f"{local.path}: sha256 {found}, expected {record.sha256}; {cure}")
    return record


def recorded_shards(generation: Generation) -> list[int]:
    """The numbers of all shards that have a record."""
    names = (path.name for path in generation.records.glob("index*.json"))
    return sorted({int(found[1]) for name in names if (found := re.fullmatch(r"index(\d+)(?:\.next)?\.json", name))})


def finished_shards(generation: Generation) -> dict[int, ShardRecord]:
    """The records of its finished shards."""
    found = {}
    for number in recorded_shards(generation):
        known = read_record(generation.shard("", number)) or _read(generation.shard("", number).next_record)
        if known is not None and (record := finished_record(generation.shard(known.codec, number))) is not None:
            found[number] = record
    return found


def write_failure(place: ShardPlace, faults: Sequence[tuple[CatalogFile, str]]) -> None:
    """Keep what was wrong with files of a shard that could not be built, for the manifest."""
    write_json(place.failure, [{"file_id": file.file_id, "name": file.name, "problem": text} for file, text in faults])


def read_failure(place: ShardPlace) -> dict[int, str]:
    """file_id -> what was wrong with it in the last build; empty after a good one."""
    try:
        return {int(fault["file_id"]): str(fault["problem"]) for fault in read_json(place.failure, list)}
    except (MissingInput, DamagedArtifact, KeyError, TypeError):
        return {}
