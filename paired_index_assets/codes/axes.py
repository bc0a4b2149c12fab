"""The axes that captions care about, and the transform of vectors and queries onto them.

With mu and Sigma the mean and covariance of images and S = E[q q'] of unit captions (plus a ridge), the squared score that a rank-r
code keeps is E_q <q, x - mu>^2 = tr(S Sigma) restricted to its axes. Let S^1/2 Sigma S^1/2 = V diag(gamma) V', gamma descending. Then

    E = V' S^1/2 (for vectors),   G = V' S^-1/2 (for queries):   <q, x> = <G q, E x>,

coordinates of E x are uncorrelated over images with variances gamma, those of G q uncorrelated over captions with second moment 1. The
first r axes lose least of E_q <q, x - mu>^2 of all rank-r codes (LeanVec, Tepper et al. 2312.16335; GleanVec 2410.22347); bits go to the
first of them. Within a group of axes of equal bits a random rotation spreads the variance, after a scaling that pulls gamma together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from paired_index_assets.codes.rounding import Float64
from paired_index_assets.rows import Float32, UInt8

RIDGE = 1e-3  # of the mean second moment: few captions span few dimensions
SCALING = (
    0.375  # power of gamma that coordinates are divided by: between none (0) and whitening (1/2); least loss on icons, .25 to .45 alike
)
SEED = 1
FLOOR = 1e-9  # of the largest gamma: what varies less carries no score


@dataclass(frozen=True)
class QueryAxes:
    """gamma (d,) descending; base E and query G (d, d) float64."""

    gamma: Float64
    base: Float64
    query: Float64


def query_axes(images: Float32, captions: Float32) -> QueryAxes | None:
    """The axes for a sample of `images` (n, d) and unit `captions` (m, d). O((n + m) d^2 + d^3).

    None where they say nothing: no captions, images all equal, or numbers out of range.
    """
    d = images.shape[1]
    if len(images) < 2 or not len(captions):
        return None
    scale = float(np.abs(images).max())  # data may be tiny or huge
    if not np.isfinite(scale) or scale <= 0:
        return None
    second = captions.T.astype(np.float64) @ captions / len(captions)
    second += RIDGE * np.trace(second) / d * np.eye(d)
    spread, turn = np.linalg.eigh(second)
    if spread[0] <= 0:
        return None
    root, inverse = (turn * spread**0.5) @ turn.T, (turn * spread**-0.5) @ turn.T
    covariance = np.atleast_2d(np.cov(images.T.astype(np.float64) / scale))
    gamma, axes = np.linalg.eigh(root @ covariance @ root)
    gamma, axes = gamma[::-1] * scale**2, axes[:, ::-1].T
    if not np.isfinite(gamma).all() or gamma[0] <= np.finfo(np.float32).eps ** 2 * scale**2 * np.trace(second):
        return None
    return QueryAxes(np.maximum(gamma, FLOOR * gamma[0]), axes @ root, axes @ inverse)


@dataclass(frozen=True)
class QueryTransform:
    """Vectors and queries onto r axes, the first `wide` of which get 8 bits and the others 4.

    base, query (r, d) float32: <q, x> ~ <query q, base x>; mean (d,) float32 of images; lost (d, d) float32: <q, lost (x - mean)> is what
    the axes that were cut would add. A level of 8 bits is two of 4, high and low, so that a code has 2 wide + (r - wide) columns: all
    high ones, all low ones, then those of 4 bits. Both halves meet the same coordinate of the query.
    """

    base: Float32
    query: Float32
    mean: Float32
    lost: Float32
    wide: int

    @property
    def r(self) -> int:
        return len(self.base)

    @property
    def d(self) -> int:
        return int(self.base.shape[1])

    @property
    def columns(self) -> int:
        """Levels of 4 bits in a code: the width of the faiss index behind the transform."""
        return self.r + self.wide

    @property
    def tops(self) -> Float32:
        """(r,) the highest level of each axis."""
        return np.repeat(np.array([255, 15], np.float32), [self.wide, self.r - self.wide])

    @cached_property
    def matrix(self) -> Float32:
        """(columns, d): what a query is multiplied by."""
        return np.ascontiguousarray(self.query[self._axis_of_column])

    @cached_property
    def linear(self) -> faiss.LinearTransform:
        """The transform of the files."""
        transform = faiss.LinearTransform(self.d, self.columns, False)
        faiss.copy_array_to_vector(self.matrix.ravel(), transform.A)
        transform.is_trained = True
        return transform

    def queries(self, vectors: Float32) -> Float32:
        """(n, d) queries to (n, columns), as faiss does it: inner products with decoded columns are scores."""
        transformed: Float32 = self.linear.apply(np.ascontiguousarray(vectors, dtype=np.float32))
        return transformed

    def places(self, vectors: Float32) -> Float32:
        """(n, d) vectors of the base's side, as centroids are, to (n, columns): what a transformed query meets; low columns are zero."""
        coordinates = np.asarray(vectors, np.float32) @ self.base.T
        low = np.zeros((len(coordinates), self.wide), np.float32)
        return np.ascontiguousarray(np.hstack([coordinates[:, : self.wide], low, coordinates[:, self.wide :]]))

    def split(self, levels: UInt8) -> UInt8:
        """(n, r) levels to (n, columns) levels of 4 bits."""
        high, low = levels[:, : self.wide] >> np.uint8(4), levels[:, : self.wide] & np.uint8(15)
        return np.hstack([high, low, levels[:, self.wide :]])

    def steps_of_columns(self, first: Float32, step: Float32) -> tuple[Float32, Float32]:
        """(columns,) first level and step of each column, from those (r,) of each axis: high steps by 16 levels, low starts at 0."""
        w = self.wide
        return np.concatenate([first[:w], np.zeros(w, np.float32), first[w:]]), np.concatenate([16 * step[:w], step])

    def of_axes(self, step: Float32, first: Float32) -> tuple[Float32, Float32]:
        """Undo `steps_of_columns`: step and first level (r,) of each axis, as the columns decode."""
        w = self.wide
        axes = first[w:].copy()
        axes[:w] += first[:w]
        return step[w:], axes

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        kept = {name: getattr(self, name) for name in ("base", "query", "mean", "lost")} | {"wide": np.array([self.wide], np.int64)}
        return {f"transform.{name}": array for name, array in kept.items()}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> QueryTransform:
        """Undo `arrays`. Raises KeyError for an array that is not there."""
        base, query, mean, lost = (arrays[f"transform.{name}"] for name in ("base", "query", "mean", "lost"))
        return cls(base, query, mean, lost, int(arrays["transform.wide"][0]))

    @property
    def _axis_of_column(self) -> npt.NDArray[np.int64]:
        axes = np.arange(self.r)
        return np.concatenate([axes[: self.wide], axes])


def transform_onto(axes: QueryAxes, images: Float32, wide: int, narrow: int) -> QueryTransform:
    """The first `wide` axes for 8 bits, the next `narrow` for 4, each group scaled by gamma^SCALING and turned at random (seeded)."""
    base, query, at = [], [], 0
    for count in (wide, narrow):
        here = slice(at, at + count)
        scale = (axes.gamma[here, None] / axes.gamma[0]) ** SCALING
        turn = np.linalg.qr(np.random.default_rng(SEED + at).standard_normal((count, count)))[0] if count else np.zeros((0, 0))
        base.append(turn @ (axes.base[here] / scale))
        query.append(turn @ (axes.query[here] * scale))
        at += count
    lost = axes.query[at:].T @ axes.base[at:]
    mean = images.mean(0, dtype=np.float64)
    return QueryTransform(_float32(np.vstack(base)), _float32(np.vstack(query)), _float32(mean), _float32(lost), wide)


def _float32(array: Float64) -> Float32:
    return np.ascontiguousarray(array, dtype=np.float32)
