"""The nearest centroid of each row, exactly, where bounds from few dimensions rule out almost all of them (bounds.py).

A row's first score is that of a centroid which is probably near: the one it had before, or the best of the few groups of centroids whose
heads are nearest. Every centroid whose bound reaches that score is a candidate; one with a higher bound than all before is scored at once,
which raises the score and drops most others (sifting.py). What is left is scored as in cpu.py, so lists are those of the dense search, ties
included.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from paired_index_assets.neighbors.arithmetic import gamma
from paired_index_assets.neighbors.best import NOTHING, Candidates, exact_scores, float32_scores
from paired_index_assets.neighbors.bounds import Bounds, ProjectedRows, SeenRows, multiply_int8
from paired_index_assets.neighbors.gemm import multiply
from paired_index_assets.neighbors.grouping import Groups
from paired_index_assets.neighbors.sifting import highest, narrow, sift
from paired_index_assets.neighbors.workers import Workspace
from paired_index_assets.rows import Float32, Int32, Int64

BLOCK = 1024, 512  # rows and centroids whose products are made at a time: they are looked at while they are in cache
PROBED_GROUPS = 8  # of heads; benchmarks/assignment.py
ROOM = 512  # candidates of a row that are noted in the first look
CROWD, AGAIN = 4096, 512  # in the second, with a better start, of so many rows; more and the dense search is to decide


@dataclass(frozen=True)
class PrunedSearch:
    """All that is made once for a set of centroids; `bounds.values` stand in the order of `groups`."""

    centroids: torch.Tensor  # (k, d) float32, as given
    bounds: Bounds
    groups: Groups

    def nearest(
        self, rows: torch.Tensor, norms: torch.Tensor, before: torch.Tensor | None, space: Workspace, seen: SeenRows | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(n,) int64 of rows (n, d) float32 with `norms` (n,); and the rows, ascending, for which the bounds rule out too little: theirs are
        guesses, and the dense search is to decide.

        `before` (n,) int64: a centroid that is probably near. `seen`: the rows as `bounds.frame` shows them, where that is known.
        """
        projected = self.bounds.project(rows, norms) if seen is None else self.bounds.against(seen)
        slack = gamma(rows.shape[1]) * norms * self.bounds.norm
        ids = self._guess(rows, projected, space) if before is None else before.clone()
        pairs = Candidates(torch.arange(len(rows)), ids, torch.zeros(len(rows)))
        low = float32_scores(rows, self.centroids, pairs) - slack
        crowded = [
            self._look(rows[part], projected.of(part), low[part], slack[part], ids[part], min(ROOM, CROWD), space) + part.start
            for part in (slice(start, start + BLOCK[0]) for start in range(0, len(rows), BLOCK[0]))
        ]
        again = torch.cat(crowded)
        undecided = [again[:0]]
        for start in range(0, len(again), AGAIN):  # by now the score of their best bound is known, which is a better start
            part = again[start : start + AGAIN]
            left = ids[part]
            still = self._look(rows[part], projected.of(part), low[part], slack[part], left, CROWD, space)
            ids[part] = left
            undecided.append(part[still])
        return ids, torch.cat(undecided)

    def _multiply(self, rows: torch.Tensor, values: torch.Tensor, space: Workspace) -> torch.Tensor:
        """(len(rows), len(values)) products, in memory that the next call takes."""
        integer = values.dtype == torch.int8
        out = space.tensor("products", (len(rows), len(values)), torch.int32 if integer else torch.float32)
        (multiply_int8 if integer else multiply)(rows, values, out)
        return out

    def _nothing(self, n: int) -> Float32 | Int32:
        """(n,) less than any product."""
        return np.full(n, np.iinfo(np.int32).min, np.int32) if self.bounds.frame.levels else np.full(n, NOTHING, np.float32)

    def _guess(self, rows: torch.Tensor, projected: ProjectedRows, space: Workspace) -> torch.Tensor:
        """(n,) int64 a near centroid: the best, by its estimate, of the groups of the nearest heads."""
        n, heads = len(rows), self.groups.heads
        near = space.tensor("heads", (n, len(heads)), torch.float32)
        multiply(rows, heads, near)
        probed = min(PROBED_GROUPS, len(heads))
        group = near.topk(probed, dim=1, sorted=False).indices.reshape(-1)
        order = torch.argsort(group, stable=True)
        row = order // probed
        ends = torch.cumsum(torch.bincount(group, minlength=len(heads)), 0).tolist()
        best, place, estimates = self._nothing(n), np.zeros(n, np.int64), self.bounds.frame.without_rest(projected.values)
        for number, (first, last) in enumerate(zip([0, *ends], ends, strict=False)):
            start, stop = self.groups.starts[number], self.groups.starts[number + 1]
            if first < last and start < stop:
                mine = row[first:last]
                products = self._multiply(estimates[mine], self.bounds.values[start:stop], space)
                highest(products.numpy(), start, mine.numpy(), best, place)
        return self.groups.order[torch.from_numpy(place)]

    def _look(
        self,
        rows: torch.Tensor,
        projected: ProjectedRows,
        low: torch.Tensor,
        slack: torch.Tensor,
        ids: torch.Tensor,
        room: int,
        space: Workspace,
    ) -> torch.Tensor:
        """Write to `ids` the nearest centroid of each row, but for those, which are returned, that have more than `room` candidates.

        `low` (n,) float32, what the best score reaches, is raised in place.
        """
        values, n = self.bounds.values, len(rows)
        held = np.zeros(n, np.int64)
        found = space.tensor("found", (n, room), torch.int32).numpy()
        value = space.tensor("value", (n, room), torch.int32 if self.bounds.frame.levels else torch.float32).numpy()
        known = (
            rows.numpy(), self.centroids.numpy(), self.groups.order.numpy(), projected.mean.numpy(), projected.margin.numpy(),
            projected.unit.numpy(), slack.numpy(), self.bounds.frame.levels > 0, low.numpy(),
        )  # fmt: skip
        top = self._nothing(n)
        for first in range(0, len(values), BLOCK[1]):
            products = self._multiply(projected.values, values[first : first + BLOCK[1]], space)
            sift(products.numpy(), first, *known, top, held, found, value)
        narrow(*known, held, found, value, ids.numpy())
        self._decide(rows, held, found, ids)
        return torch.from_numpy(np.flatnonzero(held > room))

    def _decide(self, rows: torch.Tensor, held: Int64, found: Int32, ids: torch.Tensor) -> None:
        """Write to `ids` the best of several that are equal within rounding."""
        several = np.flatnonzero((held > 1) & (held <= found.shape[1]))
        if not len(several):
            return
        query = torch.from_numpy(np.repeat(several, held[several]))
        base = torch.from_numpy(np.concatenate([found[j, : held[j]] for j in several]).astype(np.int64))
        exact = exact_scores(rows, self.centroids, query, base)
        best = torch.full((len(rows),), NOTHING).scatter_reduce_(0, query, exact, "amax")
        winner = exact == best[query]
        ids.scatter_reduce_(0, query[winner], base[winner], "amin", include_self=False)
