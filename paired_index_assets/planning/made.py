"""Vectors like those of CLIP's images, where there are none to measure on: how much bounds rule out depends on their spectrum."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from paired_index_assets.rows import Float32

MEAN, CONCEPT, WITHIN, NOISE = 0.7, 0.55, 0.35, 0.45  # lengths of the parts of a vector, before it is normalised
CONCEPTS, DECAY, FLAT = 8_000, 1.0, 0.3  # the spectrum falls as rank^-DECAY; FLAT of the noise has no preferred direction
FLAT_WITHIN = 0.1  # the same of what is between concept and centroid


def towers_around(rows: int, nlist: int, d: int) -> tuple[Float32, Float32]:
    """Unit rows (rows, d) around unit centroids (nlist, d): a mean direction, concepts of a falling spectrum, variation within, noise
    partly flat. Seeded. A model, stated so that what is measured on it can be told from what is measured on real data."""
    rng = np.random.default_rng(0)
    spectrum = np.arange(1, d + 1) ** -DECAY
    spectrum = (spectrum / spectrum.sum()).astype(np.float32)
    turn = np.linalg.qr(rng.standard_normal((d, d)))[0].astype(np.float32)
    mean = np.zeros(d, np.float32)
    mean[0] = 1

    def drawn(n: int, flat: float) -> Float32:
        return np.asarray(rng.standard_normal((n, d), dtype=np.float32) * np.sqrt((1 - flat) * spectrum + np.float32(flat / d)))

    concepts = drawn(CONCEPTS, 0.0)
    centroids = _unit(MEAN * mean + CONCEPT * concepts[rng.integers(0, CONCEPTS, nlist)] + WITHIN * drawn(nlist, FLAT_WITHIN))
    vectors = _unit(centroids[rng.integers(0, nlist, rows)] + NOISE * drawn(rows, FLAT))
    return np.ascontiguousarray(vectors @ turn), np.ascontiguousarray(centroids @ turn)


def _unit(vectors: npt.NDArray[np.float32]) -> Float32:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), dtype=np.float32)
