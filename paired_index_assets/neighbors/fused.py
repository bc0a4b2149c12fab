"""A GEMM that keeps only the largest score of every GROUP base rows: the score matrix is never written.

Written to memory are n / GROUP floats a query where a plain GEMM writes n, so that the multiplication, not the memory, is the
limit. Needs triton; the search around it is in cuda.py.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

GROUP = 128  # base rows of one program: the tile shape that keeps Hopper's and Ampere's tensor cores busy, with QUERIES and DEPTH
QUERIES = 128
DEPTH = 64
SWIZZLE = 8  # programs that share base rows run close together, so that these stay in the L2 cache
WARPS, STAGES = 8, 3


@triton.jit  # type: ignore[untyped-decorator]
def _group_maxima(  # type: ignore[no-untyped-def]
    base, query, maxima, n, m, d,
    group: tl.constexpr, queries: tl.constexpr, depth: tl.constexpr, swizzle: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    across, down = tl.cdiv(m, queries), tl.cdiv(n, group)
    band = program // (swizzle * across)
    height = tl.minimum(down - band * swizzle, swizzle)
    row_tile = band * swizzle + (program % (swizzle * across)) % height
    query_tile = (program % (swizzle * across)) // height

    rows = row_tile * group + tl.arange(0, group)
    columns = query_tile * queries + tl.arange(0, queries)
    within = tl.arange(0, depth)
    base_at = base + rows[:, None].to(tl.int64) * d + within[None, :]
    query_at = query + columns[None, :].to(tl.int64) * d + within[:, None]
    scores = tl.zeros((group, queries), dtype=tl.float32)
    for start in range(0, d, depth):
        inside = within < d - start
        a = tl.load(base_at + start, mask=(rows < n)[:, None] & inside[None, :], other=0.0)
        b = tl.load(query_at + start, mask=(columns < m)[None, :] & inside[:, None], other=0.0)
        scores = tl.dot(a, b, scores)
    scores = tl.where((rows < n)[:, None], scores, float("-inf"))
    tl.store(maxima + row_tile.to(tl.int64) * m + columns, tl.max(scores, axis=0), mask=columns < m)


def group_maxima(base: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    """base (n, d), query (m, d), both float16 or both bfloat16, C order -> the largest score of each query in rows
    GROUP i .. GROUP i + GROUP - 1 of base: (ceil(n / GROUP), m) float32."""
    (n, d), m = base.shape, len(query)
    maxima = torch.empty((triton.cdiv(n, GROUP), m), dtype=torch.float32, device=base.device)
    grid = (triton.cdiv(n, GROUP) * triton.cdiv(m, QUERIES),)
    _group_maxima[grid](base, query, maxima, n, m, d, GROUP, QUERIES, DEPTH, SWIZZLE, num_warps=WARPS, num_stages=STAGES)
    return maxima
