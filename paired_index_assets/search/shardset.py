"""Which shards are served, and whether each is what its record says."""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass, field, replace
from typing import BinaryIO

from paired_index_assets.errors import DamagedArtifact, MissingInput, PairedIndexError
from paired_index_assets.files.cache import Cache, LocalFile
from paired_index_assets.files.listing import list_entries
from paired_index_assets.files.locks import shared
from paired_index_assets.files.stamp import stamp_of
from paired_index_assets.files.storage import is_local
from paired_index_assets.landing.catalog import Catalog
from paired_index_assets.layout import BuildRoot, Generation, ShardPlace
from paired_index_assets.search.mapped import MappedLists, map_lists
from paired_index_assets.shards.generations import served_generation, trained_of
from paired_index_assets.shards.record import finished_record, read_record, recorded_shards, shard_file, verify_shard
from paired_index_assets.trained.artifact import TrainedIndex

SETTLED_NS = 100_000_000  # a folder's time of change is coarser than its changes


@dataclass(frozen=True)
class ServedIndex:
    """The generation that is served: its folder, the trained index that made it, in memory and as a faiss file, and the catalog of its ids."""

    generation: Generation
    trained: TrainedIndex
    file: LocalFile
    catalog: Catalog | None
    held: BinaryIO | None = field(default=None, repr=False, compare=False)  # so that the generation stays while it is searched

    @property
    def shards(self) -> list[ShardPlace]:
        """Where every shard of the catalog is to be; where there is no catalog, the shards that have records."""
        numbers = range(self.catalog.shards) if self.catalog is not None else recorded_shards(self.generation)
        return [self.generation.shard(self.trained.codec.name, number) for number in numbers]


def served_index(build: BuildRoot) -> ServedIndex:
    """Raises MissingInput before the first shard is finished, DamagedArtifact, BadInput for a build of an earlier release."""
    generation = served_generation(build)
    if generation is None:
        raise MissingInput(f"{build.shards}: no shards yet; build them first")
    catalog = next((Catalog.load(path) for path in (generation.catalog, build.catalog) if path.exists()), None)
    held = shared(generation.reading)
    return ServedIndex(generation, trained_of(generation), build.cache.local(generation.trained), catalog, held)


class ServedStamp:
    """What changes when another generation is served, or a shard of the one that is was finished or replaced. Cheap to ask again."""

    def __init__(self, build: BuildRoot) -> None:
        self._build, self._folder, self._stamp = build, "", ""

    def __call__(self) -> str:
        try:
            generation = served_generation(self._build)
        except PairedIndexError as error:
            return str(error)
        if generation is None:
            return ""
        if not is_local(generation.folder):
            return _records(generation)
        try:
            changed = os.stat(generation.records.path).st_mtime_ns
        except FileNotFoundError:  # swept in this moment: the next look finds the other one
            return ""
        folder = f"{generation.fingerprint} {changed}"
        if folder != self._folder:
            self._stamp = _records(generation)
            self._folder = folder if time.time_ns() - changed > SETTLED_NS else ""  # else another change may get the same time
        return self._stamp


def _records(generation: Generation) -> str:
    """The records with their stamps; what is about to be a record, and what failed, is not among them."""
    entries = (entry for entry in list_entries(generation.records) if re.fullmatch(r"index\d+\.json", entry.name))
    return " ".join([generation.fingerprint, *sorted(f"{entry.name} {entry.stamp}" for entry in entries)])


def map_shard(place: ShardPlace, served: ServedIndex, cache: Cache, *, verify: bool) -> MappedLists:
    """Map a finished shard whose ids are the catalog's. Raises MissingInput, DamagedArtifact."""
    trained = served.trained
    named = shard_file(place, known) if (known := read_record(place)) else place.file
    before = stamp_of(named)
    if not before:
        raise MissingInput(f"{place}: no such shard; build it, or search the others with partial=True")
    record = verify_shard(place, cache) if verify else finished_record(place)
    if record is None:
        raise DamagedArtifact(f"{place}: not what {place.record.name} says: cut, altered or being replaced; build the shard again")
    if served.catalog is not None and not record.is_of(served.catalog.files(place.number)):
        raise DamagedArtifact(f"{place}: its files are not those of the catalog, and so may be its ids; build the shard again")
    local = cache.local(shard_file(place, record), sha256=record.sha256)
    mapped = replace(map_lists(local.path, trained.nlist, trained.codec.code_size), held=local)
    if stamp_of(named) != before:
        raise DamagedArtifact(f"{place}: replaced while it was opened; open the index again")
    if (mapped.d, mapped.ntotal) != (trained.d, record.indexed):
        found = f"{mapped.ntotal} vectors of width {mapped.d}"
        raise DamagedArtifact(f"{place}: expected {record.indexed} vectors of width {trained.d}, found {found}; build the shard again")
    return mapped
