"""The exact neighbours that every measurement is judged by."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from paired_index_assets.errors import BadInput
from paired_index_assets.progress import Progress, silent
from paired_index_assets.rows import Bool, Float32, Int64, Rows, Selected

DEEPEST_K = 100
TIE = 1e-6  # of the score: float32 rounding of a sum of products of unit vectors, by the order of summation
TIES_KEPT = 28  # true neighbours kept beyond the largest k, so that ties at its end count; what ties beyond them is counted as missed


@dataclass(frozen=True)
class GroundTruth:
    """The exact neighbours of the queries among the images, best first: ids and scores (nq, depth)."""

    ids: Int64
    scores: Float32
    images: int
    """Rows of the image set: ids are below it."""
    searchable: int
    """Images that can be found; shares of vectors scanned are of these."""
    deepest: int
    """The largest k it can judge; the depth beyond it holds ties."""

    def __len__(self) -> int:
        return len(self.ids)

    def relevant(self, k: int) -> Int64:
        """(nq,) how many of the first ids are relevant at k."""
        if k > self.deepest:
            raise BadInput(f"recall@{k}: the ground truth is {self.deepest} deep; make it with k={k}")
        score = self.scores[:, min(k, self.ids.shape[1]) - 1 :][:, :1]
        floor = score - TIE * np.maximum(1, np.abs(score))
        counted: Int64 = (self.scores >= floor).sum(1)
        return counted

    def at_most(self, k: int) -> int:
        """The divisor of recall@k: k, or all images where there are fewer."""
        return min(k, self.searchable)


def ground_truth(
    queries: Float32,
    images: Rows,
    k: int = DEEPEST_K,
    *,
    valid: Bool | None = None,
    device: str | None = None,
    progress: Progress = silent,
) -> GroundTruth:
    """Exact neighbours of (nq, d) queries by brute force over the images, or over those that are `valid` (images,).

    Raises BadInput for no queries, for queries or (valid) images that are not finite, and where nothing is valid.
    """
    from paired_index_assets.neighbors.exact import exact_neighbors  # brings torch: who reads truths needs none

    if not len(queries) or not np.isfinite(queries).all():
        raise BadInput(f"recall: {len(queries)} queries, {int((~np.isfinite(queries)).any(1).sum())} not finite; expected finite captions")
    if valid is None or valid.all():
        scores, ids = exact_neighbors(queries, images, min(k + TIES_KEPT, len(images)), device=device, progress=progress)
        return GroundTruth(ids, scores, len(images), len(images), k)
    rows = np.flatnonzero(valid)
    if not len(rows):
        raise BadInput(f"recall: none of {len(images)} images is valid; nothing can be found")
    scores, ids = exact_neighbors(queries, Selected(images, rows), min(k + TIES_KEPT, len(rows)), device=device, progress=progress)
    return GroundTruth(rows[ids], scores, len(images), len(rows), k)
