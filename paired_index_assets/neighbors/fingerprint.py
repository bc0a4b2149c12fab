"""What identifies a matrix: a digest of its shape, type and values, so that a resumed run can tell whether its inputs are the same."""

from __future__ import annotations

import hashlib

import numpy as np

from paired_index_assets.rows import Rows

BLOCK_BYTES = 1 << 24


def fingerprint_of(rows: Rows) -> str:
    """sha256, hexadecimal, over shape, dtype and every value in row order; the storage (array, map, parts) does not matter."""
    sha = hashlib.sha256(f"{tuple(rows.shape)} {np.dtype(rows.dtype).str}".encode())
    width = int(np.prod(rows.shape[1:], dtype=np.int64)) * np.dtype(rows.dtype).itemsize
    step = max(1, BLOCK_BYTES // max(1, width))
    for start in range(0, len(rows), step):
        sha.update(np.ascontiguousarray(rows[start : start + step]).tobytes())
    return sha.hexdigest()
