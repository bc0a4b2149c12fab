"""The scores that decide, compiled (numba): rows are read where they lie, nothing is gathered. Releases the GIL."""

from __future__ import annotations

from typing import Any

import numpy as np

from paired_index_assets.files.compiling import compiled


@compiled
def score_pairs(queries: Any, base: Any, query: Any, row: Any, scores: Any) -> None:
    """scores (n,) float32 of the pairs query, row (n,) int64 of queries (nq, d) and base (nb, d) float32: summed in float64, rounded once."""
    for i in range(len(query)):
        a, b, total = queries[query[i]], base[row[i]], 0.0
        for j in range(len(a)):
            total += np.float64(a[j]) * np.float64(b[j])
        scores[i] = np.float32(total)
