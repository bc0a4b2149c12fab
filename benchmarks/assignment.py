"""Assignment to many lists beside faiss's flat search, in one process: microseconds of CPU a row, ratio first.

    python benchmarks/assignment.py [--quick] [--data VECTORS.npy] [--nlist 16384] [--rows 8192] [--engine avx2]

Contenders: `faiss.IndexFlatIP.search`, the dense search (`neighbors.exact.assign`), every pruned way there is on this machine, and the way
an `Assigner` chooses after its probe; pruned ways also with each row's list known, as in k-means. Without --data rows lie around the
centroids of a stated model of CLIP's geometry (`towers_around`), which is not real data. One thread; CPU time, so that other work on the
machine decides little. `--engine avx2` tells oneDNN and ATen to do without AVX-512 (it sets ONEDNN_MAX_CPU_ISA and ATEN_CPU_CAPABILITY and
starts again): an emulation of older processors, in which MKL and faiss still use what the processor has.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import process_time

import faiss
import numpy as np
import torch
from measuring import add_engine, measured, start_on

from paired_index_assets.clustering.kmeans import Training, train_kmeans
from paired_index_assets.neighbors import assigning
from paired_index_assets.neighbors.assigning import DENSE, Assigner, ways
from paired_index_assets.neighbors.exact import assign
from paired_index_assets.planning.made import towers_around


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--nlist", type=int, nargs="+", default=[2_048, 16_384, 131_072])
    parser.add_argument("--dimensions", type=int, default=768)
    parser.add_argument("--rows", type=int, default=4_096)
    parser.add_argument("--repeats", type=int, default=3)
    add_engine(parser)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    start_on(options.engine)
    if options.quick:
        options.nlist, options.rows, options.repeats = [2_048], 4_096, 1
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    print("| d | nlist | way | faiss / this | dense / this | us a row | us with lists known | lists equal |\n|" + "---|" * 8)
    for nlist in options.nlist:
        rows, centroids = measured_rows(options, nlist)
        compare(rows, centroids, options.repeats)


def measured_rows(options: argparse.Namespace, nlist: int) -> tuple[np.ndarray, np.ndarray]:
    if options.data is None:
        return towers_around(options.rows, nlist, options.dimensions)
    vectors = np.load(options.data, mmap_mode="r")
    vectors = np.array(vectors[:], dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    centroids = train_kmeans(vectors, nlist, Training(niter=4)).centroids
    step = max(1, len(vectors) // options.rows)
    return np.ascontiguousarray(vectors[::step][: options.rows]), centroids


def compare(rows: np.ndarray, centroids: np.ndarray, repeats: int) -> None:
    nlist, d = centroids.shape
    expected = assign(rows, centroids, device="cpu")
    flat = faiss.IndexFlatIP(d)
    flat.add(centroids)
    some = rows[:1024]
    rival = best_of(repeats, lambda: flat.search(some, 1)) / len(some)
    dense = best_of(repeats, lambda: assign(rows, centroids, device="cpu")) / len(rows)

    def line(name: str, cost: float, known: float, equal: float) -> None:
        print(
            f"| {d} | {nlist:,} | {name} | **{rival / cost:.2f}** | {dense / cost:.2f} | {cost * 1e6:.1f} | {known * 1e6:.1f} | {equal:.4%} |",
            flush=True,
        )

    line("faiss flat", rival, float("nan"), float((flat.search(some, 1)[1][:, 0] == expected[: len(some)]).mean()))
    line("dense", dense, dense, 1.0)
    found = {DENSE: (dense, dense)}
    for way in ways(d):
        costs, equal = [], 1.0
        for known in (False, True):
            assigner = Assigner(ways={known: way})
            before = expected if known else None
            assigned = partial(assigner, rows, centroids, before=before, device="cpu")
            equal = min(equal, float((assigned() == expected).mean()))
            costs.append(best_of(repeats, assigned) / len(rows))
        found[way] = costs[0], costs[1]
        line(str(way), costs[0], costs[1], equal)
    for known in (False, True):
        assigner = Assigner()
        _, cost = measured(partial(probe, assigner, rows, centroids, expected if known else None))
        chosen, best = assigner.ways[known], min(found.values(), key=lambda costs: costs[known])[known]
        print(
            f"\nwith lists {'known' if known else 'unknown'} the probe chooses {chosen}: {found[chosen][known] / best:.3f} of the best way's cost;"
            f" faiss / it {rival / found[chosen][known]:.2f}; {cost.cpu:.1f} s, {cost.mib:.0f} MiB at its peak beside"
            f" {centroids.nbytes / 2**20:.0f} of centroids; its table {table_mib(assigner):.1f} MiB",
            flush=True,
        )
    print()


def probe(assigner: Assigner, rows: np.ndarray, centroids: np.ndarray, before: np.ndarray | None) -> None:
    """What an Assigner does once the work is worth it."""
    thresholds = {name: getattr(assigning, name) for name in ("WORTH_PROBING", "WORTH_PROBING_KNOWN")}
    for name in thresholds:
        setattr(assigning, name, 0.0)
    try:
        assigner(rows, centroids, before=before, device="cpu")
    finally:
        for name, value in thresholds.items():
            setattr(assigning, name, value)


def table_mib(assigner: Assigner) -> float:
    return 0.0 if assigner._made is None else assigner._made[2].bounds.values.nbytes / 2**20


def best_of(repeats: int, work: Callable[[], object]) -> float:
    times = []
    for _ in range(repeats):
        began = process_time()
        work()
        times.append(process_time() - began)
    return min(times)


if __name__ == "__main__":
    main()
