"""Rounding that keeps the scores of queries: error feedback through a Cholesky factor, then coordinate descent.

The loss of a row x coded as x^ is what its score loses over queries: E_q <q, x - x^>^2 = e' H e, with e the error in grid steps
and H = diag(step) E[q q'] diag(step). Both functions below lower it over integer levels 0..top.

- `error_feedback` visits the dimensions one by one and rounds each to the level that makes up best for the errors already
  made: LDLQ (Chee et al. 2307.13304), the rule of GPTQ (Frantar et al. 2210.17323), with queries where those have activations.
- `coordinate_descent` revisits each dimension and takes its best level given all others; no step raises the loss.

Columns are rows of the data: arrays are (d, tile), so that a dimension is contiguous and a block of dimensions is one GEMM.
They may be numpy arrays or torch tensors, all of one kind. Cost a row: d^2/2 multiply-adds for feedback, d^2 a pass of descent.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from paired_index_assets.rows import Float32, Int64

BLOCK = 64  # dimensions a GEMM; 32 to 96 measure alike at d = 768

Float64 = npt.NDArray[np.float64]


def visiting_order(metric: npt.NDArray[Any]) -> Int64:
    """Dimensions by ascending diagonal of H: the cheap ones absorb clipping first, the dear ones are corrected last."""
    return np.argsort(np.diag(metric), kind="stable")


def feedback_matrix(metric: npt.NDArray[Any]) -> Float32:
    """(d, d) strictly lower F: dimension p, in the order visited, aims at y_p - sum_{p' < p} F[p, p'] e_p'.

    With the dimensions reversed H = L L', and F is L with unit diagonal. `metric` must be positive definite (numpy raises LinAlgError).
    """
    factor = np.linalg.cholesky(metric[::-1, ::-1].astype(np.float64))
    unit = factor / np.diag(factor)
    return np.ascontiguousarray(np.tril(unit[::-1, ::-1].T, -1), dtype=np.float32)


def error_feedback(targets: Any, feedback: Any, top: int) -> tuple[Any, Any]:
    """Levels and errors, (d, tile) float32 each, of `targets` (d, tile) in units of grid steps."""
    d = len(targets)
    levels, errors = 0 * targets, 0 * targets
    for start in range(0, d, BLOCK):
        stop = min(start + BLOCK, d)
        aims = targets[start:stop] - feedback[start:stop, :start] @ errors[:start] if start else targets[start:stop]
        for p in range(start, stop):
            aim = aims[p - start] - feedback[p, start:p] @ errors[start:p] if p > start else aims[0]
            levels[p] = aim.round().clip(0, top)
            errors[p] = levels[p] - targets[p]
    return levels, errors


def coordinate_descent(levels: Any, errors: Any, metric: Any, top: int, passes: int) -> None:
    """Lower e' H e in place, one dimension at a time; `metric` is H, (d, d), in the order of the rows of `levels`."""
    d = len(levels)
    for _ in range(passes):
        for start in range(0, d, BLOCK):
            stop = min(start + BLOCK, d)
            slopes = metric[start:stop] @ errors
            moves = 0 * slopes
            for p in range(start, stop):
                i = p - start
                slope = slopes[i] + metric[p, start:p] @ moves[:i] if i else slopes[0]
                best = (levels[p] - slope / metric[p, p]).round().clip(0, top)
                moves[i] = best - levels[p]
                levels[p] = best
                errors[p] += moves[i]
