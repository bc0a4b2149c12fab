"""Rounding that keeps the scores of queries: error feedback through a Cholesky factor, then coordinate descent.

The loss of a row x coded as x^ is what its scores lose over queries. With e the error in grid steps and a the steps it is e' H e,
H = diag(a) (S + ridge) diag(a), S = E[q q'] over captions, and, for the queries that ask for x and not for anything else, another
w (u' e)^2 with u the caption expected for x: scores matter most where x is in contention. Integer levels 0..top are chosen to lower it, of as many bits
as the dimension has.

- `error_feedback` visits the dimensions one by one and rounds each to the level that makes up best for the errors already made:
  LDLQ (Chee et al. 2307.13304), the rule of GPTQ (Frantar et al. 2210.17323), with queries where those have activations.
- `coordinate_descent` revisits each dimension and takes its best level given all others; no step raises the loss.

Columns are rows of the data: arrays are (d, tile), so that a dimension is contiguous and a block of dimensions is one GEMM.
They may be numpy arrays or torch tensors, all of one kind. Cost a row: d^2/2 multiply-adds for feedback, d^2 a pass of descent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from paired_index_assets.rows import Float32, Int64

TINY = float(np.finfo(np.float32).tiny)
BLOCK = 64  # dimensions a GEMM; 16 to 96 were tried at d = 768

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Rounding:
    """All that rounding a row needs, arrays of one kind.

    base (r, d) puts a row on the axes of the grid, None where they are the row's own; first and step (r,) are the grid.
    order (r,) the axes as they are visited; in that order tops, their highest levels, and feedback and weighed (r, r), in the unit of the
    widest step.
    inward (d + 1, m), outward (m, r): a row to sqrt(weight) times the caption expected for it, as steps of the axes meet it; missed
    (d + 1, m): what that caption misses of the row beyond the axes, None where they are all there.
    """

    base: Any
    first: Any
    step: Any
    tops: Sequence[float]
    order: Any
    feedback: Any
    weighed: Any
    inward: Any
    outward: Any
    missed: Any
    passes: int

    def on(self, device: str) -> Rounding:
        """The same as torch tensors on a device."""
        import torch

        arrays: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self) if isinstance(getattr(self, f.name), np.ndarray)}
        moved: dict[str, Any] = {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
        return replace(self, **moved)

    def levels(self, rows: Any) -> Any:
        """(n, r) levels of `rows` (n, d) float32, as floats."""
        targets = ((rows if self.base is None else rows @ self.base.T) - self.first) / self.step
        asked = rows @ self.inward[:-1] + self.inward[-1]
        asked = asked / ((asked * asked).sum(1) ** 0.5).clip(TINY)[:, None]  # the rows of the map outward are orthonormal
        missed = None if self.missed is None else (asked * (rows @ self.missed[:-1] + self.missed[-1])).sum(1)
        levels, errors = error_feedback(targets.T[self.order], self.feedback, self.tops)
        coordinate_descent(levels, errors, self.weighed, (asked @ self.outward).T[self.order], self.tops, self.passes, missed)
        unordered = 0 * targets
        unordered[:, self.order] = levels.T
        return unordered


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


def error_feedback(targets: Any, feedback: Any, tops: Sequence[float]) -> tuple[Any, Any]:
    """Levels 0..tops and errors, (d, tile) float32 each, of `targets` (d, tile) in units of grid steps."""
    d = len(targets)
    levels, errors = 0 * targets, 0 * targets
    for start in range(0, d, BLOCK):
        stop = min(start + BLOCK, d)
        aims = targets[start:stop] - feedback[start:stop, :start] @ errors[:start] if start else targets[start:stop]
        for p in range(start, stop):
            aim = aims[p - start] - feedback[p, start:p] @ errors[start:p] if p > start else aims[0]
            levels[p] = aim.round().clip(0, tops[p])
            errors[p] = levels[p] - targets[p]
    return levels, errors


def coordinate_descent(
    levels: Any, errors: Any, metric: Any, expected: Any, tops: Sequence[float], passes: int, missed: Any = None
) -> None:
    """Lower e' H e + (v' e + m)^2 in place, one dimension at a time.

    `metric` is H (d, d) in the order of the rows of `levels`, as tops are; `expected` is v = sqrt(w) a u of each column, (d, tile);
    `missed` is m (tile,), an error that no level can change and others may make up for.
    """
    d = len(levels)
    along = (expected * errors).sum(0)
    if missed is not None:
        along += missed
    for _ in range(passes):
        for start in range(0, d, BLOCK):
            stop = min(start + BLOCK, d)
            slopes = metric[start:stop] @ errors
            moves = 0 * slopes
            for p in range(start, stop):
                i, v = p - start, expected[p]
                slope = slopes[i] + v * along
                if i:
                    slope += metric[p, start:p] @ moves[:i]
                best = (levels[p] - slope / (v * v + metric[p, p])).round().clip(0, tops[p])
                moves[i] = best - levels[p]
                levels[p] = best
                errors[p] += moves[i]
                along += v * moves[i]
