"""Exact neighbours put together from those of pieces, with a proof of how far they are exact.

A piece lists, for each query, its best rows by descending score, equal scores by ascending id. Whatever it does not list comes after its
last. So if rows are struck off afterwards (taken down), and the lists of all pieces are merged, the merged order is that of all rows
put together as far as the earliest "last listed" of any piece that does not list all its rows; beyond it something may be missing, and
is not claimed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from paired_index_assets.rows import Bool, Float32, Int64

NO_ID = -1


@dataclass(frozen=True)
class Listed:
    """The best rows of one piece for each query: scores (nq, w) float32, ids (nq, w) int64. `whole`: there are no others."""

    scores: Float32
    ids: Int64
    whole: bool

    def left(self, removed: Int64) -> Int64:
        """(nq,) how many are not in `removed` (sorted)."""
        count: Int64 = (~_among(self.ids, removed)).sum(1)
        return count


def merge(lists: Iterable[Listed], queries: int, depth: int, removed: Int64) -> tuple[Float32, Int64]:
    """The best `depth` of all pieces without those `removed` (sorted int64): scores (queries, depth) float32 and ids, as far as proven.

    Where fewer are proven, or there are no more, score -inf and id NO_ID. Memory: two lists.
    """
    scores, ids = np.full((queries, depth), -np.inf, np.float32), np.full((queries, depth), NO_ID, np.int64)
    last_score, last_id = np.full(queries, -np.inf, np.float32), np.full(queries, np.iinfo(np.int64).max)
    for piece in lists:
        if not piece.whole:
            score, row = piece.scores[:, -1], piece.ids[:, -1]
            earlier = (score > last_score) | ((score == last_score) & (row < last_id))
            last_score, last_id = np.where(earlier, score, last_score), np.where(earlier, row, last_id)
        gone = _among(piece.ids, removed)
        all_scores = np.hstack([scores, np.where(gone, np.float32(-np.inf), piece.scores)])
        all_ids = np.hstack([ids, np.where(gone, NO_ID, piece.ids)])
        order = np.lexsort((all_ids, -all_scores), axis=1)[:, :depth]
        scores, ids = np.take_along_axis(all_scores, order, 1), np.take_along_axis(all_ids, order, 1)
    proven = (scores > last_score[:, None]) | ((scores == last_score[:, None]) & (ids <= last_id[:, None]))
    proven &= ids != NO_ID
    return np.where(proven, scores, np.float32(-np.inf)), np.where(proven, ids, NO_ID)


def _among(ids: Int64, removed: Int64) -> Bool:
    if not len(removed) or not ids.size:
        return np.zeros(ids.shape, np.bool_)
    at = np.minimum(np.searchsorted(removed, ids), len(removed) - 1)
    found: Bool = removed[at] == ids
    return found
