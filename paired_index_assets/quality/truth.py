"""The exact neighbours that every measurement is judged by."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from paired_index_assets.errors import BadInput
from paired_index_assets.neighbors.exact import exact_neighbors
from paired_index_assets.progress import Progress, silent
from paired_index_assets.rows import Float32, Int64, Rows

DEEPEST_K = 100
TIE = 1e-6  # of the score: float32 rounding of a sum of products of unit vectors, by the order of summation
TIES_KEPT = 28  # true neighbours kept beyond the largest k, so that ties at its end count; what ties beyond them is counted as missed


@dataclass(frozen=True)
class GroundTruth:
    """The exact neighbours of the queries among `images` images, best first: ids and scores (nq, depth); id -1 where there are fewer."""

    ids: Int64
    scores: Float32
    images: int
    deepest: int
    """The largest k it can judge; the depth beyond it holds ties."""

    def __len__(self) -> int:
        return len(self.ids)

    def relevant(self, k: int) -> Int64:
        """(nq,) how many of the first ids are relevant at k."""
        if k > self.deepest:
            raise BadInput(f"recall@{k}: the ground truth is {self.deepest} deep; make it with k={k}")
        present = self.ids >= 0
        last = np.minimum(k, present.sum(1)) - 1
        score = np.take_along_axis(self.scores, np.maximum(last, 0)[:, None], 1)
        floor = score - TIE * np.maximum(1, np.abs(score))
        counted: Int64 = (present & (self.scores >= floor)).sum(1)
        return counted

    def at_most(self, k: int) -> Int64:
        """(nq,) the divisor of recall@k: k, or all images where there are fewer."""
        divisor: Int64 = np.clip((self.ids >= 0).sum(1), 1, k)
        return divisor


def ground_truth(
    queries: Float32, images: Rows, k: int = DEEPEST_K, *, device: str | None = None, progress: Progress = silent
) -> GroundTruth:
    """Exact, by brute force over every image. Raises BadInput for no queries or for queries that are not finite."""
    if not len(queries) or not np.isfinite(queries).all():
        raise BadInput(f"recall: {len(queries)} queries, {int((~np.isfinite(queries)).any(1).sum())} not finite; expected finite captions")
    scores, ids = exact_neighbors(queries, images, min(k + TIES_KEPT, len(images)), device=device, progress=progress)
    return GroundTruth(np.where(np.isfinite(scores), ids, -1), scores, len(images), k)
