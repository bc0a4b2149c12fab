"""Which lists a query looks in: the one coarse search of all shards.

The coarse quantizer is mapped from the trained index's own file, so that it takes no memory until it is searched, and processes that
serve the same build share it. faiss's flat search takes 0.02 ms for one query of 1,024 lists, where a GEMM library takes some
milliseconds to begin.
"""

from __future__ import annotations

import faiss
import numpy as np

from paired_index_assets.codes.formats import ivf_of
from paired_index_assets.files.cache import LocalFile
from paired_index_assets.rows import Float32, Int64
from paired_index_assets.search.workers import Workers, cores, ranges
from paired_index_assets.trained.coarse import probe


class CoarseSearch:
    """The lists `TrainedIndex.probe` chooses, from its `X.index`; safe to use from many threads."""

    def __init__(self, file: LocalFile, workers: Workers) -> None:
        self._workers, self._file = workers, file
        self._mapped = faiss.read_index(str(file.path), faiss.IO_FLAG_MMAP_IFC)
        self._quantizer = ivf_of(self._mapped).quantizer

    def lists(self, queries: Float32, nprobe: int) -> Int64:
        """(nq, nprobe) list numbers for transformed `queries` (nq, columns), best first, -1 where there are no more."""
        queries = np.ascontiguousarray(queries)
        parts = self._workers.run(lambda rows: probe(self._quantizer, queries[rows], nprobe)[1], ranges(len(queries), cores()))
        return np.concatenate(list(parts))
