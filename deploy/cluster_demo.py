"""The shipped sample's shards built by a cluster on this machine, and held against the same build made without one.

    python deploy/cluster_demo.py [--shards 58] [--workers 2]

1. one machine: `paired-index build --sample`, which also makes the trained index;
2. the cluster: Postgres, a Ray head, workers, Dagster's code server and daemon (local_cluster.py) on a copy of that build without shards;
3. one backfill of all shards through GraphQL, as from the UI: Ray gives each worker a run at a time;
4. who built what, and whether every byte is as on one machine. Everything that was started is stopped, also by Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from local_cluster import BIN, LocalCluster

from paired_index_assets.assets.partitions import shard_key

NOT_COPIED = ("dagster", "shards", "segments", "report", "manifest.parquet")  # what the cluster makes itself
LOOK_SECONDS = 2.0
LAUNCH = """mutation($asked: LaunchBackfillParams!) {
  launchPartitionBackfill(backfillParams: $asked) { ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message } }
}"""


@dataclass(frozen=True)
class BuiltShard:
    """One finished run of one shard."""

    partition: str
    worker: str
    seconds: float


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--shards", type=int, default=58)
    options.add_argument("--workers", type=int, default=2)
    chosen = options.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is stopped
    with tempfile.TemporaryDirectory(prefix="paired-index-demo-") as scratch:
        one, many = Path(scratch) / "one-machine", Path(scratch) / "cluster"
        say(f"one machine: the sample in {chosen.shards} shards")
        build_on_one_machine(one, chosen.shards)
        copy_without_shards(one, many)
        say(f"the cluster: Postgres, Ray head, {chosen.workers} workers")
        with LocalCluster(str(many), chosen.workers) as cluster:
            say("  " + ", ".join(f"{name} at {address}" for address, name in cluster.nodes().items()))
            cluster.start_dagster()
            say(f"one backfill of {chosen.shards} shards")
            backfill = launch_backfill(cluster, [shard_key(number) for number in range(chosen.shards)])
            built = wait_for(cluster, backfill)
        show(built)
        if differ := [name for name, digest in digests(one).items() if digests(many).get(name) != digest]:
            sys.exit(f"not as on one machine: {', '.join(differ)}")
        say(f"{len(digests(many))} of {chosen.shards} shards, each built once, each with the bytes of the one-machine build")


def build_on_one_machine(root: Path, shards: int) -> None:
    command = [BIN / "paired-index", "build", "--sample", "--root", root, "--shards", str(shards)]
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PAIRED_INDEX_", "DAGSTER_"))}
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=clean)


def copy_without_shards(built: Path, root: Path) -> None:
    shutil.copytree(built, root, ignore=shutil.ignore_patterns(*NOT_COPIED))


def launch_backfill(cluster: LocalCluster, partitions: list[str]) -> str:
    """Ask for these shards as the UI does; the backfill's id."""
    asked = json.dumps({"asked": {"assetSelection": [{"path": ["shard_index"]}], "partitionNames": partitions}})
    command = [BIN / "dagster-graphql", "-w", cluster.workspace, "-t", LAUNCH, "-v", asked]
    done = subprocess.run(command, env=cluster.environment, check=True, capture_output=True, text=True)
    answer = json.loads(done.stdout[done.stdout.index("{") :])
    return str(answer["data"]["launchPartitionBackfill"]["backfillId"])


def wait_for(cluster: LocalCluster, backfill: str, patience_seconds: float = 3600) -> list[BuiltShard]:
    """The runs that succeeded, once the backfill has ended well; says each as it ends. Exits with the daemon's log where it ends otherwise."""
    import dagster as dg
    from dagster._core.execution.backfill import BulkActionStatus

    os.environ.update(cluster.environment)  # the instance is found by DAGSTER_HOME, and its secrets by theirs
    built: dict[str, BuiltShard] = {}
    deadline = time.monotonic() + patience_seconds
    mine = dg.RunsFilter(statuses=[dg.DagsterRunStatus.SUCCESS], tags={"dagster/backfill": backfill})
    with dg.DagsterInstance.get() as instance:
        while time.monotonic() < deadline:
            asked = instance.get_backfill(backfill)
            status = asked.status if asked else None
            for record in instance.get_run_records(mine):
                run, tags = record.dagster_run.run_id, record.dagster_run.tags
                if run not in built:
                    built[run] = BuiltShard(
                        tags["dagster/partition"], worker_of(cluster, run), (record.end_time or 0) - (record.start_time or 0)
                    )
                    say(f"  {len(built):2d}  {built[run].partition}  {built[run].worker}  {built[run].seconds:.1f} s")
            if status == BulkActionStatus.COMPLETED_SUCCESS:
                return sorted(built.values(), key=lambda shard: shard.partition)
            if status == BulkActionStatus.COMPLETED_FAILED:
                break
            time.sleep(LOOK_SECONDS)
    raise SystemExit(f"the backfill is {status} with {len(built)} shards built; the daemon's last words:\n{cluster.log('daemon')[-3000:]}")


def worker_of(cluster: LocalCluster, run: str) -> str:
    """The worker on which Ray ran it."""
    from ray.job_submission import JobSubmissionClient

    job = JobSubmissionClient(cluster.environment["RAY_DASHBOARD"]).get_job_info(f"dagster-run-{run}")
    address = (job.driver_agent_http_address or "").removeprefix("http://").rpartition(":")[0]
    return next((name for name, number in cluster.workers.items() if cluster.network.address(number) == address), address or "unknown")


def digests(root: Path) -> Mapping[str, str]:
    """Shard file -> sha256 that its record gives; the record is written after the file was read back."""
    return {path.stem: json.loads(path.read_text())["sha256"] for path in sorted((root / "shards").glob("knn*.json"))}


def show(built: list[BuiltShard]) -> None:
    say("\nworker     shards   seconds of runs")
    seconds: Counter[str] = Counter()
    for shard in built:
        seconds[shard.worker] += shard.seconds
    for worker, count in sorted(Counter(shard.worker for shard in built).items()):
        say(f"{worker:10s} {count:6d}   {seconds[worker]:.0f}")
    again = [partition for partition, count in Counter(shard.partition for shard in built).items() if count > 1]
    if again:
        sys.exit(f"built more than once: {', '.join(again)}")


def say(words: str) -> None:
    print(words, flush=True)


if __name__ == "__main__":
    main()
