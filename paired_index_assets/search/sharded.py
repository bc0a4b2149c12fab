"""`ShardedIndex`: a finished build, searched. One coarse search for all shards, lists mapped, removed ids never returned."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
from upath import UPath

from paired_index_assets.errors import BadInput, PairedIndexError
from paired_index_assets.layout import BuildRoot, ShardPlace
from paired_index_assets.rows import Float32, Int64
from paired_index_assets.search.filters import Filter
from paired_index_assets.search.mapped import MappedLists
from paired_index_assets.search.packed import is_packed, map_pack
from paired_index_assets.search.plan import Plan
from paired_index_assets.search.rerank import Originals
from paired_index_assets.search.scanning import Scan, nothing
from paired_index_assets.search.shardset import ServedIndex, map_shard, served_index
from paired_index_assets.search.stored import codes_of, probed_lists
from paired_index_assets.search.threads import Workers
from paired_index_assets.search.unwanted import RemovedIds

LOG = logging.getLogger(__name__)
IN_USE = "in use"
K_MAX = 100_000  # results of one query
RERANK_MAX = 1000
FURTHER = 4  # times as many lists, for a query that found too little


class ShardedIndex:
    """All shards of a build as one index. Made by `open`; safe to search from many threads. It never changes once open, except that ids
    taken down stop being found at once.

    `shards` are the numbers of those that are searched, `missing` says why of each other, `ntotal` counts the vectors in lists, `d` is
    their width, `model` the identity of the encoder they are from, `nprobe` what a search takes that does not say. `packed` is "in use"
    where the packed layout is searched, else why it is not.
    """

    def __init__(
        self,
        served: ServedIndex,
        lists: Sequence[MappedLists],
        shards: Sequence[int],
        missing: dict[int, str],
        build: BuildRoot,
        packed: str,
    ) -> None:
        trained = served.trained
        self.model, self.d, self.nlist = trained.model, trained.d, trained.nlist
        self.method, self.codec, self.fingerprint = trained.method, trained.codec.name, trained.fingerprint
        self.nprobe = trained.nprobe
        self._codec = trained.codec
        self.shards, self.missing, self.packed = tuple(shards), missing, packed
        self.build, self._removed = build, RemovedIds(build)
        self._workers = Workers()
        self._lists, self.ntotal = lists, sum(mapped.ntotal for mapped in lists)
        self._served = served  # what it holds stays while it is searched
        if self.ntotal:
            index = faiss.read_index(str(served.file.path), faiss.IO_FLAG_MMAP_IFC)
            self._scan = Scan(Plan(index, lists), self._workers)

    @property
    def places(self) -> list[ShardPlace]:
        """Of the shards that are searched."""
        return [place for place in self._served.shards if place.number in self.shards]

    @classmethod
    def open(
        cls, root: str | Path | UPath | BuildRoot, *, partial: bool = False, verify: bool = False, packed: bool = True
    ) -> ShardedIndex:
        """Map every shard of the build at `root`; those of a remote one are copied to its cache first, which has to hold them all.

        Of the generation that is served, whole or in the making; a shard counts as soon as it is finished. Raises BadInput, MissingInput
        or DamagedArtifact naming every shard that is missing, damaged, or of another catalog. With `partial` these are left out, and
        `.missing` says why. `verify` reads every byte and compares it with the recorded sha256; without it sizes, tables and records
        are checked.

        Where the packed layout (`paired-index pack`) is of the same shards, it is mapped instead of them, and finds the same; one that is
        damaged is reported in one line of the log and left alone. With `packed` False the shards are mapped in any case.
        """
        build = BuildRoot.at(root)
        served = served_index(build)
        problem = "not packed"
        if packed:
            try:
                lists = map_pack(build, served, verify=verify)
                if lists is not None:
                    numbers = [place.number for place in served.shards]
                    return cls(served, [lists], numbers, {}, build, IN_USE)
                problem = "older than the shards" if is_packed(served) else problem
            except PairedIndexError as error:
                problem = str(error)
                LOG.warning("the packed layout is not used, the shards are: %s", error)
        shards: dict[int, MappedLists] = {}
        wrong: dict[int, PairedIndexError] = {}
        for place in served.shards:
            try:
                shards[place.number] = map_shard(place, served, build.cache, verify=verify)
            except PairedIndexError as error:
                wrong[place.number] = error
        if wrong and not partial:
            raise _together(wrong)
        missing = {number: str(error) for number, error in wrong.items()}
        return cls(served, [shards[number] for number in sorted(shards)], sorted(shards), missing, build, problem)

    def search(
        self,
        queries: npt.ArrayLike,
        k: int,
        *,
        nprobe: int | None = None,
        exclude: npt.ArrayLike | None = None,
        where: Filter | None = None,
        rerank: int = 0,
        originals: Originals | None = None,
    ) -> tuple[Float32, Int64]:
        """The `k` best rows of each query among the vectors in its `nprobe` lists, by inner product with the stored code.

        queries: (nq, d) or (d,), float16 or float32, finite. Returns scores float32 (nq, k), descending, and ids int64 (nq, k), global
        rows; equal scores by ascending id; id -1 and score -inf where there are fewer. An `nprobe` above the number of lists means all.
        Left out, `nprobe` is the build's own. `exclude`: further ids not to return.

        where: only rows that meet a condition (`filter_of`); the fewer do, the more lists are looked in, and more until k are found.
        rerank: the best ``k * rerank`` by their codes are scored again by `originals` (`originals_of`), their embeddings, and the scores
        are those; 0 for not. Raises BadInput, and MissingInput where an embedding is gone.
        """
        vectors = _as_rows(queries, self.d)  # that they are finite is looked at by the search
        k, nprobe = _whole("k", k, K_MAX), self.nprobe if nprobe is None else _whole("nprobe", nprobe, None)
        removed = self._removed.also(exclude)
        candidates = k if rerank == 0 else min(k * _whole("rerank", rerank, RERANK_MAX), K_MAX)
        if rerank and originals is None:
            raise BadInput("rerank: expected the embeddings to score by as originals; originals_of(root) opens them")
        if len(vectors) == 0 or self.ntotal == 0:
            return nothing(len(vectors), k)
        found = self._found(vectors, candidates, nprobe, removed, where)
        return originals.rerank(vectors, *found, k) if rerank and originals is not None else found

    def _found(self, vectors: Float32, k: int, nprobe: int, removed: Int64, where: Filter | None) -> tuple[Float32, Int64]:
        """With a condition, more lists where fewer rows match: what is to be found lies deeper. Those with too little look further, up to everywhere."""
        if where is None:
            return self._scan.search(vectors, k, min(nprobe, self.nlist), removed)
        share = max(where.matching, 1) / max(8 * len(where.bits), 1)
        lists = min(self.nlist, math.ceil(nprobe / math.sqrt(min(1.0, share))))
        scores, ids = self._scan.search(vectors, k, lists, removed, where.bits)
        while lists < self.nlist and len(short := np.flatnonzero((ids >= 0).sum(axis=1) < min(k, where.matching))):
            lists = min(self.nlist, FURTHER * lists)
            scores[short], ids[short] = self._scan.search(vectors[short], k, lists, removed, where.bits)
        return scores, ids

    def list_sizes(self) -> Int64:
        """(nlist,) vectors in each list, of all shards."""
        return sum((mapped.sizes for mapped in self._lists), start=np.zeros(self.nlist, np.int64))

    @property
    def files(self) -> list[Path]:
        """The files that are searched, or their local copies: the shards in their order, or the pack."""
        return [mapped.path for mapped in self._lists]

    def stored(self, query: npt.ArrayLike, ids: npt.ArrayLike, *, nprobe: int | None = None) -> Float32:
        """(n, d) the stored vectors of `ids` (n,), what a search of `query` (d,) with the same `nprobe` found, decoded; zeros for an id that
        is in none of its lists. Raises BadInput."""
        vector, wanted = _as_rows(query, self.d)[:1], np.asarray(ids, np.int64)
        nprobe = self.nprobe if nprobe is None else _whole("nprobe", nprobe, None)
        if len(wanted) == 0 or self.ntotal == 0:
            return np.zeros((len(wanted), self.d), np.float32)
        plan = self._scan.plan
        codes, there = codes_of(plan, probed_lists(plan, vector, min(nprobe, self.nlist)), wanted)
        return np.where(there[:, None], self._codec.decode(codes), np.float32(0))

    def close(self) -> None:
        """Stop the search threads. What is mapped is unmapped when the last reference to the index goes."""
        self._workers.close()
        if self._served.held is not None:
            self._served.held.close()

    def __enter__(self) -> ShardedIndex:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _as_rows(queries: npt.ArrayLike, d: int) -> Float32:
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
        vectors = np.ascontiguousarray(rows, dtype=np.float32)
    return vectors if vectors.flags.writeable else vectors.copy()  # for a read-only array the search would be compiled once more


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
