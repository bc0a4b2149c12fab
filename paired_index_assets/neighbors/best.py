"""The best k of each query so far, and how candidates get in: by their exact score, lower id first among equals."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch

from paired_index_assets.neighbors.scoring import score_pairs

# Said once a process about the one use here, which the tests cover.
warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")

NOTHING = float("-inf")
RESCORE_VALUES = 1 << 24  # of candidates, gathered at a time on a GPU


@dataclass(frozen=True)
class Candidates:
    """Pairs that may be among the best: query row and base row (both local, int64) and the computed score.

    For each query, base rows are in ascending order.
    """

    query: torch.Tensor
    base: torch.Tensor
    score: torch.Tensor

    def __len__(self) -> int:
        return len(self.query)

    def where(self, keep: torch.Tensor) -> Candidates:
        return Candidates(self.query[keep], self.base[keep], self.score[keep])

    def by_query(self) -> Candidates:
        order = torch.argsort(self.query, stable=True)
        return Candidates(self.query[order], self.base[order], self.score[order])

    @staticmethod
    def joined(parts: list[Candidates]) -> Candidates:
        if len(parts) == 1:
            return parts[0]
        return Candidates(*(torch.cat([getattr(part, field) for part in parts]) for field in ("query", "base", "score")))


def exact_scores(queries: torch.Tensor, base: torch.Tensor, query: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
    """(n,) float32 of <queries[query[i]], base[row[i]]>, summed in float64 and rounded once: the score this package defines.

    queries (nq, d) and base (nb, d) float32; query and row (n,) int64.
    """
    out = torch.empty(len(query), dtype=torch.float32, device=queries.device)
    if queries.device.type == "cpu":
        score_pairs(*(each.numpy() for each in (queries, base, query, row, out)))
        return out
    step = max(1, RESCORE_VALUES // queries.shape[1])
    for start in range(0, len(query), step):
        part = slice(start, start + step)
        out[part] = (queries[query[part]].double() * base[row[part]]).sum(1)
    return out


def float32_scores(queries: torch.Tensor, base: torch.Tensor, sorted_by_query: Candidates) -> torch.Tensor:
    """The inner product of each pair, summed in float32: a sixth of the time of `exact_scores`, for nothing is gathered."""
    counts = torch.bincount(sorted_by_query.query, minlength=len(queries))
    starts = torch.cat([counts.new_zeros(1), torch.cumsum(counts, 0)])
    wanted = torch.sparse_csr_tensor(starts, sorted_by_query.base, sorted_by_query.score, (len(queries), len(base)), check_invariants=False)
    scores: torch.Tensor = torch.sparse.sampled_addmm(wanted, queries, base.T, beta=0.0).values()
    return scores


def as_matrix(query: torch.Tensor, values: list[tuple[torch.Tensor, float]], rows: int) -> list[torch.Tensor]:
    """Ragged to padded: value i goes to row query[i], in order of arrival; each of `values` comes with its padding."""
    counts = torch.bincount(query, minlength=rows)
    order = torch.argsort(query, stable=True)
    sorted_query = query[order]
    starts = torch.cumsum(counts, 0) - counts
    place = torch.arange(len(query), device=query.device) - starts[sorted_query]
    width = int(counts.max()) if len(query) else 0
    matrices = []
    for value, padding in values:
        matrix = torch.full((rows, width), padding, dtype=value.dtype, device=value.device)
        matrix[sorted_query, place] = value[order]
        matrices.append(matrix)
    return matrices


def kth_score(candidates: Candidates, rows: int, k: int) -> torch.Tensor:
    """The k-th largest candidate score of each query, -inf where there are fewer."""
    if k == 1:
        return candidates.score.new_full((rows,), NOTHING).scatter_reduce_(0, candidates.query, candidates.score, "amax")
    (scores,) = as_matrix(candidates.query, [(candidates.score, NOTHING)], rows)
    if scores.shape[1] < k:
        return torch.full((rows,), NOTHING, device=scores.device)
    return scores.topk(k, dim=1).values[:, k - 1]


def merge(scores: torch.Tensor, ids: torch.Tensor, query: torch.Tensor, new_ids: torch.Tensor, new_scores: torch.Tensor) -> None:
    """Put exact candidates into `scores`, `ids` (rows, k), in place. New ids are above all ids already there."""
    k = scores.shape[1]
    better = new_scores > scores[query, k - 1]  # an equal score loses: its id is higher
    query, new_ids, new_scores = query[better], new_ids[better], new_scores[better]
    if not len(query):
        return
    if k == 1:
        scores[:, 0].scatter_reduce_(0, query, new_scores, "amax")
        best = new_scores == scores[query, 0]
        ids[:, 0].scatter_reduce_(0, query[best], new_ids[best], "amin", include_self=False)
        return
    touched, local = torch.unique(query, return_inverse=True)
    score_matrix, id_matrix = as_matrix(local, [(new_scores, NOTHING), (new_ids, -1)], len(touched))
    all_scores = torch.cat([scores[touched], score_matrix], 1)
    all_ids = torch.cat([ids[touched], id_matrix], 1)
    order = torch.argsort(all_scores, dim=1, descending=True, stable=True)[:, :k]
    scores[touched] = all_scores.gather(1, order)
    ids[touched] = all_ids.gather(1, order)
