"""What `paired-index ui` passes on of Dagster's output, how it ends, and what it refuses to start beside."""

import os
import signal
import socket
import subprocess
import sys

import pytest

from paired_index_assets.assets.instance import daemons_of, only_daemon
from paired_index_assets.cli.supervised import readable
from paired_index_assets.errors import Busy

AT = "\x1b[32m2026-11-25 19:44:55 +0000\x1b[0m"

SAID = f"""\
something before Dagster's logging is set up
{AT} - dagster.daemon.EventLogConsumerDaemon - \x1b[34mWARNING\x1b[0m - No cursor for event type DagsterEventType.RUN_FAILURE, ignoring older events
{AT} - dagster - \x1b[34mDEBUG\x1b[0m - __ASSET_JOB - 1f0 - 77 - RUN_START - Started execution.
{AT} - dagster - \x1b[34mINFO\x1b[0m - __ASSET_JOB - 1f0 - shard_index - assign: 3 of 4
    a second line of it
{AT} - dagster - \x1b[31mERROR\x1b[0m - __ASSET_JOB - 1f0 - 77 - shard_index - STEP_FAILURE - Execution of step "shard_index" failed.

dagster._core.definitions.events.Failure: img_emb_0003.npy: expected float16, found int16

Stack Trace:
  File "execute_step.py", line 75, in _process
{AT} - dagster.daemon.SensorDaemon - \x1b[31mERROR\x1b[0m - Sensor daemon caught an error

Stack Trace:
  File "sensor.py", line 1
""".splitlines(keepends=True)


def test_a_terminal_shows_what_went_wrong_and_why_without_runs_events_and_stacks():
    assert [line.strip() for line in readable(SAID) if line.strip()] == [
        "something before Dagster's logging is set up",
        '2026-11-25 19:44:55 +0000 - dagster - ERROR - __ASSET_JOB - 1f0 - 77 - shard_index - STEP_FAILURE - Execution of step "shard_index" failed.',
        "dagster._core.definitions.events.Failure: img_emb_0003.npy: expected float16, found int16",
        "2026-11-25 19:44:55 +0000 - dagster.daemon.SensorDaemon - ERROR - Sensor daemon caught an error",
        "Stack Trace:",
        'File "sensor.py", line 1',
    ]


STUBBORN = """
import signal, time
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, signal.SIG_IGN)
print("deaf", flush=True)
time.sleep(600)
"""
FAMILY = f"""
import subprocess, sys
print("started", flush=True)
subprocess.run([sys.executable, "-c", {STUBBORN!r}], start_new_session=True)
"""
RUN = f"""
import sys
from paired_index_assets.cli import stopping, supervised
with stopping.stoppable():
    supervised.run([sys.executable, "-c", {FAMILY!r}], lambda line: print(line, flush=True))
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_processes_that_ignore_it_within_seconds(how):
    """Also those that have left the session, and whose parents have ended."""
    with subprocess.Popen([sys.executable, "-c", RUN], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as command:
        assert [command.stdout.readline().strip() for _ in range(2)] == ["started", "deaf"]
        family = processes_below(command.pid)
        assert len(family) == 2
        command.send_signal(how)
        command.wait(30)
        assert not [process for process in family if os.path.exists(f"/proc/{process}")]


def processes_below(ancestor):
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        parent, process = None, int(name)
        while parent not in (0, ancestor):
            try:
                with open(f"/proc/{process}/stat") as stat:
                    parent = process = int(stat.read().rpartition(")")[2].split()[1])
            except OSError:
                break
        if parent == ancestor:
            found.append(int(name))
    return found


def test_a_second_daemon_on_the_same_records_is_refused(tmp_path):
    with only_daemon(tmp_path), pytest.raises(Busy, match=f"process {os.getpid()}"), only_daemon(tmp_path):
        pass
    other = [sys.executable, "-c", "import time; print('here', flush=True); time.sleep(600)", "dagster._daemon", "run"]
    with subprocess.Popen(other, stdout=subprocess.PIPE, env=os.environ | {"DAGSTER_HOME": str(tmp_path)}) as daemon:
        daemon.stdout.readline()
        try:
            assert daemons_of(tmp_path) == [daemon.pid]
            assert daemons_of(tmp_path / "another") == []
            with pytest.raises(Busy, match=rf"process {daemon.pid} is a Dagster daemon"), only_daemon(tmp_path):
                pass
        finally:
            daemon.kill()
    with only_daemon(tmp_path):
        pass


def test_a_port_that_is_taken_is_one_line(paired_index, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = paired_index("ui", "--root", tmp_path / "root", "--port", port, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert f"--port {port}" in done.stderr
