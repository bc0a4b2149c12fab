"""What Dagster costs for one shard, around the work: `python benchmarks/run_overhead.py [--shards 4]`

The sample is built, then its shards are asked for again: nothing has changed, so a run reads records, says so, and ends. What is left is
the run itself: a process for it, one for each of its two steps (the shard, its check), loading the definitions in each, and events. One
run after another, with SQLite. On a Ray node it is the same process, after Ray's own start of a job (`make cluster-demo` shows the sum).
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BIN = Path(sys.executable).parent


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--shards", type=int, default=4)
    options.add_argument("--runs", type=int, default=4)
    options.add_argument("--quick", action="store_true", help="one run")
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch) / "build"
        command: list[str | Path] = [BIN / "paired-index", "build", "--sample", "--root", root, "--shards", str(chosen.shards)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        os.environ |= {"PAIRED_INDEX_ROOT": str(root), "PAIRED_INDEX_SHARDS": str(chosen.shards), "DAGSTER_HOME": str(root / "dagster")}
        load: list[str | Path] = [sys.executable, "-c", "import dagster_project.definitions as project; project.defs()"]
        materialize: list[str | Path] = [
            BIN / "dagster",
            "asset",
            "materialize",
            "-m",
            "dagster_project.definitions",
            "--select",
            "shard_index",
        ]
        repeats = 1 if chosen.quick else chosen.runs
        rows = [("load the definitions", cost_of(load)) for _ in range(repeats)]
        rows += [
            ("a run of an unchanged shard", cost_of([*materialize, "--partition", f"shard_{number % chosen.shards:02d}"]))
            for number in range(repeats)
        ]
        print("| what | runs | seconds, median | seconds, most | peak MB of its largest process |\n|---|---|---|---|---|")
        for what in dict.fromkeys(name for name, _ in rows):
            seconds = [cost[0] for name, cost in rows if name == what]
            peak = max(cost[1] for name, cost in rows if name == what)
            print(f"| {what} | {len(seconds)} | {statistics.median(seconds):.1f} | {max(seconds):.1f} | {peak:,.0f} |")


def cost_of(command: list[str | Path]) -> tuple[float, float]:
    """Seconds of a command, and the peak resident MB of the largest of its processes."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{command}: exit status {status}")
    return time.perf_counter() - began, used.ru_maxrss / 1e3


if __name__ == "__main__":
    main()
