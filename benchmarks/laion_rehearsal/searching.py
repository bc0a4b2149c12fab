"""Searches of the result, in processes of their own: latencies cold and warm, reads and bytes a query, and a watch during a retraining.

    python -m laion_rehearsal.searching measure ROOT QUERIES.npy PACKED(0 or 1)
    python -m laion_rehearsal.searching during ROOT QUERIES.npy OUT.json STOP_FILE MOST

Cold: every file of the build is put out of the page cache (posix_fadvise), the index opened, one query timed; so its first pages come
from the disk. Warm: the same queries again and again, one client.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from laion_rehearsal.geometry import Float32
from laion_rehearsal.watching import size_of
from paired_index_assets.errors import PairedIndexError
from paired_index_assets.files.storage import write_json
from paired_index_assets.layout import BuildRoot
from paired_index_assets.search.sharded import ShardedIndex
from paired_index_assets.shards.generations import served_generation
from paired_index_assets.trained.artifact import TrainedIndex

K, COLD, WARM, BATCH = 10, 40, 1_000, 1_000
REOPEN_SECONDS = 1.0


def measure(root: Path, queries: Float32, packed: bool) -> dict[str, Any]:
    """Milliseconds, queries a second, reads and bytes a query, and MB of this process."""
    with ShardedIndex.open(root, packed=packed) as index:  # compiles what is not compiled yet
        index.search(queries[:BATCH], K)
        files, shape = index.files, {"shards": len(index.shards), "nlist": index.nlist, "nprobe": index.nprobe, "rows": index.ntotal}
        index.search(queries[:1], K)
    cold, opened, read, faults = [], [], [], []
    for query in queries[:COLD]:
        _forget(files)
        began = time.perf_counter()
        with ShardedIndex.open(root, packed=packed) as index:
            opened.append(time.perf_counter() - began)
            before, faulted, began = _read_bytes(), _faults(), time.perf_counter()
            index.search(query, K)
            cold.append(time.perf_counter() - began)
            read.append(_read_bytes() - before)
            faults.append(_faults() - faulted)
        del index
    with ShardedIndex.open(root, packed=packed) as index:
        pieces, scanned = _asked(root, files, queries[:200], index.nprobe)
        for query in queries[:WARM]:  # once before: what a query reads is in memory when it is timed
            index.search(query, K)
        warm = []
        for number in range(WARM):
            began = time.perf_counter()
            index.search(queries[number % len(queries)], K)
            warm.append(time.perf_counter() - began)
        batch = min(_seconds(index, queries[:BATCH]) for _ in range(3))
        memory = {name: _status(name) / 1e3 for name in ("RssAnon", "RssFile")}
    return shape | {
        "packed": index.packed == "in use",
        "open_ms": 1e3 * statistics.median(opened),
        "cold_p50_ms": 1e3 * statistics.median(cold),
        "cold_p99_ms": 1e3 * sorted(cold)[int(0.99 * (len(cold) - 1))],
        "warm_p50_ms": 1e3 * statistics.median(warm),
        "warm_p99_ms": 1e3 * sorted(warm)[int(0.99 * (len(warm) - 1))],
        "batch_per_s": min(BATCH, len(queries)) / batch,
        "lists_read": pieces,
        "kb_asked": scanned / 1e3,
        "kb_from_disk_cold": statistics.median(read) / 1e3,
        "reads_from_disk_cold": statistics.median(faults),
        "own_mb": memory["RssAnon"],
        "mapped_mb": memory["RssFile"],
    }


def during(root: Path, queries: Float32, stop: Path, most: int) -> dict[str, Any]:
    """One query after another until `stop` is there, at most `most`, opening the build anew every second as servers do after a rebuild.

    What was served is noted at every opening: (fingerprint, shards, rows). A whole generation must never be followed by less.
    """
    took: list[float] = []
    seen: list[list[Any]] = []
    errors: list[str] = []
    number = 0
    while not stop.exists() and number < most:
        try:
            with ShardedIndex.open(root, partial=True) as index:
                seen.append([index.fingerprint, len(index.shards), index.ntotal, index.packed])
                end = time.monotonic() + REOPEN_SECONDS
                while time.monotonic() < end and number < most:
                    began = time.perf_counter()
                    _, ids = index.search(queries[number % len(queries)], K)
                    took.append(time.perf_counter() - began)
                    number += 1
                    if (ids < 0).any():
                        errors.append(f"query {number}: {int((ids < 0).sum())} of {K} results are missing")
                    time.sleep(0.05)  # twenty a second: what is measured is the build, not the searcher
        except PairedIndexError as error:
            errors.append(str(error))
            time.sleep(REOPEN_SECONDS)
    return {"took": took, "seen": seen, "errors": errors}


def _asked(root: Path, files: list[Path], queries: Float32, nprobe: int) -> tuple[float, float]:
    """Pieces of lists that a query reads, and their bytes, on average: of the lists it probes, in the files as stock faiss sees them."""
    generation = served_generation(BuildRoot.at(root))
    if generation is None:
        raise SystemExit(f"{root}: no generation is served")
    probed = TrainedIndex.load(generation.trained).probe(queries, nprobe)[1]
    pieces = scanned = 0.0
    for file in files:
        index = faiss.read_index(str(file), faiss.IO_FLAG_MMAP_IFC | faiss.IO_FLAG_READ_ONLY)  # named: it owns what is extracted
        ivf = faiss.extract_index_ivf(index)
        sizes = np.asarray([ivf.invlists.list_size(number) for number in range(ivf.nlist)] + [0])  # list -1 is none
        pieces += float((sizes[probed] > 0).sum(1).mean())
        scanned += float(sizes[probed].sum(1).mean()) * (ivf.code_size + 8)
    return pieces, scanned


def _seconds(index: ShardedIndex, queries: Float32) -> float:
    began = time.perf_counter()
    index.search(queries, K)
    return time.perf_counter() - began


def _forget(files: list[Path]) -> None:
    for file in files:
        with file.open("rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _read_bytes() -> int:
    """Bytes that this process had fetched from a disk."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("read_bytes")).split()[1])


def _faults() -> int:
    """Page faults that waited for a disk."""
    return int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[9])


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1])


def main(arguments: list[str]) -> None:
    kind, root, queries = arguments[0], Path(arguments[1]), np.load(arguments[2], allow_pickle=False).astype(np.float32)
    if kind == "measure":
        print(json.dumps(measure(root, queries, arguments[3] == "1") | {"mb_on_disk": size_of(root) / 1e6}))
    else:
        write_json(Path(arguments[3]), during(root, queries, Path(arguments[4]), int(arguments[5])))


if __name__ == "__main__":
    main(sys.argv[1:])
