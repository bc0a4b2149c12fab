"""Upper bounds of inner products from few dimensions: what rules out almost every centroid before it is scored.

Let m be the mean of the centroids, b = c - m, and V (d, e) have nearly orthonormal columns: V'V = I + E. With y = V'x, z = V'b and the
residuals x' = x - Vy, b' = b - Vz,

    <x, c> = <x, m> + <x, b>,     <x, b> = <y, z> - y'Ez + <x', b'>  <=  <y, z> + |E| |y| |z| + |x'| |b'|.

The last product is one more column of the GEMM over e dimensions (in int8 several, so that it fits). What is computed instead of y, z and
their products is off by what `Rows.margin` adds up: gamma of a float32 sum (arithmetic.py), a rounding error that is measured (of int8), or
|E|, measured in float64. So no centroid whose bound is below the score of another can be the nearest, and the rest are scored exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt
import torch

from paired_index_assets.neighbors.arithmetic import FLOAT32_ROUNDOFF, NORM_SLACK, gamma
from paired_index_assets.rows import Float32

Float64 = npt.NDArray[np.float64]

LEAST_LEFT = 1e-9  # of a second moment
BALANCING = 3  # rounds in which the two residuals are weighed against each other
MEAN_WEIGHT = 100.0  # of the direction of the mean row, which is long and must not be left to the residual
MOST_COLUMNS = 16  # of the residual in int8
COLUMN_MULTIPLE = 8  # int8 GEMMs want the depth so
SAFE_LEVELS = 127, 63  # with VNNI, and without
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


def directions(rows: Float32, centroids: Float32) -> Float64:
    """(d, d) float64, orthogonal: the first e columns leave the least |x'| |b'| over `rows` (a sample, (n, d)) and centroids.

    The sum of both second moments, each by what is left of it beyond a quarter of the dimensions, so that neither is served alone.
    """
    x, b = rows.astype(np.float64), centroids.astype(np.float64)
    b = b - b.mean(0)
    mean = x.mean(0)
    of_rows = x.T @ x / len(x) + MEAN_WEIGHT * np.outer(mean, mean)
    of_centroids = b.T @ b / len(b)
    of_rows, of_centroids = (moment / max(float(np.trace(moment)), np.finfo(np.float64).tiny) for moment in (of_rows, of_centroids))
    left_rows = left_centroids = 1.0
    for _ in range(BALANCING):
        _, vectors = np.linalg.eigh(of_rows / left_rows + of_centroids / left_centroids)
        vectors = vectors[:, ::-1]
        rest = vectors[:, len(vectors) // 4 :]
        left_rows, left_centroids = (max(float(np.sum(rest * (moment @ rest))), LEAST_LEFT) for moment in (of_rows, of_centroids))
    return np.ascontiguousarray(vectors)


def basis_of(directions: Float64, width: int, *, spread: bool) -> Basis:
    """The first `width` directions; `spread` turns them among themselves at random, so that one step of int8 suits them all."""
    vectors = directions[:, :width]
    if spread:
        turn, _ = np.linalg.qr(np.random.default_rng(width).standard_normal((width, width)))
        vectors = vectors @ turn
    stored = vectors.astype(np.float32)
    wide = stored.astype(np.float64)
    skew = float(np.linalg.norm(wide.T @ wide - np.eye(width)))
    # |A|_2^2 <= |A|_1 |A|_inf, at a thousandth of the cost of its singular values
    stretch = float(np.sqrt(np.linalg.norm(wide, 1) * np.linalg.norm(wide, np.inf))) * NORM_SLACK
    return Basis(torch.from_numpy(np.ascontiguousarray(stored)), skew, stretch)


@dataclass(frozen=True)
class ProjectedRows:
    """Rows made ready to be multiplied with `Bounds.values`: <x, c> <= mean + unit * product + margin, for every centroid c."""

    values: torch.Tensor  # (n, columns) float32 or int8
    seeding: torch.Tensor  # the same without the residual's columns: products are estimates, not bounds
    mean: torch.Tensor  # (n,) float32, <x, m>
    unit: torch.Tensor  # (n,) float32
    margin: torch.Tensor  # (n,) float32

    def of(self, rows: torch.Tensor | slice) -> ProjectedRows:
        """Those of `rows` (int64) alone."""
        return ProjectedRows(*(part[rows] for part in (self.values, self.seeding, self.mean, self.unit, self.margin)))


@dataclass(frozen=True)
class Bounds:
    """The bounds' side of a set of centroids (k, d); `values` (k, columns) stand in the order that was asked for.

    levels: 0 for float32; else values are int8 in -levels .. levels, in steps of `step`, the residual in `residual_columns` of them.
    """

    basis: Basis
    mean: torch.Tensor  # (d,) float32
    values: torch.Tensor
    levels: int
    step: float
    residual_columns: int
    norm: float  # the largest |c|, |z|, |b'| of any centroid, and how far int8 moved a z
    reach: float
    residual: float
    moved: float

    @classmethod
    def of(cls, centroids: Float32, order: npt.NDArray[np.int64] | None, basis: Basis, levels: int = 0) -> Bounds:
        """`order` (k,): which centroid stands where; None leaves them as they are. A table of k (e + columns) values, no copy of centroids."""
        k, width = len(centroids), basis.width
        mean = centroids.mean(0, dtype=np.float64).astype(np.float32)
        wide = basis.vectors.numpy().astype(np.float64)

        def projected(start: int) -> tuple[slice, Float64, Float64]:
            piece = slice(start, min(start + PIECE, k))
            chosen = centroids[piece] if order is None else centroids[order[piece]]
            centred = chosen.astype(np.float64) - mean
            z = centred @ wide
            return piece, z, np.linalg.norm(centred - z @ wide.T, axis=1) * (1 + 1e-6)  # it will be rounded to float32

        norm = float(np.sqrt(np.einsum("ij,ij->i", centroids, centroids, dtype=np.float64).max()))
        residual, reach, largest = np.empty(k), 0.0, 0.0
        exact = np.empty((0 if levels else k, width + 1), np.float32)
        for start in range(0, k, PIECE):
            piece, z, residual[start : start + PIECE] = projected(start)
            reach, largest = max(reach, float(np.linalg.norm(z, axis=1).max())), max(largest, float(np.abs(z).max()))
            if not levels:
                exact[piece, :-1], exact[piece, -1] = z, residual[piece]
        farthest = float(residual.max())
        mean_row = torch.from_numpy(mean)
        if not levels:
            return cls(basis, mean_row, torch.from_numpy(exact), 0, 1.0, 1, norm, reach, farthest, FLOAT32_ROUNDOFF * reach)
        step = max(max(largest, farthest / float(np.sqrt(MOST_COLUMNS))) / levels * (1 + 1e-9), 1e-30)
        columns = max(1, int(np.ceil((farthest / (levels * step)) ** 2)))
        values = np.zeros((k, -(-(width + columns) // COLUMN_MULTIPLE) * COLUMN_MULTIPLE), np.int8)
        moved = 0.0
        for start in range(0, k, PIECE):  # projected again: to keep it would take eight times the table
            piece, z, _ = projected(start)
            stored = np.rint(z / step)
            moved = max(moved, float(np.linalg.norm(z - stored * step, axis=1).max()))
            values[piece, :width] = stored
            values[piece, width : width + columns] = np.ceil(residual[piece] / np.sqrt(columns) / step)[:, None]
        return cls(basis, mean_row, torch.from_numpy(values), levels, step, columns, norm, reach, farthest, moved)

    def project(self, rows: torch.Tensor, norms: torch.Tensor) -> ProjectedRows:
        """rows (n, d) float32 with their norms (n,) float32. Cost: 2 d e operations a row."""
        d, width = self.basis.vectors.shape
        many = gamma(d)
        y = rows @ self.basis.vectors
        mean = rows @ self.mean
        norms = norms * (1 + many)  # a float32 norm is off by half of that
        length = torch.linalg.vector_norm(y, dim=1)
        error = many * self.basis.stretch * norms  # |y computed - V'x|
        longest = length * (1 + many) + error
        least = (length * (1 - many) - error).clamp_min(0)
        # |x'|^2 = |x|^2 - |y|^2 + y'Ey
        residual = (norms.square() - least.square() * (1 - self.basis.skew)).clamp_min(0).sqrt() * (1 + many)
        mean_norm = float(torch.linalg.vector_norm(self.mean)) * NORM_SLACK
        margin = (error + self.basis.skew * longest) * self.reach + many * norms * mean_norm
        if not self.levels:
            values = torch.cat([y, residual[:, None]], 1)
            seeding = torch.cat([y, torch.zeros_like(residual)[:, None]], 1)
            margin += gamma(width + 1) * torch.hypot(longest, residual) * float(np.hypot(self.reach, self.residual)) + longest * self.moved
            return ProjectedRows(values, seeding, mean, torch.ones_like(mean), margin * NORM_SLACK)
        columns = self.residual_columns
        share = residual / float(np.sqrt(columns))
        unit = torch.maximum(y.abs().amax(1) / self.levels, share / (self.levels - 1)).clamp_min(1e-30)
        stored = torch.round(y / unit[:, None])
        moved = torch.linalg.vector_norm(y - stored * unit[:, None], dim=1) * NORM_SLACK
        margin += moved * self.reach + (longest + moved) * self.moved
        top = torch.ceil(share / unit * (1 + many)).clamp_max(self.levels)
        seeding = torch.zeros((len(rows), self.values.shape[1]), dtype=torch.int8)
        seeding[:, :width] = stored.to(torch.int8)
        values = seeding.clone()
        values[:, width : width + columns] = top.to(torch.int8)[:, None]
        return ProjectedRows(values, seeding, mean, unit * self.step, margin * NORM_SLACK)


def multiply_int8(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> None:
    """out (m, n) int32 = a b', for (m, e) and (n, e) int8. torch has no public call for it."""
    torch._int_mm(a, b.T, out=out)


@cache
def int8_levels() -> int:
    """127, 63 or 0: the largest magnitude whose int8 products this machine adds up rightly; 0 where torch cannot at all.

    Without VNNI pairs of products are added in 16 bits and saturate silently (right at 63), so a product of all-largest values is tried.
    """
    for levels in SAFE_LEVELS:
        try:
            a = torch.full((64, 192), levels, dtype=torch.int8)
            b = torch.where(torch.arange(96)[:, None] % 2 == 0, a[0], -a[0])
            out = torch.empty((64, 96), dtype=torch.int32)
            multiply_int8(a, b, out)
        except (AttributeError, RuntimeError, NotImplementedError, TypeError):
            return 0
        if bool((out == a.int() @ b.int().T).all()):
            return levels
    return 0
