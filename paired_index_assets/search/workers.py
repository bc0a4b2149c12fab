"""The threads a search uses, whatever the library under it would like to use.

faiss and BLAS bring OpenMP, whose threads wait for each other by spinning: on two busy cores, choosing the lists of ten queries took
20 ms with OpenMP and 0.2 ms without (benchmarks/search.py). So work is cut into tasks here, OpenMP has one thread in each worker, and
however many clients there are, no more tasks run at once than there are cores.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import faiss

Task = TypeVar("Task")
Done = TypeVar("Done")


class Workers:
    """As many threads as there are cores, started when first needed."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(cores(), "search", faiss.omp_set_num_threads, (1,))

    def run(self, work: Callable[[Task], Done], tasks: Sequence[Task]) -> Iterable[Done]:
        """The results in the order of the tasks; one task alone runs on the calling thread."""
        return self._pool.map(work, tasks) if len(tasks) > 1 else map(work, tasks)

    def close(self) -> None:
        self._pool.shutdown(wait=False)


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def ranges(n: int, parts: int) -> list[slice]:
    """0..n in at most `parts` (at least one) slices of like length."""
    parts = max(1, min(parts, n))
    return [slice(n * i // parts, n * (i + 1) // parts) for i in range(parts)]
