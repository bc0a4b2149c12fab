"""Rounding that keeps the scores of queries: error feedback through a Cholesky factor, then coordinate descent.

The loss of a row x coded as x^ is what its scores lose over queries. With e the error in grid steps and a the steps it is e' H e,
H = diag(a) (S + ridge) diag(a), S = E[q q'] over captions, and, for the queries that ask for x and not for anything else, another
w (u' e)^2 with u the caption expected for x: scores matter most where x is in contention. Integer levels 0..top are chosen to lower it, of as many bits
as the dimension has.

- `error_feedback` visits the dimensions one by one and rounds each to the level that makes up best for the errors already made:
  LDLQ (Chee et al. 2307.13304), the rule of GPTQ (Frantar et al. 2210.17323), with queries where those have activations.
- `coordinate_descent` revisits each dimension and takes its best level given all others; no step raises the loss.

Columns are rows of the data: arrays are (d, tile), so that a dimension is contiguous and a block of dimensions is one GEMM, in two sizes:
a GEMM a BLOCK leaves the work inside it, which lies in the cache, to one a FEW. Cost a row: d^2/2 multiply-adds for feedback, d^2 a pass of
descent. On the processor in any case: a GPU sums in another order, and at a near tie a row would get another code there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from paired_index_assets.rows import Float32, Int64, UInt8

TINY = float(np.finfo(np.float32).tiny)
BLOCK = 64  # dimensions a GEMM; 16 to 96 were tried at d = 768
FEW = 8  # of a block

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Rounding:
    """All that rounding a row needs; axes are in the order in which they are visited.

    order (r,) their places in a code. base (r, d) puts a row on the axes, None where they are the row's own; first and step (r, 1) are the
    grid, tops its highest levels. feedback and weighed (r, r) in the unit of the widest step. inward (m, d + 1), outward (r, m): a row to
    sqrt(weight) times the caption expected for it, as steps of the axes meet it; missed (m, d + 1): what that caption misses of the row
    beyond the axes, None where they are all there.
    """

    order: Int64
    base: Float32 | None
    first: Float32
    step: Float32
    tops: Sequence[float]
    feedback: Float32
    weighed: Float32
    inward: Float32
    outward: Float32
    missed: Float32 | None
    passes: int

    def levels(self, rows: Float32) -> UInt8:
        """(n, r) levels of `rows` (n, d), in the order of the code."""
        columns = np.ascontiguousarray(rows.T)
        targets = columns[self.order] if self.base is None else self.base @ columns
        targets -= self.first
        targets /= self.step
        asked = self.inward[:, :-1] @ columns + self.inward[:, -1:]
        asked /= np.sqrt((asked * asked).sum(0)).clip(TINY)  # the map outward keeps lengths
        missed = None if self.missed is None else (asked * (self.missed[:, :-1] @ columns + self.missed[:, -1:])).sum(0)
        levels, errors = error_feedback(targets, self.feedback, self.tops)
        coordinate_descent(levels, errors, self.weighed, self.outward @ asked, self.tops, self.passes, missed)
        coded = np.empty((len(rows), len(targets)), np.uint8)
        coded[:, self.order] = levels.T
        return coded


def visiting_order(metric: npt.NDArray[Any]) -> Int64:
    """The order to round in: backwards, always the dimension of least variance given those placed before it.

    What feedback leaves of the loss is the sum of the squared pivots of H, whose product is fixed: it is least when they are even, and
    small pivots taken first leave the others larger (the sorted QR of lattice decoding, Wuebben et al. 2001). On icons it halves the
    loss of ascending diagonals. O(d^3/2).
    """
    d = len(metric)
    metric = metric.astype(np.float64)
    left, columns = np.diag(metric).copy(), np.zeros((d, d))
    backwards = np.empty(d, np.int64)
    for k in range(d):
        pivot = int(np.argmin(left))
        column = metric[pivot] - columns[:k].T @ columns[:k, pivot]
        columns[k] = column / np.sqrt(max(left[pivot], np.finfo(np.float64).tiny))
        left = left - columns[k] ** 2
        backwards[k] = pivot
        left[backwards[: k + 1]] = np.inf
    return backwards[::-1].copy()


def feedback_matrix(metric: npt.NDArray[Any]) -> Float32:
    """(d, d) strictly lower F: dimension p, in the order visited, aims at y_p - sum_{p' < p} F[p, p'] e_p'.

    With the dimensions reversed H = L L', and F is L with unit diagonal. Raises numpy's LinAlgError if `metric` is not positive definite.
    """
    factor = np.linalg.cholesky(metric[::-1, ::-1].astype(np.float64))
    unit = factor / np.diag(factor)
    return np.ascontiguousarray(np.tril(unit[::-1, ::-1].T, -1), dtype=np.float32)


def error_feedback(targets: Float32, feedback: Float32, tops: Sequence[float]) -> tuple[Float32, Float32]:
    """Levels 0..tops and errors, (d, tile) each, of `targets` (d, tile) in units of grid steps."""
    d = len(targets)
    levels, errors = np.empty_like(targets), np.empty_like(targets)
    for start in range(0, d, BLOCK):
        stop = min(start + BLOCK, d)
        aims = targets[start:stop] - feedback[start:stop, :start] @ errors[:start] if start else targets[start:stop].copy()
        for first in range(start, stop, FEW):
            last = min(first + FEW, stop)
            if first > start:
                aims[first - start : last - start] -= feedback[first:last, start:first] @ errors[start:first]
            for p in range(first, last):
                aim = aims[p - start]
                if p > first:
                    aim -= feedback[p, first:p] @ errors[first:p]
                _nearest(aim, tops[p], levels[p])
                np.subtract(levels[p], targets[p], out=errors[p])
    return levels, errors


def coordinate_descent(
    levels: Float32,
    errors: Float32,
    metric: Float32,
    expected: Float32,
    tops: Sequence[float],
    passes: int,
    missed: Float32 | None = None,
) -> None:
    """Lower e' H e + (v' e + m)^2 in place, one dimension at a time.

    `metric` is H (d, d) in the order of the rows of `levels`, as tops are; `expected` is v = sqrt(w) a u of each column, (d, tile);
    `missed` is m (tile,), an error that no level can change and others may make up for.
    """
    d = len(levels)
    along = (expected * errors).sum(0)
    if missed is not None:
        along += missed
    spare = np.empty_like(along)
    for _ in range(passes):
        for start in range(0, d, BLOCK):
            stop = min(start + BLOCK, d)
            slopes = metric[start:stop] @ errors
            moves = np.empty_like(slopes)
            for first in range(start, stop, FEW):
                last = min(first + FEW, stop)
                if first > start:
                    slopes[first - start : last - start] += metric[first:last, start:first] @ moves[: first - start]
                for p in range(first, last):
                    slope, move, v = slopes[p - start], moves[p - start], expected[p]
                    if p > first:
                        slope += metric[p, first:p] @ moves[first - start : p - start]
                    slope += np.multiply(v, along, out=spare)
                    np.multiply(v, v, out=spare)
                    spare += metric[p, p]
                    slope /= spare
                    _nearest(np.subtract(levels[p], slope, out=slope), tops[p], slope)
                    np.subtract(slope, levels[p], out=move)
                    levels[p] = slope
                    errors[p] += move
                    along += np.multiply(v, move, out=spare)


def _nearest(aims: Float32, top: float, levels: Float32) -> None:
    """`levels` (tile,) become the levels 0..top nearest to `aims`, half to even; they may be one array."""
    np.rint(aims, out=levels)
    np.minimum(levels, top, out=levels)
    np.maximum(levels, 0, out=levels)
