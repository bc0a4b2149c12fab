"""`exact.nearest` by bounds where a probe finds that faster: every caption's image, say, which is an assignment to as many lists as images."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import torch

from paired_index_assets.neighbors.arithmetic import FLOAT32
from paired_index_assets.neighbors.assigning import Assigner
from paired_index_assets.neighbors.best import exact_scores
from paired_index_assets.neighbors.blocks import check_matrix, check_same_width, float32_rows, read_block
from paired_index_assets.neighbors.exact import nearest, tiles
from paired_index_assets.neighbors.workers import Workspace
from paired_index_assets.progress import Progress, silent
from paired_index_assets.rows import Float32, Int64, Rows

BLOCK_BYTES = 256 << 20  # of base rows, in float32, at a time
TILE = 4096  # rows scored at a time


class BoundedNeighbors:
    """`exact.nearest` of some rows and then of others in the same base, to the same scores and ids and with its errors.

    Base rows are in memory a quarter of a GiB at a time, in float32. `calls`: of as many rows that are to come, which says whether measuring is
    worth it.
    """

    def __init__(self, base: Rows, *, names: tuple[str, str] = ("vectors", "base"), calls: int = 1) -> None:
        check_matrix(base, names[1])
        self._base, self._names = base, names
        self._assigner = Assigner(names, passes=calls)
        self._only: Float32 | None = None  # the block, where there is but one: its groups and bounds are then made once

    def nearest(self, vectors: Rows, *, device: str | None = None, progress: Progress = silent) -> tuple[Float32, Int64]:
        """Scores (n,) float32 and ids (n,) int64 of the base row with the largest inner product with each vector."""
        base, names, assigner = self._base, self._names, self._assigner
        check_matrix(vectors, names[0])
        check_same_width(vectors, names[0], base, names[1])
        scores, ids = np.full(len(vectors), -np.inf, np.float32), np.zeros(len(vectors), np.int64)
        if not assigner.worth_probing(vectors, base, device=device):
            return nearest(vectors, base, names=names, device=device, progress=progress)
        for start, block in self._blocks():
            if start == 0 and not assigner.prunes(vectors, block):
                return nearest(vectors, base, names=names, device=device, progress=progress)
            found = assigner(vectors, block, device="cpu", progress=_of_whole(progress, start, len(block), len(base)))
            score = _scores(vectors, block, found)
            better = score > scores  # an equal score loses: its id is higher
            scores[better], ids[better] = score[better], found[better] + start
        return scores, ids

    def _blocks(self) -> Iterator[tuple[int, Float32]]:
        """Where each block starts, and its rows, checked. Blocks are of equal size: what was measured of one holds for all."""
        base = self._base
        cuts = tiles(len(base), max(1, BLOCK_BYTES // (4 * base.shape[1])), 1)
        for start, stop in pairwise(cuts):
            rows = self._only
            if rows is None:
                rows = read_block(base, start, stop, FLOAT32, self._names[1]).vectors.numpy()
            if stop - start == len(base):
                self._only = rows
            yield start, rows


def _of_whole(progress: Progress, start: int, rows: int, base_rows: int) -> Progress:
    """`progress` of all base rows, of which `start` are done, told by the work on the next `rows`."""

    def told(step: str, done: int, total: int, /, **facts: float | int | str) -> None:
        progress(step, (start * total + rows * done) // base_rows, total, **facts)

    return told


def _scores(vectors: Rows, base: Float32, ids: Int64) -> Float32:
    """(n,) of each row with its base row."""
    space, scores = Workspace(), np.empty(len(ids), np.float32)
    for start in range(0, len(ids), TILE):
        rows = float32_rows(vectors, start, min(start + TILE, len(ids)), space)
        here = torch.from_numpy(ids[start : start + TILE])
        scores[start : start + TILE] = exact_scores(rows, torch.from_numpy(base), torch.arange(len(rows)), here).numpy()
    return scores
