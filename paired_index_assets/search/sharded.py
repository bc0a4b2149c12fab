"""`ShardedIndex`: a finished build, searched. One coarse search for all shards, lists mapped, removed ids never returned."""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO

import faiss
import numpy as np
import numpy.typing as npt
from upath import UPath

from paired_index_assets.errors import BadInput, PairedIndexError
from paired_index_assets.files.cache import LocalFile
from paired_index_assets.layout import BuildRoot, ShardPlace
from paired_index_assets.rows import Float32, Int64
from paired_index_assets.search.mapped import MappedLists
from paired_index_assets.search.plan import Plan
from paired_index_assets.search.scanning import Scan, nothing
from paired_index_assets.search.shardset import map_shard, served_index
from paired_index_assets.search.unwanted import RemovedIds
from paired_index_assets.search.workers import Workers
from paired_index_assets.trained.artifact import TrainedIndex

K_MAX = 100_000  # results of one query


class ShardedIndex:
    """All shards of a build as one index. Made by `open`; safe to search from many threads. It never changes once open, except that ids
    taken down stop being found at once.

    `shards` are the numbers of those that are searched, `missing` says why of each other, `ntotal` counts the vectors in lists, `d` is
    their width, `model` the identity of the encoder they are from, `nprobe` what a search takes that does not say.
    """

    def __init__(
        self,
        trained: TrainedIndex,
        file: LocalFile,
        shards: dict[ShardPlace, MappedLists],
        missing: dict[int, str],
        removed: RemovedIds,
    ) -> None:
        self.model, self.d, self.nlist = trained.model, trained.d, trained.nlist
        self.method, self.codec, self.fingerprint = trained.method, trained.codec.name, trained.fingerprint
        self.nprobe = trained.nprobe
        self.shards = tuple(sorted(shard.number for shard in shards))
        self.missing = missing
        self.mapped = shards
        self._removed = removed
        self._held: BinaryIO | None = None
        self._workers = Workers()
        self.ntotal = sum(mapped.ntotal for mapped in shards.values())
        self._file = file  # a copy stays while it is searched
        if self.ntotal:
            index = faiss.read_index(str(file.path), faiss.IO_FLAG_MMAP_IFC)
            self._scan = Scan(Plan(index, list(shards.values())), self._workers)

    @classmethod
    def open(cls, root: str | Path | UPath | BuildRoot, *, partial: bool = False, verify: bool = False) -> ShardedIndex:
        """Map every shard of the build at `root`; those of a remote one are copied to its cache first, which has to hold them all.

        Of the generation that is served, whole or in the making; a shard counts as soon as it is finished. Raises BadInput, MissingInput
        or DamagedArtifact naming every shard that is missing, damaged, or of another catalog. With `partial` these are left out, and
        `.missing` says why. `verify` reads every byte and compares it with the recorded sha256; without it sizes, tables and records
        are checked.
        """
        build = BuildRoot.at(root)
        served = served_index(build)
        shards: dict[ShardPlace, MappedLists] = {}
        wrong: dict[int, PairedIndexError] = {}
        for shard in served.shards:
            try:
                shards[shard] = map_shard(shard, served, build.cache, verify=verify)
            except PairedIndexError as error:
                wrong[shard.number] = error
        if wrong and not partial:
            raise _together(wrong)
        missing = {number: str(error) for number, error in wrong.items()}
        index = cls(served.trained, served.file, shards, missing, RemovedIds(build))
        index._held = served.held
        return index

    def search(
        self, queries: npt.ArrayLike, k: int, *, nprobe: int | None = None, exclude: npt.ArrayLike | None = None
    ) -> tuple[Float32, Int64]:
        """The `k` best rows of each query among the vectors in its `nprobe` lists, by inner product with the stored code.

        queries: (nq, d) or (d,), float16 or float32, finite. Returns scores float32 (nq, k), descending, and ids int64 (nq, k), global
        rows; equal scores by ascending id; id -1 and score -inf where there are fewer. An `nprobe` above the number of lists means all.
        Left out, `nprobe` is the build's own. `exclude`: further ids not to return. Raises BadInput.
        """
        vectors = checked_queries(queries, self.d)
        k, nprobe = _whole("k", k, K_MAX), self.nprobe if nprobe is None else _whole("nprobe", nprobe, None)
        removed = self._removed.also(exclude)
        if len(vectors) == 0 or self.ntotal == 0:
            return nothing(len(vectors), k)
        return self._scan.search(vectors, k, min(nprobe, self.nlist), removed)

    def list_sizes(self) -> Int64:
        """(nlist,) vectors in each list, of all shards."""
        return sum((shard.sizes for shard in self.mapped.values()), start=np.zeros(self.nlist, np.int64))

    @property
    def files(self) -> list[Path]:
        """The shard files that are searched, or their local copies, in order of shards."""
        return [self.mapped[shard].path for shard in sorted(self.mapped, key=lambda shard: shard.number)]

    def close(self) -> None:
        """Stop the search threads. What is mapped is unmapped when the last reference to the index goes."""
        self._workers.close()
        if self._held is not None:
            self._held.close()

    def __enter__(self) -> ShardedIndex:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def checked_queries(queries: npt.ArrayLike, d: int) -> Float32:
    """(nq, d) float32, contiguous. Raises BadInput for another shape, type or width; that they are finite is looked at by the search."""
    try:
        given: npt.NDArray[Any] = np.asarray(queries)
    except ValueError as error:
        raise BadInput(f"queries: expected an array (n, {d}) of float32 or float16, found {error}") from error
    if given.dtype.kind != "f":
        raise BadInput(f"queries: expected float32 or float16, found {given.dtype}")
    rows = given[None] if given.ndim == 1 else given
    if rows.ndim != 2 or rows.shape[1] != d:
        raise BadInput(f"queries: expected shape (n, {d}), found {given.shape}; embed them with the model of the index")
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(rows, dtype=np.float32)


def _whole(name: str, value: int, most: int | None) -> int:
    wrong = isinstance(value, bool) or not isinstance(value, int | np.integer)
    if wrong or value < 1 or (most is not None and value > most):
        raise BadInput(f"{name}: expected a whole number from 1{f' to {most}' if most else ''}, found {value!r}")
    return int(value)


def _together(wrong: dict[int, PairedIndexError]) -> PairedIndexError:
    """One error for all shards, of the kind of the first."""
    first = next(iter(wrong.values()))
    if len(wrong) == 1:
        return first
    numbers = ", ".join(map(str, wrong))
    return type(first)(f"{len(wrong)} shards cannot be searched ({numbers}), first: {first}")
