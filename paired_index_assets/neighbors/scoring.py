"""The scores that decide, compiled (numba): rows are read where they lie, nothing is gathered. Releases the GIL."""

from __future__ import annotations

from typing import Any

import numpy as np

from paired_index_assets.files.compiling import compiled


@compiled
def score_pairs(queries: Any, base: Any, query: Any, row: Any, scores: Any) -> None:
    """scores[i] = <queries[query[i]], base[row[i]]>, float32 products summed in float64 and rounded once."""
    for i in range(len(query)):
        a, b, total = queries[query[i]], base[row[i]], 0.0
        for j in range(len(a)):
            total += np.float64(a[j]) * np.float64(b[j])
        scores[i] = np.float32(total)
