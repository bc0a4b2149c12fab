"""Where time, memory and bytes go: stages by name, a sampler of the processes in them, and what the folders take after each."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from laion_rehearsal.operated import in_session

SAMPLE_SECONDS = 0.5
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Stage:
    """`cpu` seconds of all its processes, `peak_mb` of their own (anonymous) memory together and `largest_mb` of one alone."""

    name: str
    seconds: float = 0.0
    cpu: float = 0.0
    driver_cpu: float = 0.0  # of these, this process's
    peak_mb: float = 0.0
    largest_mb: float = 0.0
    wrote_mb: float = 0.0  # growth of the watched folder


class Watch:
    """`sessions` gives the leaders of the sessions to look at, beside this process and its children."""

    def __init__(self, folder: Path, sessions: Callable[[], list[int]]) -> None:
        self.stages: list[Stage] = []
        self._folder, self._sessions = folder, sessions
        self._cpu: dict[int, float] = {}  # of every process that was ever seen
        self._stop = threading.Event()

    @contextmanager
    def stage(self, name: str) -> Iterator[Stage]:
        stage = Stage(name)
        began, before, cpu = time.monotonic(), size_of(self._folder), self._cpu_so_far(stage)
        driver_cpu = time.process_time()
        self._stop.clear()
        sampler = threading.Thread(target=self._sample, args=(stage,), daemon=True)
        sampler.start()
        print(f"-- {name}", flush=True)
        try:
            yield stage
        finally:
            self._stop.set()
            sampler.join()
            stage.seconds = time.monotonic() - began
            stage.cpu = self._cpu_so_far(stage) - cpu
            stage.driver_cpu = time.process_time() - driver_cpu
            stage.wrote_mb = (size_of(self._folder) - before) / 1e6
            self.stages.append(stage)
            print(f"   {stage.seconds:.0f} s, {stage.cpu:.0f} s of CPU, {stage.peak_mb:,.0f} MB", flush=True)

    def cpu_of(self, process: int) -> float:
        """Seconds of CPU of a process that a stage has seen, up to its last half second."""
        return self._cpu.get(process, 0.0)

    def _sample(self, stage: Stage) -> None:
        while not self._stop.wait(SAMPLE_SECONDS):
            self._cpu_so_far(stage)

    def _cpu_so_far(self, stage: Stage) -> float:
        """Seconds of CPU of all processes seen so far; and the stage's peaks."""
        together = 0.0
        for process in {os.getpid(), *_descendants(os.getpid()), *(found for leader in self._sessions() for found in in_session(leader))}:
            mb, cpu = _own_mb(process), _cpu(process)
            self._cpu[process] = max(self._cpu.get(process, 0.0), cpu)
            together += mb
            stage.largest_mb = max(stage.largest_mb, mb)
        stage.peak_mb = max(stage.peak_mb, together)
        return sum(self._cpu.values())

    def table(self) -> list[str]:
        rows = [
            f"| {s.name} | {s.seconds:,.0f} | {s.cpu:,.0f} | {s.peak_mb:,.0f} | {s.largest_mb:,.0f} | {s.wrote_mb:,.0f} |"
            for s in self.stages
        ]
        return ["| stage | s | CPU s | peak MB, all processes | peak MB, largest | MB on disk |", "|---|---|---|---|---|---|", *rows]


def size_of(folder: Path) -> int:
    """Bytes of the files below a folder, links not followed; what vanishes meanwhile is not counted."""
    total = 0
    for place, _, files in os.walk(folder):
        for name in files:
            try:
                total += os.lstat(os.path.join(place, name)).st_size
            except OSError:
                continue
    return total


def _descendants(process: int) -> list[int]:
    found = []
    for child in _children(process):
        found += [child, *_descendants(child)]
    return found


def _children(process: int) -> list[int]:
    try:
        threads = list(Path(f"/proc/{process}/task").iterdir())
        return [int(child) for thread in threads for child in (thread / "children").read_text().split()]
    except OSError:
        return []


def _own_mb(process: int) -> float:
    """Megabytes of memory that is this process's alone: no mapped file."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1e3


def _cpu(process: int) -> float:
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / TICKS
