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
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import process_time

import faiss
import numpy as np
import torch

from paired_index_assets.clustering.kmeans import Training, train_kmeans
from paired_index_assets.neighbors import assigning
from paired_index_assets.neighbors.assigning import DENSE, Assigner, Way, ways
from paired_index_assets.neighbors.exact import assign

AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
MEAN, CONCEPT, WITHIN, NOISE = 0.7, 0.55, 0.35, 0.45  # lengths of the parts of a vector, before it is normalised
CONCEPTS, DECAY, FLAT = 8_000, 1.0, 0.3  # the spectrum falls as rank^-DECAY; FLAT of the noise has no preferred direction


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--nlist", type=int, nargs="+", default=[2_048, 16_384, 131_072])
    parser.add_argument("--dimensions", type=int, default=768)
    parser.add_argument("--rows", type=int, default=4_096)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--engine", choices=["native", "avx2"], default="native")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    if options.engine == "avx2" and os.environ.get("ATEN_CPU_CAPABILITY") != "avx2":
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | AVX2)
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


def towers_around(rows: int, nlist: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    """Unit rows around unit centroids: a mean direction, concepts of a falling spectrum, variation within, noise partly flat."""
    rng = np.random.default_rng(0)
    spectrum = np.arange(1, d + 1) ** -DECAY
    spectrum = (spectrum / spectrum.sum()).astype(np.float32)
    turn = np.linalg.qr(rng.standard_normal((d, d)))[0].astype(np.float32)
    mean = np.zeros(d, np.float32)
    mean[0] = 1

    def drawn(n: int, flat: float) -> np.ndarray:
        return np.asarray(rng.standard_normal((n, d), dtype=np.float32) * np.sqrt((1 - flat) * spectrum + flat / d))

    def unit(x: np.ndarray) -> np.ndarray:
        return np.asarray(x / np.linalg.norm(x, axis=1, keepdims=True))

    concepts = drawn(CONCEPTS, 0.0)
    centroids = unit(MEAN * mean + CONCEPT * concepts[rng.integers(0, CONCEPTS, nlist)] + WITHIN * drawn(nlist, 0.1))
    vectors = unit(centroids[rng.integers(0, nlist, rows)] + NOISE * drawn(rows, FLAT))
    return np.ascontiguousarray(vectors @ turn), np.ascontiguousarray(centroids @ turn)


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
    line("dense", dense, float("nan"), 1.0)
    for way in ways(d):
        costs, equal = [], 1.0
        for known in (False, True):
            assigner = Assigner(ways={known: way})
            before = expected if known else None
            assigned = partial(assigner, rows, centroids, before=before, device="cpu")
            equal = min(equal, float((assigned() == expected).mean()))
            costs.append(best_of(repeats, assigned) / len(rows))
        line(str(way), costs[0], costs[1], equal)
    chosen = choice(rows, centroids)
    print(f"| {d} | {nlist:,} | chosen by the probe: {chosen} | | | | | |", flush=True)


def choice(rows: np.ndarray, centroids: np.ndarray) -> Way:
    before, assigning.WORTH_PROBING = assigning.WORTH_PROBING, 0.0
    try:
        assigner = Assigner()
        assigner(rows, centroids, device="cpu")
        return assigner.ways.get(False, DENSE)
    finally:
        assigning.WORTH_PROBING = before


def best_of(repeats: int, work: Callable[[], object]) -> float:
    times = []
    for _ in range(repeats):
        began = process_time()
        work()
        times.append(process_time() - began)
    return min(times)


if __name__ == "__main__":
    main()
