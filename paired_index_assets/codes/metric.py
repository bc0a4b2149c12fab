"""What rounding knows of queries: their second moments, and which query to expect for a row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from paired_index_assets.codes.rounding import Float64, visiting_order
from paired_index_assets.rows import Float32, Int64

RANK = 128  # of the map from row to expected query: a third of a pass of descent at d = 768
MAP_IMAGES, MAP_CAPTIONS = 10_000, 50_000  # rows the map is fitted on; d x d numbers need no more
ASKED = 10  # images that a caption asks for, among MAP_IMAGES
MAP_RIDGE = 1e-3
FEWEST_CAPTIONS = 2  # for a map, a dimension


@dataclass(frozen=True)
class QueryMetric:
    """The loss of an error e on the axes of the grid: e' (second + ridge tr/r) e + weight (u' e)^2, u the unit query expected for the row.

    second (r, r) float32: E[q q'] of unit captions on these axes. order (r,) int64: the axes as rounding visits them (kept, since on
    another machine near ties may sort otherwise). inward (d + 1, m), outward (m, d) float32: u ~ [x, 1] inward outward, in the space of
    the embeddings; the rows of outward are orthonormal. passes: of coordinate descent.
    """

    second: Float32
    order: Int64
    inward: Float32
    outward: Float32
    ridge: float
    weight: float
    passes: int

    def in_steps(self, step: Float32) -> Float64:
        """H = diag(a) (second + ridge tr/r) diag(a) for steps a, (r, r), in visiting order."""
        ordered: Float64 = _weighed(self.second, self.ridge, step)[np.ix_(self.order, self.order)]
        return ordered

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        return {
            "second": self.second,
            "order": self.order,
            "inward": self.inward,
            "outward": self.outward,
            "ridge_weight": np.array([self.ridge, self.weight]),
            "passes": np.array([self.passes], np.int64),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> QueryMetric:
        ridge, weight = map(float, arrays["ridge_weight"])
        a = arrays
        return cls(a["second"], a["order"], a["inward"], a["outward"], ridge, weight, int(a["passes"][0]))

    def tuned(self, ridge: float, weight: float) -> QueryMetric:
        """The same with another ridge and weight; without a map the weight stays 0."""
        return replace(self, ridge=ridge, weight=weight if self.inward.any() else 0.0)


def fit_metric(
    images: Float32, captions: Float32, steps: npt.NDArray[Any], ridge: float, weight: float, passes: int, onto: Float32 | None = None
) -> QueryMetric:
    """The metric of unit `captions` (m, d), for rows like `images` (n, d), with steps in proportion to `steps` (r,).

    `onto` (r, d) takes queries to the axes of the grid; left out, they are those of the embeddings. With too few captions or images
    for a map its weight is 0.
    """
    asked: Float32 = captions if onto is None else np.asarray(captions @ onto.T, dtype=np.float32)
    second: Float32 = asked.T @ asked / np.float32(len(captions))
    order = visiting_order(_weighed(second, ridge, steps / steps.max()))
    inward, outward = _fit_map(images[:MAP_IMAGES], captions[:MAP_CAPTIONS])
    return QueryMetric(second, order, inward, outward, ridge, weight, passes).tuned(ridge, weight)


def _weighed(second: Float32, ridge: float, step: npt.NDArray[Any]) -> Float64:
    step = step.astype(np.float64)
    ridged: Float64 = second + ridge * np.trace(second, dtype=np.float64) / len(second) * np.eye(len(second))
    weighed: Float64 = ridged * step[:, None] * step
    return weighed


def _fit_map(images: Float32, captions: Float32) -> tuple[Float32, Float32]:
    """Reduced-rank ridge regression from an image to the mean of the captions that have it among their best."""
    d = images.shape[1]
    rank = min(d, RANK)
    none = np.zeros((d + 1, rank), np.float32), np.zeros((rank, d), np.float32)
    if len(captions) < FEWEST_CAPTIONS * d or len(images) < FEWEST_CAPTIONS * d:
        return none
    _, asked = faiss.knn(captions, np.ascontiguousarray(images), ASKED, metric=faiss.METRIC_INNER_PRODUCT)
    by_image = np.argsort(asked, axis=None, kind="stable")
    found, first, count = np.unique(asked.ravel()[by_image], return_index=True, return_counts=True)
    wanted = np.add.reduceat(captions[by_image // ASKED], first, axis=0, dtype=np.float64) / count[:, None]
    rows = images[found].astype(np.float64)
    mean, scale = rows.mean(0), float(rows.std()) or 1.0  # so that shift and scale of the data do not matter to the ridge
    design = np.hstack([(rows - mean) / scale, np.ones((len(rows), 1))])
    gram = design.T @ design / len(rows)
    solution = np.linalg.solve(gram + MAP_RIDGE * np.trace(gram) / len(gram) * np.eye(d + 1), design.T @ wanted / len(rows))
    _, axes = np.linalg.eigh(solution.T @ gram @ solution)
    axes = axes[:, ::-1][:, :rank]
    inward = solution @ axes
    inward[:-1] /= scale
    inward[-1] -= mean @ inward[:-1]
    if not np.isfinite(inward).all():
        return none
    return inward.astype(np.float32), np.ascontiguousarray(axes.T, dtype=np.float32)
