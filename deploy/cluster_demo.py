"""The shipped sample's shards built by a cluster on this machine, and held against the same build made by one process.

    python deploy/cluster_demo.py [--shards 58] [--workers 2]

1. the cluster: Postgres, an S3 server, a Ray head and workers, each with an address of its own (local_cluster.py);
2. one process: `paired-index build --sample` into the bucket; its shards' checksums are kept, the shards deleted, the rest is what the
   cluster starts from;
3. one backfill of all shards through GraphQL, as from the UI: Ray gives each worker a run at a time;
4. who built what, and whether every byte is the same. Everything that was started is stopped, also by Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

from local_cluster import BIN, LocalCluster

from paired_index_assets.assets.partitions import shard_key
from paired_index_assets.layout import BuildRoot
from paired_index_assets.settings import load_settings
from paired_index_assets.shards.generations import served_generation
from paired_index_assets.shards.record import recorded_shards, verify_shard

CODEC = "QT_4bit"  # the default, which the sample is built with
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
    partitions = [shard_key(number) for number in range(chosen.shards)]
    say(f"the cluster: Postgres, S3, Ray head, {chosen.workers} workers")
    with LocalCluster(chosen.workers) as cluster:
        say("  " + ", ".join(f"{name} at {address}" for address, name in cluster.nodes().items()))
        say(f"one process: the sample in {chosen.shards} shards, in {cluster.root}")
        alone = build_alone(cluster, "--sample", "--shards", chosen.shards)
        remove_shards(cluster)
        cluster.start_dagster()
        say(f"one backfill of {chosen.shards} shards")
        built = wait_for(cluster, launch_backfill(cluster, partitions))
        together = digests(cluster)
    show(built)
    if [shard.partition for shard in built] != partitions:
        sys.exit(f"expected each of {chosen.shards} shards once, found {len(built)} runs: {[shard.partition for shard in built]}")
    if differ := [shard for shard, digest in alone.items() if together.get(shard) != digest]:
        sys.exit(f"not the bytes that one process makes: shards {differ}")
    say(f"{len(together)} of {chosen.shards} shards, each built once, each with the bytes that one process makes")


def build_alone(cluster: LocalCluster, *arguments: object) -> dict[int, str]:
    """`paired-index build` of everything in the cluster's bucket, in one process with records of its own; shard -> sha256."""
    apart = cluster.environment | {"DAGSTER_HOME": str(cluster.folder / "alone")}
    done = subprocess.run([BIN / "paired-index", "build", *map(str, arguments)], env=apart, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"paired-index build: {done.stderr[-2000:]}")
    return digests(cluster)


def remove_shards(cluster: LocalCluster) -> None:
    """Everything that building shards has made."""
    root = build_root(cluster)
    root.generations.fs.rm(root.generations.path, recursive=True)
    for file in (root.served, root.manifest):
        file.unlink(missing_ok=True)


def build_root(cluster: LocalCluster) -> BuildRoot:
    os.environ.update(cluster.environment)  # this process reads the bucket, too
    return load_settings(root=cluster.root).build_root


def digests(cluster: LocalCluster) -> dict[int, str]:
    """Shard -> sha256, which every byte of the file was held against."""
    root = build_root(cluster)
    served = served_generation(root)
    if served is None:
        return {}
    return {number: verify_shard(served.shard(CODEC, number)).sha256 for number in sorted(recorded_shards(served))}


def launch_backfill(cluster: LocalCluster, partitions: list[str], asset: str = "shard_index") -> str:
    """Ask for these partitions as the UI does; the backfill's id."""
    asked = json.dumps({"asked": {"assetSelection": [{"path": [asset]}], "partitionNames": partitions}})
    command: list[str | Path] = [BIN / "dagster-graphql", "-w", cluster.workspace, "-t", LAUNCH, "-v", asked]
    done = subprocess.run(command, env=cluster.environment, check=True, capture_output=True, text=True)
    answer = json.loads(done.stdout[done.stdout.index("{") :])
    return str(answer["data"]["launchPartitionBackfill"]["backfillId"])


def wait_for(cluster: LocalCluster, backfill: str, patience_seconds: float = 3600) -> list[BuiltShard]:
    """The runs that succeeded, once the backfill has ended well; says each as it ends. Exits with the daemon's log where it ends otherwise."""
    import dagster as dg

    os.environ.update(cluster.environment)  # the instance is found by DAGSTER_HOME
    built: dict[str, BuiltShard] = {}
    deadline = time.monotonic() + patience_seconds
    mine = dg.RunsFilter(statuses=[dg.DagsterRunStatus.SUCCESS], tags={"dagster/backfill": backfill})
    with dg.DagsterInstance.get() as instance:
        while time.monotonic() < deadline:
            asked = instance.get_backfill(backfill)
            status = asked.status.value if asked else None
            for record in instance.get_run_records(mine):
                run, tags = record.dagster_run.run_id, record.dagster_run.tags
                if run not in built:
                    built[run] = BuiltShard(
                        tags["dagster/partition"], worker_of(cluster, run), (record.end_time or 0) - (record.start_time or 0)
                    )
                    say(f"  {len(built):2d}  {built[run].partition}  {built[run].worker}  {built[run].seconds:.1f} s")
            if status == "COMPLETED_SUCCESS":
                return sorted(built.values(), key=lambda shard: shard.partition)
            if status == "COMPLETED_FAILED":
                break
            time.sleep(LOOK_SECONDS)
    raise SystemExit(f"the backfill is {status} with {len(built)} shards built; the daemon's last words:\n{cluster.log('daemon')[-3000:]}")


def worker_of(cluster: LocalCluster, run: str) -> str:
    """The worker on which Ray ran it."""
    from ray.job_submission import JobSubmissionClient

    job = JobSubmissionClient(cluster.environment["RAY_DASHBOARD"]).get_job_info(f"dagster-run-{run}")
    address = (job.driver_agent_http_address or "").removeprefix("http://").rpartition(":")[0]
    return next((name for name, number in cluster.workers.items() if cluster.network.address(number) == address), address or "unknown")


def show(built: list[BuiltShard]) -> None:
    say("\nworker     shards   seconds of runs")
    seconds: dict[str, float] = defaultdict(float)
    for shard in built:
        seconds[shard.worker] += shard.seconds
    for worker, count in sorted(Counter(shard.worker for shard in built).items()):
        say(f"{worker:10s} {count:6d}   {seconds[worker]:.0f}")


def say(words: str) -> None:
    print(words, flush=True)


if __name__ == "__main__":
    main()
