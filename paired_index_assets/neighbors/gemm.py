"""The matrix product that everything here stands on, by whichever library is fastest on this processor: measured, not known by name.

torch brings MKL and numpy OpenBLAS; on AMD processors OpenBLAS does 6 to 10 % more. Which one it was changes no result: candidates are
scored again.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from time import thread_time

import numpy as np
import torch

SIDE, TIMES = 384, 5
TILE = 1024, 2048  # base rows and queries
CLEARLY = 1.02


def multiply(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> None:
    """out = a b', for (m, d), (n, d) and a contiguous (m, n) of one type, on the calling thread alone within `workers`."""
    if a.dtype == torch.float32 and a.device.type == "cpu" and numpy_gain() > CLEARLY:
        by_numpy(a, b, out)
    else:
        torch.mm(a, b.T, out=out)


@cache
def numpy_gain() -> float:
    """How many times faster one thread multiplies by numpy than by torch, in float32, at a size like a tile's: smaller ones tell another
    story. The two take turns, so that a moment's disturbance decides nothing."""
    rng = np.random.default_rng(0)
    a, b = (torch.from_numpy(rng.standard_normal((rows, SIDE), dtype=np.float32)) for rows in TILE)
    out = torch.empty(TILE)
    by_torch, numpys = [], []
    for _ in range(TIMES):
        by_torch.append(_thread_seconds(partial(torch.mm, a, b.T, out=out)))
        numpys.append(_thread_seconds(partial(by_numpy, a, b, out)))
    return min(by_torch) / min(numpys)


def by_numpy(a: torch.Tensor, b: torch.Tensor, out: torch.Tensor) -> None:
    np.matmul(a.numpy(), b.numpy().T, out=out.numpy())


def matrices() -> tuple[torch.Tensor, torch.Tensor]:
    """Two square float32 matrices to time products of."""
    rng = np.random.default_rng(0)
    a, b = (torch.from_numpy(rng.standard_normal((SIDE, SIDE), dtype=np.float32)) for _ in range(2))
    return a, b


def seconds(product: Callable[[torch.Tensor], object], dtype: torch.dtype = torch.float32) -> float:
    """CPU time of the calling thread, so that other work on the machine does not decide: the least of a few."""
    out = torch.empty((SIDE, SIDE), dtype=dtype)
    return min(_thread_seconds(partial(product, out)) for _ in range(TIMES))


def _thread_seconds(work: Callable[[], object]) -> float:
    began = thread_time()
    work()
    return thread_time() - began
