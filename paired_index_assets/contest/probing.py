"""How many lists a search takes that does not say: chosen once for a build, and written into its files."""

from __future__ import annotations

import numpy as np

from paired_index_assets.nlist import FINER, NPROBE
from paired_index_assets.rows import Float32, Int64
from paired_index_assets.trained.artifact import TrainedIndex


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
