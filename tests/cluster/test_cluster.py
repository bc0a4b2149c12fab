"""Many machines build what one builds: the same bytes, each shard once, also when a node dies or two build the same shard."""

import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import dagster as dg
import pytest

from paired_index_assets.assets.partitions import shard_key
from paired_index_assets.files.storage import digest_of

pytestmark = pytest.mark.cluster
PATIENCE_SECONDS = 300  # each wait ends as soon as what it waits for is there
AT_ONCE = Path(__file__).parent / "shard_at_once.py"


def test_shards_built_on_two_nodes_have_the_bytes_that_one_process_makes(cluster, alone):
    from cluster_demo import digests, launch_backfill, wait_for

    wanted = [0, 1, 3, 4, 5]  # more than a worker can take while another is free; the next test asks for shard 2
    built = wait_for(cluster, launch_backfill(cluster, [shard_key(n) for n in wanted]), PATIENCE_SECONDS)
    assert [shard.partition for shard in built] == [shard_key(n) for n in wanted]
    assert {shard.worker for shard in built} == set(cluster.workers)
    assert digests(cluster) == {n: alone[n] for n in wanted}


def test_two_runs_of_one_shard_on_two_nodes_at_once_leave_it_whole(cluster, alone, tmp_path):
    from cluster_demo import digests
    from ray.job_submission import JobStatus, JobSubmissionClient

    ray = JobSubmissionClient(cluster.environment["RAY_DASHBOARD"])
    command = f"{sys.executable} {AT_ONCE} 2 {tmp_path} {len(cluster.workers)}"
    jobs = [ray.submit_job(entrypoint=command, entrypoint_resources={worker: 1}) for worker in cluster.workers]
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not all(ray.get_job_status(job).is_terminal() for job in jobs):
        assert time.monotonic() < deadline, [ray.get_job_logs(job) for job in jobs]
        time.sleep(1)
    assert [ray.get_job_status(job) for job in jobs] == [JobStatus.SUCCEEDED] * 2, [ray.get_job_logs(job) for job in jobs]
    assert digests(cluster)[2] == alone[2]


def test_a_backfill_ends_well_while_the_object_store_has_trouble(cluster, alone, trouble):
    from cluster_demo import digests, launch_backfill, remove_shards, wait_for

    remove_shards(cluster)
    wanted = [0, 1, 2]
    trouble.touch()
    try:
        built = wait_for(cluster, launch_backfill(cluster, [shard_key(n) for n in wanted]), PATIENCE_SECONDS)
    finally:
        had = trouble.read_text()
        trouble.unlink()
    assert all(fault in had for fault in ("Status(code=503)", "Status(code=500)", "Truncate", "Slow")), had
    assert Counter(shard.partition for shard in built) == {shard_key(n): 1 for n in wanted}
    assert digests(cluster) == {n: alone[n] for n in wanted}


def test_embedding_and_pairing_shared_out_to_nodes_leave_the_files_of_one_run(cluster, alone):
    from cluster_demo import BIN, build_root, launch_backfill, wait_for

    root, shares = build_root(cluster), [f"part_{number:02d}" for number in range(int(cluster.environment["PAIRED_INDEX_PARALLEL_RUNS"]))]
    before = made_in_parts(root)
    for path in before:
        path.unlink()
    workers = set()
    for asset in ("embedding_parts", "pair_blocks"):
        built = wait_for(cluster, launch_backfill(cluster, shares, asset), PATIENCE_SECONDS)
        assert [run.partition for run in built] == shares
        workers |= {run.worker for run in built}
        if asset == "embedding_parts":
            sets = ["--select", "image_embeddings,caption_embeddings", "-m", "dagster_project.definitions"]
            subprocess.run([BIN / "dagster", "asset", "materialize", *sets], env=cluster.environment, check=True, capture_output=True)
    assert workers == set(cluster.workers)
    assert made_in_parts(root) == before


def made_in_parts(root):
    """Every file that the two assets write, and its sha256."""
    folders = [root.embeddings / name for name in ("img_emb", "metadata", "text_emb", "text_metadata")]
    return {path: digest_of(path) for path in [*(path for folder in folders for path in folder.iterdir()), *root.pairs.glob("pairs-*")]}


def test_the_shards_of_a_node_that_dies_are_built_by_the_other_and_the_backfill_ends_well(cluster, alone):
    from cluster_demo import digests, launch_backfill, wait_for, worker_of

    wanted = [3, 4, 5]
    backfill = launch_backfill(cluster, [shard_key(n) for n in wanted])
    doomed = "worker-1"
    with dg.DagsterInstance.get() as instance:
        of_it = {"dagster/backfill": backfill}
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not (cut := [r for r in started(instance, of_it) if worker_of(cluster, r) == doomed]):
            assert time.monotonic() < deadline, cluster.log("daemon")[-3000:]
            time.sleep(0.2)
        cluster.kill(doomed)
        built = wait_for(cluster, backfill, PATIENCE_SECONDS)
        assert instance.get_run_by_id(cut[0]).status == dg.DagsterRunStatus.FAILURE
        assert not instance.event_log_storage.get_concurrency_info("shards").active_run_ids
    assert Counter(shard.partition for shard in built) == {shard_key(n): 1 for n in wanted}
    assert digests(cluster) == alone


def started(instance, tags):
    return [run.run_id for run in instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED], tags=tags))]
