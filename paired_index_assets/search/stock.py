"""The same shard files under stock faiss: what a reader who has never heard of this project finds in them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from paired_index_assets.rows import Float32, Int64

NO_ID = -1
READ_ONLY = faiss.IO_FLAG_MMAP_IFC | faiss.IO_FLAG_READ_ONLY


def stock_search(files: Iterable[Path], queries: Float32, k: int, *, nprobe: int, removed: Int64) -> tuple[Float32, Int64]:
    """The best k of `queries` (nq, d) over all files: each read and searched by faiss alone, one after another, and merged.

    `removed` (n,) ids are not returned. Scores (nq, k) float32 descending, ids (nq, k) int64, NO_ID where there are fewer.
    """
    scores, ids = np.full((len(queries), k), -np.inf, np.float32), np.full((len(queries), k), NO_ID, np.int64)
    selector = faiss.IDSelectorNot(faiss.IDSelectorBatch(removed)) if len(removed) else None
    for file in files:
        index = faiss.read_index(str(file), READ_ONLY)
        found, labels = index.search(np.ascontiguousarray(queries), k, params=_parameters(index, nprobe, selector))
        found[labels < 0] = -np.inf
        scores, ids = np.hstack([scores, found]), np.hstack([ids, labels])
        order = np.lexsort((ids, ids < 0, -scores), axis=1)[:, :k]
        scores, ids = np.take_along_axis(scores, order, 1), np.take_along_axis(ids, order, 1)
    return scores, ids


def _parameters(index: Any, nprobe: int, selector: Any) -> Any:
    of_lists = faiss.SearchParametersIVF(nprobe=nprobe, sel=selector)
    return faiss.SearchParametersPreTransform(index_params=of_lists) if isinstance(index, faiss.IndexPreTransform) else of_lists
