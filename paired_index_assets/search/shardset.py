"""Which files make the build that the manifest describes, and whether each is what the manifest says."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from paired_index_assets.errors import DamagedArtifact, MissingInput
from paired_index_assets.landing.catalog import Catalog
from paired_index_assets.layout import BuildRoot
from paired_index_assets.search.mapped import MappedLists, map_lists
from paired_index_assets.shards.manifest import read_manifest
from paired_index_assets.shards.record import finished_record, record_path, shard_path, verify_shard
from paired_index_assets.storage import read_json
from paired_index_assets.trained.artifact import TrainedIndex


@dataclass(frozen=True)
class ManifestedShard:
    """A shard that should be there, and the bytes that must be in its file; no sha256 if it was not finished for the manifest."""

    number: int
    path: Path
    sha256: str | None


def manifested_shards(build: BuildRoot, codec: str) -> list[ManifestedShard]:
    """Every shard of the manifest and of the catalog, by number. Raises MissingInput before the first manifest."""
    manifest = read_manifest(build).select(["shard", "shard_sha256"])
    digests = dict(zip(manifest["shard"].to_pylist(), manifest["shard_sha256"].to_pylist(), strict=True))
    numbers = set(digests) | (set(range(Catalog.load(build.catalog).shards)) if build.catalog.exists() else set())
    return [ManifestedShard(number, shard_path(build, codec, number), digests.get(number)) for number in sorted(numbers)]


def promoted_index(build: BuildRoot) -> tuple[TrainedIndex, Path]:
    """The trained index that the shards are to be built with, and its file. Raises MissingInput, DamagedArtifact."""
    chosen = read_json(build.promoted)
    try:
        path, fingerprint = build.trained / chosen["index"], chosen["fingerprint"]
    except KeyError as error:
        raise DamagedArtifact(f"{build.promoted}: expected a key {error}, found {sorted(chosen)}; promote an index again") from error
    trained = TrainedIndex.load(path)
    if trained.fingerprint != fingerprint:
        raise DamagedArtifact(f"{build.promoted}: promotes {fingerprint}, but {chosen['index']} is {trained.fingerprint}; promote again")
    return trained, Path(path.path)


def map_shard(shard: ManifestedShard, trained: TrainedIndex, *, verify: bool) -> MappedLists:
    """Map a shard if it is the manifest's, and was not replaced meanwhile. Raises MissingInput, DamagedArtifact."""
    try:
        before = shard.path.stat()
    except FileNotFoundError as error:
        raise MissingInput(f"{shard.path}: no such shard; build it, or search the others with partial=True") from error
    record = verify_shard(shard.path) if verify else finished_record(shard.path)
    if record is None:
        record_name = record_path(shard.path).name
        raise DamagedArtifact(f"{shard.path}: not what {record_name} says: cut, altered or being replaced; build the shard again")
    if record.trained != trained.fingerprint:
        raise DamagedArtifact(
            f"{shard.path}: made by trained index {record.trained}, promoted is {trained.fingerprint}; build the shard again"
        )
    if shard.sha256 is None:
        raise MissingInput(f"{shard.path}: finished after the manifest was written; write the manifest")
    if record.sha256 != shard.sha256:
        raise DamagedArtifact(f"{shard.path}: not the file in the manifest: rebuilt since; let the rebuild finish and write the manifest")
    mapped = map_lists(shard.path, trained.nlist, trained.codec.code_size)
    after = shard.path.stat()
    if (before.st_ino, before.st_mtime_ns, before.st_size) != (after.st_ino, after.st_mtime_ns, after.st_size):
        raise DamagedArtifact(f"{shard.path}: replaced while it was opened; open the index again when the rebuild is finished")
    if (mapped.d, mapped.ntotal) != (trained.d, record.indexed):
        found = f"{mapped.ntotal} vectors of width {mapped.d}"
        raise DamagedArtifact(f"{shard.path}: expected {record.indexed} vectors of width {trained.d}, found {found}; build the shard again")
    return mapped
