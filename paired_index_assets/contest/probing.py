"""How many groups a query looks in, and how many lists a search takes that does not say: chosen once for a build, written into its files."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from paired_index_assets.nlist import FINER, NPROBE
from paired_index_assets.quality.candidates import candidate_from
from paired_index_assets.quality.recall import measure
from paired_index_assets.quality.truth import GroundTruth
from paired_index_assets.rows import Float32, Int64
from paired_index_assets.trained.artifact import TrainedIndex

GROUP_SHARES = (1 / 8, 3 / 16, 1 / 4, 5 / 16, 3 / 8, 1 / 2, 3 / 4)  # of the groups, tried in this order
GROUP_LOSS = 0.001  # of coverage, that looking in fewer groups may cost


def with_fewest_groups(
    trained: TrainedIndex, list_of_image: Int64, queries: Float32, truth: GroundTruth, share: float, *, k: int = 10
) -> TrainedIndex:
    """`trained`, of whose groups a query looks in as few as lose no more than GROUP_LOSS of coverage recall@k beside all of them.

    queries (nq, d) float32 with their `truth` among the images whose lists are `list_of_image` (n,); `share` of the vectors is scanned. How
    many it takes is the data's: three eighths of the icons' groups do, half of those of short names cost .009 and more (BENCHMARKS.md).
    """
    groups = trained.groups
    if groups is None or not len(queries):
        return trained
    count = len(groups.centroids)

    def looking_in(some: int) -> tuple[TrainedIndex, float]:
        fewer = replace(trained, groups=replace(groups, nprobe=some))
        found = measure(candidate_from(fewer, list_of_image, None), queries, truth, nprobes=(), shares=(share,))
        return fewer, float(found.recall(k, share=share).mean())

    everywhere, most = looking_in(count)
    for some in sorted({max(1, math.ceil(tried * count)) for tried in GROUP_SHARES}):
        fewer, covered = looking_in(some)
        if covered >= most - GROUP_LOSS:
            return fewer
    return everywhere


def default_nprobe(trained: TrainedIndex, list_of_image: Int64, queries: Float32) -> int:
    """NPROBE for lists of one level. In two levels there are FINER times as many lists: the most that scan, on the mean of `queries`, no
    more of the vectors than NPROBE of a FINER-th as many even lists hold.
    """
    if trained.groups is None or not len(queries):
        return min(NPROBE, trained.nlist)
    sizes = np.bincount(list_of_image[list_of_image >= 0], minlength=trained.nlist)
    lists = trained.probe(queries, min(trained.nlist, 2 * FINER * NPROBE))[1]
    scanned = np.cumsum(np.where(lists >= 0, sizes[lists], 0), 1).mean(0)
    return max(1, int((scanned <= sizes.sum() * NPROBE * FINER / trained.nlist).sum()))
