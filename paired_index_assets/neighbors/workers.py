"""Threads that each compute on one core.

torch splits every operation over all cores and waits for the slowest: with many short operations, or with other work on the
machine, most of the time goes into waiting (measured: 10 times slower beside a second busy process). Here each worker takes whole
tiles and splits nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch

from paired_index_assets.blas import single_threaded_blas


class Workspace:
    """Memory that one worker uses again and again: fresh pages from the system cost as much as the arithmetic on them."""

    def __init__(self) -> None:
        self._buffers: dict[str, torch.Tensor] = {}

    def tensor(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, device: str | torch.device = "cpu") -> torch.Tensor:
        """An uninitialised tensor; what was taken by this name before is overwritten."""
        size = torch.Size(shape).numel()
        buffer = self._buffers.get(name)
        if buffer is None or buffer.numel() < size or buffer.dtype != dtype:
            self._buffers[name] = buffer = torch.empty(size, dtype=dtype, device=device)
        return buffer[:size].view(shape)


@contextmanager
def workers() -> Iterator[ThreadPoolExecutor]:
    """As many threads as torch would use; inside them torch and numpy use one each. The caller's own setting is not changed."""
    count = torch.get_num_threads()
    ready = threading.Barrier(count + 1)

    def prepare() -> None:
        torch.get_num_threads()  # a thread's first use sets the default, which would undo the next line
        torch.set_num_threads(1)  # of this thread, and, in passing, the default of threads yet to start
        ready.wait()

    with single_threaded_blas(), ThreadPoolExecutor(count, thread_name_prefix="neighbors") as pool:
        for _ in range(count):
            pool.submit(prepare)
        ready.wait()
        torch.set_num_threads(count)  # puts that default back
        yield pool
