"""One tile of queries against one block of base rows, tile by tile, without sorting scores and without keeping them.

Of each tile of scores (a GEMM into a buffer that stays in cache) only the maxima of GROUP neighbouring base rows are looked at;
a group whose maximum can not reach the query's k-th best is done with. The maxima cost 2 % of the GEMM, and almost every group is
done with. Reducing a tile to group maxima is the idea of TPU-KNN (Chern et al., arXiv 2206.14286), which stops there: approximate.
Plain torch, so it also runs on a CUDA device, where it serves the k that the fused kernel does not.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from paired_index_assets.neighbors.arithmetic import Arithmetic, Operand
from paired_index_assets.neighbors.best import NOTHING, Candidates, exact_scores, kth_score, merge
from paired_index_assets.neighbors.blocks import Block
from paired_index_assets.neighbors.gemm import multiply
from paired_index_assets.neighbors.workers import Workspace

BASE_TILE = 1024
GROUP = 16
# A query with more candidates than k and these is scored in full instead: only masses of near ties get there.
CROWD = 512
FULL_TILE = 1 << 22  # exact scores at a time, then


def scan(query: Block, base: Operand, arithmetic: Arithmetic, scores: torch.Tensor, ids: torch.Tensor, space: Workspace) -> None:
    """Bring `scores` float32 and `ids` int64, both (len(query), k), up to date with the rows of `base`, in place.

    Blocks of base must come in ascending order of rows; rows not yet filled hold -inf and -1.
    """
    k = scores.shape[1]
    fast_query = arithmetic.rounded(query.vectors)
    query_error = arithmetic.input_error(query.vectors, fast_query)
    margin = arithmetic.margin(query.norms, query_error, base.norm, base.error, query.vectors.shape[1])
    rows = min(len(base.fast), max(BASE_TILE, 2 * k))
    buffer = space.tensor("tile", (_groups(rows) * GROUP * len(query),), arithmetic.dtype, query.vectors.device)
    search = _TileSearch(k, arithmetic, margin, scores[:, k - 1], [], torch.zeros_like(margin, dtype=torch.bool))
    for first in range(0, len(base.fast), rows):
        search.look_at(fast_query, base.fast[first : first + rows], first, buffer)
    search.prune()
    for found in search.found:
        exact = exact_scores(query.vectors, base.block.vectors, found.query, found.base, space)
        merge(scores, ids, found.query, found.base + base.block.start, exact)
    crowded = search.crowded.nonzero()[:, 0]
    if len(crowded):
        _score_in_full(query.vectors, base.block, crowded, scores, ids)


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
        maxima = torch.amax(tile.view(groups, GROUP, n), 1)
        highest = maxima.amax(0)
        if self.k == 1:
            self.kth = torch.maximum(self.kth, self.arithmetic.below(highest.float()))
        elif first == 0:
            self.kth = torch.maximum(self.kth, self.arithmetic.below(_kth_at_least(tile[:rows], maxima, self.k)))
        found = _reaching(tile, maxima, highest, (self.kth - self.margin).to(tile.dtype), first)
        self.found.append(found)
        self.pending += len(found)
        if self.k > 1 and self.pending > max(self.room, 2 * self.k * n):
            self.prune()
            self.room = 2 * self.pending

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


def _groups(rows: int) -> int:
    return -(-rows // GROUP)


def _kth_at_least(tile: torch.Tensor, maxima: torch.Tensor, k: int) -> torch.Tensor:
    """A bound that the k-th largest score of each query in the tile reaches: k groups have a maximum at least that high."""
    loose = maxima if 2 * k <= len(maxima) else tile
    if k > len(loose):
        return torch.full((tile.shape[1],), NOTHING, device=tile.device)
    return loose.T.contiguous().topk(k, dim=1).values[:, k - 1].float()


def _reaching(tile: torch.Tensor, maxima: torch.Tensor, highest: torch.Tensor, cut: torch.Tensor, first: int) -> Candidates:
    """The pairs with a score of at least cut[query]. `tile` is (base rows, queries), `maxima` (groups, queries), `highest` (queries,)."""
    columns = (highest >= cut).nonzero()[:, 0]
    if len(columns) == len(cut):
        group, query = (maxima >= cut).nonzero(as_tuple=True)
    else:
        group, column = (maxima[:, columns] >= cut[columns]).nonzero(as_tuple=True)
        query = columns[column]
    rows = group[:, None] * GROUP + torch.arange(GROUP, device=tile.device)
    scores = tile.view(-1).take(rows * tile.shape[1] + query[:, None])
    hit, member = (scores >= cut[query][:, None]).nonzero(as_tuple=True)
    return Candidates(query[hit], rows[hit, member] + first, scores[hit, member].float())


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
