"""Upper bounds of inner products from few dimensions: what rules out almost every centroid before it is scored.

Let m be about the mean of the centroids, b = c - m, and V (d, e) have nearly orthonormal columns: V'V = I + E. With y = V'x, z = V'b and the
residuals x' = x - Vy, b' = b - Vz,

    <x, c> = <x, m> + <x, b>,     <x, b> = <y, z> - y'Ez + <x', b'>  <=  <y, z> + |E| |y| |z| + |x'| |b'|.

The last product is one more column of the GEMM over e dimensions (in int8 several, so that it fits). What is computed instead of y, z and
their products is off by what `Bounds.against` adds up: gamma of a float32 sum (arithmetic.py), a rounding error that is measured (of int8), or
|E|, measured in float64. So no centroid whose bound is below the score of another can be the nearest, and the rest are scored exactly. Any m
and any V will do: they are found once (`Frame`), and rows are looked at in them once, while centroids move.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from paired_index_assets.neighbors.arithmetic import FLOAT32_ROUNDOFF, NORM_SLACK, gamma
from paired_index_assets.rows import Float32

LEAST_LEFT = 1e-9  # of a second moment
BALANCING = 2  # rounds in which the two residuals are weighed against each other
MEAN_WEIGHT = 100.0  # of the direction of the mean row, which is long and must not be left to the residual
MOST_COLUMNS = 16  # of the residual in int8
COLUMN_MULTIPLE = 8  # int8 GEMMs want the depth so
ROW_LEVELS = 127
SAFE_LEVELS = 127, 63  # of centroids: with VNNI, and without
ROUNDING = 1e-6  # more than a few roundings of float32 are off by
MOST_KEPT = 1 << 22  # values, 16 MB
PIECE = 4096  # centroids projected at a time


@dataclass(frozen=True)
class Basis:
    """Directions in which rows and centroids have most of their length."""

    vectors: torch.Tensor  # (d, e) float32
    skew: float  # |V'V - I|, Frobenius, of the float32 values
    stretch: float  # no less than the spectral norm of |V|: what the rounding of V'x grows by

    @property
    def width(self) -> int:
        return self.vectors.shape[1]


def directions(rows: Float32, centroids: Float32) -> Float32:
    """(d, d), orthogonal but for rounding: the first e columns leave the least |x'| |b'| over `rows` (a sample, (n, d)) and centroids.

    The sum of both second moments, each by what is left of it beyond a quarter of the dimensions, so that neither is served alone.
    """
    x, b = _scaled(torch.from_numpy(rows)), _scaled(torch.from_numpy(centroids - centroids.mean(0)))
    mean = x.mean(0)
    of_rows = x.T @ x / len(x) + MEAN_WEIGHT * torch.outer(mean, mean)
    of_centroids = b.T @ b / len(b)
    of_rows, of_centroids = (moment / torch.trace(moment).clamp_min(torch.finfo(torch.float32).tiny) for moment in (of_rows, of_centroids))
    left_rows = left_centroids = torch.ones(())
    for _ in range(BALANCING):
        vectors = torch.linalg.eigh(of_rows / left_rows + of_centroids / left_centroids).eigenvectors.flip(1)
        rest = vectors[:, len(vectors) // 4 :]
        left_rows, left_centroids = (torch.sum(rest * (moment @ rest)).clamp_min(LEAST_LEFT) for moment in (of_rows, of_centroids))
    found: Float32 = vectors.contiguous().numpy()
    return found


def _scaled(vectors: torch.Tensor) -> torch.Tensor:
    """So that no square leaves float32. What is not finite is left to those who read the rows to say."""
    return torch.nan_to_num(vectors / vectors.abs().max().clamp_min(torch.finfo(torch.float32).tiny))


def basis_of(directions: Float32, width: int, *, spread: bool) -> Basis:
    """The first `width` directions; `spread` turns them among themselves at random, so that one step of int8 suits them all."""
    vectors = directions[:, :width].astype(np.float64)
    if spread:
        turn, _ = np.linalg.qr(np.random.default_rng(width).standard_normal((width, width)))
        vectors = vectors @ turn
    stored = vectors.astype(np.float32)
    wide = stored.astype(np.float64)
    skew = float(np.linalg.norm(wide.T @ wide - np.eye(width)))
    # |A|_2^2 <= |A|_1 |A|_inf, at a thousandth of the cost of its singular values
    stretch = float(np.sqrt(np.linalg.norm(wide, 1) * np.linalg.norm(wide, np.inf))) * NORM_SLACK
    return Basis(torch.from_numpy(np.ascontiguousarray(stored)), skew, stretch)


class Parted(NamedTuple):
    """Vectors v (n, d) as what of them lies in the directions of a basis, and the length of the rest."""

    inside: torch.Tensor  # (n, e) float32, V'v as computed
    error: torch.Tensor  # (n,) no less than |V'v - inside|
    longest: torch.Tensor  # (n,) no less than |V'v|
    rest: torch.Tensor  # (n,) no less than |v - V V'v|


def parted(basis: Basis, vectors: torch.Tensor, norms: torch.Tensor) -> Parted:
    """`vectors` (n, d) float32 with their `norms`, each value off by at most one rounding. Cost: 2 d e operations a vector."""
    many = gamma(len(basis.vectors))
    inside = vectors @ basis.vectors
    norms = norms * (1 + many)  # a float32 norm is off by half of that
    length = torch.linalg.vector_norm(inside, dim=1)
    error = many * basis.stretch * norms
    least = (length * (1 - many) - error).clamp_min(0)
    # |v - V V'v|^2 = |v|^2 - |V'v|^2 + v'V E V'v
    rest = (norms.square() - least.square() * (1 - basis.skew)).clamp_min(0).sqrt() * (1 + many) + 2 * FLOAT32_ROUNDOFF * norms
    return Parted(inside, error, length * (1 + many) + error, rest)


@dataclass(frozen=True)
class SeenRows:
    """Rows as a frame shows them, whatever the centroids: `Bounds.against` says what their products tell."""

    values: torch.Tensor  # (n, columns) float32 or int8
    mean: torch.Tensor  # (n,) float32, <x, m>
    unit: torch.Tensor  # (n,) float32, a step of `values`
    shares: torch.Tensor  # (n, 4) float32, of the margin: by a centroid's reach, how far it was moved, its length; of none

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in (self.values, self.mean, self.unit, self.shares))


@dataclass(frozen=True)
class Frame:
    """What rows and centroids are both looked at in: directions, a row m (d,) float32 that is taken off centroids, the type of values.

    levels: 0 for float32; else values are int8, of centroids in -levels .. levels, the rest in `columns` of them.
    """

    basis: Basis
    mean: torch.Tensor
    levels: int
    columns: int

    @classmethod
    def of(cls, centroids: Float32, basis: Basis, levels: int = 0) -> Frame:
        """For centroids like these (a sample will do)."""
        mean = torch.from_numpy(centroids.mean(0, dtype=np.float64).astype(np.float32))
        if not levels:
            return cls(basis, mean, 0, 1)
        centred = torch.from_numpy(centroids) - mean
        part = parted(basis, centred, torch.linalg.vector_norm(centred, dim=1))
        largest, farthest = float(part.inside.abs().max()), float(part.rest.max())
        return cls(basis, mean, levels, int(np.clip(np.ceil((farthest / max(largest, 1e-30)) ** 2), 1, MOST_COLUMNS)))

    @property
    def width(self) -> int:
        """Values of a row or a centroid."""
        used = self.basis.width + self.columns
        return -(-used // COLUMN_MULTIPLE) * COLUMN_MULTIPLE if self.levels else used

    def see(self, rows: torch.Tensor, norms: torch.Tensor) -> SeenRows:
        """rows (n, d) float32 with their norms (n,) float32. Cost: 2 d e operations a row."""
        part, width, many = parted(self.basis, rows, norms), self.basis.width, gamma(rows.shape[1])
        mean = rows @ self.mean
        fixed = many * norms * (1 + many) * float(torch.linalg.vector_norm(self.mean)) * NORM_SLACK
        by_reach = part.error + self.basis.skew * part.longest
        if not self.levels:
            by_length = gamma(width + 1) * torch.hypot(part.longest, part.rest)
            shares = torch.stack([by_reach, part.longest, by_length, fixed], 1)
            return SeenRows(torch.cat([part.inside, part.rest[:, None]], 1), mean, torch.ones_like(mean), shares)
        share = part.rest / float(np.sqrt(self.columns))
        unit = torch.maximum(part.inside.abs().amax(1) / ROW_LEVELS, share / (ROW_LEVELS - 1)).clamp_min(1e-30)
        stored = torch.round(part.inside / unit[:, None])
        moved = torch.linalg.vector_norm(part.inside - stored * unit[:, None], dim=1) * NORM_SLACK
        values = torch.zeros((len(rows), self.width), dtype=torch.int8)
        values[:, :width] = stored.to(torch.int8)
        values[:, width : width + self.columns] = torch.ceil(share / unit * (1 + many)).clamp_max(ROW_LEVELS).to(torch.int8)[:, None]
        shares = torch.stack([by_reach + moved, part.longest + moved, torch.zeros_like(fixed), fixed], 1)
        return SeenRows(values, mean, unit, shares)

    def without_rest(self, values: torch.Tensor) -> torch.Tensor:
        """The values of rows whose products are estimates, not bounds."""
        estimates = values.clone()
        estimates[:, self.basis.width :] = 0
        return estimates


@dataclass(frozen=True)
class ProjectedRows:
    """Rows made ready to be multiplied with `Bounds.values`: <x, c> <= mean + unit * product + margin, for every centroid c.

    So the least product of a centroid whose score may reach `low` is (low - mean - margin) / unit, in int8 less one.
    """

    values: torch.Tensor  # (n, columns) float32 or int8
    mean: torch.Tensor  # (n,) float32, <x, m>
    unit: torch.Tensor  # (n,) float32
    margin: torch.Tensor  # (n,) float32

    def of(self, rows: torch.Tensor | slice) -> ProjectedRows:
        """Those of `rows` (int64) alone."""
        return ProjectedRows(*(part[rows] for part in (self.values, self.mean, self.unit, self.margin)))


@dataclass(frozen=True)
class Bounds:
    """The bounds' side of a set of centroids (k, d); `values` (k, columns) stand in the order that was asked for, int8 in steps of `step`."""

    frame: Frame
    values: torch.Tensor
    step: float
    norm: float  # the largest |c|, |z|, |b'| of any centroid, and how far its values are from z
    reach: float
    rest: float
    moved: float

    @classmethod
    def of(cls, centroids: Float32, order: npt.NDArray[np.int64] | None, frame: Frame) -> Bounds:
        """`order` (k,): which centroid stands where; None leaves them as they are. A table of (k, frame.width) values, no copy of centroids."""
        k, width, levels = len(centroids), frame.basis.width, frame.levels

        def pieces() -> Iterator[tuple[slice, Parted]]:
            for start in range(0, k, PIECE):
                piece = slice(start, min(start + PIECE, k))
                centred = torch.from_numpy(centroids[piece] if order is None else centroids[order[piece]]) - frame.mean
                yield piece, parted(frame.basis, centred, torch.linalg.vector_norm(centred, dim=1))

        norm = float(np.sqrt(np.einsum("ij,ij->i", centroids, centroids, dtype=np.float64).max()))
        values = torch.zeros((k, frame.width), dtype=torch.int8 if levels else torch.float32)
        reach = rest = error = largest = 0.0
        small = k * frame.basis.width <= MOST_KEPT
        parts = list(pieces()) if small else []
        for piece, part in parts or pieces():
            reach, rest = max(reach, float(part.longest.max())), max(rest, float(part.rest.max()))
            error, largest = max(error, float(part.error.max())), max(largest, float(part.inside.abs().max()))
            if not levels:
                values[piece, :-1], values[piece, -1] = part.inside, part.rest
        if not levels:
            return cls(frame, values, 1.0, norm, reach, rest, error)
        root = float(np.sqrt(frame.columns))
        step = max(max(largest, rest / root) / levels * (1 + 2 * ROUNDING), 1e-30)
        moved = 0.0
        for piece, part in parts or pieces():  # many are projected again: to keep them would take four times the table
            stored = torch.round(part.inside / step)
            moved = max(moved, float(torch.linalg.vector_norm(part.inside - stored * step, dim=1).max()) * NORM_SLACK)
            values[piece, :width] = stored.to(torch.int8)
            values[piece, width : width + frame.columns] = torch.ceil(part.rest * ((1 + ROUNDING) / (root * step))).to(torch.int8)[:, None]
        return cls(frame, values, step, norm, reach, rest, moved + error)

    def project(self, rows: torch.Tensor, norms: torch.Tensor) -> ProjectedRows:
        """rows (n, d) float32 with their norms (n,) float32."""
        return self.against(self.frame.see(rows, norms))

    def against(self, seen: SeenRows) -> ProjectedRows:
        margin = seen.shares @ torch.tensor([self.reach, self.moved, float(np.hypot(self.reach, self.rest)), 1.0])
        return ProjectedRows(seen.values, seen.mean, seen.unit * self.step, margin * NORM_SLACK)


def multiply_int8(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> None:
    """out (m, n) int32 = a b', for rows (m, e) and centroids (n, e) int8. torch has no public call for it."""
    torch._int_mm(a, b.T, out=out)


@cache
def int8_levels() -> int:
    """127, 63 or 0: the largest magnitude of centroids whose int8 products with rows of up to ROW_LEVELS this machine adds up rightly; 0 where
    torch cannot at all.

    Without VNNI pairs of products are added in 16 bits and saturate silently. oneDNN makes the first factor unsigned there, 1 .. 255, so that
    255 * 63 * 2 still fits. It is no promise: a product of all-largest values is tried.
    """
    for levels in SAFE_LEVELS:
        try:
            a = torch.full((64, 192), ROW_LEVELS, dtype=torch.int8)
            a[::3] = -ROW_LEVELS
            b = torch.full((96, 192), levels, dtype=torch.int8)
            b[::2] = -levels
            out = torch.empty((64, 96), dtype=torch.int32)
            multiply_int8(a, b, out)
        except (AttributeError, RuntimeError, NotImplementedError, TypeError):
            return 0
        if bool((out == a.int() @ b.int().T).all()):
            return levels
    return 0
