"""Each row's nearest centroid by whichever way is fastest here: the dense search (exact.py) or the pruned one (pruned.py), measured.

Bounds pay where lists are many and vectors wide, and not elsewhere; and it depends on the processor. So once the work is worth it, some
rows are assigned in every way there is, and the quickest goes on. All ways find the same lists, so nothing else depends on it.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch

from paired_index_assets.blas import single_threaded_blas
from paired_index_assets.errors import BadInput
from paired_index_assets.neighbors.arithmetic import FLOAT32
from paired_index_assets.neighbors.blocks import Block, check_matrix, check_same_width, read_block
from paired_index_assets.neighbors.bounds import Bounds, Frame, SeenRows, basis_of, directions
from paired_index_assets.neighbors.engine import choose
from paired_index_assets.neighbors.exact import MEMORY_BYTES, assign, tiles
from paired_index_assets.neighbors.grouping import grouped_by_heads, ungrouped
from paired_index_assets.neighbors.pruned import PrunedSearch
from paired_index_assets.neighbors.ways import DENSE, Way, cpu_seconds, quickest, ways
from paired_index_assets.neighbors.workers import Workspace, workers
from paired_index_assets.progress import Progress, silent
from paired_index_assets.rows import Float32, Int64, Rows, Selected

LEAST_VALUES = 1 << 17  # of centroids (lists times dimensions): fewer are multiplied sooner than they are ruled out
# The probe costs about as much as 10,000 rows, and the directions .3 s: it may cost a twentieth where it finds nothing.
WORTH_PROBING = 2e11  # multiply-adds
ROWS_WORTH_PROBING = 150_000  # times the passes over them that are to come
LEAST_ROWS = 2048  # fewer are assigned densely
PROBED = 4e9  # multiply-adds of the rows that are tried
LEAST_PROBED, MOST_PROBED = 1024, 8192  # rows
FEW, MOST_UNDECIDED = 64, 0.25  # of them, first: whether bounds rule anything out, for most rows
SOME, TRIES, SOME_REACH, FINALISTS = 0.25, 3, 1.25, 3  # of them, then: which ways are near the best
TILE = 4096  # rows a worker takes at a time
DIRECTION_ROWS = 8_192  # and centroids: a sample of either tells the directions
KEPT_BYTES = 512 << 20  # of rows as a frame shows them, between iterations: a tenth or so of the rows themselves


@dataclass
class Assigner:
    """`assign` for block after block, or iteration after iteration of k-means: what was measured and made once serves all."""

    names: tuple[str, str] = ("vectors", "centroids")
    ways: dict[bool, Way] = field(default_factory=dict)  # with and without lists from before: what was chosen, once the work was worth it
    passes: int = 1  # that are to come over as many rows, with lists from before
    costs: dict[Way, float] = field(default_factory=dict)  # CPU seconds a row, of each way that was tried
    _rows: dict[bool, int] = field(default_factory=lambda: {False: 0, True: 0})  # assigned so far
    _directions: Float32 | None = None
    _frames: dict[Way, Frame] = field(default_factory=dict)
    _made: tuple[Float32, Way, PrunedSearch] | None = None  # of the last centroids
    _kept: _Kept | None = None

    def __call__(
        self, vectors: Rows, centroids: Float32, *, before: Int64 | None = None, device: str | None = None, progress: Progress = silent
    ) -> Int64:
        """(n,) int64: as exact.assign, with its errors. `before` (n,): a list of each row that is probably near, as the last iteration's."""
        check_matrix(vectors, self.names[0])
        check_matrix(centroids, self.names[1])
        check_same_width(vectors, self.names[0], centroids, self.names[1])
        known = before is not None
        self._rows[known] += len(vectors)
        on_cpu = _on_cpu(device)
        rows = max(self._rows[known], len(vectors) * self.passes if known else 0)
        if on_cpu and known not in self.ways and self._worth(len(vectors), rows, centroids):
            self.decide(vectors, centroids, before)
        way = self.ways.get(known, DENSE)
        if way.dense or not on_cpu or len(vectors) < LEAST_ROWS:
            return assign(vectors, centroids, device=device, names=self.names, progress=progress)
        search = self._prepared(vectors, centroids, way, grouped=not known)
        if known and (self._kept is None or not self._kept.holds(vectors, way)):
            self._kept = _Kept(vectors, way)
        lists, left = self._by_bounds(search, vectors, before, progress, self._kept if known else None)
        if len(left):
            lists[left] = assign(Selected(vectors, left), centroids, device="cpu", names=self.names)
        return lists

    def worth_probing(self, vectors: Rows, centroids: Rows, *, device: str | None = None) -> bool:
        """Whether, for `passes` assignments of so many rows to so many centroids, measuring is worth it, or has been done."""
        return _on_cpu(device) and (False in self.ways or self._worth(len(vectors), len(vectors) * self.passes, centroids))

    def prunes(self, vectors: Rows, centroids: Float32) -> bool:
        """Whether bounds are the way for such rows and centroids whose lists are unknown; measured once."""
        if False not in self.ways:
            self.decide(vectors, centroids)
        return not self.ways[False].dense

    def _worth(self, n: int, rows: int, centroids: Rows) -> bool:
        values = float(centroids.shape[0]) * centroids.shape[1]
        return n >= LEAST_ROWS and rows >= ROWS_WORTH_PROBING and rows * values >= WORTH_PROBING

    def decide(self, vectors: Rows, centroids: Float32, before: Int64 | None = None) -> Way:
        """Measure now which way is quickest for such rows, with or without lists from before; `ways` and `costs` keep it."""
        try:
            way = self._fastest(vectors, centroids, before)
        except BadInput:  # of the sample: the dense search of all rows will say which it is
            way = DENSE
        self.ways[before is not None] = way
        return way

    def _fastest(self, vectors: Rows, centroids: Float32, before: Int64 | None) -> Way:
        few = centroids.size < LEAST_VALUES
        count = int(np.clip(PROBED / centroids.size, LEAST_PROBED, MOST_PROBED))
        chosen = spread_rows(len(vectors), count)
        sample = np.ascontiguousarray(vectors[chosen], dtype=np.float32)
        guess = None if before is None else before[chosen]
        whole = choose("cpu", 1, len(centroids), float(len(vectors)) * centroids.size, MEMORY_BYTES)

        dense = partial(cpu_seconds, partial(assign, sample, centroids, engine=whole))
        dense_row = dense() / len(sample)

        def cost(search: PrunedSearch, rows: int) -> float:
            """Of `rows` rows; those left undecided cost what they cost among many, where centroids are read once for all of them."""
            left: list[Int64] = []
            some = None if guess is None else guess[:rows]
            seconds = cpu_seconds(lambda: left.append(self._by_bounds(search, sample[:rows], some, silent)[1]))
            return seconds + len(left[0]) * dense_row

        def decides(search: PrunedSearch) -> bool:
            rows = torch.from_numpy(sample[:FEW])
            start = None if guess is None else torch.from_numpy(guess[:FEW])
            _, undecided = search.nearest(rows, torch.linalg.vector_norm(rows, dim=1), start, Workspace())
            return len(undecided) <= FEW * MOST_UNDECIDED

        likely: list[tuple[float, Way, PrunedSearch]] = []
        for way in () if few else ways(sample.shape[1]):
            search = self._prepared(sample, centroids, way, grouped=before is None)
            if decides(search):
                likely.append((min(cost(search, int(SOME * count)) for _ in range(TRIES)), way, search))
                likely.sort(key=lambda one: one[0])
                likely = [one for one in likely[:FINALISTS] if one[0] <= SOME_REACH * likely[0][0]]  # a loser's table is let go
        contenders = [(way, partial(cost, search, len(sample))) for _, way, search in likely]
        way, seconds = quickest([(DENSE, dense), *contenders])
        self.costs = {way: spent / len(sample) for way, spent in seconds.items()}
        return way

    def _prepared(self, vectors: Rows, centroids: Float32, way: Way, *, grouped: bool) -> PrunedSearch:
        made = self._made[2] if self._made and self._made[0] is centroids else None
        if made is not None and grouped and not made.groups.found:
            made = None
        if made is None or self._made is None or self._made[1] != way:
            wide = np.ascontiguousarray(centroids, dtype=np.float32)
            groups = made.groups if made is not None else grouped_by_heads(wide) if grouped else ungrouped(wide)
            with single_threaded_blas():  # threads that wait for another's share of so short a product burn more than it takes
                bounds = Bounds.of(wide, groups.order.numpy() if groups.found else None, self._frame(vectors, wide, way))
            made = PrunedSearch(torch.from_numpy(wide), bounds, groups)
            self._made = centroids, way, made
        return made

    def _frame(self, vectors: Rows, centroids: Float32, way: Way) -> Frame:
        if way not in self._frames:
            some = centroids[spread_rows(len(centroids), DIRECTION_ROWS)]
            if self._directions is None:
                rows = np.ascontiguousarray(vectors[spread_rows(len(vectors), DIRECTION_ROWS)], dtype=np.float32)
                self._directions = directions(rows, some)
            self._frames[way] = Frame.of(some, basis_of(self._directions, way.width, spread=way.levels > 0), way.levels)
        return self._frames[way]

    def _by_bounds(
        self, search: PrunedSearch, vectors: Rows, before: Int64 | None, progress: Progress, kept: _Kept | None = None
    ) -> tuple[Int64, Int64]:
        """(n,) the lists, and the rows that are left to the dense search."""
        lists = np.empty(len(vectors), np.int64)
        spaces = threading.local()

        def tile(start: int, stop: int) -> tuple[int, Int64]:
            space = spaces.__dict__.setdefault("own", Workspace())
            block = read_block(vectors, start, stop, FLOAT32, self.names[0], space)
            guess = None if before is None else torch.from_numpy(before[start:stop])
            seen = None if kept is None else kept.seen(search.bounds.frame, block)
            found, undecided = search.nearest(block.vectors, block.norms, guess, space, seen)
            lists[start:stop] = found.numpy()
            return stop, undecided.numpy() + start

        undecided = []
        with workers() as pool:
            cuts = tiles(len(vectors), TILE, torch.get_num_threads())
            for stop, left in pool.map(tile, cuts[:-1], cuts[1:]):
                undecided.append(left)
                progress("neighbors", stop, len(vectors))
        return lists, np.concatenate(undecided)


@dataclass
class _Kept:
    """Rows as a frame shows them, from one iteration to the next: as many as there is memory for."""

    rows: Rows
    way: Way
    blocks: dict[tuple[int, int], SeenRows] = field(default_factory=dict)
    nbytes: int = 0

    def holds(self, rows: Rows, way: Way) -> bool:
        return self.rows is rows and self.way == way

    def seen(self, frame: Frame, block: Block) -> SeenRows:
        place = block.start, len(block)
        if place in self.blocks:
            return self.blocks[place]
        seen = frame.see(block.vectors, block.norms)
        if self.nbytes + seen.nbytes <= KEPT_BYTES:
            self.blocks[place] = seen
            self.nbytes += seen.nbytes
        return seen


def _on_cpu(device: str | None) -> bool:
    return not torch.cuda.is_available() if device is None else device.startswith("cpu")


def spread_rows(rows: int, count: int) -> Int64:
    """Numbers of at most `count` rows, evenly spread."""
    return np.arange(0, rows, max(1, rows // count), dtype=np.int64)[:count]
