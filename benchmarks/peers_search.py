"""Our search beside other libraries', in one run on one machine: `python benchmarks/peers_search.py --data FOLDER [--rounds 3] [--work FOLDER]`

FOLDER holds image_features.npy and caption_features.npy (row i a pair). Queries are captions that nothing was trained on, k = 10, two
threads for everybody. Each peer is installed in an environment of its own under --work (kept for the next run), builds its index there and is
measured by a process of its own; each sweeps its own settings, and what is printed is the best of them at each recall: thousand queries a
second in one batch, and the median milliseconds of single queries. Medians of --rounds rounds, in which all take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

THREADS, K, QUERIES, SINGLE = 2, 10, 4800, 300
RECALLS = (0.80, 0.90, 0.95)
YARDSTICK = "ScaNN AH2 + bf16"
NPROBES = (8, 9, 10, 20, 22, 24, 40, 44, 48)

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
settings = [(10, 20), (10, 40), (12, 20), (12, 40), (20, 40), (22, 40), (24, 40), (48, 40), (48, 80), (56, 40), (56, 80), (64, 40), (64, 80)]
sweep(search, settings, queries, truth, size_of(path) / len(images))
""",
    ),
    "faiss HNSW32": (
        [],
        FAISS
        + """
def make():
    index = faiss.IndexHNSWFlat(images.shape[1], 32, faiss.METRIC_INNER_PRODUCT); index.hnsw.efConstruction = 200; index.add(images); return index
index, size = kept_index("hnsw32", make)
def search(rows, ef):
    index.hnsw.efSearch = ef
    return index.search(rows, 10)[1]
sweep(search, (10, 12, 16, 20, 24, 28, 32, 48), queries, truth, size)
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
sweep(search, [(p, f) for p in (12, 16, 24, 32, 48, 64) for f in (8, 16, 32)], queries, truth, size)
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
sweep(search, (10, 12, 16, 20, 24, 28, 32, 48), queries, truth, size_of(path) / len(images))
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
    given = options.parse_args()
    work = given.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    prepare(given.data, work, given.lists)
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
    """Each at the best of its settings for each recall; the ratio is the yardstick's processor time over its own."""
    print("Processor time is what other work on the machine changes least; two idle cores would do 2,000 / it thousand queries a second.\n")
    at = f"at {' / '.join(f'{recall:.2f}' for recall in RECALLS)}"
    print(f"| index | ratio {at} | bytes a vector | batch, us of processor a query {at} | batch, k q/s {at} | single, ms {at} | settings |")
    print("|---|---|---|---|---|---|---|")
    yardstick = [_least(found.get(YARDSTICK, []), recall, "cpu_us") for recall in RECALLS]
    for name, rows in found.items():
        if not rows:
            print(f"| {name} | could not be measured here | | | | | |")
            continue
        best = [_least(rows, recall, "cpu_us") for recall in RECALLS]
        ratio = [_shown(one and row and one["cpu_us"] / row["cpu_us"], ".2f") for one, row in zip(yardstick, best, strict=True)]
        cpu = [_shown(row and row["cpu_us"], ".1f") for row in best]
        batch = [
            _shown(row and max(other["qps"] for other in rows if other["recall"] >= r) / 1000, ".1f")
            for r, row in zip(RECALLS, best, strict=True)
        ]
        quickest = [_least(rows, recall, "p50_ms") for recall in RECALLS]
        single = [_shown(row and row["p50_ms"], ".3f") for row in quickest]
        chosen = ", ".join("-" if row is None else f"{row['setting']} ({row['recall']:.3f})" for row in best)
        columns = (ratio, cpu, batch, single)
        shown = [" / ".join(column) for column in columns]
        print(f"| {name} | {shown[0]} | {rows[0]['bytes']:.0f} | {' | '.join(shown[1:])} | {chosen} |", flush=True)


def _least(rows: list[dict[str, Any]], recall: float, what: str) -> dict[str, Any] | None:
    """The setting that takes least, of those that reach a recall."""
    return min((row for row in rows if row["recall"] >= recall), key=lambda row: row[what], default=None)


def _shown(value: Any, form: str) -> str:
    return format(value, form) if value else "-"


if __name__ == "__main__":
    main()
