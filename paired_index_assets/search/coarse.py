"""Which lists a query looks in: the one coarse search of all shards.

The centroids are mapped from the trained index's own file, so that they take no memory until they are searched, and processes that
serve the same build share them; a routing table is small enough to hold, and stands in for them where there is one. faiss's flat
search takes 0.02 ms for one query of 1,024 lists, where a GEMM library takes some milliseconds to begin.
"""

from __future__ import annotations

from pathlib import Path

import faiss
import numpy as np

from paired_index_assets.rows import Float32, Int64
from paired_index_assets.search.workers import Workers, cores, ranges
from paired_index_assets.trained.artifact import TrainedIndex


class CoarseSearch:
    """The lists `TrainedIndex.probe` chooses; safe to use from many threads."""

    def __init__(self, trained: TrainedIndex, path: Path, workers: Workers) -> None:
        self._workers = workers
        self._routed = trained.routing is not None
        if trained.routing is not None:
            # the bias is one more dimension, in which every query is 1
            self._table = faiss.IndexFlatIP(trained.d + 1)
            self._table.add(np.hstack([trained.routing.weights, trained.routing.bias[:, None]]).astype(np.float32))
        else:
            self._mapped = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
            self._table = faiss.extract_index_ivf(self._mapped).quantizer

    def lists(self, queries: Float32, nprobe: int) -> Int64:
        """(nq, nprobe) list numbers for `queries` (nq, d), best first."""
        if self._routed:
            queries = np.hstack([queries, np.ones((len(queries), 1), np.float32)])
        queries = np.ascontiguousarray(queries)
        parts = self._workers.run(lambda rows: self._table.search(queries[rows], nprobe)[1], ranges(len(queries), cores()))
        return np.concatenate(list(parts))
