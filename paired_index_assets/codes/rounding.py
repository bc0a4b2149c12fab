"""Rounding that keeps the scores of queries: error feedback through a Cholesky factor, then coordinate descent.

The loss of a row x coded as x^ is what its scores lose over queries. With e the error in grid steps and a the steps it is e' H e,
H = diag(a) (S + ridge) diag(a), S = E[q q'] over captions, and, for the queries that ask for x and not for anything else, another
w (u' e)^2 with u the caption expected for x: scores matter most where x is in contention. Integer levels 0..top are chosen to lower it, of as many bits
as the dimension has.

- Error feedback visits the dimensions one by one and rounds each to the level that makes up best for the errors already made:
  LDLQ (Chee et al. 2307.13304), the rule of GPTQ (Frantar et al. 2210.17323), with queries where those have activations.
- Coordinate descent revisits each dimension and takes its best level given all others; no step raises the loss.

What feedback did not aim at, z = (I + F) e, is at hand when it ends, and H e = (I + F)' D z: slopes for descent cost a triangle of
multiply-adds. Descent then moves one dimension in twenty, and only a move costs another row of H. A row costs d^2/2 multiply-adds for
feedback, d^2/2 for slopes, and d for each move. On the processor in any case: a GPU sums in another order, and at a near tie a row would
get another code there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from paired_index_assets.rows import Float32, Int64, UInt8

if TYPE_CHECKING:
    from paired_index_assets.codes.kernel import Panels

Float64 = npt.NDArray[np.float64]
COMPILED_FOR: Any = ("C", "A", "W")  # for other arrays the same would be compiled once more


@dataclass(frozen=True)
class Rounding:
    """All that rounding a row needs; axes are in the order in which they are visited.

    order (r,) their places in a code. base (r, d) puts a row on the axes, None where they are the row's own; first, step and tops (r,) are
    the grid and its highest levels. metric (r, r) is H in the unit of the widest step. inward (m, d + 1), outward (r, m): a row to
    sqrt(weight) times the caption expected for it, as steps of the axes meet it; missed (m, d + 1): what that caption misses of the row
    beyond the axes, None where they are all there.
    """

    order: Int64
    base: Float32 | None
    first: Float32
    step: Float32
    tops: Float32
    metric: Float64
    inward: Float32
    outward: Float32
    missed: Float32 | None
    passes: int

    def prepared(self) -> Callable[[Float32], UInt8]:
        """A function from rows (n, d) to their levels (n, r), in the order of the code. It releases the GIL, and threads may share it.

        Raises numpy's LinAlgError if the metric is not positive definite.
        """
        from paired_index_assets.codes.kernel import round_rows  # who only reads codes needs no compiler

        panels = self._panels()

        def levels(rows: Float32) -> UInt8:
            coded = np.empty((len(rows), len(self.order)), np.uint8)
            round_rows(np.require(rows, np.float32, COMPILED_FOR), panels, self.passes, coded)
            return coded

        return levels

    def _panels(self) -> Panels:
        from paired_index_assets.codes.kernel import Panels, panels_of
        from paired_index_assets.codes.products import COLUMNS, ROWS, STEPS

        r, (rank, terms) = len(self.order), self.inward.shape
        base = np.zeros((0, terms), np.float32) if self.base is None else np.pad(self.base, ((0, 0), (0, 1)))
        feedback, pivots = feedback_matrix(self.metric)
        rest = -r % STEPS
        return Panels(
            order=np.array(self.order, np.int64),
            into=panels_of(np.vstack([base, self.inward] if self.missed is None else [base, self.inward, self.missed]), ROWS),
            own=self.base is None,
            rank=rank,
            misses=self.missed is not None,
            outward=panels_of(self.outward, ROWS),
            feedback=panels_of(feedback, ROWS),
            slopes=panels_of((feedback + np.eye(r, dtype=np.float32)).T, COLUMNS),
            pivots=pivots,
            metric=np.pad(self.metric.astype(np.float32), ((0, 0), (0, rest))),
            diagonal=np.pad(np.diag(self.metric).astype(np.float32), (0, rest), constant_values=1),
            tops=np.pad(np.asarray(self.tops, np.float32), (0, rest)),
            first=np.array(self.first, np.float32),
            step=np.array(self.step, np.float32),
        )


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


def feedback_matrix(metric: npt.NDArray[Any]) -> tuple[Float32, Float32]:
    """(d, d) strictly lower F: dimension p, in the order visited, aims at y_p - sum_{p' < p} F[p, p'] e_p'; and the squared pivots D (d,).

    With the dimensions reversed H = L L', and F is L with unit diagonal: H = (I + F)' D (I + F). Raises numpy's LinAlgError if `metric` is
    not positive definite.
    """
    factor = np.linalg.cholesky(metric[::-1, ::-1].astype(np.float64))
    pivots = np.diag(factor)
    unit = (factor / pivots)[::-1, ::-1].T
    return np.ascontiguousarray(np.tril(unit, -1), dtype=np.float32), np.ascontiguousarray(pivots[::-1] ** 2, dtype=np.float32)
