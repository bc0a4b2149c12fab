"""The threads a batch is searched on: as many as there are cores, however many clients there are."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Task = TypeVar("Task")
Done = TypeVar("Done")


class Workers:
    """Started when first needed."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(cores(), "search")

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
