"""`paired-index build` killed while it holds a place in a pool: the same command goes on, and the instance knows what happened."""

import json
import os
import signal
import socket
import subprocess
import sys

import dagster as dg
import pytest

from paired_index_assets.settings import load_settings

KILLED_AT_TRAINING = """
import os, signal
from paired_index_assets.contest import contestants
contestants.make_and_judge = lambda *given, **named: os.kill(os.getpid(), signal.SIGKILL)
from paired_index_assets.cli.main import main
main()
"""


@pytest.fixture
def killed(small_pairs, small_build, tmp_path):
    root = tmp_path / "root"
    settings = load_settings(root=str(small_build))
    command = [
        "build",
        "--root",
        root,
        "--images",
        small_pairs,
        "--model",
        settings.model,
        "--shards",
        2,
        "--part-rows",
        750,
        "--nlist",
        16,
    ]
    command = [str(word) for word in [*command, "--validation-captions", 100, "--test-captions", 100]]
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PAIRED_INDEX_", "DAGSTER_"))}
    done = subprocess.run([sys.executable, "-c", KILLED_AT_TRAINING, *command], env=clean, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    return root, command


def test_a_killed_build_does_not_keep_the_next_one_waiting(killed, paired_index):
    root, command = killed
    with dg.DagsterInstance.from_config(str(root / "dagster")) as instance:
        (cut,) = instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.STARTED]))
        assert instance.event_log_storage.get_concurrency_info("accelerator").active_run_ids == {cut.run_id}
    finished = paired_index(*command)
    assert "Done." in finished.stdout
    with dg.DagsterInstance.from_config(str(root / "dagster")) as instance:
        assert instance.get_run_by_id(cut.run_id).status == dg.DagsterRunStatus.FAILURE
        statuses = [run.status for run in instance.get_runs()]
        assert statuses.count(dg.DagsterRunStatus.FAILURE) == 1
        assert statuses.count(dg.DagsterRunStatus.SUCCESS) == len(statuses) - 1
        assert not instance.event_log_storage.get_concurrency_info("accelerator").active_run_ids


def test_the_run_of_a_living_process_is_left_alone(tmp_path):
    from paired_index_assets.assets.lost_runs import PROCESS_TAG, end_lost_runs, this_process

    @dg.job
    def some_job():
        pass

    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        mine = instance.create_run_for_job(some_job, tags=this_process(), status=dg.DagsterRunStatus.STARTED)
        host, _, started = this_process()[PROCESS_TAG].split(" ")
        elsewhere = instance.create_run_for_job(some_job, tags={PROCESS_TAG: f"not-{host} 1 {started}"}, status=dg.DagsterRunStatus.STARTED)
        reused = instance.create_run_for_job(
            some_job, tags={PROCESS_TAG: f"{host} {os.getpid()} {started}0"}, status=dg.DagsterRunStatus.STARTED
        )
        assert end_lost_runs(instance) == [reused.run_id]
        assert instance.get_run_by_id(mine.run_id).status == dg.DagsterRunStatus.STARTED
        assert instance.get_run_by_id(elsewhere.run_id).status == dg.DagsterRunStatus.STARTED


def test_a_run_whose_code_server_was_killed_is_ended_by_the_sensor_and_one_whose_server_answers_is_not(tmp_path):
    from paired_index_assets.assets.lost_runs import SERVER_TAG, lost_runs_sensor

    @dg.job
    def some_job():
        pass

    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance, socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "alive"))
        server.listen()
        runs = {}
        for name in ("alive", "killed"):
            tags = {SERVER_TAG: json.dumps({"host": "localhost", "socket": str(tmp_path / name)})}
            runs[name] = instance.create_run_for_job(some_job, tags=tags, status=dg.DagsterRunStatus.STARTED).run_id
        assert runs["killed"] in lost_runs_sensor(dg.build_sensor_context(instance)).skip_message
        assert instance.get_run_by_id(runs["alive"]).status == dg.DagsterRunStatus.STARTED
        assert instance.get_run_by_id(runs["killed"]).status == dg.DagsterRunStatus.FAILURE
        assert "lives" in lost_runs_sensor(dg.build_sensor_context(instance)).skip_message


def test_the_place_in_its_pool_of_a_run_that_was_killed_is_given_back(tmp_path):
    """A shard's run is one process: killed, it has failed at once, and without this its place would keep every other shard from running."""
    from paired_index_assets.assets.lost_runs import free_left_places, lost_runs_sensor

    @dg.job
    def some_job():
        pass

    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        storage = instance.event_log_storage
        storage.set_concurrency_slots("shards", 1)
        killed, alive = (instance.create_run_for_job(some_job, status=dg.DagsterRunStatus.STARTED).run_id for _ in range(2))
        assert storage.claim_concurrency_slot("shards", killed, "shard_index").is_claimed
        assert free_left_places(instance) == []
        instance.report_run_failed(instance.get_run_by_id(killed), "Run worker process exited with code -9")
        assert not storage.claim_concurrency_slot("shards", alive, "shard_index").is_claimed
        assert killed in lost_runs_sensor(dg.build_sensor_context(instance)).skip_message
        assert storage.claim_concurrency_slot("shards", alive, "shard_index").is_claimed
        assert free_left_places(instance) == []


KILLED_AFTER_ITS_LAST_STEP = """
import os, signal, sys
import dagster as dg
from paired_index_assets.assets.lost_runs import this_process

@dg.success_hook
def killed(_):
    if {after!r} in ("one", _.op.name):
        os.kill(os.getpid(), signal.SIGKILL)

@dg.op
def one():
    pass

@dg.op(ins={{"after": dg.In(dg.Nothing)}})
def two():
    pass

@dg.job(hooks={{killed}})
def some_job():
    two(one())

with dg.DagsterInstance.local_temp(sys.argv[1]) as instance:
    some_job.execute_in_process(instance=instance, tags=this_process())
"""


@pytest.mark.parametrize(("after", "ends_as"), [("two", "SUCCESS"), ("one", "FAILURE")])
@pytest.mark.parametrize("reported", [False, True], ids=["nobody saw it", "reported as failed"])
def test_a_run_that_is_killed_after_its_last_step_is_not_left_red(after, ends_as, reported, tmp_path):
    from paired_index_assets.assets.lost_runs import end_lost_runs

    killed = subprocess.run([sys.executable, "-c", KILLED_AFTER_ITS_LAST_STEP.format(after=after), tmp_path], check=False)
    assert killed.returncode == -signal.SIGKILL
    with dg.DagsterInstance.local_temp(str(tmp_path)) as instance:
        (run,) = instance.get_runs()
        assert run.status == dg.DagsterRunStatus.STARTED
        if reported:
            instance.report_run_failed(run, "unexpectedly exited with code -9")
        end_lost_runs(instance)
        assert instance.get_run_by_id(run.run_id).status == dg.DagsterRunStatus[ends_as]
