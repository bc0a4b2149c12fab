"""How fast landed rows become a shard, stage by stage, beside faiss's own `add` of the same rows in the same process.

    python benchmarks/shard_build.py [--data FOLDER | --rows N --dimensions D] [--nlist K] [--files F] [--shards S]
    python benchmarks/shard_build.py --assembly --rows 4000000 --dimensions 768 --nlist 131072 --files 8

FOLDER holds `image_features.npy` and `caption_features.npy`; otherwise rows are clustered and random. Prints one Markdown table: seconds,
seconds of CPU, rows/s and peak resident memory above the start of each stage, and whether both ways gave the same lists and codes.
With `--assembly` segments are random bytes, so that a shard of LAION's shape is put together without assigning its rows.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import faiss
import numpy as np

from paired_index_assets.codes.codec import ROUNDINGS, train_codec
from paired_index_assets.landing.catalog import Catalog
from paired_index_assets.landing.landed import list_folder
from paired_index_assets.layout import BuildRoot
from paired_index_assets.shards.assemble import check_shard, rows_of_segment, write_shard
from paired_index_assets.shards.build import build_shard
from paired_index_assets.shards.encode import SegmentEncoder
from paired_index_assets.shards.segment import SegmentHeader, open_segment, segment_name, write_segment
from paired_index_assets.trained.artifact import TrainedIndex

TRAINING_ROWS = 50_000
HEAD = "| rounding | stage | s | CPU s | rows/s | peak MiB |\n|---|---|---|---|---|---|"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--dimensions", type=int, default=128)
    parser.add_argument("--nlist", type=int, default=1024)
    parser.add_argument("--files", type=int, default=40)
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--roundings", nargs="+", default=list(ROUNDINGS), choices=ROUNDINGS)
    parser.add_argument("--assembly", action="store_true")
    options = parser.parse_args()
    if options.assembly:
        return assemble_random(options)
    images, captions = vectors_of(options)
    with tempfile.TemporaryDirectory() as scratch:
        landing = Path(scratch) / "landing"
        landing.mkdir()
        for number, part in enumerate(np.array_split(images, options.files)):
            np.save(landing / f"img_emb_{number:04d}.npy", part)
        catalog = Catalog.scan(landing, shards=options.shards)
        print(f"{images.shape} {images.dtype}, {options.nlist} lists, {options.files} files, {options.shards} shards\n")
        print(HEAD)
        for rounding in options.roundings:
            sample = images[:TRAINING_ROWS].astype(np.float32)
            codec = train_codec("QT_4bit", rounding, sample, captions[:TRAINING_ROWS].astype(np.float32))
            trained = TrainedIndex("kmeans", options.nlist, images.shape[1], centroids_of(sample, options.nlist), codec)
            for _ in range(options.repeats):
                compare(rounding, trained, catalog, landing, Path(scratch) / "build")


def compare(rounding: str, trained: TrainedIndex, catalog: Catalog, landing: Path, place: Path) -> None:
    """One line a stage; the root is emptied first."""
    shutil.rmtree(place, ignore_errors=True)
    root, listing, rows = BuildRoot.at(place), list_folder(landing), catalog.total_rows
    with stage(rounding, "assign, encode, write segments", rows):
        encoder = SegmentEncoder(root, trained)
        for file in catalog:
            encoder.add(file, listing[file.name])
        encoder.flush()
    with stage(rounding, "assemble, check, write shards", rows):
        shards = [build_shard(root, trained, catalog, shard, landing) for shard in range(catalog.shards)]
    with stage(rounding, "build again, nothing changed", rows):
        assert all(build_shard(root, trained, catalog, shard, landing).unchanged for shard in range(catalog.shards))
    with stage(rounding, "faiss: add_with_ids, write_index", rows):
        indices = [added(trained, catalog, shard, landing) for shard in range(catalog.shards)]
        for shard, index in enumerate(indices):
            faiss.write_index(index, str(place / f"faiss{shard}"))
    same_rows, same_codes = zip(*(agreement(faiss.read_index(str(s.path)), i) for s, i in zip(shards, indices, strict=True)), strict=True)
    print(f"| {rounding} | same list as faiss: {np.mean(same_rows):.4%}, same code of those: {np.mean(same_codes):.4%} | | | | |")


def assemble_random(options: argparse.Namespace) -> None:
    """Segments of random lists and codes -> one shard; the peaks tell whether a shard's codes are ever held."""
    rng, rows, code_size = np.random.default_rng(1), options.rows // options.files, options.dimensions // 2
    quantizer = faiss.IndexFlatIP(options.dimensions)
    quantizer.add(rng.random((options.nlist, options.dimensions), dtype=np.float32))
    empty = faiss.IndexIVFScalarQuantizer(
        quantizer, options.dimensions, options.nlist, faiss.ScalarQuantizer.QT_4bit, faiss.METRIC_INNER_PRODUCT, False
    )
    faiss.copy_array_to_vector(np.ones(2 * options.dimensions, np.float32), empty.sq.trained)
    empty.is_trained = True
    total = rows * options.files
    print(f"{total} x {code_size} bytes = {total * code_size >> 20:,} MiB of codes, {options.nlist} lists, {options.files} files\n\n{HEAD}")
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        with stage("random", "make and write segments", total):
            for number in range(options.files):
                header = SegmentHeader("t", str(number), 0, rows, 0, "", "", False, code_size, 0, 0)
                codes = rng.integers(0, 256, (rows, code_size), dtype=np.uint8)
                write_segment(place / segment_name(number), header, rng.integers(0, options.nlist, rows), codes, np.zeros(rows, np.uint8))
                del codes
        with stage("random", "open segments, check their bytes", total):
            nobody = np.empty(0, np.int64)
            parts = [rows_of_segment(open_segment(place / segment_name(n)), 2_000_000_000 + n * rows, nobody) for n in range(options.files)]
        with stage("random", "write the shard", total):
            write_shard(place / "shard", empty, parts)
        with stage("random", "read it back and check its ids", total):
            check_shard(place / "shard", empty, parts, "shard")


def added(trained: TrainedIndex, catalog: Catalog, shard: int, landing: Path) -> faiss.Index:
    index = trained.empty_index()
    for file in catalog.files(shard):
        vectors = np.load(landing / file.name)[file.offset : file.offset + file.rows].astype(np.float32)
        index.add_with_ids(vectors, np.arange(file.start_row, file.stop_row))
    return index


def agreement(mine: faiss.Index, theirs: faiss.Index) -> tuple[float, float]:
    """Share of ids in the same list, and share of those with the same code."""
    same = equal = 0
    for number in range(mine.nlist):
        (my_ids, my_codes), (ids, codes) = content(mine, number), content(theirs, number)
        _, left, right = np.intersect1d(my_ids, ids, return_indices=True)
        same += len(left)
        equal += int((my_codes[left] == codes[right]).all(axis=1).sum())
    return same / mine.ntotal, equal / max(1, same)


def content(index: faiss.Index, number: int) -> tuple[np.ndarray, np.ndarray]:
    size = index.invlists.list_size(number)
    if not size:
        return np.empty(0, np.int64), np.empty((0, index.code_size), np.uint8)
    codes = faiss.rev_swig_ptr(index.invlists.get_codes(number), size * index.code_size)
    return faiss.rev_swig_ptr(index.invlists.get_ids(number), size), codes.reshape(size, -1)


def vectors_of(options: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    if options.data:
        return np.load(options.data / "image_features.npy"), np.load(options.data / "caption_features.npy")
    rng = np.random.default_rng(1)
    centres = rng.normal(size=(options.nlist, options.dimensions)).astype(np.float32)
    vectors = centres[rng.integers(0, options.nlist, options.rows)] + rng.normal(size=(options.rows, options.dimensions)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors.astype(np.float16), vectors[: TRAINING_ROWS // 5].astype(np.float16)


def centroids_of(sample: np.ndarray, nlist: int) -> np.ndarray:
    kmeans = faiss.Kmeans(sample.shape[1], nlist, niter=3, spherical=True, seed=1, max_points_per_centroid=40)
    kmeans.train(sample)
    return np.ascontiguousarray(kmeans.centroids)


@contextmanager
def stage(rounding: str, name: str, rows: int) -> Iterator[None]:
    Path("/proc/self/clear_refs").write_text("5")  # start the peak again
    before, started, worked = resident("VmRSS"), time.perf_counter(), time.process_time()
    yield
    seconds, cpu = time.perf_counter() - started, time.process_time() - worked
    peak = (resident("VmHWM") - before) / 1024
    print(f"| {rounding} | {name} | {seconds:.2f} | {cpu:.2f} | {rows / seconds:,.0f} | {peak:,.0f} |", flush=True)


def resident(field: str) -> int:
    """A field of this process's memory in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1])


if __name__ == "__main__":
    main()
