"""Lists and routing side by side: coverage of unseen captions by share scanned, and the whole product with codes.

    python benchmarks/routing.py --data FOLDER [--nlist 1024] [--queries 2400] [--captions 100000] [--epochs 8]

FOLDER holds `image_features.npy` and `caption_features.npy`, row-aligned pairs. Captions are split by concept; routing learns from training
captions, stops by validation captions, and is measured on test captions. Every row of the table uses all images and exact assignment;
the product adds codes trained as a build trains them and no re-ranking. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from paired_index_assets.clustering.kmeans import train_kmeans, train_paired_kmeans
from paired_index_assets.codes.codec import train_codec
from paired_index_assets.contest.measuring import Contest
from paired_index_assets.neighbors.exact import exact_neighbors
from paired_index_assets.pairing.split import split_by_concept
from paired_index_assets.quality.intervals import difference_interval
from paired_index_assets.quality.truth import ground_truth
from paired_index_assets.routing.training import train_routing
from paired_index_assets.trained.artifact import TrainedIndex

SHARES, NPROBE, K, SEED = (0.0025, 0.005, 0.01, 0.02), 8, 10, 1
TRAINING_IMAGES = 65_536


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--nlist", type=int, default=1024)
    parser.add_argument("--queries", type=int, default=2400)
    parser.add_argument("--captions", type=int, default=100_000, help="training captions that routing learns from")
    parser.add_argument("--epochs", type=int, default=8)
    options = parser.parse_args()

    images, captions = (np.load(options.data / f"{name}_features.npy").astype(np.float32) for name in ("image", "caption"))
    split = split_by_concept(captions, images, validation=options.queries, test=options.queries, seed=SEED)
    rng = np.random.default_rng(SEED)
    learning = np.sort(rng.choice(split.train, min(options.captions, len(split.train)), replace=False))
    asked = captions[learning]
    best = exact_neighbors(asked, images, K)[1]
    judges = captions[split.validation]
    judges_best = exact_neighbors(judges, images, K)[1]
    queries = captions[split.test]
    contest = Contest(images, queries, ground_truth(queries, images))
    print(f"{len(images)} images, d = {images.shape[1]}, {len(asked)} training captions, {len(judges)} validation, {len(queries)} test\n")

    some = images[np.sort(rng.choice(len(images), min(TRAINING_IMAGES, len(images)), replace=False))]
    codecs = {rounding: train_codec("QT_4bit", rounding, some, captions[split.train]) for rounding in ("faiss", "query")}
    clusters = {
        "kmeans": train_kmeans(images, options.nlist, seed=SEED),
        "paired_kmeans": train_paired_kmeans(images[best[:, 0]], asked, options.nlist, seed=SEED),
    }
    shares = " | ".join(f"{share:.2%}" for share in SHARES)
    print(f"| lists | routing | codes | {shares} | nprobe {NPROBE} (scanned) | product, nprobe {NPROBE} | product, 1 % | learned in s |")
    print("|" + "---|" * (len(SHARES) + 7), flush=True)
    reached = {}
    for method, clustering in clusters.items():
        lists = contest.lists_of(method, clustering.centroids)
        began = time.perf_counter()
        learned = train_routing(
            clustering.centroids,
            lists,
            asked,
            best,
            validation_captions=judges,
            validation_top_images=judges_best,
            seed=SEED,
            epochs=options.epochs,
        )
        seconds = time.perf_counter() - began
        for routing, table in (("centroids", None), ("learned", learned)):
            for rounding, codec in codecs.items():
                trained = TrainedIndex(method, options.nlist, images.shape[1], clustering.centroids, codec, table)
                found = contest.measured(trained, nprobes=(NPROBE,), shares=SHARES)
                covered = " | ".join(f"{found.recall(K, share=share, of='coverage').mean():.4f}" for share in SHARES)
                scanned = found.scanned[0].mean() / len(images)
                print(
                    f"| {method} | {routing} | {rounding} | {covered} | {found.recall(K, nprobe=NPROBE, of='coverage').mean():.4f} ({scanned:.2%}) "
                    f"| {found.recall(K, nprobe=NPROBE).mean():.4f} | {found.recall(K, share=0.01).mean():.4f} "
                    f"| {f'{seconds:.0f}' if table is not None else ''} |",
                    flush=True,
                )
                reached[method, routing] = found.recall(K, share=0.01, of="coverage")
    for method in clusters:
        gain = difference_interval(reached[method, "learned"], reached[method, "centroids"], seed=SEED)
        print(f"\n{method}: learned routing adds {gain.mean:+.4f} ({gain.low:+.4f} to {gain.high:+.4f}) coverage at 1 % scanned")


if __name__ == "__main__":
    main()
