"""The record beside each shard (`….index7.json`): what it was made from and what is in it. It is what makes a shard finished.

Written after its shard: a shard without one, or with an older one, counts as not built. It has no times and no settings of the
machine, so that two builds of the same inputs write the same record.

On an object store each content of a shard is a file of its own (`shard_file`), and the record says which one counts: who reads while
it is rewritten has the old shard or the new one, and of two that build the same shard both write the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from upath import UPath

from paired_index_assets.errors import DamagedArtifact, MissingInput
from paired_index_assets.files.cache import Cache
from paired_index_assets.files.storage import as_path, digest_of, digest_of_parts, is_local, read_json, versioned, write_json
from paired_index_assets.landing.catalog import CatalogFile
from paired_index_assets.landing.landed import LandedFile

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
    model: str
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

    def stands_for(self, trained: str, removed: str, files: Sequence[CatalogFile], landed: Sequence[LandedFile | None]) -> bool:
        """Whether a build with these inputs would make the same shard."""
        return (
            (self.trained, self.removed) == (trained, removed)
            and len(self.files) == len(files)
            and all(mine.stands_for(file, there) for mine, file, there in zip(self.files, files, landed, strict=True))
        )


def shard_file(place: UPath | Path, record: ShardRecord) -> UPath:
    """The file that the record of the shard at `place` (BuildRoot.shard) speaks of."""
    return versioned(as_path(place), record.sha256)


def record_path(place: UPath | Path) -> UPath:
    return as_path(place).with_name(place.name + ".json")


def failure_path(place: UPath | Path) -> UPath:
    return as_path(place).with_name(place.name + ".failed.json")


def write_record(place: UPath | Path, record: ShardRecord) -> None:
    write_json(record_path(place), asdict(record))


def read_record(place: UPath | Path) -> ShardRecord | None:
    """The record of a shard, None where there is none or it is not one. The shard's bytes are not looked at."""
    try:
        content = read_json(record_path(place))
        if content["format"] != FORMAT:
            return None
        return ShardRecord(**{**content, "files": tuple(FileRecord(**file) for file in content["files"])})
    except (MissingInput, DamagedArtifact, KeyError, TypeError):
        return None


def finished_record(place: UPath | Path) -> ShardRecord | None:
    """The record of a shard whose file is the one it speaks of, else None.

    A local shard younger than its record is what a build killed between the two left behind, or a file somebody copied or altered:
    there the checksum decides.
    """
    record = read_record(place)
    if record is None:
        return None
    file = shard_file(place, record)
    try:
        facts = file.stat()
    except FileNotFoundError:
        return None
    if facts.st_size != record.bytes:
        return None
    if is_local(file) and facts.st_mtime_ns > record_path(place).stat().st_mtime_ns and digest_of(file) != record.sha256:
        return None
    return record


def verify_shard(place: UPath | Path, cache: Cache | None = None) -> ShardRecord:
    """Hold every byte of a finished shard, or of its local copy, against its record. Raises MissingInput or DamagedArtifact."""
    record = read_record(place)
    if record is None:
        raise MissingInput(f"{record_path(place)}: no record of this shard; build it")
    file = shard_file(place, record)
    if not file.exists():
        raise MissingInput(f"{file}: no such file, but its record is there; build the shard again")
    local = (cache or Cache()).local(file, sha256=record.sha256)
    if (found := digest_of(local.path)) != record.sha256:
        cure = "build the shard again" if is_local(file) else f"delete this copy of {file}"
        raise DamagedArtifact(f"{local.path}: sha256 {found}, expected {record.sha256}; {cure}")
    return record


def write_failure(place: UPath | Path, faults: Sequence[tuple[CatalogFile, str]]) -> None:
    """Keep what was wrong with files of a shard that could not be built, for the manifest."""
    write_json(failure_path(place), [{"file_id": file.file_id, "name": file.name, "problem": text} for file, text in faults])


def read_failure(place: UPath | Path) -> dict[int, str]:
    """file_id -> what was wrong with it in the last build; empty after a good one."""
    try:
        return {int(fault["file_id"]): str(fault["problem"]) for fault in read_json(failure_path(place))}
    except (MissingInput, DamagedArtifact, KeyError, TypeError):
        return {}
