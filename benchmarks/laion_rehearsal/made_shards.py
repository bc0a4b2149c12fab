"""Shards of LAION's shape in pieces, from made segments: one of full size, 37.5 million rows; or all 58 at a share of their rows.

Codes and list numbers are drawn at random, list numbers by sizes as uneven as a measured index's, so nothing is encoded and nothing is
found; what is real is every byte written, read, merged, checked, packed and scanned: for one shard 14.4 GB of codes of 384 bytes in
131,072 lists. The 58 are searched as well, whole and packed, by captions of geometry.py behind a coarse quantizer of two levels of its images.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from laion_rehearsal.geometry import Float32, Geometry
from laion_rehearsal.plan import scaled
from laion_rehearsal.watching import size_of
from paired_index_assets.codes.codec import TrainedCodec
from paired_index_assets.landing.catalog import Catalog
from paired_index_assets.layout import BuildRoot
from paired_index_assets.search.packed import pack
from paired_index_assets.search.sharded import ShardedIndex
from paired_index_assets.shards.build import build_shard
from paired_index_assets.shards.encode import segment_path
from paired_index_assets.shards.record import verify_shard
from paired_index_assets.shards.segment import SegmentHeader, write_segment
from paired_index_assets.trained.artifact import TrainedIndex
from paired_index_assets.trained.coarse import Groups, group_lists
from paired_index_assets.trained.promotion import Promotion, promote

FILES, LISTS = 40, 131_072
UNEVEN = 0.6  # spread of the logarithm of list sizes: imbalance 1.4, as image k-means has on real embeddings
QUERIES, K = 200, 10
OF_CENTROIDS = 1 << 20  # a file number that no catalog has


def run(work: Path, files: int = FILES, lists: int = LISTS) -> list[str]:
    """Prints a line a step; `files` of the shard's forty."""
    catalog = Catalog.of(Catalog.laion2b().all_files[:files])
    root, rng = BuildRoot.at(work / "root"), np.random.default_rng(3)
    steps = Steps()
    with steps("a trained index"):
        trained = _trained(_unit(rng.standard_normal((lists, catalog.dimensions), dtype=np.float32)), None)
        _promote(root, trained, catalog)
    rows = catalog.total_rows
    print(
        f"{rows:,} rows, {rows * trained.codec.code_size / 1e9:.1f} GB of codes, {lists:,} lists; made segments, no real data\n", flush=True
    )
    with steps("write the segments"):
        _write_segments(root, trained, catalog, rng)
    with steps("assemble, read back, account: build_shard"):
        made = build_shard(root, trained, catalog, 0, {})
    with steps("verify every byte"):
        verify_shard(root.generation(trained.fingerprint).shard(trained.codec.name, 0))
    for segment in root.generation(trained.fingerprint).segments.iterdir():
        segment.unlink()  # room for the packed file
    queries = _unit(rng.standard_normal((QUERIES, catalog.dimensions), dtype=np.float32))
    _search(steps, work / "root", queries, "the shard", packed=False)
    with steps("pack, read back, hold against the shard"):
        pack(root)
    _search(steps, work / "root", queries, "the packed file", packed=True)
    print(f"\nshard {made.record.bytes / 1e9:.2f} GB, {made.record.indexed:,} vectors; on disk at the end {size_of(work) / 1e9:.1f} GB")
    return steps.lines


def run_all(work: Path, share: float, files: int | None = None, lists: int = LISTS) -> list[str]:
    """All shards at `share` of their rows (of the first `files` files), searched one by one and packed. Prints as it goes."""
    catalog, geometry = scaled(share, files), Geometry(1)
    root, rng = BuildRoot.at(work / "root"), np.random.default_rng(4)
    steps = Steps()
    with steps("a trained index of two levels"):
        centroids = _unit(geometry.images(OF_CENTROIDS, lists).astype(np.float32))
        trained = _trained(centroids, group_lists(centroids, seed=1))
        _promote(root, trained, catalog)
    print(f"{catalog.total_rows:,} rows, {catalog.shards} shards, {lists:,} lists; made segments, no real data\n", flush=True)
    with steps("write the segments"):
        _write_segments(root, trained, catalog, rng)
    with steps(f"assemble, read back, account: {catalog.shards} shards"):
        for shard in range(catalog.shards):
            build_shard(root, trained, catalog, shard, {})
            for file in catalog.files(shard):  # room for the next
                segment_path(root, trained.fingerprint, file).unlink()
    with steps("pack, read back, hold against the shards"):
        pack(root)
    np.save(work / "queries.npy", geometry.captions(0, QUERIES * 5))
    return steps.lines


def _promote(root: BuildRoot, trained: TrainedIndex, catalog: Catalog) -> None:
    path = root.trained_index(trained.nlist, trained.codec.name, trained.method, trained.fingerprint)
    trained.save(path)
    promote(root, Promotion(path.name, trained.fingerprint))
    catalog.save(root.catalog)


class Steps:
    """Seconds, seconds of CPU, and the peak of this process's own memory, a line a step."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again
        began, cpu = time.monotonic(), time.process_time()
        yield
        peak = next(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
        own = next(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
        self.lines.append(
            f"| {name} | {time.monotonic() - began:.1f} | {time.process_time() - cpu:.1f} | {int(peak) / 1e3:,.0f} | {int(own) / 1e3:,.0f} |"
        )
        if len(self.lines) == 1:
            print("| step | s | CPU s | peak MB, mapped files too | own MB at its end |\n|---|---|---|---|---|")
        print(self.lines[-1], flush=True)


def _trained(centroids: Float32, groups: Groups | None) -> TrainedIndex:
    lists, d = centroids.shape
    ones = np.ones(d, np.float32)
    codec = TrainedCodec("QT_4bit", "nearest", -0.1 * ones, 0.2 * ones, None)
    return TrainedIndex("kmeans", lists, d, centroids, codec, groups=groups)


def _write_segments(root: BuildRoot, trained: TrainedIndex, catalog: Catalog, rng: np.random.Generator) -> None:
    sizes = np.exp(UNEVEN * rng.standard_normal(trained.nlist))
    for file in catalog:
        _write_segment(root, trained, catalog, file.file_id, np.cumsum(sizes / sizes.sum()), rng)


def _write_segment(root: BuildRoot, trained: TrainedIndex, catalog: Catalog, file_id: int, ends: Float32, rng: np.random.Generator) -> None:
    file, size = catalog.all_files[file_id], trained.codec.code_size
    header = SegmentHeader(trained.fingerprint, file.name, 0, file.rows, file.bytes, "made", "made", False, size, 0, 0)
    lists = np.minimum(np.searchsorted(ends, rng.random(file.rows)), trained.nlist - 1).astype(np.int64)
    codes = np.frombuffer(rng.bytes(file.rows * size), np.uint8).reshape(file.rows, size)
    write_segment(segment_path(root, trained.fingerprint, file), header, lists, codes, np.zeros(file.rows, np.uint8))


def _search(steps: Steps, root: Path, queries: Float32, what: str, *, packed: bool) -> None:
    with steps(f"open {what}, first query"):
        index = ShardedIndex.open(root, packed=packed)
        index.search(queries[0], K)
    with index, steps(f"{QUERIES} single queries of {what}, nprobe {index.nprobe}"):
        for query in queries:
            index.search(query, K)


def _unit(x: Float32) -> Float32:
    return np.asarray(x / np.linalg.norm(x, axis=1, keepdims=True), np.float32)
