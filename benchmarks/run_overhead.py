"""What Dagster costs for one shard, around the work: `python benchmarks/run_overhead.py [--shards 58]`

The sample is built, then its shards are asked for again: nothing has changed, so a run reads records, says so, and ends. What is left is
the run itself: a process, loading the definitions, and events. First in processes of their own, then as one backfill through the web
server and daemon of `paired-index ui`, as a person clicks it: there the processor's seconds of all its processes are counted, and what they
take while nothing happens is taken off. With SQLite. On a Ray node it is the same process, after Ray's own start of a job (`make
cluster-demo` shows the sum).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TICKS = os.sysconf("SC_CLK_TCK")
IDLE_SECONDS = 20.0
COMMAND = [sys.executable, "-m", "paired_index_assets.cli.main"]
MATERIALIZE = [sys.executable, "-m", "dagster", "asset", "materialize", "-m", "dagster_project.definitions", "--select", "shard_index"]
LAUNCH = """mutation($asked: LaunchBackfillParams!) {
  launchPartitionBackfill(backfillParams: $asked) { ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message } }
}"""
STATUS = "query($b: String!) { partitionBackfillOrError(backfillId: $b) { ... on PartitionBackfill { status } } }"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--shards", type=int, default=8)
    options.add_argument("--runs", type=int, default=4, help="of processes of their own")
    options.add_argument("--backfill", type=int, default=16, help="how many of the shards are backfilled")
    options.add_argument("--root", type=Path, help="a finished build of so many shards, instead of one of the sample")
    options.add_argument("--quick", action="store_true", help="one run, and a backfill of two shards")
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = (chosen.root or Path(scratch) / "build").absolute()
        if chosen.root is None:
            build = [*COMMAND, "build", "--sample", "--root", str(root), "--shards", str(chosen.shards)]
            subprocess.run(build, check=True, stdout=subprocess.DEVNULL)
        os.environ |= {"PAIRED_INDEX_ROOT": str(root), "PAIRED_INDEX_SHARDS": str(chosen.shards), "DAGSTER_HOME": str(root / "dagster")}
        load = [sys.executable, "-c", "import dagster_project.definitions as project; project.defs()"]
        repeats = 1 if chosen.quick else chosen.runs
        rows = [("load the definitions", *cost_of(load)) for _ in range(repeats)]
        rows += [
            ("a run of an unchanged shard", *cost_of([*MATERIALIZE, "--partition", f"shard_{number % chosen.shards:02d}"]))
            for number in range(repeats)
        ]
        print("| what | times | CPU s, median | CPU s, most | s, median | peak MB |\n|---|---|---|---|---|---|")
        for what in dict.fromkeys(name for name, *_ in rows):
            cpu, wall, peak = (list(column) for column in zip(*(costs for name, *costs in rows if name == what), strict=True))
            of_all = f"{statistics.median(cpu):.1f} | {max(cpu):.1f} | {statistics.median(wall):.1f} | {max(peak):,.0f}"
            print(f"| {what} | {len(cpu)} | {of_all} |", flush=True)
        shards = min(2 if chosen.quick else chosen.backfill, chosen.shards)
        cpu_seconds, seconds, idle = cost_of_a_backfill(root, shards)
        print(
            f"\nA backfill of {shards} unchanged shards through the daemon: {cpu_seconds:.0f} CPU s in {seconds:.0f} s, "
            f"{cpu_seconds / shards:.1f} a shard; {cpu_seconds - idle * seconds:.0f} and {(cpu_seconds - idle * seconds) / shards:.1f} without "
            f"what the UI takes while nothing happens, {idle:.2f} of a core"
        )


def cost_of(command: list[str]) -> tuple[float, float, float]:
    """Of a command: the processor's seconds, its children's among them; seconds; the peak resident MB of the largest of its processes."""
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{command}: exit status {status}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return cpu, time.perf_counter() - began, used.ru_maxrss / 1e3


def cost_of_a_backfill(root: Path, shards: int) -> tuple[float, float, float]:
    """The processor's seconds, seconds, and the share of a core that the same processes take while nothing happens."""
    with running_ui(root) as (session, ask):
        time.sleep(IDLE_SECONDS)  # the first ticks
        before = cpu_seconds_of(session)
        time.sleep(IDLE_SECONDS)
        idle = (cpu_seconds_of(session) - before) / IDLE_SECONDS
        began, before = time.perf_counter(), cpu_seconds_of(session)
        partitions = [f"shard_{shard:02d}" for shard in range(shards)]
        asked = {"assetSelection": [{"path": ["shard_index"]}], "partitionNames": partitions}
        backfill = ask(LAUNCH, asked=asked)["launchPartitionBackfill"]["backfillId"]
        while (status := ask(STATUS, b=backfill)["partitionBackfillOrError"]["status"]) != "COMPLETED_SUCCESS":
            if status in ("FAILED", "COMPLETED_FAILED", "CANCELED"):
                raise SystemExit(f"the backfill ended as {status}")
            time.sleep(2)
        return cpu_seconds_of(session) - before, time.perf_counter() - began, idle


@contextmanager
def running_ui(root: Path) -> Iterator[tuple[int, Any]]:
    """`paired-index ui` on a build: its session, and what asks its web server."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [*COMMAND, "ui", "--root", str(root), "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)

    def ask(query: str, **variables: Any) -> Any:
        body = json.dumps({"query": query, "variables": variables}).encode()
        asked = urllib.request.Request(f"http://127.0.0.1:{port}/graphql", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(asked, timeout=60) as answer:
            return json.load(answer)["data"]

    try:
        for _ in range(180):
            try:
                ask("{ version }")
                break
            except OSError:
                time.sleep(1)
        yield process.pid, ask
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def cpu_seconds_of(session: int) -> float:
    """The processor's seconds of the processes of a session and of their children that have ended."""
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session:
            ticks += sum(map(int, fields[11:15]))
    return ticks / TICKS


if __name__ == "__main__":
    main()
