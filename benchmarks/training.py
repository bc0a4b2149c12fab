"""Training beside faiss.Kmeans with the same n, k, d and iterations, in one process, ratio first.

    python benchmarks/training.py [--quick] [--rows 50000 100000 200000] [--nlist 1024 4096] [--dimensions 128 768] [--plot training.png]
    python benchmarks/training.py --data FOLDER --rows 200000 --dimensions 128

FOLDER holds `image_features.npy` and `caption_features.npy`; otherwise vectors are clustered and random. Paired k-means has no rival with
a public kernel but its own paper's; its time stands beside plain k-means, which does the same work. Prints a Markdown table; 2 minutes or
so on two idle cores, --quick 15 seconds.
"""

from __future__ import annotations

import argparse
from itertools import product

import faiss
import numpy as np
from measuring import Cost, gemm_peak, growth_parser, in_turn, plot_growth, start_on, vectors

from paired_index_assets.clustering.kmeans import Training, train_kmeans, train_paired_kmeans
from paired_index_assets.neighbors.exact import assign, nearest
from paired_index_assets.planning.made import towers_around

ROWS_A_CENTROID = 8  # of those that made rows lie around

HEAD = (
    "| rows | d | nlist | faiss.Kmeans / k-means | / paired | CPU: faiss / k-means | SuperKMeans / k-means | faiss / paired | assignment: faiss / ours | of GEMM peak |"
    " k-means s | paired s | faiss s | extra MiB: ours | faiss | objective / faiss | / SuperKMeans |\n|" + "---|" * 17
)


def main() -> None:
    parser = growth_parser(__doc__, plot="training.png")
    parser.add_argument("--rows", type=int, nargs="+", default=[20_000, 50_000, 100_000])
    parser.add_argument("--nlist", type=int, nargs="+", default=[1_024, 4_096])
    parser.add_argument("--niter", type=int, default=10)
    parser.add_argument("--paired", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--made", choices=["flat", "falling"], default="flat", help="spectrum of made vectors; falling: towers_around")
    options = parser.parse_args()
    start_on(options.engine)
    if options.quick:
        options.rows, nlist, options.niter = [10_000, 20_000], [256], 5
    rows = []
    print(HEAD)
    for d in options.dimensions:
        peak = gemm_peak(d, options.device)
        for nlist, n in product(options.nlist, options.rows):
            row = compare(n, d, nlist, peak, options)
            rows.append(row)
            print(
                "| {n:,} | {d} | {nlist:,} | **{ratio:.2f}** | **{paired_ratio:.2f}** | {cpu:.2f} | {super_cpu:.2f} | {paired_cpu:.2f} | {assign_ratio:.2f} |"
                " {share:.0%} | {ours:.2f} | {paired:.2f} | {faiss:.2f} | {ours_mib:.0f} | {faiss_mib:.0f} | {objective:.4f} | {super_objective:.4f} |".format(
                    **row
                ),
                flush=True,
            )
    plotted = [row for row in rows if row["nlist"] == options.nlist[-1]]
    labels = {"ours": "train_kmeans", "paired": "train_paired_kmeans", "faiss": "faiss.Kmeans"}
    plot_growth(plotted, labels, "rows", f"Training, {options.nlist[-1]} lists", options.plot)
    print(f"\n{options.niter} iterations, {options.device}, best of {options.repeats}; growth: {options.plot}")


def compare(n: int, d: int, nlist: int, peak: float, options: argparse.Namespace) -> dict[str, float]:
    if options.made == "falling" and options.data is None:
        images, captions = np.split(towers_around(2 * n, n // ROWS_A_CENTROID, d)[0], 2)
    else:
        images, captions = vectors(n, d, 1, options.data, "image_features"), vectors(n, d, 2, options.data, "caption_features")
    training = Training(options.niter, max_points_per_centroid=n, device=options.device)

    def by_faiss() -> faiss.Kmeans:
        kmeans = faiss.Kmeans(
            d, nlist, niter=options.niter, spherical=True, max_points_per_centroid=n, min_points_per_centroid=1,
            early_stop_threshold=-1,  # faiss 1.15 else stops when the objective grows slowly: fewer iterations, not faster ones
        )  # fmt: skip
        kmeans.train(images)
        return kmeans

    def by_super() -> faiss.Kmeans:
        """L2 on unit vectors with unit centroids, which orders as the inner product does."""
        kmeans = faiss.SuperKmeans(d, nlist, niter=options.niter, spherical=True, max_points_per_centroid=n, min_points_per_centroid=1)
        kmeans.train(images)
        return kmeans

    centroids = np.ascontiguousarray(images[:nlist])
    contenders = {
        "ours": lambda: train_kmeans(images, nlist, training),
        "paired": lambda: train_paired_kmeans(images, captions, nlist, training),
        "faiss": by_faiss,
        "super": by_super,
        "assign": lambda: assign(images, centroids, device=options.device),
        "faiss_assign": lambda: faiss.knn(images, centroids, 1, metric=faiss.METRIC_INNER_PRODUCT),
    }
    if not options.paired:
        del contenders["paired"]
    made, costs = in_turn(contenders, options.repeats)
    ours, rival = costs["ours"], costs["faiss"]
    paired = costs.get("paired", Cost(float("nan"), float("nan"), float("nan")))
    return {
        "n": n, "d": d, "nlist": nlist, "ours": ours.seconds, "paired": paired.seconds, "faiss": rival.seconds,
        "ratio": rival.seconds / ours.seconds, "paired_ratio": rival.seconds / paired.seconds,
        "cpu": rival.cpu / ours.cpu, "super_cpu": costs["super"].cpu / ours.cpu, "paired_cpu": rival.cpu / paired.cpu,
        "assign_ratio": costs["faiss_assign"].cpu / costs["assign"].cpu,
        "share": 2.0 * n * nlist * d * options.niter / ours.seconds / peak, "ours_mib": ours.mib, "faiss_mib": rival.mib,
        "objective": made["ours"].history[-1].objective / (made["faiss"].obj[-1] / n),
        "super_objective": nearest(images, made["ours"].centroids)[0].mean() / nearest(images, made["super"].centroids)[0].mean(),
    }  # fmt: skip


if __name__ == "__main__":
    main()
