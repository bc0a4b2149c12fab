"""How fast files are listed, fetched, read and rebuilt. `python benchmarks/landing.py [--rows 200000] [--dimensions 768]`

The server is Python's own on this machine, so fetching shows what the client costs, not what a network gives.
"""

from __future__ import annotations

import argparse
import functools
import http.server
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np

from paired_index_assets.fetching.fetch import fetch
from paired_index_assets.fetching.reconstruct import reconstruct_rows
from paired_index_assets.landing.catalog import Catalog
from paired_index_assets.landing.landed import complete_shards, list_folder, read_blocks


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rows", type=int, default=200_000)
    options.add_argument("--dimensions", type=int, default=768)
    chosen = options.parse_args()
    print("| step | size | seconds | rate |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        look_over_laion(Path(scratch) / "laion")
        file_size = fetch_and_read(Path(scratch), chosen.rows, chosen.dimensions)
        rebuild(Path(scratch) / "index", chosen.rows, chosen.dimensions)
    print(f"\none file: {chosen.rows} x {chosen.dimensions} fp16, {file_size / 1e6:.0f} MB")


def timed(step: str, size: float, unit: str, work: Callable[[], object]) -> None:
    start = time.perf_counter()
    work()
    taken = time.perf_counter() - start
    print(f"| {step} | {size:,.0f} {unit} | {taken:.2f} | {size / taken:,.0f} {unit}/s |")


def look_over_laion(folder: Path) -> None:
    folder.mkdir()
    catalog = Catalog.laion2b()
    for file in catalog:
        with (folder / file.name).open("wb") as stream:
            stream.truncate(file.bytes)
    timed("load LAION-2B's catalog", len(catalog), "files", lambda: list(Catalog.laion2b()))
    timed("list its folder, find the complete shards", len(catalog), "files", lambda: complete_shards(list_folder(folder), catalog))


def fetch_and_read(scratch: Path, rows: int, dimensions: int) -> int:
    published = scratch / "published"
    published.mkdir()
    vectors = np.random.default_rng(1).normal(size=(rows, dimensions)).astype(np.float32)
    np.save(published / "a.npy", (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16))
    file = Catalog.scan(published, shards=1).all_files[0]
    handler = functools.partial(_Quiet, directory=str(published))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        timed("fetch over loopback HTTP, checked and flushed", file.bytes / 1e6, "MB", lambda: fetch(file, [url], scratch / "cache"))
        server.shutdown()
    path = published / "a.npy"
    timed("read and inspect rows", file.bytes / 1e6, "MB", lambda: [block.off_norm for block in read_blocks(file, path)])
    return file.bytes


def rebuild(folder: Path, rows: int, dimensions: int) -> None:
    """The kind of LAION's own index at d=768: OPQ to 768, IVF, PQ128 (here untrained rotation and codebooks of random rows: speed only)."""
    folder.mkdir()
    rng = np.random.default_rng(2)
    vectors = rng.normal(size=(rows, dimensions)).astype(np.float32)
    quantizer = faiss.IndexFlatIP(dimensions)
    ivf = faiss.IndexIVFPQ(quantizer, dimensions, 1024, dimensions // 6, 8, faiss.METRIC_INNER_PRODUCT)
    ivf.cp.niter = ivf.pq.cp.niter = 1
    ivf.train(vectors[:20_000])
    rotation = faiss.RandomRotationMatrix(dimensions, dimensions)
    rotation.init(1)
    index = faiss.IndexPreTransform(rotation, ivf)
    index.is_trained = True
    index.add_with_ids(vectors, np.arange(rows, dtype=np.int64))
    faiss.write_index(index, str(folder / "knn.index0"))
    timed(f"rebuild rows from IVF,PQ{dimensions // 6}", rows / 2, "rows", lambda: reconstruct_rows([folder / "knn.index0"], 0, rows // 2))


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None: ...


if __name__ == "__main__":
    main()
