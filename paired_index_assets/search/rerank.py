"""The best of the codes, scored again by the embeddings they were made from, where these are at hand."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import numpy.typing as npt

from paired_index_assets.errors import BadInput, MissingInput
from paired_index_assets.files.cache import Cache
from paired_index_assets.files.npy import map_rows
from paired_index_assets.landing.catalog import Catalog
from paired_index_assets.landing.landed import Listing
from paired_index_assets.rows import Float32, Int64

NO_ID = -1
BLOCK_ROWS = 1 << 16  # of embeddings read at once


class Originals:
    """Embeddings by global id: the landed files of a catalog, mapped when first needed. Safe to use from many threads."""

    def __init__(self, catalog: Catalog, listing: Listing, cache: Cache | None = None) -> None:
        self._files, self._catalog, self._listing = catalog.all_files, catalog, listing
        self._cache = cache or Cache()
        self._mapped: dict[str, npt.NDArray[Any]] = {}
        self._lock = threading.Lock()

    def require(self) -> None:
        """Raises MissingInput, in one line, unless every file is there."""
        gone = [file.name for file in self._files if file.name not in self._listing]
        if gone:
            self._refuse(gone[0], f"{len(set(gone))} of {len(self._catalog.by_name)} files are")

    def rerank(self, queries: Float32, scores: Float32, ids: Int64, k: int) -> tuple[Float32, Int64]:
        """The best k of `ids` (n, m; -1 for none) by inner product of `queries` (n, d) with the embeddings, equal ones by ascending id."""
        found, labels = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
        step = max(1, BLOCK_ROWS // ids.shape[1])
        for first in range(0, len(queries), step):
            rows = slice(first, first + step)
            exact = np.full(ids[rows].shape, -np.inf, np.float32)
            there = ids[rows] >= 0
            which = np.nonzero(there)[0] + first
            exact[there] = np.einsum("ij,ij->i", self._rows(ids[rows][there]), queries[which], dtype=np.float64)
            order = np.lexsort((ids[rows], ~there, -exact), axis=1)[:, :k]
            found[rows], labels[rows] = np.take_along_axis(exact, order, 1), np.take_along_axis(ids[rows], order, 1)
        return found, labels

    def _rows(self, ids: Int64) -> Float32:
        """(n, d) in the order of `ids`."""
        files, places = self._catalog.file_of(ids)
        out = np.empty((len(ids), self._catalog.dimensions), np.float32)
        for number in np.unique(files):
            here = files == number
            file = self._files[int(number)]
            out[here] = self._array(file.name)[places[here]]
        return out

    def _array(self, name: str) -> npt.NDArray[Any]:
        with self._lock:
            if name not in self._mapped:
                landed = self._listing.get(name)
                try:
                    if landed is None:
                        raise FileNotFoundError(name)
                    self._mapped[name] = map_rows(self._cache.local(landed.path).path)
                except (FileNotFoundError, BadInput):
                    self._refuse(name, "it is")
            return self._mapped[name]

    def _refuse(self, name: str, what: str) -> None:
        raise MissingInput(
            f"rerank: {name}: expected the embeddings that were indexed, but {what} not there any more; search without rerank"
        )
