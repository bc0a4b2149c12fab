"""The nearest centroid of each row, exactly, where bounds from few dimensions rule out almost all of them (bounds.py).

A row's first score is that of a centroid which is probably near: the one it had before, or the best of the few groups of centroids whose
heads are nearest. Every centroid whose bound reaches that score is a candidate; the one with the highest bound is scored first, which
raises the score and drops most others. What is left is scored as in cpu.py, so lists are those of the dense search, ties included.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from paired_index_assets.neighbors.arithmetic import gamma
from paired_index_assets.neighbors.best import NOTHING, Candidates, exact_scores, float32_scores
from paired_index_assets.neighbors.bounds import Bounds, ProjectedRows, multiply_int8
from paired_index_assets.neighbors.gemm import multiply
from paired_index_assets.neighbors.workers import Workspace
from paired_index_assets.rows import Float32, Int64

GROUP = 16  # products looked at together, as in cpu.py
TILE_BYTES = 1 << 21  # of products at a time: the maxima are taken while they are in cache
PROBED_GROUPS = 4  # of heads; benchmarks/assignment.py
RAISES = 8  # times in a scan that the best so far is looked for
ROUNDS = 2  # of scoring the candidate with the highest bound
CROWD = 256  # candidates of a row: more and it is looked at again, with a better start


@dataclass(frozen=True)
class Groups:
    """Centroids in groups around heads: `order` (k,) centroid numbers group by group, `starts` (G + 1,), `heads` (G, d) float32.

    `found`: whether the groups are such as a near centroid is found by; else they only hold the centroids.
    """

    heads: torch.Tensor
    order: torch.Tensor
    starts: list[int]
    found: bool = True


def group_centroids(centroids: Float32, lists: Int64, heads: Float32, *, found: bool = True) -> Groups:
    """`lists` (k,): the head of each centroid."""
    order = np.argsort(lists, kind="stable").astype(np.int64)
    starts = np.searchsorted(lists[order], np.arange(len(heads) + 1))
    return Groups(torch.from_numpy(np.ascontiguousarray(heads, dtype=np.float32)), torch.from_numpy(order), starts.tolist(), found)


@dataclass(frozen=True)
class PrunedSearch:
    """All that is made once for a set of centroids; `bounds.values` stand in the order of `groups`."""

    centroids: torch.Tensor  # (k, d) float32, as given
    bounds: Bounds
    groups: Groups
    place: torch.Tensor  # (k,) where each centroid stands in that order

    @classmethod
    def of(cls, centroids: Float32, bounds: Bounds, groups: Groups) -> PrunedSearch:
        place = torch.empty_like(groups.order)
        place[groups.order] = torch.arange(len(place))
        return cls(torch.from_numpy(centroids), bounds, groups, place)

    def nearest(
        self, rows: torch.Tensor, norms: torch.Tensor, before: torch.Tensor | None, space: Workspace
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(n,) int64 of rows (n, d) float32 with `norms` (n,); and the rows, ascending, for which the bounds rule out too little: theirs are
        guesses, and the dense search is to decide.

        `before` (n,) int64: a centroid that is probably near.
        """
        projected = self.bounds.project(rows, norms)
        slack = gamma(rows.shape[1]) * norms * self.bounds.norm
        if before is None:
            ids, score = self._guess(rows, projected, space)
        else:
            ids, score = before.clone(), self._scores(rows, torch.arange(len(rows)), before)
        low = score - slack
        found, crowded = self._reaching(rows, projected, low, slack, ids, space)
        self._decide(rows, found, low, slack, ids, space)
        if len(crowded):  # by now their best bound is known, and its score is a better start
            part, again = projected.of(crowded), low[crowded]
            some = ids[crowded]
            found, still = self._reaching(rows[crowded], part, again, slack[crowded], some, space)
            self._decide(rows[crowded], found, again, slack[crowded], some, space)
            ids[crowded] = some
            crowded = crowded[still]
        return ids, crowded

    def _scores(self, rows: torch.Tensor, query: torch.Tensor, base: torch.Tensor) -> torch.Tensor:
        """Of pairs in ascending order of `query`, in float32."""
        return float32_scores(rows, self.centroids, Candidates(query, base, torch.zeros(len(query))))

    def _multiply(self, values: torch.Tensor, rows: torch.Tensor, space: Workspace, name: str) -> torch.Tensor:
        """(len(values) up to a multiple of GROUP, len(rows)) products; what is beyond is least."""
        count, n = len(values), len(rows)
        whole = -(-count // GROUP) * GROUP
        integer = values.dtype == torch.int8
        out = space.tensor(name, (whole, n), torch.int32 if integer else torch.float32)
        (multiply_int8 if integer else multiply)(values, rows, out[:count])
        out[count:] = torch.iinfo(torch.int32).min if integer else NOTHING
        return out

    def _guess(self, rows: torch.Tensor, projected: ProjectedRows, space: Workspace) -> tuple[torch.Tensor, torch.Tensor]:
        """(n,) a near centroid and its score: of the nearest heads' groups, each one's best by its estimate is scored."""
        n, heads = len(rows), self.groups.heads
        near = space.tensor("heads", (len(heads), n), torch.float32)
        multiply(heads, rows, near)
        probed = min(PROBED_GROUPS, len(heads))
        group = near.topk(probed, dim=0).indices.reshape(-1)
        order = torch.argsort(group, stable=True)
        counts = torch.bincount(group, minlength=len(heads)).tolist()
        place = torch.full((len(group),), -1, dtype=torch.int64)
        first = 0
        for number, count in enumerate(counts):
            start, stop = self.groups.starts[number], self.groups.starts[number + 1]
            mine = order[first : first + count]
            first += count
            if count and start < stop:
                products = self._multiply(self.bounds.values[start:stop], projected.seeding[mine % n], space, "group")
                place[mine] = products.argmax(0) + start
        query, probe = (place.view(probed, n).T >= 0).nonzero(as_tuple=True)
        base = self.groups.order[place[probe * n + query]]
        score = self._scores(rows, query, base)
        best = torch.full((n,), NOTHING).scatter_reduce_(0, query, score, "amax")
        guess = torch.zeros(n, dtype=torch.int64)
        winner = score == best[query]
        guess[query[winner]] = base[winner]
        best = torch.where(best == NOTHING, rows @ self.centroids[0], best)  # all probed groups were empty
        return guess, best

    def _reaching(
        self, rows: torch.Tensor, projected: ProjectedRows, low: torch.Tensor, slack: torch.Tensor, start: torch.Tensor, space: Workspace
    ) -> tuple[Candidates, torch.Tensor]:
        """Pairs of row and centroid whose bound reaches `low`, with that bound; and the rows with a crowd of them, which are left out.

        `low`, at first the score of `start`, is raised, in place, by the scores of those with the highest bounds so far.
        """
        values, n = self.bounds.values, len(low)
        step = max(GROUP, TILE_BYTES // 4 // n // GROUP * GROUP)
        raising = max(step, -(-len(values) // RAISES))
        found: list[Candidates] = []
        held = torch.zeros(n, dtype=torch.int64)
        integer = values.dtype == torch.int8
        top = torch.full((n,), torch.iinfo(torch.int32).min, dtype=torch.int32) if integer else torch.full((n,), NOTHING)
        place = self.place[start]
        scored = place.clone()
        raised, cut = 0, projected.cut(low)
        for first in range(0, len(values), step):
            products = self._multiply(values[first : first + step], projected.values, space, "products")
            grouped = products.view(-1, GROUP, n)
            maxima = torch.amax(grouped, 1)
            group, query = (maxima >= cut).nonzero(as_tuple=True)
            if len(group):
                members = grouped[group, :, query]
                hit, member = (members >= cut[query][:, None]).nonzero(as_tuple=True)
                query = query[hit]
                found.append(Candidates(query, group[hit] * GROUP + member + first, members[hit, member]))
                held += torch.bincount(query, minlength=n)
            best = maxima.amax(0)
            higher = ((best > top) & (best >= cut) & (held > 1)).nonzero()[:, 0]  # of one candidate alone there is nothing to drop
            if len(higher):
                top[higher] = best[higher]
                place[higher] = products[:, higher].argmax(0) + first
            if first + step - raised >= raising:
                raised = first + step
                fresh = (place != scored).nonzero()[:, 0]
                scored[fresh] = place[fresh]
                score = self._scores(rows, fresh, self.groups.order[place[fresh]])
                low[fresh] = torch.maximum(low[fresh], score - slack[fresh])
                cut = projected.cut(low).masked_fill(held > CROWD, torch.iinfo(torch.int32).max if integer else -NOTHING)
        crowd = held > CROWD
        pairs = Candidates.joined(found) if found else Candidates(place[:0], place[:0], top[:0])
        pairs = pairs.where(~crowd[pairs.query])
        return Candidates(pairs.query, self.groups.order[pairs.base], projected.upper(pairs.query, pairs.score)), crowd.nonzero()[:, 0]

    def _decide(
        self, rows: torch.Tensor, found: Candidates, low: torch.Tensor, slack: torch.Tensor, ids: torch.Tensor, space: Workspace
    ) -> None:
        """Write to `ids` the nearest centroid of each row in `found`, which holds it."""
        n = len(rows)
        found = found.where(found.score >= low[found.query])
        scored = torch.zeros(len(found), dtype=torch.bool)
        for _ in range(ROUNDS):
            open_ = torch.where(scored, NOTHING, found.score)
            top = torch.full((n,), NOTHING).scatter_reduce_(0, found.query, open_, "amax")
            chosen = ((open_ == top[found.query]) & ~scored).nonzero()[:, 0]
            if not len(chosen):
                break
            chosen = chosen[torch.argsort(found.query[chosen])]
            query = found.query[chosen]
            score = self._scores(rows, query, found.base[chosen]) - slack[query]
            low = low.scatter_reduce(0, query, score, "amax")
            scored[chosen] = True
            keep = found.score >= low[found.query]
            found, scored = found.where(keep), scored[keep]
        found = self._ordered(found)
        counts = torch.bincount(found.query, minlength=n)
        lone = counts[found.query] == 1
        ids[found.query[lone]] = found.base[lone]
        found = found.where(~lone)
        if not len(found):
            return
        found = Candidates(found.query, found.base, float32_scores(rows, self.centroids, found))
        best = torch.full((n,), NOTHING).scatter_reduce_(0, found.query, found.score, "amax")
        found = found.where(found.score >= (best - 2 * slack)[found.query])
        exact = exact_scores(rows, self.centroids, found.query, found.base, space)
        best = torch.full((n,), NOTHING).scatter_reduce_(0, found.query, exact, "amax")
        winner = exact == best[found.query]
        ids.scatter_reduce_(0, found.query[winner], found.base[winner], "amin", include_self=False)

    def _ordered(self, found: Candidates) -> Candidates:
        order = torch.argsort(found.query * len(self.centroids) + found.base)
        return Candidates(found.query[order], found.base[order], found.score[order])
