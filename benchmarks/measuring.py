"""What the benchmarks of one process share: clustered vectors, peak memory while something runs, the rate of a bare GEMM."""

from __future__ import annotations

import argparse
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

T = TypeVar("T")
SAMPLE_SECONDS = 0.005


# oneDNN, ATen, OpenBLAS (numpy's and faiss's) and what is compiled here do without AVX-512, and so without VNNI and bfloat16
AVX2 = {
    "ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "OPENBLAS_CORETYPE": "Haswell", "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx,+avx2,+fma,+bmi,+bmi2,+popcnt,+f16c,+lzcnt",
}  # fmt: skip


def add_engine(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--engine", choices=["native", "avx2"], default="native", help="avx2: an emulation of older processors")


def start_on(engine: str) -> None:
    """Start this program again with the environment of `engine`, unless it has it: libraries read it when they are loaded."""
    if engine == "avx2" and any(os.environ.get(name) != value for name, value in AVX2.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | AVX2)


def growth_parser(description: str | None, *, plot: str) -> argparse.ArgumentParser:
    """The options of a benchmark that shows how time and memory grow; each adds its own sizes."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--dimensions", type=int, nargs="+", default=[128, 768])
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--plot", type=Path, default=Path(plot))
    parser.add_argument("--quick", action="store_true")
    add_engine(parser)
    return parser


def vectors(n: int, d: int, seed: int, data: Path | None, name: str) -> np.ndarray:
    """n unit vectors, float32: the first of `data`/name.npy if they are of that width, else around 1,000 shared concepts."""
    if data is not None:
        rows = np.load(data / f"{name}.npy", mmap_mode="r")
        if rows.shape[1] == d and len(rows) >= n:
            return np.asarray(rows[:n], dtype=np.float32)
        raise SystemExit(f"{data / name}.npy: holds {rows.shape}; asked for {n} rows of {d} dimensions")
    concepts = np.random.default_rng(0).standard_normal((1_000, d), dtype=np.float32)
    rng = np.random.default_rng(seed)
    out = np.empty((n, d), np.float32)
    for start in range(0, n, 50_000):
        part = out[start : start + 50_000]
        part[:] = concepts[rng.integers(0, len(concepts), len(part))] + 0.7 * rng.standard_normal(part.shape, dtype=np.float32)
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    return out


@dataclass(frozen=True)
class Cost:
    """Wall seconds, seconds of CPU of all threads (which other work on the machine changes less), peak MiB of memory above the start."""

    seconds: float
    cpu: float
    mib: float


def measured(work: Callable[[], T]) -> tuple[T, Cost]:
    """What `work` returns and what it cost; its memory is anonymous memory, or GPU memory if it used more of that."""
    stop, peak, start = threading.Event(), [0], _resident()

    def watch() -> None:
        while not stop.wait(SAMPLE_SECONDS):
            peak[0] = max(peak[0], _resident() - start)

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    watcher = threading.Thread(target=watch)
    watcher.start()
    began, cpu = time.perf_counter(), time.process_time()
    result = work()
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    stop.set()
    watcher.join()
    on_gpu = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return result, Cost(seconds, cpu, max(peak[0], on_gpu) / 2**20)


def in_turn(contenders: dict[str, Callable[[], Any]], repeats: int) -> tuple[dict[str, Any], dict[str, Cost]]:
    """Every contender `repeats` times, one after the other: what each returned, and the least it cost (the most of memory)."""
    made: dict[str, Any] = {}
    costs: dict[str, Cost] = {}
    for _ in range(repeats):
        for name, work in contenders.items():
            made[name], cost = measured(work)
            before = costs.get(name, cost)
            costs[name] = Cost(min(cost.seconds, before.seconds), min(cost.cpu, before.cpu), max(cost.mib, before.mib))
    return made, costs


def gemm_rate(d: int, device: str, dtype: torch.dtype, seconds: float = 1.0) -> float:
    """Operations a second of torch's GEMM into a buffer that is there: the best of as many tries as fit into `seconds`."""
    side = 8192 if device.startswith("cuda") else 4096
    a, b = (torch.randn(side, d, device=device).to(dtype) for _ in range(2))
    out = torch.empty(side, side, device=device, dtype=dtype)
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        began = time.perf_counter()
        torch.mm(a, b.T, out=out)
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return 2 * side * side * d / best


def gemm_peak(d: int, device: str) -> float:
    """The best rate of any type that candidates may be computed in."""
    types = (torch.float16,) if device.startswith("cuda") else (torch.float32, torch.bfloat16)
    return max(gemm_rate(d, device, dtype) for dtype in types)


def plot_growth(rows: list[dict[str, Any]], contenders: dict[str, str], x: str, title: str, path: Path) -> None:
    """Seconds of each of `contenders` (key in a row -> label) by a row's `n`, one colour a dimension `d`."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5))
    for number, d in enumerate(sorted({row["d"] for row in rows})):
        mine = [row for row in rows if row["d"] == d]
        for (name, label), style in zip(contenders.items(), ("-o", "--s", ":^"), strict=False):
            axes.plot([row["n"] for row in mine], [row[name] for row in mine], style, color=f"C{number}", label=f"{label}, d={d}")
    axes.set(xscale="log", yscale="log", xlabel=x, ylabel="seconds", title=title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120, bbox_inches="tight")


def _resident() -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith("RssAnon"))
