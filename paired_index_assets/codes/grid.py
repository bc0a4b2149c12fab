"""Grids of levels, and the loss they are chosen by."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import faiss
import numpy as np

from paired_index_assets.codes.rounding import Float64
from paired_index_assets.rows import Float32, Int64

NARROWEST = 1e-3  # least spread of a dimension, of the median spread: a constant dimension keeps a grid, and its error is nothing
CONTENDERS = 20  # images of the sample that compete for a caption
JUDGES = 1000


class CodecWarning(UserWarning):
    """Training went on with less than was asked for; the message says with what."""


def spread_of(images: Float32) -> tuple[Float64, Float64]:
    """Mean and standard deviation (d,) of each dimension, the latter kept from zero. Warns of constant dimensions."""
    mean, sigma = images.mean(0, dtype=np.float64), images.std(0, dtype=np.float64)
    varies = sigma > np.finfo(np.float32).eps * np.abs(mean)
    if not varies.all():
        message = f"{int((~varies).sum())} of {len(sigma)} dimensions are constant: they keep a narrow grid"
        warnings.warn(message, CodecWarning, stacklevel=4)
    typical = np.median(sigma[varies]) if varies.any() else np.abs(images).max()
    kept: Float64 = np.maximum(np.where(varies, sigma, 0), NARROWEST * typical)
    return mean, kept


def ranges(mean: Float64, spread: Float64, width: float) -> tuple[Float32, Float32]:
    """vmin, vdiff (d,) of a grid of mean +- width spread."""
    return (mean - width * spread).astype(np.float32), (2 * width * spread).astype(np.float32)


@dataclass(frozen=True)
class LossOfRanking:
    """How much decoding stirs the scores among the images that compete for a caption: E over captions of Var over contenders of <q, e>.

    What all contenders lose alike changes no ranking. Without captions it is the plain squared error.
    """

    captions: Float32
    contenders: Int64

    @classmethod
    def of(cls, captions: Float32, images: Float32) -> LossOfRanking:
        """Over up to JUDGES `captions` (m, d), unit vectors, and a sample of `images` (n, d)."""
        judges = np.ascontiguousarray(captions[:: max(1, len(captions) // JUDGES)][:JUDGES])
        k = min(CONTENDERS, len(images))
        if not len(judges) or k < 2:
            return cls(np.zeros((0, images.shape[1]), np.float32), np.zeros((0, k), np.int64))
        _, contenders = faiss.knn(judges, np.ascontiguousarray(images), k, metric=faiss.METRIC_INNER_PRODUCT)
        return cls(judges, contenders)

    def __call__(self, errors: Float32) -> float:
        """The loss of `errors` (n, d), decoded - exact, of the same images."""
        if not len(self.captions):
            return float(np.square(errors, dtype=np.float64).sum(1).mean())
        lost = np.einsum("qd,qkd->qk", self.captions, errors[self.contenders], dtype=np.float64, optimize=True)
        return float(lost.var(axis=1).mean())
