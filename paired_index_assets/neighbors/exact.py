"""The best k of many rows under inner product, exactly: pairing, assignment and ground truth all come here.

The score of a pair is its inner product summed in float64 and rounded once to float32; among equal scores the lower id comes
first. So the answer depends on the vectors alone, not on block sizes, threads or device. Candidates are found in the fastest
arithmetic the machine has, within a proven margin (arithmetic.py), and only candidates are scored that way.
"""

from __future__ import annotations

import numpy as np
import torch

from paired_index_assets.errors import BadInput
from paired_index_assets.neighbors import cpu
from paired_index_assets.neighbors.arithmetic import FLOAT32, Arithmetic
from paired_index_assets.neighbors.best import NOTHING
from paired_index_assets.neighbors.blocks import blocks_of, check_matrix, check_same_width, read_block
from paired_index_assets.progress import Progress, silent
from paired_index_assets.rows import Float32, Int64, Rows

FLOAT32_BYTES = 4
# Blocks take this share of memory_bytes each; the rest is for tiles, candidates, and what torch allocates in passing.
BLOCK_SHARE = 0.2
# A pair under consideration: score, id, and the matrices they are sorted in.
CANDIDATE_BYTES = 48
SMALLEST_BLOCK = 1024


def exact_neighbors(
    queries: Rows,
    base: Rows,
    k: int,
    *,
    device: str | None = None,
    memory_bytes: int = 256 << 20,
    progress: Progress = silent,
    arithmetic: Arithmetic | None = None,
) -> tuple[Float32, Int64]:
    """The k base rows with the largest inner product with each query: scores (nq, k) float32 descending, ids (nq, k) int64.

    queries (nq, d) and base (n, d), float16 or float32, are read in blocks, so both may be larger than memory; beyond them and
    the result about `memory_bytes` are used. `device`: "cpu", "cuda", or None for a GPU where there is one. `arithmetic` is for
    tests: what candidates are found in. Cost: 2 nq n d operations; base is read nq / (rows of a query block) times.

    Raises BadInput: not matrices, zero rows, widths differ, k < 1 or k > n, a row with NaN, infinity or a norm above 1e18.
    """
    check_matrix(queries, "queries")
    check_matrix(base, "base")
    check_same_width(queries, "queries", base, "base")
    if not 1 <= k <= len(base):
        raise BadInput(f"k: expected 1 .. {len(base)} (the rows of base), found {k}")
    arithmetic = arithmetic or FLOAT32
    nq, d = queries.shape
    query_rows = _block_rows(memory_bytes, d * FLOAT32_BYTES + k * CANDIDATE_BYTES)
    base_rows = max(_block_rows(memory_bytes, d * FLOAT32_BYTES), k)
    scores = np.full((nq, k), NOTHING, dtype=np.float32)
    ids = np.full((nq, k), -1, dtype=np.int64)
    for start in range(0, nq, query_rows):
        query = read_block(queries, start, min(start + query_rows, nq), "queries")
        stop = start + len(query)
        for block in blocks_of(base, base_rows, "base"):
            cpu.scan(query, block, arithmetic, torch.from_numpy(scores[start:stop]), torch.from_numpy(ids[start:stop]))
            done = start * len(base) + (stop - start) * (block.start + len(block))
            progress("neighbors", done // len(base), nq)
    return scores, ids


def nearest(
    vectors: Rows,
    centroids: Rows,
    *,
    device: str | None = None,
    memory_bytes: int = 256 << 20,
    progress: Progress = silent,
) -> tuple[Float32, Int64]:
    """The centroid with the largest inner product with each vector: scores (n,) float32 and ids (n,) int64. See exact_neighbors."""
    scores, ids = exact_neighbors(vectors, centroids, 1, device=device, memory_bytes=memory_bytes, progress=progress)
    return scores[:, 0], ids[:, 0]


def _block_rows(memory_bytes: int, row_bytes: int) -> int:
    return max(SMALLEST_BLOCK, int(memory_bytes * BLOCK_SHARE) // row_bytes)
