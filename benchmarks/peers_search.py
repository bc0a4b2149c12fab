"""Our search beside other libraries', in one run on one machine: `python benchmarks/peers_search.py --data FOLDER [--rounds 3] [--work FOLDER]`

FOLDER holds image_features.npy and caption_features.npy (row i a pair). Queries are captions that nothing was trained on, k = 10, two
threads for everybody. Each peer is installed in an environment of its own under --work (kept for the next run), builds its index there and is
measured by a process of its own; each sweeps its own settings, and what is printed is the best of them at each recall: thousand queries a
second in one batch, and the median milliseconds of single queries. Medians of --rounds rounds, in which all take turns.

    python benchmarks/peers_search.py --data FOLDER --filters     recall under conditions that 50, 10, 1 and .1 % of the rows meet
    python benchmarks/peers_search.py --data FOLDER --reads       pieces and bytes of the files that a query reads, packed and not
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

THREADS, K, QUERIES, SINGLE = 2, 10, 4800, 1000
RECALLS = (0.80, 0.90, 0.95)
NPROBES = (6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 64, 96, 128)

MEASURE = """
import json, sys, time, numpy as np
def sweep(search, settings, queries, truth, size, rounds=1):
    '''search(queries, setting) -> ids (n, k), of one query or of all.'''
    rows = []
    for setting in settings:
        found = np.asarray(search(queries, setting))
        recall = float(np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(found.tolist(), truth.tolist())]))
        began, cpu = time.perf_counter(), time.process_time()
        search(queries, setting)
        batch, cpu = time.perf_counter() - began, time.process_time() - cpu
        times = []
        for row in range(SINGLE):
            one = queries[row : row + 1]
            began = time.perf_counter(); search(one, setting); times.append(time.perf_counter() - began)
        rows.append({"setting": str(setting), "recall": recall, "qps": len(queries) / batch, "cpu_us": 1e6 * cpu / len(queries), "p50_ms": 1e3 * float(np.median(times))})
        rows[-1]["bytes"] = size
    print(json.dumps(rows))
SINGLE = int(sys.argv[3])
images, queries, truth = (np.load(f"{sys.argv[1]}/{name}.npy") for name in ("images", "queries", "truth"))
kept = sys.argv[2]
import os
def size_of(path):
    return sum(os.path.getsize(os.path.join(f, n)) for f, _, names in os.walk(path) for n in names) if os.path.isdir(path) else os.path.getsize(path)
"""

FAISS = """
import faiss
faiss.omp_set_num_threads(2)
def kept_index(name, make):
    path = os.path.join(kept, name)
    if not os.path.exists(path):
        faiss.write_index(make(), path)
    return faiss.read_index(path), size_of(path) / len(images)
"""

PEERS: dict[str, tuple[list[str], str]] = {
    "ScaNN AH2 + bf16": (
        ["scann", "numpy"],
        """
import scann
from pathlib import Path
from scann.scann_ops.py import scann_ops_pybind as ops
path = os.path.join(kept, "scann")
if not os.path.exists(os.path.join(path, "done")):
    builder = ops.builder(images, 10, "dot_product").tree(num_leaves=2000, num_leaves_to_search=100, training_sample_size=len(images))
    made = builder.score_ah(2, anisotropic_quantization_threshold=0.2).reorder(100, quantize=scann.ReorderType.BFLOAT16).set_n_training_threads(2).build()
    os.makedirs(path, exist_ok=True); made.serialize(path); Path(path, "done").touch()
index = ops.load_searcher(path); index.set_num_threads(2)
def search(rows, setting):
    leaves, reorder = setting
    if len(rows) == 1:
        return [index.search(rows[0], final_num_neighbors=10, pre_reorder_num_neighbors=reorder, leaves_to_search=leaves)[0]]
    return index.search_batched_parallel(rows, final_num_neighbors=10, pre_reorder_num_neighbors=reorder, leaves_to_search=leaves)[0]
sweep(search, [(l, r) for l in (8, 12, 16, 24, 32, 48, 64) for r in (20, 40, 80)], queries, truth, size_of(path) / len(images))
""",
    ),
    "faiss HNSW32": (
        [],
        FAISS
        + """
def make():
    index = faiss.IndexHNSWFlat(images.shape[1], 32, faiss.METRIC_INNER_PRODUCT); index.hnsw.efConstruction = 100; index.add(images); return index
index, size = kept_index("hnsw32", make)
def search(rows, ef):
    index.hnsw.efSearch = ef
    return index.search(rows, 10)[1]
sweep(search, (16, 24, 32, 48, 64, 96, 128, 192, 256, 384), queries, truth, size)
""",
    ),
    "faiss IVF4096,PQ64x4fs + fp16": (
        [],
        FAISS
        + """
def make():
    index = faiss.index_factory(images.shape[1], "IVF4096_HNSW32,PQ64x4fs,Refine(SQfp16)", faiss.METRIC_INNER_PRODUCT)
    index.train(images); index.add(images); return index
index, size = kept_index("ivfpqfs", make)
ivf = faiss.extract_index_ivf(index.base_index)
def search(rows, setting):
    ivf.nprobe, index.k_factor = setting
    return index.search(rows, 10)[1]
sweep(search, [(p, f) for p in (8, 12, 16, 24, 32, 48, 64) for f in (4, 8)], queries, truth, size)
""",
    ),
    "usearch HNSW bf16": (
        ["usearch", "numpy"],
        """
from usearch.index import Index
path = os.path.join(kept, "usearch.index")
index = Index(ndim=images.shape[1], metric="ip", dtype="bf16", connectivity=16, expansion_add=128)
if not os.path.exists(path):
    index.add(np.arange(len(images)), images, threads=2); index.save(path)
index.load(path)
def search(rows, ef):
    index.expansion_search = ef
    found = index.search(rows, 10, threads=2 if len(rows) > 1 else 1)
    return np.atleast_2d(found.keys)
sweep(search, (16, 24, 32, 48, 64, 96, 128, 192, 256, 384), queries, truth, size_of(path) / len(images))
""",
    ),
}

OURS = """
from paired_index_assets.search.sharded import ShardedIndex
packed, rerank, originals = PACKED, RERANK, None
root = os.path.join(kept, "build")
if rerank:
    from paired_index_assets.serving.beside import originals_of
    originals = originals_of(root)
index = ShardedIndex.open(root, packed=packed)
def search(rows, nprobe):
    return index.search(rows, 10, nprobe=nprobe, rerank=rerank, originals=originals)[1]
sweep(search, NPROBES, queries, truth, SIZE)
"""


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--work", type=Path, default=Path("data/peers"))
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--lists", type=int, default=4096)
    options.add_argument("--peers", nargs="*", default=list(PEERS))
    options.add_argument("--filters", action="store_true")
    options.add_argument("--reads", action="store_true")
    given = options.parse_args()
    work = given.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    prepare(given.data, work, given.lists)
    if given.filters:
        return filters(work)
    if given.reads:
        return reads(work)
    ours = {
        "ours, packed": ours_code(work, packed=True),
        "ours, 58 shards": ours_code(work, packed=False),
        "ours, packed, rerank 2": ours_code(work, packed=True, rerank=2),
    }
    contenders = {name: (Path(sys.executable), code) for name, code in ours.items()}
    contenders |= {name: (environment(work, name), PEERS[name][1]) for name in given.peers}
    rounds: dict[str, list[list[dict[str, Any]]]] = {name: [] for name in contenders}
    for _ in range(given.rounds):
        for name, (python, code) in contenders.items():
            print(f"  {name}", file=sys.stderr, flush=True)
            rounds[name].append(measured(python, code, work))
    print_table({name: medians(found) for name, found in rounds.items()})


def prepare(data: Path, work: Path, lists: int) -> None:
    """Queries, truth and our build, once."""
    import faiss
    import numpy as np
    from search import build

    from paired_index_assets.clustering.kmeans import Training, train_kmeans
    from paired_index_assets.codes.transformed import train_transformed
    from paired_index_assets.landing.catalog import Catalog
    from paired_index_assets.layout import BuildRoot
    from paired_index_assets.search.packed import pack
    from paired_index_assets.trained.artifact import TrainedIndex
    from paired_index_assets.trained.coarse import group_lists

    if (work / "ready").exists():
        return
    images, captions = (np.load(data / f"{side}_features.npy").astype(np.float32) for side in ("image", "caption"))
    for rows in (images, captions):
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    order = np.random.default_rng(3).permutation(len(captions))
    queries, training = np.ascontiguousarray(captions[order[:QUERIES]]), captions[order[QUERIES:]]
    for name, array in (("images", images), ("queries", queries)):
        np.save(work / f"{name}.npy", array)
    np.save(work / "truth.npy", faiss.knn(queries, images, K, metric=faiss.METRIC_INNER_PRODUCT)[1])
    centroids = train_kmeans(images, lists, Training(niter=10)).centroids
    codec = train_transformed(images[np.random.default_rng(0).permutation(len(images))[:40_000]], training[:40_000])
    if codec is None:
        raise SystemExit("the data cannot carry a transformed codec")
    trained = TrainedIndex("kmeans", lists, images.shape[1], centroids, codec, groups=group_lists(centroids, seed=1))
    build(work / "build", images, trained, 58)
    Catalog.scan(work / "build" / "landing", shards=58).save(BuildRoot.at(work / "build").catalog)
    pack(BuildRoot.at(work / "build"))
    (work / "build" / "settings.json").write_text(json.dumps({"landing": str(work / "build" / "landing")}))
    (work / "ready").touch()


def ours_code(work: Path, *, packed: bool, rerank: int = 0) -> str:
    from paired_index_assets.layout import BuildRoot
    from paired_index_assets.search.shardset import served_index

    served = served_index(BuildRoot.at(work / "build"))
    if packed:
        size = sum(Path(file.path).stat().st_size for file in served.generation.packed.glob("*.index"))
    else:
        size = sum(Path(place.file.path).stat().st_size for place in served.shards)
    import numpy as np

    rows = len(np.load(work / "images.npy", mmap_mode="r"))
    each = size / rows + (2 * 128 if rerank else 0)
    code = OURS.replace("PACKED", str(packed)).replace("RERANK", str(rerank)).replace("SIZE", repr(each)).replace("NPROBES", repr(NPROBES))
    return code


def environment(work: Path, name: str) -> Path:
    """The python of the peer's own environment; ours for those that are faiss too."""
    packages = PEERS[name][0]
    if not packages:
        return Path(sys.executable)
    folder = work / "environments" / packages[0]
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        venv.create(folder, with_pip=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *packages], check=True)
        (folder / "ready").touch()
    return python


def measured(python: Path, code: str, work: Path) -> list[dict[str, Any]]:
    threads = {name: str(THREADS) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    command = [str(python), "-c", MEASURE + code, str(work), str(work), str(SINGLE)]
    found = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **threads})
    if found.returncode:
        print(found.stderr[-2000:], file=sys.stderr)
        return []
    rows: list[dict[str, Any]] = json.loads(found.stdout.strip().splitlines()[-1])
    return rows


def medians(rounds: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Of each setting over the rounds."""
    whole = [found for found in rounds if found]
    return [
        {**rows[0], **{name: statistics.median(row[name] for row in rows) for name in ("qps", "cpu_us", "p50_ms")}}
        for rows in zip(*whole, strict=True)
    ]


def print_table(found: dict[str, list[dict[str, Any]]]) -> None:
    heads = [f"{recall:.2f}" for recall in RECALLS]
    print("Processor time is what other work on the machine changes least; two idle cores would do 2,000 / it thousand queries a second.\n")
    at = f"at {' / '.join(heads)}"
    print(f"| index | bytes a vector | batch, us of processor a query {at} | batch, k q/s {at} | single, ms {at} | settings |")
    print("|---|---|---|---|---|---|")
    for name, rows in found.items():
        if not rows:
            print(f"| {name} | could not be measured here | | | | |")
            continue
        cpu, batch, single, chosen = [], [], [], []
        for recall in RECALLS:
            enough = [row for row in rows if row["recall"] >= recall]
            best = min(enough, key=lambda row: row["cpu_us"], default=None)
            cpu.append("-" if best is None else f"{best['cpu_us']:.1f}")
            batch.append("-" if best is None else f"{max(row['qps'] for row in enough) / 1000:.1f}")
            chosen.append("-" if best is None else f"{best['setting']} ({best['recall']:.3f})")
            single.append("-" if best is None else f"{min(row['p50_ms'] for row in enough):.3f}")
        print(
            f"| {name} | {rows[0]['bytes']:.0f} | {' / '.join(cpu)} | {' / '.join(batch)} | {' / '.join(single)} | {', '.join(chosen)} |",
            flush=True,
        )


def filters(work: Path) -> None:
    """Recall@10 among the rows that match, against an exact search of those."""
    import faiss
    import numpy as np

    from paired_index_assets.search.filters import Condition, Filter
    from paired_index_assets.search.scanning import bitmap
    from paired_index_assets.search.sharded import ShardedIndex

    images, queries = (np.load(work / f"{name}.npy") for name in ("images", "queries"))
    queries, draw = queries[:1000], np.random.default_rng(5).random(len(images))
    print("| rows that match | nprobe asked | recall@10 | k q/s in a batch | single, ms |\n|---|---|---|---|---|")
    with ShardedIndex.open(work / "build") as index:
        for share in (1.0, 0.5, 0.1, 0.01, 0.001):
            allowed = np.flatnonzero(draw < share)
            truth = allowed[faiss.knn(queries, images[allowed], K, metric=faiss.METRIC_INNER_PRODUCT)[1]]
            where = Filter(Condition("", (), ""), bitmap(allowed, len(images)), len(allowed))
            for nprobe in (16, 32):
                import time

                began = time.perf_counter()
                found = index.search(queries, K, nprobe=nprobe, where=where)[1]
                rate, times = len(queries) / (time.perf_counter() - began), []
                for row in range(300):
                    began = time.perf_counter()
                    index.search(queries[row], K, nprobe=nprobe, where=where)
                    times.append(time.perf_counter() - began)
                recall = np.mean([len(set(a) & set(b)) / K for a, b in zip(found, truth, strict=True)])
                print(f"| {share:.1%} | {nprobe} | {recall:.4f} | {rate / 1000:.1f} | {1e3 * np.median(times):.3f} |", flush=True)


def reads(work: Path) -> None:
    """What one query reads of the files: pieces that are not next to each other, and bytes, by the tables of lists."""
    import numpy as np

    from paired_index_assets.search.kernel import prepare
    from paired_index_assets.search.sharded import ShardedIndex

    queries = np.load(work / "queries.npy")[:1000]
    print("| layout | nprobe | pieces a query | KiB a query |\n|---|---|---|---|")
    for packed in (True, False):
        with ShardedIndex.open(work / "build", packed=packed) as index:
            plan = index._scan._plan
            record = plan.record[0]
            count = int(record["nlist"] * record["pieces"])
            sizes = np.frombuffer(ctypes.string_at(int(record["sizes"]), 8 * count), np.int64).reshape(-1, int(record["pieces"]))
            for nprobe in (8, 32):
                n, width = len(queries), int(record["width"])
                lists = np.empty((n, nprobe), np.int64)
                prepare(
                    plan.record, queries, nprobe, np.empty((n, width), np.float32), lists,
                    np.zeros((n, 4, int(record["stride"])), np.int8), np.empty((n, width)), np.empty(n, np.int64),
                )  # fmt: skip
                looked = sizes[lists]
                pieces, rows = (looked > 0).sum(axis=(1, 2)).mean(), looked.sum(axis=(1, 2)).mean()
                name = "packed" if packed else "58 shards"
                print(f"| {name} | {nprobe} | {pieces:.0f} | {rows * (int(record['code_size']) + 8) / 1024:.0f} |", flush=True)


if __name__ == "__main__":
    main()
