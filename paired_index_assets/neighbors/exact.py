"""The best k of many rows under inner product, exactly: pairing, assignment and ground truth all come here.

The score of a pair is its inner product summed in float64 and rounded once to float32; among equal scores the lower id comes
first. So the answer depends on the vectors alone, not on block sizes, threads or device. Candidates are found in the fastest
arithmetic the machine has, within a proven margin (arithmetic.py), and only candidates are scored that way.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from paired_index_assets.errors import BadInput
from paired_index_assets.neighbors.best import NOTHING
from paired_index_assets.neighbors.blocks import Block, check_matrix, check_same_width, read_block
from paired_index_assets.neighbors.engine import Engine, choose
from paired_index_assets.neighbors.workers import Workspace, workers
from paired_index_assets.progress import Progress, silent
from paired_index_assets.rows import Float32, Int64, Rows

SMALLEST_BLOCK = 1024
MEMORY_BYTES = 256 << 20
Best = tuple[torch.Tensor, torch.Tensor]  # scores (nq, k) float32 descending, ids (nq, k) int64


@dataclass(frozen=True)
class _Means:
    """What a search runs on, and what errors call its two sides. None of it changes the answer."""

    names: tuple[str, str]
    device: str | None = None
    memory_bytes: int = MEMORY_BYTES
    progress: Progress = silent
    engine: Engine | None = None


def exact_neighbors(
    queries: Rows,
    base: Rows,
    k: int,
    *,
    device: str | None = None,
    memory_bytes: int = MEMORY_BYTES,
    progress: Progress = silent,
    names: tuple[str, str] = ("queries", "base"),
    engine: Engine | None = None,
) -> tuple[Float32, Int64]:
    """The k base rows with the largest inner product with each query: scores (nq, k) float32 descending, ids (nq, k) int64.

    queries (nq, d) and base (n, d), float16 or float32, are read in blocks, so both may be larger than memory; beyond them and
    the result about `memory_bytes` are used, and a tile a core (40 MB at most at d = 768). `device`: "cpu", "cuda", or None for a GPU
    where there is one. `names` are what errors call the two. `engine` is for tests: what to run on, instead of the fastest. Cost:
    2 nq n d operations; base is read once, queries once for each block of base.

    Raises BadInput: not matrices, zero rows, widths differ, k < 1 or k > n, a row with NaN, infinity or a norm above 1e18.
    """
    scores, ids = _search(queries, base, k, _Means(names, device, memory_bytes, progress, engine))
    return scores.numpy(), ids.numpy()


def nearest(
    vectors: Rows,
    centroids: Rows,
    *,
    names: tuple[str, str] = ("vectors", "centroids"),
    device: str | None = None,
    progress: Progress = silent,
) -> tuple[Float32, Int64]:
    """The centroid with the largest inner product with each vector: scores (n,) float32 and ids (n,) int64. See exact_neighbors."""
    scores, ids = exact_neighbors(vectors, centroids, 1, device=device, progress=progress, names=names)
    return scores[:, 0], ids[:, 0]


def assign(
    vectors: Rows,
    centroids: Rows,
    *,
    device: str | None = None,
    memory_bytes: int = MEMORY_BYTES,
    progress: Progress = silent,
    names: tuple[str, str] = ("vectors", "centroids"),
    engine: Engine | None = None,
) -> Int64:
    """The ids of `nearest` alone, (n,) int64: sooner, because a score that nobody asks for is computed only where it decides.

    `engine`: what to run on, where a sample stands for more rows than it has.
    """
    return _search(vectors, centroids, 1, _Means(names, device, memory_bytes, progress, engine), ids_only=True)[1].numpy()[:, 0]


class RunningNeighbors:
    """`exact_neighbors` of rows that come block after block: the best so far is a bound that shuts out most of what comes later.

    queries (nq, d) float16 or float32, finite. The result is that of one search over all blocks put together, whatever their sizes.
    """

    def __init__(self, queries: Rows, k: int, *, device: str | None = None, names: tuple[str, str] = ("queries", "base")) -> None:
        check_matrix(queries, names[0])
        self._queries, self._means = queries, _Means(names, device)
        self._scores, self._ids = _nothing_yet(len(queries), k)
        self._seen = 0
        self._held: list[Float32] = []  # the first rows, until there are k: an engine finds k of at least k

    def add(self, base: Float32) -> None:
        """Look at the next rows (n, d) float32; they have the ids after all before. Raises BadInput as `exact_neighbors`."""
        query_name, base_name = self._means.names
        check_matrix(base, base_name)
        check_same_width(self._queries, query_name, base, base_name)
        k = self._scores.shape[1]
        if self._seen == 0 and (self._held or len(base) < k):
            self._held.append(base.copy())
            if sum(map(len, self._held)) < k:
                return
            base = np.concatenate(self._held)
            self._held.clear()
        _improve((self._scores, self._ids), self._queries, base, self._means, first_id=self._seen)
        self._seen += len(base)

    def best(self) -> tuple[Float32, Int64]:
        """Scores (nq, w) float32 descending and ids (nq, w) int64, w the lesser of k and the rows seen."""
        if self._held:
            rows = np.concatenate(self._held)
            scores, ids = _search(self._queries, rows, len(rows), self._means)
            return scores.numpy(), ids.numpy()
        width = min(self._scores.shape[1], self._seen)
        return self._scores[:, :width].numpy(), self._ids[:, :width].numpy()


def _search(queries: Rows, base: Rows, k: int, means: _Means, *, ids_only: bool = False) -> Best:
    query_name, base_name = means.names
    check_matrix(queries, query_name)
    check_matrix(base, base_name)
    check_same_width(queries, query_name, base, base_name)
    if not 1 <= k <= len(base):
        raise BadInput(f"k: expected 1 .. {len(base)} (the rows of {base_name}), found {k}")
    best = _nothing_yet(len(queries), k)
    _improve(best, queries, base, means, ids_only=ids_only)
    return best


def _nothing_yet(queries: int, k: int) -> Best:
    return torch.full((queries, k), NOTHING, dtype=torch.float32), torch.full((queries, k), -1, dtype=torch.int64)


def _improve(best: Best, queries: Rows, base: Rows, means: _Means, *, ids_only: bool = False, first_id: int = 0) -> None:
    """Bring the `best` so far, scores and ids (nq, k), up to date with `base`, whose row i has id first_id + i, above all ids there."""
    (scores, ids), (query_name, base_name) = best, means.names
    (nq, d), k = queries.shape, scores.shape[1]
    engine = means.engine or choose(means.device, k, len(base), float(nq) * len(base) * d, means.memory_bytes)
    base_rows = max(SMALLEST_BLOCK, 2 * k, engine.base_bytes // (d * engine.value_bytes))
    spaces = threading.local()

    def own_space() -> Workspace:
        space: Workspace = spaces.__dict__.setdefault("own", Workspace())
        return space

    def read(block: Block, start: int, stop: int) -> None:
        block.read(base, base_name, engine.arithmetic, own_space(), start, stop)

    def search(block: Block, start: int, stop: int) -> int:
        query = read_block(queries, start, stop, engine.arithmetic, query_name, own_space(), engine.device)
        tile = scores[start:stop].to(engine.device), ids[start:stop].to(engine.device)
        here = replace(block, start=first_id + block.start)
        engine.scan(query, here, engine.arithmetic, *tile, own_space(), ids_only and len(block) == len(base))
        scores[start:stop], ids[start:stop] = tile
        return len(query)

    with workers() if engine.parallel else nullcontext() as pool:
        run: Callable[..., Iterable[Any]] = pool.map if pool else map
        threads = torch.get_num_threads() if pool else 1
        cuts, base_space = tiles(nq, engine.query_tile, threads), Workspace()
        for start in range(0, len(base), base_rows):
            rows = min(base_rows, len(base) - start)
            block = Block.unread(base, start, start + rows, engine.arithmetic, base_space, engine.device)
            shares = tiles(rows, rows, threads)
            list(run(partial(read, block), shares[:-1], shares[1:]))
            done = start * nq
            for searched in run(partial(search, block), cuts[:-1], cuts[1:]):
                done += searched * rows
                means.progress("neighbors", done // len(base), nq)


def tiles(rows: int, largest: int, threads: int) -> list[int]:
    """Cuts of 0 .. rows: tiles of equal size, none above `largest`, and a multiple of `threads` of them if there are enough rows."""
    count = -(-rows // (largest * threads)) * threads
    return sorted({rows * i // count for i in range(count + 1)})
