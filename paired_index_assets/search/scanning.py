"""A plan, searched: few queries one after the other on the calling thread, many at once list by list on all of them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from paired_index_assets.errors import BadInput
from paired_index_assets.rows import Float32, Int64, UInt8
from paired_index_assets.search import kernel
from paired_index_assets.search.ahead import now
from paired_index_assets.search.blocks import PLANES, weights_stride
from paired_index_assets.search.choosing import SPARE
from paired_index_assets.search.plan import Plan
from paired_index_assets.search.ranking import NOTHING
from paired_index_assets.search.threads import Workers, cores, ranges

BATCH = 64  # queries from which on they are likely to share lists
BLOCK_BYTES = 1 << 28  # of what is kept of the queries in work at once
CANDIDATE_BYTES = 20  # its mark, its place, its id
NO_ID = -1
NO_IDS: Int64 = np.empty(0, np.int64)
ALL: UInt8 = np.empty(0, np.uint8)  # the bitmap that lets every id through


class Scan:
    """Immutable, safe to search from many threads."""

    def __init__(self, plan: Plan, workers: Workers) -> None:
        self._plan, self._workers = plan, workers
        self._width = int(plan.record["width"][0])

    @property
    def plan(self) -> Plan:
        """What is searched."""
        return self._plan

    def search(self, queries: Float32, k: int, nprobe: int, removed: Int64 = NO_IDS, allowed: UInt8 = ALL) -> tuple[Float32, Int64]:
        """The best k of `queries` (n, d) in their `nprobe` best lists: scores (n, k) descending, equal ones by ascending id; -inf and -1
        where there are fewer. Without the ids `removed` (ascending), and only those whose bit is set in `allowed` (all, where it is empty).

        Raises BadInput for a query that is not finite.
        """
        n = len(queries)
        scores, ids = np.empty((n, k), np.float32), np.empty((n, k), np.int64)
        if n < BATCH:
            self._refuse(kernel.search_each(self._plan.record, queries, k, nprobe, removed, allowed, now(), scores, ids), 0)
            return scores, ids
        for rows in ranges(n, -(-n * self._bytes_a_query(k, nprobe) // BLOCK_BYTES)):
            self._block(queries[rows], rows.start, nprobe, removed, allowed, scores[rows], ids[rows])
        return scores, ids

    def _bytes_a_query(self, k: int, nprobe: int) -> int:
        """In work: its weights, its lists, and its candidates on every thread."""
        return PLANES * weights_stride(self._width) + 12 * self._width + 12 * nprobe + CANDIDATE_BYTES * (2 * k + SPARE) * cores()

    def _block(self, queries: Float32, first: int, nprobe: int, removed: Int64, allowed: UInt8, scores: Float32, ids: Int64) -> None:
        """Every probed list is read once, by one thread, for all queries that look in it; before, the best list of each query, so that what
        is of no interest in the others is known from the start."""
        n, k = scores.shape
        plan, tasks, threads, room = self._plan.record, ranges(n, 4 * cores()), cores(), 2 * k + SPARE
        moment = now()
        seen, facts, lists = np.empty((n, self._width), np.float32), np.empty((n, self._width)), np.empty((n, nprobe), np.int64)
        weights, slacks = np.zeros((n, PLANES, weights_stride(self._width)), np.int8), np.empty(n, np.int64)
        asked = (seen, facts, weights, slacks)
        candidates = tuple(np.empty((threads, n, room), kind) for kind in (np.int32, np.int64, np.int64))
        found = (*candidates, np.zeros((threads, n), np.int64), np.full((threads, n), NOTHING, np.int64))

        def prepare(rows: slice) -> int:
            return int(kernel.prepare(plan, queries[rows], nprobe, seen[rows], lists[rows], weights[rows], facts[rows], slacks[rows]))

        def scan(columns: slice) -> None:
            bounds, looking = kernel.by_list(lists, columns.start, columns.stop, self._plan.nlist)
            cuts = np.searchsorted(bounds, len(looking) * np.arange(threads + 1) / threads)
            cuts[-1] = self._plan.nlist

            def some(thread: int) -> None:
                mine = tuple(array[thread] for array in found)
                kernel.scan_lists(plan, *cuts[thread : thread + 2].tolist(), bounds, looking, asked, mine, k, removed, allowed, moment)

            list(self._workers.run(some, range(threads)))

        def tell(rows: slice) -> None:
            kernel.raise_thresholds(plan, tuple(array[rows] for array in asked), tuple(array[:, rows] for array in found), k)

        def settle(rows: slice) -> None:
            mine = tuple(array[:, rows] for array in found)
            kernel.settle_all(plan, tuple(array[rows] for array in asked), mine, k, scores[rows], ids[rows])

        for rows, bad in zip(tasks, self._workers.run(prepare, tasks), strict=True):
            self._refuse(bad, first + rows.start)
        scan(slice(0, 1))
        list(self._workers.run(tell, tasks))
        scan(slice(1, nprobe))
        list(self._workers.run(settle, tasks))

    def _refuse(self, row: int, first: int) -> None:
        if row >= 0:
            raise BadInput(f"queries: expected finite vectors, found NaN, infinite values or an infinite length in row {first + row}")


def nothing(n: int, k: int) -> tuple[Float32, Int64]:
    """What `n` queries find where there is nothing."""
    return np.full((n, k), -np.inf, np.float32), np.full((n, k), NO_ID, np.int64)


def bitmap(ids: Int64, rows: int) -> npt.NDArray[np.uint8]:
    """One bit for each of `rows` ids, those of `ids` set."""
    bits = np.zeros(rows, bool)
    bits[ids] = True
    return np.packbits(bits, bitorder="little")
