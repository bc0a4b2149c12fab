"""One tile of queries against one block of base rows, tile by tile, without sorting scores and without keeping them.

Of each tile of scores (a GEMM into a buffer that stays in cache) only the maxima of GROUP neighbouring base rows are looked at;
a group whose maximum cannot reach the query's k-th best is done with. The maxima cost 2 % of the GEMM, and almost every group is
done with. Reducing a tile to group maxima is the idea of TPU-KNN (Chern et al., arXiv 2206.14286), which stops there: approximate.
Plain torch, so it also runs on a CUDA device, where it serves the k that the fused kernel does not.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from paired_index_assets.neighbors.arithmetic import FLOAT32, Arithmetic
from paired_index_assets.neighbors.best import NOTHING, Candidates, exact_scores, float32_scores, kth_score, merge
from paired_index_assets.neighbors.blocks import Block, margin_of
from paired_index_assets.neighbors.gemm import multiply
from paired_index_assets.neighbors.workers import Workspace

BASE_TILE_BYTES = 4096  # a query's scores of one tile: 1024 base rows in float32, 2048 in bfloat16
GROUP = 16
# A query with more candidates than k and these is scored in full instead: only masses of near ties get there.
CROWD = 512
FULL_TILE = 1 << 22  # exact scores at a time, then


def scan(
    query: Block, base: Block, arithmetic: Arithmetic, scores: torch.Tensor, ids: torch.Tensor, space: Workspace, ids_only: bool
) -> None:
    """Bring `scores` float32 and `ids` int64, both (len(query), k), up to date with the rows of `base`, in place.

    Blocks of base must come in ascending order of rows; rows not yet filled hold -inf and -1. `ids_only`: this is the only block, k is 1,
    and `scores` are of no use to the caller, so that a query with a single candidate needs no exact score.
    """
    k = scores.shape[1]
    margin = margin_of(query, base, arithmetic)
    rows = min(len(base), max(BASE_TILE_BYTES // arithmetic.dtype.itemsize, 2 * k))
    buffer = space.tensor("tile", (_groups(rows) * GROUP * len(query),), arithmetic.dtype, query.vectors.device)
    search = _TileSearch(k, arithmetic, margin, scores[:, k - 1], [], torch.zeros_like(margin, dtype=torch.bool))
    for first in range(0, len(base), rows):
        search.look_at(query.fast, base.fast[first : first + rows], first, buffer)
    search.prune()
    for found in search.found:
        if arithmetic.rounds:
            found = _refined(found, query, base, scores)
        if ids_only:
            lone = torch.bincount(found.query, minlength=len(query))[found.query] == 1
            ids[found.query[lone], 0] = found.base[lone] + base.start
            found = found.where(~lone)
        exact = exact_scores(query.vectors, base.vectors, found.query, found.base)
        merge(scores, ids, found.query, found.base + base.start, exact)
    crowded = search.crowded.nonzero()[:, 0]
    if len(crowded):
        _score_in_full(query.vectors, base, crowded, scores, ids)


@dataclass
class _TileSearch:
    """The candidates of one tile of queries; `kth` is a lower bound of each query's k-th best score."""

    k: int
    arithmetic: Arithmetic
    margin: torch.Tensor
    kth: torch.Tensor
    found: list[Candidates]
    crowded: torch.Tensor
    pending: int = 0
    room: int = 0

    def look_at(self, query: torch.Tensor, base: torch.Tensor, first: int, buffer: torch.Tensor) -> None:
        """Add the pairs of one tile that may be among the best; `first` is the row of base[0] in its block."""
        n, rows = len(query), len(base)
        groups = _groups(rows)
        tile = buffer[: groups * GROUP * n].view(groups * GROUP, n)
        multiply(base, query, tile[:rows])
        tile[rows:] = NOTHING
        found = self._reaching(tile, rows, first)
        self.found.append(found)
        self.pending += len(found)
        if self.k > 1 and self.pending > max(self.room, 2 * self.k * n):
            self.prune()
            self.room = 2 * self.pending

    def _reaching(self, tile: torch.Tensor, rows: int, first: int) -> Candidates:
        if tile.dtype == torch.bfloat16:
            # Compared as integers, in a fifth of the time. Right above zero; of a group without such a score some other is taken for the
            # largest, which may tell of the k-th best as well, and which no cut above zero lets in.
            keys = tile.view(torch.int16)
            maxima = _group_maxima(keys)
            cut = self._cut(tile[:rows], maxima.view(torch.bfloat16), first)
            if bool((cut > 0).all()):
                return _reaching(keys, maxima, cut.view(torch.int16), first)
        maxima = _group_maxima(tile)
        return _reaching(tile, maxima, self._cut(tile[:rows], maxima, first), first)

    def _cut(self, tile: torch.Tensor, maxima: torch.Tensor, first: int) -> torch.Tensor:
        """(queries,) the least computed score of a pair that may be among the best, with what the tile at row `first` tells."""
        if self.k == 1:
            self.kth = torch.maximum(self.kth, self.arithmetic.below(maxima.amax(0).float()))
        elif first == 0:
            self.kth = torch.maximum(self.kth, self.arithmetic.below(_kth_at_least(tile, maxima, self.k)))
        return (self.kth - self.margin).to(tile.dtype)

    def prune(self) -> None:
        """Drop the pairs that the others of the same query have shut out, and all pairs of queries that have too many left."""
        found, n = Candidates.joined(self.found), len(self.margin)
        if self.k > 1:
            self.kth = torch.maximum(self.kth, self.arithmetic.below(kth_score(found, n, self.k)))
        if self.k > 1 or len(self.found) > 1:
            found = found.where(found.score >= (self.kth - self.margin).to(self.arithmetic.dtype)[found.query])
        self.crowded |= torch.bincount(found.query, minlength=n) > self.k + CROWD
        if bool(self.crowded.any()):
            found = found.where(~self.crowded[found.query])
            self.kth = self.kth.masked_fill(self.crowded, float("inf"))
        self.found, self.pending = [found], len(found)


def _refined(found: Candidates, query: Block, base: Block, scores: torch.Tensor) -> Candidates:
    """Those that may still be among the best once their scores are known in float32, whose margin is a hundredth."""
    k = scores.shape[1]
    found = found.by_query()
    close = Candidates(found.query, found.base, float32_scores(query.vectors, base.vectors, found))
    kth = torch.maximum(scores[:, k - 1], kth_score(close, len(query), k))
    margin = FLOAT32.margin(query.norms, torch.zeros_like(query.norms), float(base.norms.max()), 0.0, query.vectors.shape[1])
    return close.where(close.score >= (kth - margin)[close.query])


def _groups(rows: int) -> int:
    return -(-rows // GROUP)


def _kth_at_least(tile: torch.Tensor, maxima: torch.Tensor, k: int) -> torch.Tensor:
    """A bound that the k-th largest score of each query in the tile reaches: k groups have a maximum at least that high."""
    loose = maxima if 2 * k <= len(maxima) else tile
    if k > len(loose):
        return torch.full((tile.shape[1],), NOTHING, device=tile.device)
    return loose.T.contiguous().topk(k, dim=1).values[:, k - 1].float()


def _group_maxima(tile: torch.Tensor) -> torch.Tensor:
    """(rows / GROUP, queries) the largest of every GROUP rows of `tile` (rows, queries)."""
    return torch.amax(tile.view(-1, GROUP, tile.shape[1]), 1)


def _reaching(tile: torch.Tensor, maxima: torch.Tensor, cut: torch.Tensor, first: int) -> Candidates:
    """The pairs of `tile` (base rows, queries) with a score of at least cut[query]; int16 stands for the bits of bfloat16."""
    columns = (maxima.amax(0) >= cut).nonzero()[:, 0]
    if len(columns) == len(cut):
        group, query = (maxima >= cut).nonzero(as_tuple=True)
    else:
        group, column = (maxima[:, columns] >= cut[columns]).nonzero(as_tuple=True)
        query = columns[column]
    scores = tile.view(-1, GROUP, tile.shape[1])[group, :, query]
    hit, member = (scores >= cut[query][:, None]).nonzero(as_tuple=True)
    score = scores[hit, member]
    score = score.view(torch.bfloat16) if score.dtype == torch.int16 else score
    return Candidates(query[hit], group[hit] * GROUP + member + first, score.float())


def _score_in_full(query: torch.Tensor, base: Block, crowded: torch.Tensor, scores: torch.Tensor, ids: torch.Tensor) -> None:
    """Every base row against each crowded query, exactly. Only scores above the k-th best get in, so ties cost no more than the GEMM."""
    k = scores.shape[1]
    rows = max(k, FULL_TILE // len(crowded))
    wide = query[crowded].double()
    for first in range(0, len(base), rows):
        part = base.vectors[first : first + rows]
        exact = (wide @ part.double().T).float()
        entering = (exact > scores[crowded, k - 1 : k]).any(1).nonzero()[:, 0]
        if not len(entering):
            continue
        top, row = torch.sort(exact[entering], dim=1, descending=True, stable=True)
        top, row = top[:, :k], row[:, :k]
        owner = crowded[entering][:, None].expand_as(row)
        row, order = torch.sort(row, dim=1)  # merge wants ascending rows
        merge(scores, ids, owner.reshape(-1), row.reshape(-1) + first + base.start, top.gather(1, order).reshape(-1))
