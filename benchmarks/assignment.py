"""Assignment to many lists beside faiss's flat search, in one process: microseconds of CPU a row, ratio first.

    python benchmarks/assignment.py [--quick] [--data VECTORS.npy] [--nlist 16384] [--rows 8192] [--engine avx2]

Contenders: `faiss.IndexFlatIP.search`, the dense search (`neighbors.exact.assign`), every pruned way there is on this machine, and the way
an `Assigner` chooses after its probe; pruned ways also with each row's list known, as in k-means. Without --data rows lie around the
centroids of a stated model of CLIP's geometry (`towers_around`), which is not real data. One thread; CPU time, so that other work on the
machine decides little. `--engine avx2` tells oneDNN, ATen, OpenBLAS and numba to do without AVX-512 (it sets `measuring.AVX2` in the
environment and starts again): an emulation of older processors, for both sides.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from time import process_time

import faiss
import numpy as np
import torch
from measuring import add_engine, measured, start_on

from paired_index_assets.clustering.kmeans import Training, train_kmeans
from paired_index_assets.neighbors.assigning import Assigner
from paired_index_assets.neighbors.exact import assign
from paired_index_assets.neighbors.ways import DENSE, Way, ways
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
    work: dict[str, Callable[[], object]] = {"faiss": lambda: flat.search(some, 1), "dense": lambda: assign(rows, centroids, device="cpu")}
    equal: dict[Way, float] = {}
    for way, known in product(ways(d), (False, True)):
        assigner = Assigner(ways={known: way})
        assigned = partial(assigner, rows, centroids, before=expected if known else None, device="cpu")
        equal[way] = min(equal.get(way, 1.0), float((assigned() == expected).mean()))
        work[f"{way} {known}"] = assigned
    costs = {name: seconds / (len(some) if name == "faiss" else len(rows)) for name, seconds in in_turn(work, repeats).items()}
    rival, dense = costs["faiss"], costs["dense"]

    def line(name: str, cost: float, known: float, equal: float) -> None:
        print(
            f"| {d} | {nlist:,} | {name} | **{rival / cost:.2f}** | {dense / cost:.2f} | {cost * 1e6:.1f} | {known * 1e6:.1f} | {equal:.4%} |",
            flush=True,
        )

    line("faiss flat", rival, float("nan"), float((flat.search(some, 1)[1][:, 0] == expected[: len(some)]).mean()))
    line("dense", dense, dense, 1.0)
    found = {DENSE: (dense, dense)}
    for way in ways(d):
        found[way] = costs[f"{way} False"], costs[f"{way} True"]
        line(str(way), *found[way], equal[way])
    for known in (False, True):
        assigner = Assigner()
        chosen, cost = measured(partial(assigner.decide, rows, centroids, expected if known else None))
        best = min(found.values(), key=lambda costs: costs[known])[known]
        print(
            f"\nwith lists {'known' if known else 'unknown'} the probe chooses {chosen}: {found[chosen][known] / best:.3f} of the best way's cost;"
            f" faiss / it {rival / found[chosen][known]:.2f}; {cost.cpu:.1f} s, {cost.mib:.0f} MiB at its peak beside"
            f" {centroids.nbytes / 2**20:.0f} of centroids; its table {table_mib(assigner):.1f} MiB",
            flush=True,
        )
    print()


def table_mib(assigner: Assigner) -> float:
    return 0.0 if assigner._made is None else assigner._made[2].bounds.values.nbytes / 2**20


def in_turn(work: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """The least CPU seconds of each: they take turns, so that what else the machine does strikes all alike."""
    least = dict.fromkeys(work, float("inf"))
    for _, name in product(range(repeats), work):
        began = process_time()
        work[name]()
        least[name] = min(least[name], process_time() - began)
    return least


if __name__ == "__main__":
    main()
