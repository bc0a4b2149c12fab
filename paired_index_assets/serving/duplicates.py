"""Near-duplicates among results, as clip-retrieval's server tells them: connected by a cosine of .94 or more."""

from __future__ import annotations

import numpy as np

from paired_index_assets.rows import Float32, Int64

ALIKE = 0.94  # clip_back.KnnService.get_non_uniques
BLOCK_ROWS = 512


def distinct(vectors: Float32) -> Int64:
    """The first row of each group of `vectors` (n, d) that are alike, ascending. A row of zeros is alike to none.

    n**2 d multiply-adds and n**2 / 8 bytes: 12 MB for 10,000 results.
    """
    n = len(vectors)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = vectors / np.where(lengths > 0, lengths, 1)
    blocks = [np.packbits(unit[first : first + BLOCK_ROWS] @ unit.T >= ALIKE, axis=1) for first in range(0, n, BLOCK_ROWS)]
    alike = np.concatenate(blocks) if blocks else np.empty((0, 0), np.uint8)
    left = np.packbits(np.ones(n, np.bool_))
    first_ones = []
    for row in range(n):
        if not left[row // 8] & (0x80 >> row % 8):
            continue
        first_ones.append(row)
        left[row // 8] &= 0xFF ^ (0x80 >> row % 8)
        reached = np.array([row])
        while len(reached):
            near = np.bitwise_or.reduce(alike[reached], axis=0) & left
            left &= ~near
            reached = np.flatnonzero(np.unpackbits(near, count=n))
    return np.array(first_ones, np.int64)
