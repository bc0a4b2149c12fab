"""`ShardedIndex`: a finished build, searched. One coarse search for all shards, lists mapped, removed ids never returned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from upath import UPath

from paired_index_assets.errors import BadInput, PairedIndexError
from paired_index_assets.files.cache import LocalFile
from paired_index_assets.layout import BuildRoot, ShardPlace
from paired_index_assets.rows import Float32, Int64
from paired_index_assets.search.coarse import CoarseSearch
from paired_index_assets.search.mapped import MappedLists
from paired_index_assets.search.shardset import map_shard, served_index
from paired_index_assets.search.stack import NO_ID, Stack
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
        self._transform_queries = trained.codec.transform_queries
        self.shards = tuple(sorted(shard.number for shard in shards))
        self.missing = missing
        self.mapped = shards
        self._removed = removed
        self._workers = Workers()
        self._coarse = CoarseSearch(file, self._workers)
        self.ntotal = sum(mapped.ntotal for mapped in shards.values())
        if self.ntotal:
            quantizer = trained.codec.format.quantizer(trained.codec.vmin, trained.codec.vdiff)
            self._stack = Stack(list(shards.values()), trained.nlist, quantizer, self._workers)

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
        return cls(served.trained, served.file, shards, missing, RemovedIds(build))

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
        selector = self._removed.selector(exclude)
        if len(vectors) == 0 or self.ntotal == 0:
            return np.full((len(vectors), k), -np.inf, np.float32), np.full((len(vectors), k), NO_ID, np.int64)
        vectors = self._transform_queries(vectors)
        lists = self._coarse.lists(vectors, min(nprobe, self.nlist))
        within = min(k, self.ntotal)
        scores, ids = self._stack.search(vectors, lists, within, selector)
        if within == k:
            return scores, ids
        rest = ((0, 0), (0, k - within))
        return np.pad(scores, rest, constant_values=-np.inf), np.pad(ids, rest, constant_values=NO_ID)

    def close(self) -> None:
        """Stop the search threads. What is mapped is unmapped when the last reference to the index goes."""
        self._workers.close()

    def __enter__(self) -> ShardedIndex:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def checked_queries(queries: npt.ArrayLike, d: int) -> Float32:
    """(nq, d) float32, contiguous. Raises BadInput for another shape, type or width, or for values that are not finite."""
    try:
        given: npt.NDArray[Any] = np.asarray(queries)
    except ValueError as error:
        raise BadInput(f"queries: expected an array (n, {d}) of float32 or float16, found {error}") from error
    if not np.issubdtype(given.dtype, np.floating):
        raise BadInput(f"queries: expected float32 or float16, found {given.dtype}")
    rows = given[None] if given.ndim == 1 else given
    if rows.ndim != 2 or rows.shape[1] != d:
        raise BadInput(f"queries: expected shape (n, {d}), found {given.shape}; embed them with the model of the index")
    with np.errstate(over="ignore"):
        vectors = np.ascontiguousarray(rows, dtype=np.float32)
        finite = np.isfinite(np.einsum("ij,ij->i", vectors, vectors))
    if not finite.all():
        row = int(np.flatnonzero(~finite)[0])
        raise BadInput(f"queries: expected finite vectors, found NaN, infinite values or an infinite length in row {row}")
    return vectors


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
    return type(first)(f"{len(wrong)} shards can not be searched ({numbers}), first: {first}")
