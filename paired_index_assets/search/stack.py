"""Many mapped shards searched as one index.

The lists of S shards are stacked: list l of shard s becomes list ``s * nlist + l`` of one faiss index, which has no quantizer of its own
use (`search_preassigned`). So one coarse search serves all shards, one heap of the best k serves them all, and nothing is merged in
Python. 58 shards and 8 probed lists are 464 lists of the stack for each query.

Threads are this module's, not OpenMP's: in faiss's parallel_mode 0 `search_preassigned` runs on the thread that calls it, so a task is
a range of queries or a range of shards, and however many clients there are, no more tasks run at once than there are cores.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import faiss
import numpy as np

from paired_index_assets.rows import Float32, Int64
from paired_index_assets.search.mapped import MappedLists

TASK_VECTORS = 50_000  # scanned by one task at least: some milliseconds, against some 50 us to hand it over
TASK_BYTES = 1 << 26  # list numbers and results of one task at most
NO_ID = -1


class Stack:
    """The lists of `shards` (all of one codec and nlist) as one index; immutable, safe to search from many threads."""

    def __init__(self, shards: Sequence[MappedLists], nlist: int, quantizer: faiss.ScalarQuantizer) -> None:
        if not shards:
            raise ValueError("a stack of no shards")
        self._nlist, self._shards = nlist, shards
        self.ntotal = sum(shard.ntotal for shard in shards)
        pointers = faiss.InvertedListsPtrVector()
        for shard in shards:
            pointers.push_back(shard.lists)
        self._stacked = faiss.VStackInvertedLists(pointers.size(), pointers.data())
        d = quantizer.d
        self._unused = faiss.IndexFlatIP(d)
        index = faiss.IndexIVFScalarQuantizer(
            self._unused, d, nlist * len(shards), quantizer.qtype, faiss.METRIC_INNER_PRODUCT, False
        )
        index.sq = quantizer  # a copy
        index.is_trained, index.ntotal, index.parallel_mode = True, self.ntotal, 0
        index.replace_invlists(self._stacked, False)
        self._index = index
        self._pool = ThreadPoolExecutor(cores(), thread_name_prefix="scan")

    def search(self, queries: Float32, lists: Int64, k: int, selector: faiss.IDSelector | None) -> tuple[Float32, Int64]:
        """The best k of `queries` (n, d) in `lists` (n, nprobe): scores (n, k) descending and ids, equal scores by ascending id.

        Where there are fewer than k, id -1 and score -inf.
        """
        n, nprobe = lists.shape
        scores = np.full((n, k), -np.inf, np.float32)
        ids = np.full((n, k), NO_ID, np.int64)
        tasks = self._tasks(n, nprobe, k)

        def run(task: tuple[slice, slice]) -> tuple[slice, Float32, Int64]:
            rows, shards = task
            return rows, *self._scan(queries[rows], lists[rows], shards, k + 1, selector)

        wide: dict[int, list[tuple[Float32, Int64]]] = {}
        for rows, found, found_ids in self._pool.map(run, tasks) if len(tasks) > 1 else map(run, tasks):
            wide.setdefault(rows.start, []).append((found, found_ids))
        for rows in {task[0].start: task[0] for task in tasks}.values():
            found, found_ids = ordered(*(np.concatenate(part, axis=1) for part in zip(*wide[rows.start], strict=True)))
            tied = (found[:, k] == found[:, k - 1]) & (found_ids[:, k] != NO_ID)
            scores[rows], ids[rows] = found[:, :k], found_ids[:, :k]
            for row in rows.start + np.flatnonzero(tied):
                scores[row], ids[row] = self._with_ties(queries[row], lists[row], float(scores[row, k - 1]), k, selector)
        return scores, ids

    def close(self) -> None:
        self._pool.shutdown(wait=False)

    def _scan(
        self, queries: Float32, lists: Int64, shards: slice, k: int, selector: faiss.IDSelector | None
    ) -> tuple[Float32, Int64]:
        """One call into faiss: (n, k) scores and ids in a range of shards, in no promised order among equals."""
        n = len(queries)
        queries, stacked = np.ascontiguousarray(queries), self._stacked_lists(lists, shards)
        coarse = np.zeros(stacked.shape, np.float32)  # the codes are not residual: no score needs it
        scores, ids = np.empty((n, k), np.float32), np.empty((n, k), np.int64)
        at = faiss.swig_ptr
        parameters = faiss.SearchParametersIVF(nprobe=stacked.shape[1], sel=selector)
        self._index.search_preassigned_c(n, at(queries), k, at(stacked), at(coarse), at(scores), at(ids), False, parameters)
        scores[ids < 0] = -np.inf
        return scores, ids

    def _with_ties(
        self, query: Float32, lists: Int64, last: float, k: int, selector: faiss.IDSelector | None
    ) -> tuple[Float32, Int64]:
        """The best k of one query where the k-th score occurs more often than fits: of those, the lowest ids."""
        query, stacked = np.ascontiguousarray(query[None]), self._stacked_lists(lists[None], slice(0, len(self._shards)))
        coarse = np.zeros(stacked.shape, np.float32)
        result = faiss.RangeSearchResult(1)
        parameters = faiss.SearchParametersIVF(nprobe=stacked.shape[1], sel=selector)
        radius = float(np.nextafter(np.float32(last), np.float32(-np.inf)))  # faiss keeps what is greater
        at = faiss.swig_ptr
        self._index.range_search_preassigned_c(1, at(query), radius, at(stacked), at(coarse), result, False, parameters)
        count = int(faiss.rev_swig_ptr(result.lims, 2)[1])
        scores = faiss.rev_swig_ptr(result.distances, count).copy()[None]
        ids = faiss.rev_swig_ptr(result.labels, count).copy()[None]
        scores, ids = ordered(scores, ids)
        return scores[0, :k], ids[0, :k]

    def _stacked_lists(self, lists: Int64, shards: slice) -> Int64:
        """(n, nprobe) list numbers to (n, nprobe * shards) of the stack, -1 staying -1."""
        first = np.arange(shards.start, shards.stop, dtype=np.int64) * self._nlist
        stacked = np.where(lists[:, :, None] < 0, -1, lists[:, :, None] + first)
        return np.ascontiguousarray(stacked.reshape(len(lists), -1))

    def _tasks(self, n: int, nprobe: int, k: int) -> list[tuple[slice, slice]]:
        """Ranges of queries; if these are too few to keep the cores busy, each over ranges of shards too."""
        shards = len(self._shards)
        each = self.ntotal * nprobe / max(1, self._nlist)  # vectors scanned for one query
        wanted = max(1, min(cores(), int(n * each / TASK_VECTORS)))
        most = max(1, TASK_BYTES // (12 * (shards * nprobe + k + 1)))
        query_parts = max(-(-n // most), min(n, wanted))
        shard_parts = min(shards, max(1, wanted // query_parts))
        return [(rows, part) for rows in _ranges(n, query_parts) for part in _ranges(shards, shard_parts)]


def ordered(scores: Float32, ids: Int64) -> tuple[Float32, Int64]:
    """Each row by descending score, equal scores by ascending id, missing ones (-1) last."""
    order = np.lexsort((ids, ids < 0, -scores), axis=1)
    return np.take_along_axis(scores, order, 1), np.take_along_axis(ids, order, 1)


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _ranges(n: int, parts: int) -> list[slice]:
    edges = [n * i // parts for i in range(parts + 1)]
    return [slice(a, b) for a, b in pairwise(edges)]
