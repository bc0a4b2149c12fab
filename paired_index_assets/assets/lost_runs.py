"""Runs whose process is gone.

Killed together with its code server, or in `paired-index build`, a run stays "started" in Dagster's records forever: it keeps its place
in its pool, so that the next run waits for it forever, and its shard counts as in progress. Found at the next start, or by the sensor
within a minute, such a run is marked as failed, and the daemon's `run_retries` start it again.

Killed alone, its end is noticed by its code server, but its place in its pool is not given back: every other run would wait for it. Dagster
does that where `free_slots_after_run_end_seconds` is in dagster.yaml, which homes of earlier releases lack; so it is done here too.
"""

from __future__ import annotations

import errno
import json
import os
import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg

from paired_index_assets.assets.dagster_internals import (
    drop_old_evaluations,
    is_whole,
    keeps_records_on_this_machine,
    report_run_succeeded,
)

PROCESS_TAG = ".dagster/paired_index_process"  # of a run inside `paired-index build`: host, process id, its start; hidden in the UI
SERVER_TAG = ".dagster/grpc_info"  # Dagster's own, of a run inside a code server
ENDED = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]
WHOLE = "its process was killed after its last step: all it had to do is done"
SET_RIGHT = timedelta(days=1)  # how long ago a failure may be that is looked at
UNFINISHED = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]


def this_process() -> dict[str, str]:
    """The tags of a run in this process, by which another process can see whether it lives; it is not for the daemon to retry."""
    return {PROCESS_TAG: f"{socket.gethostname()} {os.getpid()} {_started(os.getpid())}", "dagster/max_retries": "0"}


def end_lost_runs(instance: dg.DagsterInstance) -> list[str]:
    """Mark the unfinished runs whose process is gone, and free their places in pools; returns their ids.

    As failed, so that they are retried; as succeeded if every step of theirs had ended when they were killed. A failure of the last day
    that somebody else reported of such a run (the code server does, and the daemon finds nothing to retry) is set right too.

    Only on one machine's own instance (SQLite): the sockets and process ids of a shared one may be another machine's.
    """
    if not keeps_records_on_this_machine(instance):
        return []
    lost = [run for run in instance.get_runs(dg.RunsFilter(statuses=UNFINISHED)) if _is_lost(run)]
    for run in lost:
        if is_whole(instance, run):
            report_run_succeeded(instance, run, WHOLE)
        else:
            instance.report_run_failed(run, "its process was killed, or the machine restarted; what it had finished is kept")
        instance.event_log_storage.free_concurrency_slots_for_run(run.run_id)
    failed = dg.RunsFilter(statuses=[dg.DagsterRunStatus.FAILURE], updated_after=datetime.now(UTC) - SET_RIGHT)
    for run in instance.get_runs(failed):
        if is_whole(instance, run):
            report_run_succeeded(instance, run, WHOLE)
    return [run.run_id for run in lost]


def free_left_places(instance: dg.DagsterInstance) -> list[str]:
    """Give back the places in pools that runs hold which have ended; returns the runs' ids."""
    storage = instance.event_log_storage
    holders = storage.get_concurrency_run_ids() if storage.supports_global_concurrency_limits else set()
    ended = instance.get_runs(dg.RunsFilter(run_ids=list(holders), statuses=ENDED)) if holders else []
    for run in ended:
        storage.free_concurrency_slots_for_run(run.run_id)
    return [run.run_id for run in ended]


@dg.sensor(
    minimum_interval_seconds=60,
    default_status=dg.DefaultSensorStatus.RUNNING,
    tags={"stage": "housekeeping"},
    description="Marks as failed the runs whose process is gone, so that they are retried; frees the places in pools that they held.",
)
def lost_runs_sensor(context: dg.SensorEvaluationContext) -> dg.SkipReason:
    """Mark runs as failed whose process is gone, which a code server that was killed cannot say itself; free the places in pools that
    killed runs left; and drop old evaluations."""
    ended, freed = end_lost_runs(context.instance), free_left_places(context.instance)
    drop_old_evaluations(context.instance)
    said = [f"marked as failed: {', '.join(ended)}" if ended else "every unfinished run lives"]
    return dg.SkipReason("; ".join(said + ([f"places in pools freed of: {', '.join(freed)}"] if freed else [])))


def _is_lost(run: dg.DagsterRun) -> bool:
    if given := run.tags.get(PROCESS_TAG):
        host, process, started = given.split(" ")
        return host == socket.gethostname() and started != _started(int(process))
    if given := run.tags.get(SERVER_TAG):
        path = json.loads(given).get("socket")
        return bool(path) and not _answers(path)
    return False


def _answers(path: str) -> bool:
    """Whether a process listens there; one that is too busy to accept does."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(5)
        return client.connect_ex(path) not in (errno.ENOENT, errno.ECONNREFUSED)


def _started(process: int) -> str:
    """The start of a process in clock ticks since the machine started, and that start: no other process has both; "gone" if there is none."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()}/{fields[19]}"
    except OSError:
        return "gone"
