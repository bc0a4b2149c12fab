"""Exact pairing beside faiss.knn and the reference's block loop, in one process, ratio first.

    python benchmarks/pairing.py [--quick] [--base 20000 100000 300000] [--queries 4096] [--dimensions 128 768] [-k 1] [--plot pairing.png]
    python benchmarks/pairing.py --data FOLDER --base 200000 --queries 200000 --dimensions 128 --peers faiss

FOLDER holds `image_features.npy` and `caption_features.npy`; otherwise vectors are clustered and random. Cost is linear in queries, so a
few thousand stand for as many as you like; `--queries 0` pairs as many as there are base rows. Each contender runs `--repeats` times,
in turn, and its best time counts; CPU seconds stand beside, for a machine that has other work. Prints a Markdown table; takes 2 minutes
or so on two idle cores, --quick 10 seconds.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import faiss
import numpy as np
import torch
from measuring import Cost, gemm_peak, growth_parser, in_turn, plot_growth, start_on, vectors

from paired_index_assets.neighbors.bounded import BoundedNeighbors
from paired_index_assets.neighbors.exact import exact_neighbors

HEAD = (
    "| base rows | d | k | faiss.knn / ours | block loop / ours | CPU: faiss / ours | loop / ours | of GEMM peak | ours s | faiss s | loop s |"
    " extra MiB: ours | faiss | loop | ids as faiss | ids as loop |\n|" + "---|" * 16
)
REFERENCE_BLOCK = 1_000_000  # images a block, in the reference
REFERENCE_QUERIES = 1_024


def main() -> None:
    parser = growth_parser(__doc__, plot="pairing.png")
    parser.add_argument("--base", type=int, nargs="+", default=[20_000, 100_000, 300_000])
    parser.add_argument("--queries", type=int, default=4_096)
    parser.add_argument("-k", type=int, default=1)
    parser.add_argument("--calls", type=int, default=3, help="as many queries that are to come, as blocks of captions in a build")
    parser.add_argument("--peers", nargs="+", choices=["faiss", "loop"], default=["faiss", "loop"])
    parser.set_defaults(repeats=2)
    options = parser.parse_args()
    start_on(options.engine)
    if options.quick:
        options.base, options.queries, options.repeats = [10_000, 20_000], 2_048, 1
    rows = []
    print(HEAD)
    for d in options.dimensions:
        peak = gemm_peak(d, options.device)
        for n in options.base:
            row = compare(n, options.queries or n, d, peak, options)
            rows.append(row)
            print(
                "| {n:,} | {d} | {k} | **{faiss_ratio:.2f}** | **{loop_ratio:.2f}** | {faiss_cpu:.2f} | {loop_cpu:.2f} | {share:.0%} |"
                " {ours:.2f} | {faiss:.2f} | {loop:.2f} | {ours_mib:.0f} | {faiss_mib:.0f} | {loop_mib:.0f} |"
                " {faiss_same:.2%} | {loop_same:.2%} |".format(**row),
                flush=True,
            )
    labels = {"ours": "exact_neighbors", "faiss": "faiss.knn", "loop": "reference's block loop"}
    shown = {name: label for name, label in labels.items() if name in ("ours", *options.peers)}
    plot_growth(rows, shown, "base rows", f"Exact neighbours, k={rows[0]['k']}", options.plot)
    print(f"\n{options.queries or 'as many'} queries, {options.device}, best of {options.repeats}; growth: {options.plot}")


def compare(n: int, nq: int, d: int, peak: float, options: argparse.Namespace) -> dict[str, float]:
    base, queries = vectors(n, d, 1, options.data, "image_features"), vectors(nq, d, 2, options.data, "caption_features")
    contenders: dict[str, Callable[[], np.ndarray]] = {
        "ours": lambda: ours_of(queries, base, options),
        "faiss": lambda: faiss.knn(queries, base, options.k, metric=faiss.METRIC_INNER_PRODUCT)[1],
        "loop": lambda: reference_loop(queries, base, options.device),
    }
    contenders = {name: work for name, work in contenders.items() if name in ("ours", *options.peers)}
    for work in contenders.values():  # once through everything: threads started, kernels compiled
        work() if n * nq * d < 1e10 else None
    ids, costs = in_turn(contenders, options.repeats)
    none = Cost(float("nan"), float("nan"), float("nan"))
    ours, rival, loop = costs["ours"], costs.get("faiss", none), costs.get("loop", none)
    same = {name: float((ids["ours"][:, 0] == made.reshape(len(made), -1)[:, 0]).mean()) for name, made in ids.items()}
    return {
        "n": n, "d": d, "k": options.k, "ours": ours.seconds, "faiss": rival.seconds, "loop": loop.seconds,
        "faiss_ratio": rival.seconds / ours.seconds, "loop_ratio": loop.seconds / ours.seconds,
        "faiss_cpu": rival.cpu / ours.cpu, "loop_cpu": loop.cpu / ours.cpu,
        "share": 2.0 * nq * n * d / ours.seconds / peak, "ours_mib": ours.mib, "faiss_mib": rival.mib, "loop_mib": loop.mib,
        "faiss_same": same.get("faiss", none.seconds), "loop_same": same.get("loop", none.seconds),
    }  # fmt: skip


def ours_of(queries: np.ndarray, base: np.ndarray, options: argparse.Namespace) -> np.ndarray:
    """What the pairs table is made by, which measures first whether bounds pay; for more than one neighbour the exact search."""
    if options.k > 1:
        return exact_neighbors(queries, base, options.k, device=options.device)[1]
    return BoundedNeighbors(base, calls=options.calls).nearest(queries, device=options.device)[1][:, None]


def reference_loop(queries: np.ndarray, base: np.ndarray, device: str) -> np.ndarray:
    """The pairing of the reference (laion-index), in its own terms: half precision, the scores of a block written to memory, then their
    maximum. On a CPU, where half precision has no fast GEMM, the product is taken in float32 and its scores written in half."""
    dtype = torch.float16 if device.startswith("cuda") else torch.float32
    best = torch.full((len(queries),), -float("inf"), dtype=torch.float16, device=device)
    ids = torch.zeros(len(queries), dtype=torch.int64, device=device)
    for start in range(0, len(base), REFERENCE_BLOCK):
        block = torch.from_numpy(base[start : start + REFERENCE_BLOCK]).to(device, dtype)
        for first in range(0, len(queries), REFERENCE_QUERIES):
            part = slice(first, first + REFERENCE_QUERIES)
            scores = (torch.from_numpy(queries[part]).to(device, dtype) @ block.T).half()
            value, row = scores.max(dim=1)
            better = value > best[part]
            best[part] = torch.where(better, value, best[part])
            ids[part] = torch.where(better, row + start, ids[part])
    return ids.cpu().numpy()


if __name__ == "__main__":
    main()
