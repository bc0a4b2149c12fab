"""How far a score computed in fast arithmetic can be from the true one: the margin that makes the search exact.

Let a be the computed and s the true score of a pair, |a - s| <= e for every pair of one query. If c is a lower bound of the k-th
largest s then every pair of the true top k has a >= c - e; and the k-th largest a, less e, is such a bound. So all pairs with
``a >= kth largest a - 2 e`` contain the true top k, and re-scoring these alone is exact.

e = |q - q'| |x| + |q'| |x - x'| + gamma |q'| |x'|, with q', x' the inputs as rounded to the arithmetic's type (both terms are
measured, not estimated), and gamma = n u / (1 - n u) for a sum of n = d products in float32 in any order, with or without fused
multiply-add (Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., section 3.1). The rounding of the *result* to the
arithmetic's type is monotone, so it needs no margin where a score is compared with a bound rounded the same way.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

FLOAT32_ROUNDOFF = 2.0**-24
# Additions beyond the d products: rounding of the float64 re-score to float32, of the bound itself, of the measured norms.
EXTRA_ROUNDINGS = 8
# Tensor cores add with truncation (twice the error of rounding) and align to the largest term; 4 covers both.
# (Fasi, Higham, Mikaitis, Pranesh: Numerical behavior of NVIDIA tensor cores, PeerJ CS 2021.)
TENSOR_CORE_FACTOR = 4.0
NORM_SLACK = 1.001


def gamma(terms: int, factor: float = 1.0) -> float:
    """How far a float32 sum of `terms` products may be off, as a share of the product of the norms; `factor` for worse adders."""
    n = (terms + EXTRA_ROUNDINGS) * factor
    return n * FLOAT32_ROUNDOFF / (1 - n * FLOAT32_ROUNDOFF)


@dataclass(frozen=True)
class Arithmetic:
    """What candidates are computed in: inputs rounded to `dtype`, summed in float32 (or better), the sum rounded once."""

    dtype: torch.dtype
    result_roundoff: float  # relative, of the stored score; 0 where it stays float32
    sum_factor: float = 1.0

    @property
    def rounds(self) -> bool:
        """Whether float32 vectors lose anything by it."""
        return self.dtype not in (torch.float32, torch.float64)

    def within_range(self, vectors: torch.Tensor) -> torch.Tensor:
        """Beyond the largest float16 the rounding error grows, and with it the margin, but nothing becomes infinite."""
        largest = torch.finfo(torch.float16).max
        return vectors.clamp(-largest, largest) if self.dtype == torch.float16 else vectors

    def below(self, scores: torch.Tensor) -> torch.Tensor:
        """A bound that the unrounded value of each stored score reaches."""
        return scores - self.result_roundoff * scores.abs() if self.result_roundoff else scores

    def margin(
        self, query_norms: torch.Tensor, query_errors: torch.Tensor, base_norm: float, base_error: float, dimensions: int
    ) -> torch.Tensor:
        """2 e for each query (float32), against any base row with norm <= base_norm and rounding error <= base_error."""
        share = gamma(dimensions, self.sum_factor)
        rounded_query, rounded_base = query_norms + query_errors, base_norm + base_error
        error = query_errors * base_norm + rounded_query * base_error + share * rounded_query * rounded_base
        return 2 * NORM_SLACK * error


FLOAT64 = Arithmetic(torch.float64, 0.0)  # its margin is that of float32: more than enough
FLOAT32 = Arithmetic(torch.float32, 0.0)
BFLOAT16 = Arithmetic(torch.bfloat16, 2.0**-8 * 1.01)
FLOAT16_FUSED = Arithmetic(torch.float16, 0.0, TENSOR_CORE_FACTOR)
