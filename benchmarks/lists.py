"""Lists, routing and codes through a stock reader: recall@10 of captions kept aside, by nprobe, of one plain faiss file a kind.

    python benchmarks/lists.py --data FOLDER [--nlist 4096] [--queries 2000] [--bytes 80]

FOLDER holds `image_features.npy` and `caption_features.npy`, row-aligned pairs. The kept-aside captions are drawn at random and train nothing;
centroids are image k-means of all images, codes see 20,000 images and 30,000 other captions, routing up to 100,000 (`--routing 0`: none), of
which 2,000 more choose its epoch. Each file is written, read by `faiss.read_index` and searched through `faiss.extract_index_ivf`. Prints what
is scanned, and how many centroids a query is compared with.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import faiss
import numpy as np

from paired_index_assets.clustering.kmeans import Training, train_kmeans
from paired_index_assets.codes.codec import TrainedCodec, train_codec
from paired_index_assets.codes.formats import ivf_of
from paired_index_assets.codes.transformed import train_transformed
from paired_index_assets.contest.contestants import with_routing
from paired_index_assets.neighbors.exact import assign, exact_neighbors
from paired_index_assets.nlist import FINER
from paired_index_assets.quality.candidates import filled
from paired_index_assets.quality.intervals import mean_interval
from paired_index_assets.routing.training import Lesson
from paired_index_assets.rows import Float32, Int64, UInt8
from paired_index_assets.trained.artifact import TrainedIndex
from paired_index_assets.trained.coarse import group_lists

SEED, K = 3, 10
CODEC_IMAGES, CODEC_CAPTIONS = 20_000, 30_000
JUDGES = 2_000
PROBED = (0.25, 0.5)  # of the groups
NPROBES = (4, 8, 16)  # of lists in one level; FINER times as many of the finer ones


class Reader:
    """The captions kept aside, their true images, and a folder to write files in."""

    def __init__(self, images: Float32, held: Float32, folder: Path) -> None:
        self.images, self.held, self.folder = images, held, folder
        self.truth = faiss.knn(held, images, K, metric=faiss.METRIC_INNER_PRODUCT)[1]

    def recall(self, found: Int64) -> str:
        hits = np.array([len(set(a) & set(b)) / K for a, b in zip(found, self.truth, strict=True)], np.float32)
        interval = mean_interval(hits, seed=SEED)
        return f"{interval.mean:.4f} | {interval.low:.4f}-{interval.high:.4f}"

    def rows(self, name: str, trained: TrainedIndex, lists: Int64, codes: UInt8) -> None:
        """A row of the table for each nprobe, from the file."""
        index = trained.empty_index()
        filled(ivf_of(index), lists, codes)
        index.ntotal = len(lists)
        file = str(self.folder / "lists.index")
        faiss.write_index(index, file)
        read = faiss.read_index(file)
        ivf, sizes = faiss.extract_index_ivf(read), np.bincount(lists, minlength=trained.nlist)
        for nprobe in NPROBES:
            ivf.nprobe = nprobe * (FINER if trained.groups else 1)
            found = read.search(self.held, K)[1]
            probed = trained.probe(self.held, ivf.nprobe)[1]
            scanned = sizes[probed].sum(1).mean() / len(lists)
            print(
                f"| {name} | {ivf.code_size} | {trained.coarse_dots:,} | {ivf.nprobe} | {scanned:.2%} | {self.recall(found)} |", flush=True
            )

    def exhaustive(self, name: str, codec: TrainedCodec, codes: UInt8) -> None:
        found = faiss.knn(self.held, codec.decode(codes), K, metric=faiss.METRIC_INNER_PRODUCT)[1]
        print(f"| {name}, every vector | {codec.code_size} | | | 100% | {self.recall(found)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--nlist", type=int, default=4096, help="lists in two levels; a quarter in one")
    parser.add_argument("--queries", type=int, default=2000)
    parser.add_argument("--bytes", type=int, nargs="*", default=[], help="further sizes of the transformed code, exhaustively")
    parser.add_argument("--routing", type=int, default=100_000, help="captions that routing learns from")
    options = parser.parse_args()
    images, captions = (_unit(np.load(options.data / f"{name}_features.npy")) for name in ("image", "caption"))
    order = np.random.default_rng(SEED).permutation(len(captions))
    held, others = captions[order[: options.queries]], captions[order[options.queries :]]
    training, learning = others[:CODEC_CAPTIONS], others[JUDGES:][: options.routing]
    sample = images[np.sort(np.random.default_rng(SEED).permutation(len(images))[:CODEC_IMAGES])]
    print("| lists, codes | bytes | centroids compared | nprobe | scanned | recall@10 | 95 % |\n|---|---|---|---|---|---|---|", flush=True)
    best = [Lesson(asked, exact_neighbors(asked, images, K)[1]) for asked in (learning, others[:JUDGES])] if options.routing else None
    with tempfile.TemporaryDirectory() as folder:
        reader = Reader(images, held, Path(folder))
        coded = {}
        for name, codec in (
            ("today's code", train_codec("QT_4bit", "query", sample, training)),
            ("new", train_transformed(sample, training)),
        ):
            if codec is not None:
                name = f"{name} {codec.axes}".strip()
                coded[name] = codec, codec.encode(images)
                reader.exhaustive(name, *coded[name])
        for size in options.bytes:
            if (codec := train_transformed(sample, training, bytes_per_vector=size)) is not None:
                reader.exhaustive(f"new {codec.axes}", codec, codec.encode(images))
        for nlist, shares in ((options.nlist // FINER, (None,)), (options.nlist, PROBED)):
            centroids = train_kmeans(images, nlist, Training(seed=SEED)).centroids
            lists = assign(images, centroids)
            for share in shares:
                groups = None if share is None else group_lists(centroids, seed=SEED, probed=share)
                plain = TrainedIndex("kmeans", nlist, images.shape[1], centroids, next(iter(coded.values()))[0], groups=groups)
                kinds = {"": plain}
                if best is not None and (taught := with_routing(plain, lists, *best, seed=SEED)) is not None:
                    kinds[", learned routing"] = taught
                for routing, kind in kinds.items():
                    for name, (codec, codes) in coded.items():
                        trained = replace(kind, codec=codec)
                        reader.rows(f"{nlist:,}{', two levels' if groups else ''}{routing}, {name}", trained, lists, codes)


def _unit(rows: np.ndarray) -> Float32:
    rows = rows.astype(np.float32)
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=np.float32)


if __name__ == "__main__":
    main()
