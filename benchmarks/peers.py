"""Our codes, with and without the transform, beside stock faiss codecs in the same lists.

    python benchmarks/peers.py --data FOLDER [--nlist 1024] [--queries 2000] [--bytes 80 96]

FOLDER holds `image_features.npy` and `caption_features.npy` (row i of both is a pair) and, if there, `pairs.parquet` with a column
`caption`. Queries are test captions of a split by concept; lists are image k-means with its own centroids; codes are trained on training
captions. `--every-list` adds the loss of the codes alone, which takes minutes. `--out FOLDER` keeps the report.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from paired_index_assets.clustering.kmeans import Training, train_kmeans
from paired_index_assets.codes.codec import TrainedCodec, train_codec
from paired_index_assets.codes.transformed import train_transformed
from paired_index_assets.neighbors.exact import assign
from paired_index_assets.pairing.split import split_by_concept
from paired_index_assets.quality.candidates import candidate_from
from paired_index_assets.quality.peers import PEERS, Lists, measure_peers
from paired_index_assets.quality.publish import publish_report
from paired_index_assets.quality.recall import Measurement, measure
from paired_index_assets.quality.report import build_report
from paired_index_assets.quality.tables import peers_table, table
from paired_index_assets.quality.truth import ground_truth
from paired_index_assets.rows import Selected
from paired_index_assets.trained.artifact import TrainedIndex

SEED = 1234
CODEC_ROWS = 65_536


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--nlist", type=int, default=1024)
    options.add_argument("--queries", type=int, default=2000)
    options.add_argument("--bytes", type=int, nargs="*", default=[], help="further sizes of the transformed code")
    options.add_argument("--peers", nargs="*", default=list(PEERS))
    options.add_argument("--every-list", action="store_true")
    options.add_argument("--out", type=Path)
    chosen = options.parse_args()
    clock = Clock()

    images, captions = (np.load(chosen.data / f"{side}_features.npy", mmap_mode="r") for side in ("image", "caption"))
    named = chosen.data / "pairs.parquet"
    texts = pq.read_table(named, columns=["caption"])["caption"].to_pylist() if named.exists() else None
    split = split_by_concept(captions, images, texts=texts, validation=chosen.queries, test=chosen.queries, seed=SEED)
    clock("split by concept")
    queries = captions[split.test].astype(np.float32)
    truth = ground_truth(queries, images)
    clock(f"ground truth of {len(queries):,} captions in {len(images):,} images")
    clustering = train_kmeans(Selected(images, split.train), chosen.nlist, Training(seed=SEED))
    lists = Lists("kmeans", clustering.centroids, assign(images, clustering.centroids))
    clock("image k-means and assignment")

    setting = {"nprobes": (8,), "shares": (0.01,), "exhaustive": chosen.every_list}
    sample = images[np.sort(np.random.default_rng(SEED).choice(len(images), min(CODEC_ROWS, len(images)), replace=False))]
    sample, training = sample.astype(np.float32), captions[split.train].astype(np.float32)
    kinds: dict[str, Callable[[], TrainedCodec | None]] = {"QT_4bit query": partial(train_codec, "QT_4bit", "query", sample, training)}
    for size in (None, *chosen.bytes):
        kinds[f"transformed, {size or images.shape[1] // 2} bytes"] = partial(train_transformed, sample, training, bytes_per_vector=size)
    ours: list[Measurement] = []
    for name, train in kinds.items():
        started = time.perf_counter()
        if (codec := train()) is None:
            continue
        trained = TrainedIndex("kmeans", chosen.nlist, images.shape[1], clustering.centroids, codec)
        codes = codec.encode(images[:])
        candidate = candidate_from(trained, lists.list_of_image, codes, build_seconds=time.perf_counter() - started)
        clock(f"{name} trained and encoded")
        ours.insert(0, measure(candidate, queries, truth, rerank=True, **setting))
        clock(f"{name} measured")
    peers = []
    for name in chosen.peers:
        peers += measure_peers(lists, images, queries, truth, names=[name], **setting)
        clock(f"{name} trained, encoded and measured")
    report = build_report(ours, peers=peers, baseline=ours[0].name, facts={"data": chosen.data.name, "nlist": chosen.nlist}, seed=SEED)
    print(peers_table(replace(report, peers=[*report.candidates, *report.peers])))
    print()
    share = [d for d in report.differences if d.by != "nprobe" and d.k == 10]
    rows = ([d.name, "every list" if d.by == "all" else f"{d.amount:.0%} scanned", d.difference.signed()] for d in share)
    print(table(("recall@10 by codes, to ours", "at", "difference"), rows))
    if chosen.out:
        publish_report(report, chosen.out)


class Clock:
    def __init__(self) -> None:
        self.last = time.perf_counter()

    def __call__(self, step: str) -> None:
        now = time.perf_counter()
        print(f"{now - self.last:8.1f} s  {step}", flush=True)
        self.last = now


if __name__ == "__main__":
    main()
