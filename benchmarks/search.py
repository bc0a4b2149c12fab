"""Search of a sharded build against what readers of such shards do: read each file, search it, go on to the next, merge.

    python benchmarks/search.py --data FOLDER [--lists 1024] [--shards 58] [--rounds 5] [--growth] [--memory]

FOLDER holds image_features.npy and caption_features.npy (row i a pair). The other way is the loop of github Chris210634/mudg,
scripts/retrieve.py: `faiss.read_index`, nprobe, search, concatenate, sort; its files are the same files. Rounds alternate, medians are
compared, and the scores must be equal to the last bit. `--growth` also builds 1/16 ... 1/1 of the rows and draws
benchmarks/search_growth.png; `--memory` opens 58 shards of 131,072 lists and says what is resident before and after the first query.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import faiss
import numpy as np

from paired_index_assets.clustering.kmeans import Training, train_kmeans
from paired_index_assets.codes.codec import TrainedCodec, train_codec
from paired_index_assets.landing.catalog import Catalog
from paired_index_assets.layout import BuildRoot
from paired_index_assets.rows import Float32, Int64
from paired_index_assets.search.sharded import ShardedIndex
from paired_index_assets.shards.build import build_shard
from paired_index_assets.shards.manifest import read_lengths, write_manifest
from paired_index_assets.trained.artifact import TrainedIndex
from paired_index_assets.trained.promotion import Promotion
from paired_index_assets.trained.promotion import promote as promote_index

LAION_LISTS, LAION_SHARDS, LAION_WIDTH = 131_072, 58, 768
MEMORY_WIDTH = 32  # of the scale model: narrow, so that 58 quantizers fit on the disk
QUERIES = 1000


def build(root: Path, images: Float32, trained: TrainedIndex, shards: int) -> None:
    landing, place = root / "landing", BuildRoot.at(root)
    landing.mkdir(parents=True)
    for number, part in enumerate(np.array_split(images, shards)):
        np.save(landing / f"img_emb_{number:04d}.npy", part.astype(np.float16))
    catalog = Catalog.scan(landing, shards=shards)
    path = place.trained_index(trained.nlist, trained.codec.name, trained.method, trained.fingerprint)
    trained.save(path)
    promote_index(place, Promotion(path.name, trained.fingerprint))
    for shard in range(shards):
        build_shard(place, trained, catalog, shard, landing)
    write_manifest(place, trained, catalog)


def train(images: Float32, captions: Float32, lists: int) -> TrainedIndex:
    centroids = train_kmeans(images, lists, Training(niter=4, max_points_per_centroid=64)).centroids
    codec = train_codec("QT_4bit", "nearest", images[:20_000], captions[:20_000])
    return TrainedIndex("kmeans", lists, images.shape[1], centroids, codec)


def shard_after_shard(root: Path, queries: Float32, k: int, nprobe: int) -> tuple[Float32, Int64]:
    """mudg's loop."""
    scores, ids = [], []
    for name in read_lengths(BuildRoot.at(root).parquet_lengths)[2]:
        index = faiss.read_index(str(root / name))
        faiss.extract_index_ivf(index).nprobe = nprobe
        found = index.search(queries, k)
        scores.append(found[0])
        ids.append(found[1])
        del index
    all_scores, all_ids = np.concatenate(scores, axis=1), np.concatenate(ids, axis=1)
    order = np.argsort(-all_scores, axis=1)[:, :k]
    return np.take_along_axis(all_scores, order, 1), np.take_along_axis(all_ids, order, 1)


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def repeated(work: Callable[[], object], times: int) -> None:
    for _ in range(times):
        work()


def compare(root: Path, queries: Float32, *, k: int, nprobe: int, rounds: int) -> list[dict[str, float]]:
    rows = []
    with ShardedIndex.open(root) as index:
        for batch in (1, 10, 100, 1000):
            these = queries[:batch]
            mine, theirs = index.search(these, k, nprobe=nprobe), shard_after_shard(root, these, k, nprobe)
            if not np.array_equal(mine[0], np.where(theirs[1] < 0, -np.inf, theirs[0])):
                raise SystemExit(f"batch {batch}: scores differ")
            repeat = max(1, 200 // batch)
            loop = partial(shard_after_shard, root, these, k, nprobe)
            times = [(seconds(loop), seconds(partial(repeated, partial(index.search, these, k, nprobe=nprobe), repeat)) / repeat)
                     for _ in range(rounds)]  # fmt: skip
            theirs_s, mine_s = (statistics.median(column) for column in zip(*times, strict=True))
            same = float((mine[1] == theirs[1]).mean())
            rows.append({"batch": batch, "ratio": theirs_s / mine_s, "loop_ms": 1e3 * theirs_s, "ms": 1e3 * mine_s, "same_ids": same})
            print("  ".join(f"{name} {value:.4g}" for name, value in rows[-1].items()), flush=True)
    opened = statistics.median(seconds(partial(ShardedIndex.open, root)) for _ in range(rounds))
    print(f"opening: {1e3 * opened:.1f} ms")
    return rows


def latencies(root: Path, queries: Float32, k: int) -> None:
    print("| shards | nprobe | p50 ms | p99 ms | queries/s, 1 client | 8 clients | in a batch of 1000 |\n|---|---|---|---|---|---|---|")
    with ShardedIndex.open(root) as index:
        for nprobe in (1, 8, 32, 128):
            search = partial(index.search, k=k, nprobe=nprobe)
            times = [seconds(partial(search, query)) for query in queries]
            with ThreadPoolExecutor(8) as clients:
                start = time.perf_counter()
                list(clients.map(search, queries))
                eight = time.perf_counter() - start
            p50, p99 = 1e3 * np.percentile(times, [50, 99])
            rates = (len(queries) / each for each in (sum(times), eight, seconds(partial(search, queries))))
            cells = [str(len(index.shards)), str(nprobe), f"{p50:.3f}", f"{p99:.3f}", *(f"{rate:,.0f}" for rate in rates)]
            print(f"| {' | '.join(cells)} |", flush=True)


def growth(images: Float32, captions: Float32, queries: Float32, *, shards: int, k: int, rounds: int, folder: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    sizes = [len(images) // 16, len(images) // 8, len(images) // 4, len(images) // 2, len(images)]
    names = ("shard after shard, 1 query", "shard after shard, 1000", "sharded index, 1 query", "sharded index, 1000")
    found: dict[str, list[float]] = {name: [] for name in names}
    for size in sizes:
        lists = 2 ** int(np.log2(4 * np.sqrt(size)))
        root = folder / f"rows{size}"
        build(root, images[:size], train(images[:size], captions[:size], lists), shards)
        print(f"{size} rows, {lists} lists")
        rows = {int(row["batch"]): row for row in compare(root, queries, k=k, nprobe=8, rounds=rounds)}
        for (name, column), batch in zip(found.items(), (1, 1000, 1, 1000), strict=True):
            column.append(rows[batch]["loop_ms" if name.startswith("shard after") else "ms"] / batch)
    figure, axes = plt.subplots(figsize=(9, 4.2), layout="constrained")
    for (name, column), style in zip(found.items(), ("C1o-", "C1s--", "C0o-", "C0s--"), strict=True):
        axes.loglog(sizes, column, style, label=name)
    axes.set(xlabel="rows", ylabel="ms a query", title=f"{shards} shards, nprobe 8, lists = 4 sqrt(rows)")
    axes.grid(True, which="both", alpha=0.25)
    figure.legend(loc="outside right upper", fontsize="small")
    figure.savefig(Path(__file__).with_name("search_growth.png"), dpi=120)


def memory(folder: Path) -> None:
    """Shards of LAION-2B's number and lists, narrow vectors: the tables are full size, the centroids are scaled down."""
    draw, root = np.random.default_rng(0), folder / "memory"
    centroids = draw.normal(size=(LAION_LISTS, MEMORY_WIDTH)).astype(np.float32)
    centroids /= np.linalg.norm(centroids, axis=1, keepdims=True)
    images = np.repeat(centroids, 2, axis=0)
    ones = np.ones(MEMORY_WIDTH, np.float32)
    codec = TrainedCodec("QT_4bit", "nearest", -4 * ones, 8 * ones, None)
    build(root, images, TrainedIndex("kmeans", LAION_LISTS, MEMORY_WIDTH, centroids, codec), LAION_SHARDS)
    child = subprocess.run([sys.executable, __file__, "--resident", str(root)], check=True, capture_output=True, text=True)
    seen = json.loads(child.stdout)
    width = LAION_WIDTH / MEMORY_WIDTH
    mapped = centroids.nbytes * width
    for moment in ("imported", "opened", "searched"):
        print(f"{moment}: {seen[moment]['RssAnon'] >> 20} MiB of its own, {seen[moment]['RssFile'] >> 20} MiB of files mapped")
    tables = seen["opened"]["RssAnon"] - seen["imported"]["RssAnon"]
    expected = 24 * LAION_LISTS * LAION_SHARDS
    print(f"58 shards x 131,072 lists: {tables / 2**20:.0f} MiB resident before the first query; by calculation {expected / 2**20:.0f}")
    print(f"at d=768 the centroids are {mapped / 2**20:.0f} MiB more once all are searched: {(tables + mapped) / 2**30:.2f} GiB")


def resident(root: Path) -> None:
    def now() -> dict[str, int]:
        lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("Rss"))
        return {name.rstrip(":"): int(kib) << 10 for name, kib, _ in lines}

    seen = {"imported": now()}
    index = ShardedIndex.open(root)
    seen["opened"] = now()
    index.search(np.ones((1, index.d), np.float32), 10, nprobe=8)
    seen["searched"] = now()
    print(json.dumps(seen))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--lists", type=int, default=1024)
    parser.add_argument("--shards", type=int, default=58)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("-k", type=int, default=10)
    parser.add_argument("--growth", action="store_true")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--resident", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.resident:
        return resident(given.resident)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if given.memory:
            memory(folder)
        if given.data is None:
            return None
        images = np.load(given.data / "image_features.npy").astype(np.float32)
        captions = np.load(given.data / "caption_features.npy").astype(np.float32)
        queries = captions[:: len(captions) // QUERIES][:QUERIES]
        trained = train(images, captions, given.lists)
        for shards in sorted({1, 8, given.shards}, reverse=True):
            root = folder / f"shards{shards}"
            build(root, images, trained, shards)
            print(f"{len(images)} rows, {given.lists} lists, {shards} shards, nprobe 8, k {given.k}")
            compare(root, queries, k=given.k, nprobe=8, rounds=given.rounds)
            latencies(root, queries, given.k)
        if given.growth:
            growth(images, captions, queries, shards=given.shards, k=given.k, rounds=given.rounds, folder=folder)


if __name__ == "__main__":
    main()
