"""What one node does in a second: measured on this machine, or assumed, and marked so."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from paired_index_assets.codes.axes import query_axes
from paired_index_assets.codes.codec import DESCENT_PASSES, RIDGE, WEIGHT, WIDTH, TrainedCodec
from paired_index_assets.codes.grid import ranges, spread_of
from paired_index_assets.codes.metric import fit_metric
from paired_index_assets.codes.transformed import FEWEST_DIMENSIONS, allocations, codec_on
from paired_index_assets.errors import BadInput
from paired_index_assets.files.storage import atomic_file
from paired_index_assets.neighbors.assigning import Assigner
from paired_index_assets.neighbors.exact import RunningNeighbors, nearest
from paired_index_assets.planning.made import towers_around
from paired_index_assets.rows import Float32
from paired_index_assets.shards.truth import DEPTH

ASSIGNED_ROWS, ASSIGNED_LISTS = 2_048, 8_192
MOST_LISTS = 32_768  # the more lists, the more bounds gain: a rate for more of them than this is a cautious one
PROBE_BYTES = 256 << 20
PROBE_CAPTIONS = GEMM_ROWS = 4_096
TRUTH_ROWS, TRUTH_CAPTIONS = 65_536, 4_000
BUSY = 0.3  # processes beside, a core


@dataclass(frozen=True)
class Rates:
    """One node's rates a second; `measured` names those that were measured on this machine, the others are assumptions."""

    fetch_bytes: float = 125e6  # a 1 Gbit/s line
    disk_bytes: float = 500e6  # read or written
    flops: float = 200e9  # of assignment, as if all were multiplied: where bounds rule lists out it is above the GEMM's
    assigned_by: str = ""  # what the probe chose
    pairing_flops: float = 200e9  # of the dense search; float32 GEMM of 2 recent cores
    gemm_flops: float = 200e9  # float32, of which learning where captions look is made
    encode_rows: float = 60_000  # d = 768 on 2 recent cores
    truth_rows: float = 23_000  # rows held against all test captions, whose best they may be: TRUTH_CAPTIONS, d = 768, on 2 recent cores
    probe_s: float = 5.0  # what a run takes to find out how to assign; more where there are more lists
    gpu_flops: float = 5.0e14  # an H200 at 65 % of a measured bfloat16 GEMM; ours is not measured on one
    gpu_encode_rows: float = 1e6  # a guess: three passes of d^2 a row are nothing beside assignment
    assemble_bytes: float = 200e6  # of a shard: merged, hashed, written, read back, verified, on one core; a full shard in BENCHMARKS.md
    file_s: float = 0.01  # to write a small file so that it outlives a crash
    run_s: float = 5.0  # what Dagster adds to a shard's run: a process that starts and imports; "What a run costs" in BENCHMARKS.md
    measured: frozenset[str] = frozenset()
    load: float = 0.0  # processes that ran beside, a core, when these were measured

    @property
    def busy(self) -> bool:
        """Whether other work took so much of the machine that the rate of its disk, measured by the clock, is too low."""
        return self.load > BUSY

    def with_given(self, *, disk_gbps: float | None = None, net_gbps: float | None = None) -> Rates:
        """The same with a disk or a line of so many gigabits a second."""
        given = self
        if disk_gbps is not None:
            given = replace(given, disk_bytes=disk_gbps * 1e9 / 8, measured=given.measured - {"disk_bytes"})
        if net_gbps is not None:
            given = replace(given, fetch_bytes=net_gbps * 1e9 / 8, measured=given.measured - {"fetch_bytes"})
        return given


def measure_rates(
    folder: Path, d: int, nlist: int = ASSIGNED_LISTS, *, file_rows: int = TRUTH_ROWS, captions: int = TRUTH_CAPTIONS
) -> Rates:
    """Assignment to `nlist` lists (MOST_LISTS of more), pairing, encoding and the truth of `captions` (in files of `file_rows` rows, or
    TRUTH_ROWS if those are fewer) at `d` dimensions, and writing to the disk of `folder`, each for seconds; the rest as assumed.

    All on made vectors, by CPU time: assignment in the way that a probe chooses (`neighbors.assigning`). The disk by the clock.

    Raises BadInput if `folder` cannot be written to, OutOfDisk.
    """
    load = os.getloadavg()[0] / (os.cpu_count() or 1)
    lists = min(nlist, MOST_LISTS)
    rows, centroids = towers_around(ASSIGNED_ROWS, lists, d)
    some = centroids[:ASSIGNED_LISTS]
    images = np.concatenate([some, rows])
    codec = _codec_of_a_build(images)
    assigner = Assigner()
    began = time.process_time()
    way = assigner.decide(rows, centroids)
    probed = time.process_time() - began
    pairing = _core_seconds(lambda: nearest(images, some)) / torch.get_num_threads()
    some_rows = torch.from_numpy(images[:GEMM_ROWS])
    product = _core_seconds(lambda: some_rows @ some_rows.T) / torch.get_num_threads()
    encoding = _core_seconds(lambda: codec.encode(images)) / torch.get_num_threads()
    file, asked = np.resize(images, (max(1, min(file_rows, TRUTH_ROWS)), d)), np.resize(rows, (captions, d))
    truth = _core_seconds(lambda: RunningNeighbors(asked, DEPTH).add(file)) / torch.get_num_threads()
    try:
        writing = _seconds(lambda: _write(folder / ".paired-index-probe", PROBE_BYTES))
        small = _seconds(lambda: _write(folder / ".paired-index-probe", 1))
    except OSError as error:
        raise BadInput(f"{folder}: cannot be written to ({error.strerror}); choose a root that can, or give --no-measure") from error
    return Rates(
        flops=2.0 * lists * d * torch.get_num_threads() / assigner.costs[way],
        assigned_by=str(way),
        pairing_flops=2.0 * len(images) * len(some) * d / pairing,
        gemm_flops=2.0 * len(some_rows) ** 2 * d / product,
        encode_rows=len(images) / encoding,
        truth_rows=len(file) / truth,
        probe_s=probed * nlist / lists,
        disk_bytes=PROBE_BYTES / writing,
        file_s=small,
        measured=frozenset({"flops", "pairing_flops", "gemm_flops", "encode_rows", "truth_rows", "probe_s", "disk_bytes", "file_s"}),
        load=load,
    )


def _codec_of_a_build(images: Float32) -> TrainedCodec:
    """Of `images` (n, d) as if they were captions too, with many axes where there is a transform: a cautious one to time."""
    d = images.shape[1]
    captions = images[:PROBE_CAPTIONS]
    axes = query_axes(images, captions) if d % 2 == 0 and d >= FEWEST_DIMENSIONS else None
    if axes is not None:
        return codec_on(axes, images, captions, *allocations(d, d)[:2][-1])
    mean, spread = spread_of(images)
    return TrainedCodec(
        "QT_4bit", "query", *ranges(mean, spread, WIDTH), fit_metric(images, captions, spread, RIDGE, WEIGHT, DESCENT_PASSES)
    )


def _core_seconds(work: Callable[[], object]) -> float:
    """Of all threads of this process, so that what else the machine does decides little."""
    return _seconds(work, time.process_time)


def _seconds(work: Callable[[], object], clock: Callable[[], float] = time.perf_counter, tries: int = 3) -> float:
    """Of the quickest of some tries, after one that warms up."""
    took = []
    for _ in range(tries + 1):
        began = clock()
        work()
        took.append(clock() - began)
    return min(took[1:])


def _write(path: Path, size: int) -> None:
    block = os.urandom(1 << 20)  # not zeros: file systems may keep those nowhere
    with atomic_file(path) as temporary, temporary.open("wb") as stream:
        for start in range(0, size, len(block)):
            stream.write(block[: size - start])
    path.unlink()
