"""How good centroids are for captions they were not trained on: what keeps the best iteration, since the objective is not monotone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from paired_index_assets.errors import BadInput
from paired_index_assets.neighbors.exact import assign
from paired_index_assets.rows import Float32, Int64

SCORES_AT_A_TIME = 1 << 22


@dataclass(frozen=True)
class Validation:
    """Held-out captions (m, d) float32 and, for each, its true nearest images (m, top, d) float32.

    `scanned` is the share of the images that a search may look at: centroids are compared at equal cost, not at equal nprobe.
    """

    captions: Float32
    images: Float32
    scanned: float = 0.01

    def __post_init__(self) -> None:
        if self.images.ndim != 3 or self.captions.ndim != 2 or self.images.shape[::2] != self.captions.shape:
            raise BadInput(
                f"validation: expected captions (m, d) and images (m, top, d), found {self.captions.shape} and {self.images.shape}"
            )
        if not len(self.captions) or not self.images.shape[1]:
            raise BadInput(f"validation: expected at least one caption with one image, found {self.images.shape}")
        if not 0 < self.scanned <= 1:
            raise BadInput(f"validation: expected a share scanned in (0, 1], found {self.scanned}")


def coverage(validation: Validation, centroids: Float32, sizes: Int64, *, device: str | None = None) -> float:
    """The share of true images in the lists that captions probe, in order of score, until `scanned` of all vectors are read.

    centroids (nlist, d) are both what images are assigned to and what captions choose lists by; sizes (nlist,) are the vectors in
    each list. The list at the limit counts by the part of it that is still within.
    """
    m, top, d = validation.images.shape
    lists = assign(validation.images.reshape(m * top, d), centroids, device=device)
    lists = lists.reshape(m, top)
    limit = validation.scanned * int(sizes.sum())
    found = 0.0
    step = max(1, SCORES_AT_A_TIME // len(centroids))
    for start in range(0, m, step):
        stop = min(start + step, m)
        order = np.argsort(-(validation.captions[start:stop] @ centroids.T), axis=1, kind="stable")
        read = np.cumsum(sizes[order], axis=1)
        before = np.empty_like(read)
        np.put_along_axis(before, order, read - sizes[order], axis=1)
        mine = lists[start:stop]
        within = (limit - np.take_along_axis(before, mine, axis=1)) / np.maximum(sizes[mine], 1)
        found += float(np.clip(within, 0, 1).sum())
    return float(found / (m * top))
