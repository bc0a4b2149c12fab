"""Codes side by side with faiss's own, in one process: recall@10 of unseen captions over all images, by codes alone, no re-ranking.

    python benchmarks/codes.py --data FOLDER [--queries 2400] [--without "OPQ" ...]
    python benchmarks/codes.py --speed 768 [--data FOLDER]      # encoding beside faiss's encoder, on made vectors or those of FOLDER

FOLDER holds `image_features.npy` and `caption_features.npy`, row-aligned pairs. Captions are split by concept; codecs see training captions
and images only, and choose their settings on captions that are on neither side. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import faiss
import numpy as np

from paired_index_assets.codes.codec import TrainedCodec, train_codec
from paired_index_assets.codes.transformed import train_transformed
from paired_index_assets.pairing.split import split_by_concept
from paired_index_assets.planning.made import towers_around
from paired_index_assets.quality.codes import DecodedRows, measure_codes
from paired_index_assets.quality.intervals import mean_interval
from paired_index_assets.quality.recall import Relevant
from paired_index_assets.quality.truth import ground_truth

K, SEED = 10, 1
TRAINING_IMAGES, TRAINING_CAPTIONS = 65_536, 200_000
OURS = [
    ("QT_4bit", "query"),
    ("QT_4bit", "nearest"),
    ("QT_4bit", "faiss"),
    ("QT_6bit", "faiss"),
    ("QT_6bit", "query"),
    ("QT_8bit", "faiss"),
]
SPEED_ROWS, SPEED_TURNS = 16_384, 5


def peers(d: int) -> dict[str, Callable[[], faiss.Index]]:
    """faiss's own codes of d/2 bytes, flat, over inner products."""
    half = f"PQ{d // 2}x8"
    return {
        f"PQ{d}x4": lambda: faiss.index_factory(d, f"PQ{d}x4np", faiss.METRIC_INNER_PRODUCT),
        half: lambda: faiss.index_factory(d, half + "np", faiss.METRIC_INNER_PRODUCT),
        f"OPQ{d // 2},{half}": lambda: opq(d),
        "RaBitQ 4-bit": lambda: rabitq(d, 4),
        "RaBitQ 3-bit": lambda: rabitq(d, 3),
    }


def opq(d: int) -> faiss.Index:
    rotation = faiss.OPQMatrix(d, d // 2)
    rotation.niter = 10  # of 50: the later ones add thousandths and take minutes
    return faiss.IndexPreTransform(rotation, faiss.index_factory(d, f"PQ{d // 2}x8np", faiss.METRIC_INNER_PRODUCT))


def rabitq(d: int, bits: int) -> faiss.Index:
    rotation = faiss.RandomRotationMatrix(d, d)
    rotation.init(SEED)
    index = faiss.IndexRaBitQ(d, faiss.METRIC_INNER_PRODUCT, bits)
    index.qb = 8
    return faiss.IndexPreTransform(rotation, index)


def rows_of(data: Path, queries: int, without: list[str]) -> Iterator[tuple[str, int, np.ndarray, float, float]]:
    """Name, bytes a vector, recall of each query, training seconds, encoding rows/s."""
    images, captions = (np.load(data / f"{name}_features.npy").astype(np.float32) for name in ("image", "caption"))
    split = split_by_concept(captions, images, validation=queries, test=queries, seed=SEED)
    asked = captions[split.test]
    truth = ground_truth(asked, images, K)
    rng = np.random.default_rng(SEED)
    learning = images[np.sort(rng.choice(len(images), min(TRAINING_IMAGES, len(images)), replace=False))]
    known = captions[np.sort(rng.choice(split.train, min(TRAINING_CAPTIONS, len(split.train)), replace=False))]
    print(f"{len(images)} images, d = {images.shape[1]}, {len(known)} training captions, {len(asked)} test captions\n", flush=True)
    for name, rounding in OURS:
        if not any(word in f"{name} {rounding}" for word in without):
            began = time.perf_counter()
            codec = train_codec(name, rounding, learning, known)
            trained = time.perf_counter()
            codes = codec.encode(images)
            coded = time.perf_counter()
            decoded = DecodedRows(codes, codec.decode, codec.d)
            found = measure_codes(name, decoded, asked, truth, bytes_per_vector=codec.code_size, ks=(K,))
            yield f"{name} {rounding}{settings(codec)}", codec.code_size, found.at(K), trained - began, len(images) / (coded - trained)
    for name, make in peers(images.shape[1]).items():
        if not any(word in name for word in without):
            index = make()
            began = time.perf_counter()
            index.train(learning)
            trained = time.perf_counter()
            index.add(images)
            coded = time.perf_counter()
            ids = index.search(asked, K)[1]
            recall = Relevant(truth, slice(None), (K,)).recall_of_returned(ids)[0]
            inner = faiss.downcast_index(index.index) if isinstance(index, faiss.IndexPreTransform) else index
            yield f"faiss {name}", inner.code_size, recall, trained - began, len(images) / (coded - trained)


def settings(codec: TrainedCodec) -> str:
    return f" (ridge {codec.metric.ridge:g}, weight {codec.metric.weight:g})" if codec.metric else ""


def speed(d: int, data: Path | None) -> None:
    """Each encoder in turn, several times over; by CPU time, since other work may be beside."""
    if data is None:
        rows, centroids = towers_around(SPEED_ROWS, SPEED_ROWS, d)
        images, captions = rows, centroids
    else:
        images, captions = (
            np.load(data / f"{name}_features.npy", mmap_mode="r")[-SPEED_ROWS:].astype(np.float32) for name in ("image", "caption")
        )
    codecs = [train_codec("QT_4bit", rounding, images, captions) for rounding in ("query", "nearest", "faiss")]
    transformed = train_transformed(images, captions)
    works: dict[str, Callable[[], object]] = {f"QT_4bit {codec.rounding}": partial(codec.encode, images) for codec in codecs}
    if transformed is not None:
        works |= {f"on the axes of captions, {transformed.axes}": partial(transformed.encode, images)}
    works |= {"one d x d GEMM a row, no more": lambda: images @ np.eye(images.shape[1], dtype=np.float32)}
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
    for _ in range(1 + SPEED_TURNS):
        for name, work in works.items():
            cpu, clock = time.process_time(), time.perf_counter()
            work()
            taken[name].append((time.process_time() - cpu, time.perf_counter() - clock))
    best = {name: np.min(times[1:], axis=0) for name, times in taken.items()}
    reference = best["QT_4bit faiss"][0]
    print(
        f"| d = {images.shape[1]} | ratio to faiss's rate | us of CPU a row | rows in two core-seconds | rows/s by the clock |\n|---|---|---|---|---|"
    )
    for name, (cpu, clock) in best.items():
        each = cpu / len(images)
        print(f"| {name} | {reference / cpu:.2f} | {1e6 * each:.2f} | {2 / each:,.0f} | {len(images) / clock:,.0f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--queries", type=int, default=2400)
    parser.add_argument("--without", nargs="*", default=[], help="leave out codecs whose name holds one of these words")
    parser.add_argument(
        "--speed", type=int, metavar="D", help="measure encoding: vectors of so many dimensions are made, unless there is --data"
    )
    options = parser.parse_args()
    if options.speed:
        speed(options.speed, options.data)
    elif options.data:
        print("| codes | bytes | recall@10 | 95 % | training s | rows/s |\n|---|---|---|---|---|---|")
        for name, size, recall, seconds, rate in rows_of(options.data, options.queries, options.without):
            interval = mean_interval(recall, seed=SEED)
            print(
                f"| {name} | {size} | {recall.mean():.4f} | {interval.low:.4f}-{interval.high:.4f} | {seconds:.1f} | {rate:,.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
