"""What a search runs on: the device, the arithmetic of its candidates, and how much is taken at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec

import torch

from paired_index_assets.errors import BadInput
from paired_index_assets.neighbors import cpu
from paired_index_assets.neighbors.arithmetic import BFLOAT16, FLOAT16_FUSED, FLOAT32, FLOAT64, Arithmetic
from paired_index_assets.neighbors.blocks import FLOAT32_BYTES, Block
from paired_index_assets.neighbors.gemm import matrices, multiply, seconds
from paired_index_assets.neighbors.workers import Workspace, workers

Scan = Callable[[Block, Block, Arithmetic, torch.Tensor, torch.Tensor, Workspace, bool], None]

# The block of base rows may take this share of memory_bytes, or of a GPU's memory that is free.
BLOCK_SHARE = 0.8
CUDA_BLOCK_SHARE = 0.4
CPU_TILE = 2048  # queries a worker takes at a time: fewer feed the GEMM badly, more leave the cache
BFLOAT16_TILE = 4096  # where the GEMM takes a quarter of the time, what happens once a tile must happen less often
CUDA_TILE = 8192
# Below this many multiply-adds the probe costs more than it can save.
WORTH_PROBING = 5e9
# bfloat16 candidates must be scored again, and their groups are looked at more often: it has to be clearly faster.
WORTH_ROUNDING = 1.5


@dataclass(frozen=True)
class Engine:
    device: str
    arithmetic: Arithmetic
    scan: Scan
    query_tile: int
    base_bytes: int
    parallel: bool  # whether tiles go to worker threads

    @property
    def value_bytes(self) -> int:
        """What one value of a block of base rows takes."""
        return FLOAT32_BYTES + (self.arithmetic.dtype.itemsize if self.arithmetic.dtype != torch.float32 else 0)


def choose(device: str | None, k: int, n: int, multiply_adds: float, memory_bytes: int) -> Engine:
    """The fastest engine there is for `k` of `n` base rows. Raises BadInput for a device that torch does not have."""
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    kind = device.split(":")[0]
    if kind == "cpu":
        arithmetic = BFLOAT16 if multiply_adds > WORTH_PROBING and bfloat16_gain() > WORTH_ROUNDING else FLOAT32
        tile = BFLOAT16_TILE if arithmetic is BFLOAT16 else CPU_TILE
        return Engine(device, arithmetic, cpu.scan, tile, int(memory_bytes * BLOCK_SHARE), parallel=True)
    if kind != "cuda" or not torch.cuda.is_available():
        there = "cpu, cuda or cuda:N" if torch.cuda.is_available() else "cpu (torch finds no GPU here)"
        raise BadInput(f"device: expected {there}; found {device}")
    base_bytes = int(torch.cuda.mem_get_info(device)[0] * CUDA_BLOCK_SHARE)
    if find_spec("triton") is not None:
        from paired_index_assets.neighbors import cuda
        from paired_index_assets.neighbors.fused import GROUP

        if k * GROUP <= n:
            return Engine(device, FLOAT16_FUSED, cuda.scan, CUDA_TILE, base_bytes, parallel=False)
    # float64, because a float32 GEMM on a GPU may be TF32 behind our back, which no float32 margin covers
    return Engine(device, FLOAT64, cpu.scan, CUDA_TILE, base_bytes, parallel=False)


@cache
def bfloat16_gain() -> float:
    """How many times faster one core multiplies in bfloat16 than in float32, measured; 0 if that does not keep its error bound."""
    a, b = matrices()
    half_a, half_b = a.bfloat16(), b.bfloat16()
    rounded = half_a.double() @ half_b.double().T
    bound = BFLOAT16.result_roundoff * rounded.abs() + a.shape[1] * 2.0**-24 * torch.outer(a.norm(dim=1), b.norm(dim=1))
    if bool(((half_a @ half_b.T).double() - rounded).abs().gt(bound).any()):
        return 0.0

    def gain() -> float:
        half = seconds(lambda out: torch.mm(half_a, half_b.T, out=out), torch.bfloat16)
        return seconds(lambda out: multiply(a, b, out)) / half

    with workers() as pool:
        return pool.submit(gain).result()
