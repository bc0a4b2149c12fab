"""The search on a GPU: group maxima from the fused kernel, then exact scores of the few groups that can hold a winner.

No running top k inside the kernel: the k groups with the largest maxima contain the k best rows, whatever k is, so the kernel
stays a GEMM and the choice is made afterwards, on 1/128 of the numbers.
"""

from __future__ import annotations

import torch

from paired_index_assets.neighbors.arithmetic import Arithmetic
from paired_index_assets.neighbors.best import exact_scores, merge
from paired_index_assets.neighbors.blocks import Block, margin_of
from paired_index_assets.neighbors.fused import GROUP, group_maxima
from paired_index_assets.neighbors.workers import Workspace

SCORED_VALUES = 1 << 28  # values of candidate rows scored before the next ones see the result: 2 GB of float64


def scan(
    query: Block, base: Block, arithmetic: Arithmetic, scores: torch.Tensor, ids: torch.Tensor, space: Workspace, ids_only: bool
) -> None:
    """As cpu.scan, with all tensors on the GPU. Needs k <= len(base) / GROUP to be fast; right for any k."""
    k, d = scores.shape[1], query.vectors.shape[1]
    margin = margin_of(query, base, arithmetic)
    maxima = group_maxima(base.fast, query.fast)
    kth = scores[:, k - 1]
    if k <= len(maxima):
        kth = torch.maximum(kth, maxima.amax(0) if k == 1 else maxima.T.topk(k, dim=1).values[:, k - 1])
    group, column = (maxima >= kth - margin).nonzero(as_tuple=True)
    del maxima
    members = torch.arange(GROUP, device=group.device)
    step = max(1, SCORED_VALUES // (GROUP * d))
    for start in range(0, len(group), step):
        rows = (group[start : start + step, None] * GROUP + members).reshape(-1)
        owner = column[start : start + step].repeat_interleave(GROUP)
        inside = rows < len(base.fast)
        rows, owner = rows[inside], owner[inside]
        exact = exact_scores(query.vectors, base.vectors, owner, rows)
        merge(scores, ids, owner, rows + base.start, exact)
