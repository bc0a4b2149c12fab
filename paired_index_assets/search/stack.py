"""Many mapped shards searched as one index.

The lists of S shards are stacked: list l of shard s becomes list ``s * nlist + l`` of one faiss index, which has no quantizer of its own
use (`search_preassigned`). So one coarse search serves all shards, one heap of the best k serves them all, and nothing is merged in
Python. 58 shards and 8 probed lists are 464 lists of the stack for each query.

In faiss's parallel_mode 0 `search_preassigned` runs on the thread that calls it: a task is a range of queries, of shards or of lists.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import faiss
import numpy as np

from paired_index_assets.rows import Float32, Int64
from paired_index_assets.search.mapped import MappedLists
from paired_index_assets.search.workers import Workers, cores, ranges

TASK_VECTORS = 50_000  # scanned by one task at least: some milliseconds, against some 50 us to hand it over
BLOCK_BYTES = 1 << 28  # list numbers and results of the queries in work at once
RESULT_BYTES = 12  # a score and an id
BATCH = 64  # queries from which on they are likely to share lists
NO_ID = -1


class Stack:
    """The lists of `shards` (all of one codec and nlist) as one index; immutable, safe to search from many threads."""

    def __init__(self, shards: Sequence[MappedLists], nlist: int, quantizer: faiss.ScalarQuantizer, workers: Workers) -> None:
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
        index = faiss.IndexIVFScalarQuantizer(self._unused, d, nlist * len(shards), quantizer.qtype, faiss.METRIC_INNER_PRODUCT, False)
        index.sq = quantizer  # a copy
        index.is_trained, index.ntotal, index.parallel_mode = True, self.ntotal, 0
        index.replace_invlists(self._stacked, False)
        self._index = index
        self._workers = workers

    def search(self, queries: Float32, lists: Int64, k: int, selector: faiss.IDSelector | None) -> tuple[Float32, Int64]:
        """The best k of `queries` (n, d) in `lists` (n, nprobe): scores (n, k) descending and ids, equal scores by ascending id.

        Where there are fewer than k, id -1 and score -inf.
        """
        scores, ids = np.empty((len(lists), k), np.float32), np.empty((len(lists), k), np.int64)
        by_list = len(lists) >= BATCH
        row_bytes = RESULT_BYTES * (lists.shape[1] * (k + 1) if by_list else len(self._shards) * lists.shape[1] + k + 1)
        for rows in ranges(len(lists), -(-len(lists) * row_bytes // BLOCK_BYTES)):
            found = (self._list_by_list if by_list else self._query_by_query)(queries[rows], lists[rows], k + 1, selector)
            self._settle(found, rows.start, queries, lists, selector, scores, ids)
        return scores, ids

    def _query_by_query(self, queries: Float32, lists: Int64, k: int, selector: faiss.IDSelector | None) -> tuple[Float32, Int64]:
        """For few queries: tasks are ranges of queries, or of shards where there are fewer queries than cores."""
        n = len(queries)
        wanted = self._tasks(n * lists.shape[1])
        row_parts = min(n, wanted)
        tasks = [(rows, part) for rows in ranges(n, row_parts) for part in ranges(len(self._shards), max(1, wanted // row_parts))]
        parts = self._workers.run(lambda task: self._scan(queries[task[0]], lists[task[0]], task[1], k, selector), tasks)
        by_rows: dict[int, list[tuple[Float32, Int64]]] = {}
        for (rows, _), part in zip(tasks, parts, strict=True):
            by_rows.setdefault(rows.start, []).append(part)
        joined = [tuple(np.concatenate(array, axis=1) for array in zip(*found, strict=True)) for found in by_rows.values()]
        return best(np.concatenate([scores for scores, _ in joined]), np.concatenate([ids for _, ids in joined]), k)

    def _list_by_list(self, queries: Float32, lists: Int64, k: int, selector: faiss.IDSelector | None) -> tuple[Float32, Int64]:
        """For batches: every probed list is read once, from one shard after the other, for all queries that look in it.

        A pair of query and list is a query of its own to faiss; pairs go in by list, so that a list is in the cache after its first.
        """
        n, nprobe = lists.shape
        order = np.argsort(lists, axis=None, kind="stable")
        by_list = lists.ravel()[order]
        cuts = {int(np.searchsorted(by_list, by_list[part.start])) for part in ranges(len(order), 4 * self._tasks(n * nprobe))}
        tasks = [slice(first, stop) for first, stop in pairwise([*sorted(cuts), len(order)])]
        everywhere = slice(0, len(self._shards))

        def run(pairs: slice) -> tuple[Float32, Int64]:
            return self._scan(queries[order[pairs] // nprobe], by_list[pairs, None], everywhere, k, selector)

        scores, ids = np.empty((n * nprobe, k), np.float32), np.empty((n * nprobe, k), np.int64)
        for pairs, found in zip(tasks, self._workers.run(run, tasks), strict=True):
            scores[order[pairs]], ids[order[pairs]] = found
        return best(scores.reshape(n, -1), ids.reshape(n, -1), k)

    def _settle(
        self,
        found: tuple[Float32, Int64],
        first: int,
        queries: Float32,
        lists: Int64,
        selector: faiss.IDSelector | None,
        scores: Float32,
        ids: Int64,
    ) -> None:
        """Write the best k of k + 1; where the k-th and the next score are equal, look who else has it."""
        k, rows = scores.shape[1], slice(first, first + len(found[0]))
        scores[rows], ids[rows] = found[0][:, :k], found[1][:, :k]
        tied = (found[0][:, k] == found[0][:, k - 1]) & (found[1][:, k] != NO_ID)
        for row in first + np.flatnonzero(tied):
            scores[row], ids[row] = self._with_ties(queries[row], lists[row], float(scores[row, k - 1]), k, selector)

    def _scan(self, queries: Float32, lists: Int64, shards: slice, k: int, selector: faiss.IDSelector | None) -> tuple[Float32, Int64]:
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

    def _with_ties(self, query: Float32, lists: Int64, last: float, k: int, selector: faiss.IDSelector | None) -> tuple[Float32, Int64]:
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

    def _tasks(self, pairs: int) -> int:
        """How many tasks are worth it for so many pairs of query and list."""
        scanned = pairs * self.ntotal / self._nlist
        return max(1, min(cores(), int(scanned / TASK_VECTORS)))


def best(scores: Float32, ids: Int64, k: int) -> tuple[Float32, Int64]:
    """The k highest of each row, ordered; which of those equal to the k-th is open."""
    if scores.shape[1] > 2 * k:
        chosen = np.argpartition(-scores, k - 1, axis=1)[:, :k]
        scores, ids = np.take_along_axis(scores, chosen, 1), np.take_along_axis(ids, chosen, 1)
    scores, ids = ordered(scores, ids)
    return scores[:, :k], ids[:, :k]


def ordered(scores: Float32, ids: Int64) -> tuple[Float32, Int64]:
    """Each row by descending score, equal scores by ascending id, missing ones (-1) last."""
    order = np.lexsort((ids, ids < 0, -scores), axis=1)
    return np.take_along_axis(scores, order, 1), np.take_along_axis(ids, order, 1)
