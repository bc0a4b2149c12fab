"""The best k of many rows under inner product, exactly: pairing, assignment and ground truth all come here.

The score of a pair is its inner product summed in float64 and rounded once to float32; among equal scores the lower id comes
first. So the answer depends on the vectors alone, not on block sizes, threads or device. Candidates are found in the fastest
arithmetic the machine has, within a proven margin (arithmetic.py), and only candidates are scored that way.
"""

from __future__ import annotations

import threading
from contextlib import nullcontext
from functools import partial

import torch

from paired_index_assets.errors import BadInput
from paired_index_assets.neighbors.arithmetic import Operand
from paired_index_assets.neighbors.best import NOTHING
from paired_index_assets.neighbors.blocks import blocks_of, check_matrix, check_same_width, read_block
from paired_index_assets.neighbors.engine import FLOAT32_BYTES, Engine, choose
from paired_index_assets.neighbors.workers import Workspace, workers
from paired_index_assets.progress import Progress, silent
from paired_index_assets.rows import Float32, Int64, Rows

SMALLEST_BLOCK = 1024


def exact_neighbors(
    queries: Rows,
    base: Rows,
    k: int,
    *,
    device: str | None = None,
    memory_bytes: int = 256 << 20,
    progress: Progress = silent,
    names: tuple[str, str] = ("queries", "base"),
    engine: Engine | None = None,
) -> tuple[Float32, Int64]:
    """The k base rows with the largest inner product with each query: scores (nq, k) float32 descending, ids (nq, k) int64.

    queries (nq, d) and base (n, d), float16 or float32, are read in blocks, so both may be larger than memory; beyond them and
    the result about `memory_bytes` are used. `device`: "cpu", "cuda", or None for a GPU where there is one. `names` are what errors
    call the two. `engine` is for tests: what to run on, instead of the fastest. Cost: 2 nq n d operations; base is read once, queries
    once for each block of base.

    Raises BadInput: not matrices, zero rows, widths differ, k < 1 or k > n, a row with NaN, infinity or a norm above 1e18.
    """
    query_name, base_name = names
    check_matrix(queries, query_name)
    check_matrix(base, base_name)
    check_same_width(queries, query_name, base, base_name)
    if not 1 <= k <= len(base):
        raise BadInput(f"k: expected 1 .. {len(base)} (the rows of {base_name}), found {k}")
    nq, d = queries.shape
    engine = engine or choose(device, k, len(base), float(nq) * len(base) * d, memory_bytes)
    base_rows = max(SMALLEST_BLOCK, 2 * k, engine.base_bytes // (d * FLOAT32_BYTES))
    scores = torch.full((nq, k), NOTHING, dtype=torch.float32)
    ids = torch.full((nq, k), -1, dtype=torch.int64)

    spaces = threading.local()

    def search(operand: Operand, start: int, stop: int) -> int:
        space = spaces.__dict__.setdefault("own", Workspace())
        query = read_block(queries, start, stop, query_name, engine.device, space)
        best = scores[start:stop].to(engine.device), ids[start:stop].to(engine.device)
        engine.scan(query, operand, engine.arithmetic, *best, space)
        scores[start:stop], ids[start:stop] = best
        return len(query)

    with workers() if engine.parallel else nullcontext() as pool:
        run = pool.map if pool else map
        cuts = tiles(nq, engine.query_tile, torch.get_num_threads() if pool else 1)
        for block in blocks_of(base, base_rows, base_name, engine.device):
            done = block.start * nq
            for rows in run(partial(search, Operand.of(block, engine.arithmetic)), cuts[:-1], cuts[1:]):
                done += rows * len(block)
                progress("neighbors", done // len(base), nq)
    return scores.numpy(), ids.numpy()


def nearest(
    vectors: Rows,
    centroids: Rows,
    *,
    device: str | None = None,
    memory_bytes: int = 256 << 20,
    progress: Progress = silent,
    names: tuple[str, str] = ("vectors", "centroids"),
) -> tuple[Float32, Int64]:
    """The centroid with the largest inner product with each vector: scores (n,) float32 and ids (n,) int64. See exact_neighbors."""
    scores, ids = exact_neighbors(vectors, centroids, 1, device=device, memory_bytes=memory_bytes, progress=progress, names=names)
    return scores[:, 0], ids[:, 0]


def tiles(rows: int, largest: int, threads: int) -> list[int]:
    """Cuts of 0 .. rows: tiles of equal size, none above `largest`, and a multiple of `threads` of them if there are enough rows."""
    count = -(-rows // (largest * threads)) * threads
    return sorted({rows * i // count for i in range(count + 1)})
