"""What a search costs beside its recall, on the build that `peers_search.py` makes: `python benchmarks/search_costs.py --data FOLDER` and

--filters     recall under conditions that 50, 10, 1 and .1 % of the rows meet
--reads       pieces and bytes of the files that a query reads, packed and not, by the tables of lists and of a cold disk
--memory      what opening adds
--overhead    what of a single query is Python's
--stream N    `search --queries` with N rows: rows a second, memory
"""

from __future__ import annotations

import argparse
import ctypes
import mmap
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from peers_search import K, prepare


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--work", type=Path, default=Path("data/peers"))
    options.add_argument("--lists", type=int, default=4096)
    measures: dict[str, Callable[[Path], None]] = {"filters": filters, "reads": reads, "memory": memory, "overhead": overhead}
    for name in measures:
        options.add_argument(f"--{name}", action="store_true")
    options.add_argument("--stream", type=int, nargs="*", default=[])
    given = options.parse_args()
    work = given.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    prepare(given.data, work, given.lists)
    for name, measure in measures.items():
        if getattr(given, name):
            measure(work)
    if given.stream:
        stream(work, given.stream)


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
    """What one query reads of the files: pieces that are not next to each other and bytes, by the tables of lists; and from the disk, with
    nothing of the files in memory, page by page and with the system's reading ahead."""
    import numpy as np

    from paired_index_assets.search.blocks import PLANES, weights_stride
    from paired_index_assets.search.kernel import prepare
    from paired_index_assets.search.sharded import ShardedIndex

    queries = np.load(work / "queries.npy")[:1000]
    print("| layout | nprobe | pieces a query | KiB a query | of the disk: KiB | reads | ms | read ahead: KiB | reads | ms |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for packed in (True, False):
        with ShardedIndex.open(work / "build", packed=packed) as index:
            plan = index._scan._plan
            record = plan.record[0]
            count = int(record["nlist"] * record["pieces"])
            sizes = np.frombuffer(ctypes.string_at(int(record["sizes"]), 8 * count), np.int64).reshape(-1, int(record["pieces"]))
            for nprobe in (8, 32):
                n, width = len(queries), int(record["width"])
                lists = np.empty((n, nprobe), np.int64)
                weights = np.zeros((n, PLANES, weights_stride(width)), np.int8)
                prepare(
                    plan.record,
                    queries,
                    nprobe,
                    np.empty((n, width), np.float32),
                    lists,
                    weights,
                    np.empty((n, width)),
                    np.empty(n, np.int64),
                )
                looked = sizes[lists]
                pieces, rows = (looked > 0).sum(axis=(1, 2)).mean(), looked.sum(axis=(1, 2)).mean()
                cold = [f"{kib:,.0f} | {faults:,.0f} | {ms:.1f}" for kib, faults, ms in from_disk(index, queries[:50], nprobe)]
                name = "packed" if packed else "58 shards"
                each = rows * (int(record["code_size"]) + 8) / 1024
                print(f"| {name} | {nprobe} | {pieces:.0f} | {each:.0f} | {' | '.join(cold)} |", flush=True)


def from_disk(index: Any, queries: Any, nprobe: int) -> list[tuple[float, float, float]]:
    """(KiB, major faults, ms) a query whose pages are neither mapped nor in the page cache: read page by page, and with reading ahead."""
    found = []
    index.search(queries[0], K, nprobe=nprobe)  # compiled, if it was not
    for advice in (mmap.MADV_RANDOM, mmap.MADV_NORMAL):
        kib = faults = seconds = 0.0
        for row in range(len(queries)):
            for lists in index._lists:
                mapped = lists.content.base.obj
                mapped.madvise(mmap.MADV_DONTNEED)
                mapped.madvise(advice)
                with lists.path.open("rb") as stream:
                    os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            before, began = from_storage(), time.perf_counter()
            index.search(queries[row], K, nprobe=nprobe)
            seconds += time.perf_counter() - began
            kib, faults = kib + (from_storage()[0] - before[0]) / 1024, faults + from_storage()[1] - before[1]
        found.append((kib / len(queries), faults / len(queries), 1e3 * seconds / len(queries)))
    return found


def from_storage() -> tuple[int, int]:
    """Bytes this process has had read from disks, and its faults that waited for one."""
    facts = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(facts["read_bytes"]), resource.getrusage(resource.RUSAGE_SELF).ru_majflt


def memory(work: Path) -> None:
    """Memory of its own that opening adds, and the first searches after it."""
    import numpy as np

    from paired_index_assets.search.sharded import ShardedIndex

    queries = np.load(work / "queries.npy")
    with ShardedIndex.open(work / "build") as index:
        index.search(queries[:100], K)  # what libraries take for the first file of all
    print("| layout | opening adds, MiB | and 1,000 queries in a batch |\n|---|---|---|")
    for packed in (True, False):
        before = own_memory("self")
        with ShardedIndex.open(work / "build", packed=packed) as index:
            opened = own_memory("self")
            index.search(queries[:1000], K)
            print(
                f"| {'packed' if packed else '58 shards'} | {(opened - before) / 1024:.1f} | {(own_memory('self') - opened) / 1024:.1f} |"
            )


def overhead(work: Path) -> None:
    """A single query through `ShardedIndex.search`, and the compiled function alone, in turns."""
    import numpy as np

    from paired_index_assets.search.ahead import now
    from paired_index_assets.search.kernel import search_each
    from paired_index_assets.search.scanning import ALL, NO_IDS
    from paired_index_assets.search.sharded import ShardedIndex

    moment, queries, scores, ids = now(), np.load(work / "queries.npy"), np.empty((1, K), np.float32), np.empty((1, K), np.int64)
    print("| layout | nprobe | single query, us | of which Python |\n|---|---|---|---|")
    for packed in (True, False):
        with ShardedIndex.open(work / "build", packed=packed) as index:
            plan = index._scan.plan.record
            for nprobe in (8, 32):
                whole, compiled = [], []
                for row in range(2000):
                    one = queries[row : row + 1]
                    search_each(plan, one, K, nprobe, NO_IDS, ALL, moment, scores, ids)  # so that both find what they read in the caches
                    began = time.perf_counter()
                    index.search(one, K, nprobe=nprobe)
                    between = time.perf_counter()
                    search_each(plan, one, K, nprobe, NO_IDS, ALL, moment, scores, ids)
                    whole.append(between - began)
                    compiled.append(time.perf_counter() - between)
                both, alone = 1e6 * statistics.median(whole), 1e6 * statistics.median(compiled)
                print(f"| {'packed' if packed else '58 shards'} | {nprobe} | {both:.1f} | {both - alone:.1f} |", flush=True)


def own_memory(process: str) -> int:
    """KiB that are no file's."""
    lines = dict(line.split(":") for line in Path(f"/proc/{process}/status").read_text().splitlines())
    return int(lines.get("RssAnon", "0").split()[0])


def stream(work: Path, counts: list[int]) -> None:
    """The command as users run it, on queries that are captions moved a little."""
    import numpy as np

    captions = np.load(work / "queries.npy")
    command = [sys.executable, "-m", "paired_index_assets.cli.main", "search", "--root", str(work / "build"), "--nprobe", "24"]
    print("| queries | to | s | queries a second | CPU us a query | most memory of its own, MiB |\n|---|---|---|---|---|---|")
    for count in counts:
        draw, asked = np.random.default_rng(count), work / "asked.npy"
        rows = np.lib.format.open_memmap(asked, "w+", np.float16, (count, captions.shape[1]))
        for first in range(0, count, 1 << 16):
            some = captions[draw.integers(0, len(captions), min(1 << 16, count - first))]
            rows[first : first + len(some)] = some + 0.02 * draw.standard_normal(some.shape, np.float32)
        del rows
        for suffix in (".parquet", ".npz"):
            out, most, began = work / f"answers{suffix}", 0, time.perf_counter()
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            with subprocess.Popen([*command, "--queries", str(asked), "--out", str(out)], stdout=subprocess.PIPE, text=True) as running:
                while running.poll() is None:
                    most = max(most, own_memory(str(running.pid)))
                    time.sleep(0.05)
                said = running.stdout.read().strip().splitlines() if running.stdout else []
            seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
            cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            print(
                f"| {count:,} | {suffix} of {out.stat().st_size / 1e6:.0f} MB | {seconds:.1f} | {count / seconds:,.0f} | {1e6 * cpu / count:.0f} "
                f"| {most / 1024:.0f} |",
                flush=True,
            )
            print(f"  said: {' / '.join(said)}", file=sys.stderr)
        asked.unlink()


if __name__ == "__main__":
    main()
