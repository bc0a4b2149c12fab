"""What one node does in a second: measured on this machine, or assumed and said to be."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from paired_index_assets.codes.codec import RIDGE, WEIGHT, WIDTH, TrainedCodec
from paired_index_assets.codes.grid import ranges, spread_of
from paired_index_assets.codes.metric import fit_metric
from paired_index_assets.errors import BadInput
from paired_index_assets.files.storage import atomic_file
from paired_index_assets.neighbors.exact import assign

PROBE_ROWS, PROBE_LISTS = 16_384, 8_192
PROBE_BYTES = 256 << 20
PROBE_CAPTIONS = 4_096


@dataclass(frozen=True)
class Rates:
    """One node's rates a second; `measured` names those that were measured on this machine, the others are assumptions."""

    fetch_bytes: float = 125e6  # a 1 Gbit/s line
    disk_bytes: float = 500e6  # read or written
    flops: float = 200e9  # float32 GEMM of 2 recent cores
    encode_rows: float = 30_000
    gpu_flops: float = 5.0e14  # an H200 at 65 % of a measured bfloat16 GEMM; ours is not measured on one
    gpu_encode_rows: float = 1e6  # a guess: three passes of d^2 a row are nothing beside assignment
    run_s: float = 15.0  # what Dagster adds to a shard's run: a process that starts and imports; see BENCHMARKS.md
    measured: frozenset[str] = frozenset()

    def with_given(self, *, disk_gbps: float | None = None, net_gbps: float | None = None) -> Rates:
        """The same with a disk or a line of so many gigabits a second."""
        given = self
        if disk_gbps is not None:
            given = replace(given, disk_bytes=disk_gbps * 1e9 / 8, measured=given.measured - {"disk_bytes"})
        if net_gbps is not None:
            given = replace(given, fetch_bytes=net_gbps * 1e9 / 8, measured=given.measured - {"fetch_bytes"})
        return given


def measure_rates(folder: Path, d: int) -> Rates:
    """Assignment, encoding at `d` dimensions, and writing to the disk of `folder`, each for a second or so; the rest as assumed.

    Raises BadInput if `folder` cannot be written to, OutOfDisk.
    """
    rng = np.random.default_rng(1)
    images = rng.standard_normal((PROBE_ROWS, d), dtype=np.float32)
    captions = rng.standard_normal((PROBE_CAPTIONS, d), dtype=np.float32)
    captions /= np.linalg.norm(captions, axis=1, keepdims=True)
    mean, spread = spread_of(images)
    codec = TrainedCodec("QT_4bit", "query", *ranges(mean, spread, WIDTH), fit_metric(images, captions, spread, RIDGE, WEIGHT, 1))
    assigning = _seconds(lambda: assign(images, images[:PROBE_LISTS]))
    encoding = _seconds(lambda: codec.encode(images))
    try:
        writing = _seconds(lambda: _write(folder / ".paired-index-probe"))
    except OSError as error:
        raise BadInput(f"{folder}: cannot be written to ({error.strerror}); choose a root that can, or give --no-measure") from error
    return Rates(
        flops=2.0 * PROBE_ROWS * PROBE_LISTS * d / assigning,
        encode_rows=PROBE_ROWS / encoding,
        disk_bytes=PROBE_BYTES / writing,
        measured=frozenset({"flops", "encode_rows", "disk_bytes"}),
    )


def _seconds(work: Callable[[], object], tries: int = 3) -> float:
    """Of the quickest of some tries, after one that warms up."""
    took = []
    for _ in range(tries + 1):
        began = time.perf_counter()
        work()
        took.append(time.perf_counter() - began)
    return min(took[1:])


def _write(path: Path) -> None:
    block = os.urandom(1 << 20)  # not zeros: file systems may keep those nowhere
    with atomic_file(path) as temporary, temporary.open("wb") as stream:
        for _ in range(PROBE_BYTES // len(block)):
            stream.write(block)
    path.unlink()
