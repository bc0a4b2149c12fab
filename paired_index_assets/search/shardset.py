"""Which files make the build that the manifest describes, and whether each is what the manifest says."""

from __future__ import annotations

from dataclasses import dataclass, replace

from upath import UPath

from paired_index_assets.errors import DamagedArtifact, MissingInput
from paired_index_assets.files.cache import Cache
from paired_index_assets.files.stamp import stamp_of
from paired_index_assets.landing.catalog import Catalog
from paired_index_assets.layout import BuildRoot
from paired_index_assets.search.mapped import MappedLists, map_lists
from paired_index_assets.shards.manifest import read_manifest
from paired_index_assets.shards.record import finished_record, read_record, record_path, shard_file, verify_shard
from paired_index_assets.trained.artifact import TrainedIndex


@dataclass(frozen=True)
class ManifestedShard:
    """A shard that should be there (BuildRoot.shard), and the bytes that must be in its file; no sha256 if it was not finished for the
    manifest."""

    number: int
    path: UPath
    sha256: str | None


def manifested_shards(build: BuildRoot, codec: str) -> list[ManifestedShard]:
    """Every shard of the manifest and of the catalog, by number. Raises MissingInput before the first manifest."""
    manifest = read_manifest(build).select(["shard", "shard_sha256"])
    digests = dict(zip(manifest["shard"].to_pylist(), manifest["shard_sha256"].to_pylist(), strict=True))
    numbers = set(digests) | (set(range(Catalog.load(build.catalog).shards)) if build.catalog.exists() else set())
    return [ManifestedShard(number, build.shard(codec, number), digests.get(number)) for number in sorted(numbers)]


def map_shard(shard: ManifestedShard, trained: TrainedIndex, cache: Cache, *, verify: bool) -> MappedLists:
    """Map a shard if it is the manifest's, and was not replaced meanwhile. Raises MissingInput, DamagedArtifact."""
    named = shard_file(shard.path, known) if (known := read_record(shard.path)) else shard.path
    before = stamp_of(named)
    if not before:
        raise MissingInput(f"{shard.path}: no such shard; build it, or search the others with partial=True")
    record = verify_shard(shard.path, cache) if verify else finished_record(shard.path)
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
    local = cache.local(shard_file(shard.path, record), sha256=record.sha256)
    mapped = replace(map_lists(local.path, trained.nlist, trained.codec.code_size), held=local)
    if stamp_of(named) != before:
        raise DamagedArtifact(f"{shard.path}: replaced while it was opened; open the index again when the rebuild is finished")
    if (mapped.d, mapped.ntotal) != (trained.d, record.indexed):
        found = f"{mapped.ntotal} vectors of width {mapped.d}"
        raise DamagedArtifact(f"{shard.path}: expected {record.indexed} vectors of width {trained.d}, found {found}; build the shard again")
    return mapped
