"""Vectors like those of a two-tower model, and the plain answer to compare with."""

import numpy as np
from unit_vectors import unit

from paired_index_assets.neighbors import cpu
from paired_index_assets.neighbors.arithmetic import BFLOAT16, FLOAT32
from paired_index_assets.neighbors.engine import Engine


def towers(images: int, captions: int, d: int, *, concepts: int = 40, gap: float = 0.6, seed: int = 0, dtype=np.float32):
    """Unit image and caption vectors around shared concepts, the captions shifted by `gap` along one direction."""
    rng = np.random.default_rng(seed)
    centers = rng.standard_normal((concepts, d))
    shift = rng.standard_normal(d)

    def cloud(n, sign):
        noise = rng.standard_normal((n, d)) * 0.5
        return unit(centers[rng.integers(0, concepts, n)] + noise + sign * gap * shift, dtype)

    return cloud(images, 1), cloud(captions, -1)


def plain_neighbors(queries, base, k):
    """All scores in float64, rounded to float32, sorted: lower id first among equals."""
    scores = (queries.astype(np.float64) @ base.astype(np.float64).T).astype(np.float32)
    ids = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, ids, axis=1), ids


def engine(arithmetic, *, base_bytes=1 << 20, tile=64):
    """A small one, so that small cases cross tiles and blocks."""
    return Engine("cpu", arithmetic, cpu.scan, tile, base_bytes, parallel=True)


ARITHMETICS = {"float32": FLOAT32, "bfloat16": BFLOAT16}
