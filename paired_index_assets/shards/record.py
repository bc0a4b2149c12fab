"""The record beside each shard (`….index7.json`): what it was made from and what is in it. It is what makes a shard finished.

Written after its shard: a shard without one, or with an older one, counts as not built. It has no times and no settings of the
machine, so that two builds of the same inputs write the same record.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from paired_index_assets.errors import BadInput, DamagedArtifact, MissingInput
from paired_index_assets.landing.catalog import CatalogFile
from paired_index_assets.landing.landed import LandedFile
from paired_index_assets.layout import BuildRoot
from paired_index_assets.storage import digest_of, digest_of_parts, is_local, read_json, write_json

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


def shard_path(root: BuildRoot, codec: str, shard: int) -> Path:
    """The shard's file. Raises BadInput where the root is not on a local disk: faiss writes and maps local files only."""
    place = root.shard(codec, shard)
    if not is_local(place):
        raise BadInput(f"{place}: shards are built on a local disk; set the root to a local folder and copy the finished files afterwards")
    return Path(place.path)


def record_path(shard_file: Path) -> Path:
    return shard_file.with_name(shard_file.name + ".json")


def failure_path(shard_file: Path) -> Path:
    return shard_file.with_name(shard_file.name + ".failed.json")


def write_record(shard_file: Path, record: ShardRecord) -> None:
    write_json(record_path(shard_file), asdict(record))


def read_record(shard_file: Path) -> ShardRecord | None:
    """The record of a shard, None where there is none or it is not one. The shard's bytes are not looked at."""
    try:
        content = read_json(record_path(shard_file))
        if content["format"] != FORMAT:
            return None
        return ShardRecord(**{**content, "files": tuple(FileRecord(**file) for file in content["files"])})
    except (MissingInput, DamagedArtifact, KeyError, TypeError):
        return None


def finished_record(shard_file: Path) -> ShardRecord | None:
    """The record of a shard whose file is the one it speaks of, else None.

    A shard younger than its record is what a build killed between the two left behind, or a file somebody copied or altered: there
    the checksum decides.
    """
    record = read_record(shard_file)
    if record is None or not shard_file.exists():
        return None
    facts = shard_file.stat()
    if facts.st_size != record.bytes:
        return None
    if facts.st_mtime_ns > record_path(shard_file).stat().st_mtime_ns and digest_of(shard_file) != record.sha256:
        return None
    return record


def verify_shard(shard_file: Path) -> ShardRecord:
    """Hold every byte of a finished shard against its record. Raises MissingInput or DamagedArtifact."""
    record = read_record(shard_file)
    if record is None:
        raise MissingInput(f"{record_path(shard_file)}: no record of this shard; build it")
    if not shard_file.exists():
        raise MissingInput(f"{shard_file}: no such file, but its record is there; build the shard again")
    if (found := digest_of(shard_file)) != record.sha256:
        raise DamagedArtifact(f"{shard_file}: sha256 {found}, expected {record.sha256}; build the shard again")
    return record


def write_failure(shard_file: Path, faults: Sequence[tuple[CatalogFile, str]]) -> None:
    """Keep what was wrong with files of a shard that could not be built, for the manifest."""
    write_json(failure_path(shard_file), [{"file_id": file.file_id, "name": file.name, "problem": text} for file, text in faults])


def read_failure(shard_file: Path) -> dict[int, str]:
    """file_id -> what was wrong with it in the last build; empty after a good one."""
    try:
        return {int(fault["file_id"]): str(fault["problem"]) for fault in read_json(failure_path(shard_file))}
    except (MissingInput, DamagedArtifact, KeyError, TypeError):
        return {}
