"""How sure a mean over queries is: percentile bootstrap intervals (Efron 1979), seeded, paired where queries are shared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from paired_index_assets.errors import BadInput
from paired_index_assets.rows import Float32

RESAMPLES = 1000
LEVEL = 0.95
BLOCK_BYTES = 32 << 20


@dataclass(frozen=True)
class Interval:
    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def signed(self) -> str:
        return f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


def mean_interval(values: Float32, *, seed: int) -> Interval:
    """Of (queries,) values."""
    return mean_intervals(values[None], seed=seed)[0]


def difference_interval(ours: Float32, theirs: Float32, *, seed: int) -> Interval:
    """Of the mean of ours - theirs, (queries,) each, the same queries in the same order: far narrower than two separate intervals."""
    if ours.shape != theirs.shape:
        raise BadInput(f"difference of {ours.shape} and {theirs.shape} values; expected the same queries")
    return mean_interval(ours - theirs, seed=seed)


def mean_intervals(values: npt.NDArray[Any], *, seed: int) -> list[Interval]:
    """Of each row of (rows, queries). All rows share the resamples, which depend only on seed and number of queries."""
    rows, queries = values.shape
    rng = np.random.default_rng(seed)
    means = np.empty((RESAMPLES, rows))
    block = max(1, BLOCK_BYTES // (8 * queries))
    for start in range(0, RESAMPLES, block):
        stop = min(RESAMPLES, start + block)
        drawn = rng.integers(0, queries, (stop - start, queries)) + np.arange(stop - start)[:, None] * queries
        times = np.bincount(drawn.ravel(), minlength=(stop - start) * queries).reshape(-1, queries)
        means[start:stop] = times.astype(np.float64) @ values.T.astype(np.float64) / queries
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    return [Interval(float(m), float(a), float(b)) for m, a, b in zip(values.mean(1, dtype=np.float64), low, high, strict=True)]
