"""Each row's nearest centroid by whichever way is fastest here: the dense search (exact.py) or the pruned one (pruned.py), measured.

Bounds pay where lists are many and vectors wide, and not elsewhere; and it depends on the processor. So once the work is worth it, some
rows are assigned in every way there is, and the quickest goes on. All ways find the same lists, so nothing else depends on it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from time import process_time

import numpy as np
import torch

from paired_index_assets.neighbors.arithmetic import FLOAT32
from paired_index_assets.neighbors.blocks import check_matrix, check_same_width, read_block
from paired_index_assets.neighbors.bounds import SAFE_LEVELS, Basis, Bounds, Float64, basis_of, directions, int8_levels
from paired_index_assets.neighbors.engine import choose
from paired_index_assets.neighbors.exact import MEMORY_BYTES, assign, tiles
from paired_index_assets.neighbors.pruned import Groups, PrunedSearch, group_centroids
from paired_index_assets.neighbors.workers import Workspace, workers
from paired_index_assets.progress import Progress, silent
from paired_index_assets.rows import Float32, Int64, Rows, Selected

LEAST_VALUES = 1 << 19  # of centroids (lists times dimensions): fewer are multiplied sooner than they are ruled out
WORTH_PROBING = 1e12  # multiply-adds, some ten seconds of work: for less, the probe was measured to cost more than it saves
PROBE_SHARE = 0.02  # of the rows are tried
LEAST_PROBED, MOST_PROBED = 2048, 4096  # rows
FEW, MOST_UNDECIDED = 64, 0.25  # of them, first: whether bounds rule anything out, for most rows
OUT_OF_REACH = 1.4  # times the least cost, once: a way that is not timed again
ROUNDS = 3  # of timing the others, in turn; the least of each counts
TILE = 4096  # rows a worker takes at a time
WIDTHS = (1 / 8, 1 / 6, 1 / 4, 1 / 3, 1 / 2)  # of the dimensions; benchmarks/assignment.py
WIDTH_MULTIPLE = 8
HEADS_ROUNDS, HEADS_SAMPLE = 5, 16_384
DIRECTION_ROWS = 8_192  # and centroids: a sample of either tells the directions
SEED = 1234


@dataclass(frozen=True)
class Way:
    """How rows are assigned: densely, or by bounds from `width` dimensions in int8 (`levels` > 0) or float32."""

    width: int = 0
    levels: int = 0

    @property
    def dense(self) -> bool:
        return not self.width

    def __str__(self) -> str:
        return "dense" if self.dense else f"bounds of {self.width} dimensions in {'int8' if self.levels else 'float32'}"


DENSE = Way()


@dataclass
class Assigner:
    """`assign` for block after block, or iteration after iteration of k-means: what was measured and made once serves all."""

    names: tuple[str, str] = ("vectors", "centroids")
    ways: dict[bool, Way] = field(default_factory=dict)  # with and without lists from before: what was chosen, once the work was worth it
    _worked: float = 0.0
    _directions: Float64 | None = None
    _bases: dict[Way, Basis] = field(default_factory=dict)
    _made: tuple[Float32, Way, PrunedSearch] | None = None  # of the last centroids
    costs: dict[Way, float] = field(default_factory=dict)  # CPU seconds a row, of each way that was tried

    def __call__(
        self, vectors: Rows, centroids: Float32, *, before: Int64 | None = None, device: str | None = None, progress: Progress = silent
    ) -> Int64:
        """(n,) int64: as exact.assign, with its errors. `before` (n,): a list of each row that is probably near, as the last iteration's."""
        check_matrix(vectors, self.names[0])
        check_matrix(centroids, self.names[1])
        check_same_width(vectors, self.names[0], centroids, self.names[1])
        self._worked += float(len(vectors)) * centroids.size
        known = before is not None
        on_cpu = not torch.cuda.is_available() if device is None else device.startswith("cpu")
        if on_cpu and known not in self.ways and self._worked >= WORTH_PROBING and len(vectors) >= LEAST_PROBED:
            self.decide(vectors, centroids, before)
        way = self.ways.get(known, DENSE)
        if way.dense or not on_cpu or len(vectors) < LEAST_PROBED:
            return assign(vectors, centroids, device=device, names=self.names, progress=progress)
        return self._pruned(self._prepared(vectors, centroids, way, grouped=not known), vectors, centroids, before, progress)

    def decide(self, vectors: Rows, centroids: Float32, before: Int64 | None = None) -> Way:
        """Measure now which way is quickest for such rows, with or without lists from before; `ways` and `costs` keep it."""
        self.ways[before is not None] = way = self._fastest(vectors, centroids, before)
        return way

    def _fastest(self, vectors: Rows, centroids: Float32, before: Int64 | None) -> Way:
        few = centroids.size < LEAST_VALUES
        count = int(np.clip(PROBE_SHARE * len(vectors), LEAST_PROBED, MOST_PROBED))
        chosen = spread_rows(len(vectors), count)
        sample = np.ascontiguousarray(vectors[chosen], dtype=np.float32)
        guess = None if before is None else before[chosen]
        whole = choose("cpu", 1, len(centroids), float(len(vectors)) * centroids.size, MEMORY_BYTES)

        def contenders() -> Iterator[tuple[Way, Callable[[], float]]]:
            yield DENSE, partial(_cpu_seconds, partial(assign, sample, centroids, engine=whole))
            for way in () if few else ways(sample.shape[1]):
                search = self._prepared(sample, centroids, way, grouped=before is None)
                rows = torch.from_numpy(sample[:FEW])
                start = None if guess is None else torch.from_numpy(guess[:FEW])
                _, undecided = search.nearest(rows, torch.linalg.vector_norm(rows, dim=1), start, Workspace())
                if len(undecided) <= FEW * MOST_UNDECIDED:
                    yield way, partial(_cpu_seconds, partial(self._pruned, search, sample, centroids, guess, silent))

        way, seconds = quickest(contenders())
        self.costs = {way: spent / len(sample) for way, spent in seconds.items()}
        return way

    def _prepared(self, vectors: Rows, centroids: Float32, way: Way, *, grouped: bool) -> PrunedSearch:
        if self._directions is None:
            rows, some = vectors[spread_rows(len(vectors), DIRECTION_ROWS)], centroids[spread_rows(len(centroids), DIRECTION_ROWS)]
            self._directions = directions(np.asarray(rows, dtype=np.float32), some)
        made = self._made[2] if self._made and self._made[0] is centroids else None
        if made is not None and grouped and not made.groups.found:
            made = None
        if made is None or self._made is None or self._made[1] != way:
            wide = np.ascontiguousarray(centroids, dtype=np.float32)
            groups = made.groups if made is not None else grouped_by_heads(wide) if grouped else ungrouped(wide)
            if way not in self._bases:
                self._bases[way] = basis_of(self._directions, way.width, spread=way.levels > 0)
            bounds = Bounds.of(wide, groups.order.numpy(), self._bases[way], way.levels)
            made = PrunedSearch.of(wide, bounds, groups)
            self._made = centroids, way, made
        return made

    def _pruned(self, search: PrunedSearch, vectors: Rows, centroids: Float32, before: Int64 | None, progress: Progress) -> Int64:
        lists = np.empty(len(vectors), np.int64)
        spaces = threading.local()

        def tile(start: int, stop: int) -> tuple[int, Int64]:
            space = spaces.__dict__.setdefault("own", Workspace())
            block = read_block(vectors, start, stop, FLOAT32, self.names[0], space)
            guess = None if before is None else torch.from_numpy(before[start:stop])
            found, undecided = search.nearest(block.vectors, block.norms, guess, space)
            lists[start:stop] = found.numpy()
            return stop, undecided.numpy() + start

        undecided = []
        with workers() as pool:
            cuts = tiles(len(vectors), TILE, torch.get_num_threads())
            for stop, left in pool.map(tile, cuts[:-1], cuts[1:]):
                undecided.append(left)
                progress("neighbors", stop, len(vectors))
        rows = np.concatenate(undecided)
        if len(rows):
            lists[rows] = assign(Selected(vectors, rows), centroids, device="cpu", names=self.names)
        return lists


def quickest(contenders: Iterable[tuple[Way, Callable[[], float]]]) -> tuple[Way, dict[Way, float]]:
    """The way that costs least, and what each cost: `contenders` say it anew at each call. One measurement shuts out only what is far
    behind; the others take turns, so that a moment's disturbance decides nothing.
    """
    costs: dict[Way, float] = {}
    left: dict[Way, Callable[[], float]] = {}
    for way, cost in contenders:
        costs[way], left[way] = cost(), cost
        reach = OUT_OF_REACH * min(costs.values())
        left = {way: cost for way, cost in left.items() if costs[way] <= reach}  # and a loser's table is let go
    for _ in range(ROUNDS - 1 if len(left) > 1 else 0):
        for way, cost in left.items():
            costs[way] = min(costs[way], cost())
    return min(left, key=lambda way: costs[way]), costs


def ways(d: int) -> list[Way]:
    """The pruned ways for vectors of `d` dimensions on this machine."""
    widths = sorted({max(WIDTH_MULTIPLE, int(d * share) // WIDTH_MULTIPLE * WIDTH_MULTIPLE) for share in WIDTHS})
    widths = [width for width in widths if width < d]
    levels = int8_levels()
    exact = [] if levels == SAFE_LEVELS[0] else [Way(width) for width in widths]  # with VNNI int8 takes a quarter of the time
    return [Way(width, levels) for width in widths if levels] + exact


def grouped_by_heads(centroids: Float32) -> Groups:
    """About sqrt(k) / 2 groups by a short spherical k-means of the centroids."""
    k = len(centroids)
    rng = np.random.default_rng(SEED)
    sample = centroids[np.sort(rng.choice(k, min(k, HEADS_SAMPLE), replace=False))]
    heads = sample[rng.choice(len(sample), max(1, int(np.sqrt(k) / 2)), replace=False)]
    for _ in range(HEADS_ROUNDS):
        lists = assign(sample, heads)
        sums = np.zeros_like(heads, dtype=np.float64)
        np.add.at(sums, lists, sample)
        norms = np.linalg.norm(sums, axis=1, keepdims=True)
        heads = np.where(norms > 0, sums / np.maximum(norms, 1e-30), heads).astype(np.float32)
    return group_centroids(centroids, assign(centroids, heads), heads)


def ungrouped(centroids: Float32) -> Groups:
    """For rows whose list is known nearly: nothing has to be found in groups."""
    return group_centroids(centroids, np.zeros(len(centroids), np.int64), centroids[:1], found=False)


def spread_rows(rows: int, count: int) -> Int64:
    """Numbers of at most `count` rows, evenly spread."""
    return np.arange(0, rows, max(1, rows // count), dtype=np.int64)[:count]


def _cpu_seconds(work: Callable[[], object]) -> float:
    """Of all threads of this process, so that what else the machine does decides nothing."""
    began = process_time()
    work()
    return process_time() - began
