"""`paired-index ui` as an operator has it: started again when it dies, killed whole or in part, asked by GraphQL as its pages ask.

The client is the one that tests drive (tests/main_job/live_ui.py).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from laion_rehearsal.plan import Plan

sys.path.append(str(Path(__file__).parents[2] / "tests" / "main_job"))
from live_ui import SELECTOR, Ui  # type: ignore[import-not-found]

PATIENTLY = 20  # times as long as a look takes, until the next
BATCH = [sys.executable, "-m", "paired_index_assets.cli.main"]


class Operated(Ui):  # type: ignore[misc]
    """The web server, daemon and code server of one build. `deaths` counts how often it was found dead and started again."""

    def __init__(self, plan: Plan, patience_seconds: float) -> None:
        self.root, self.landing, self.catalog = plan.root, plan.landing, plan.catalog
        self.log, self.process = plan.work / "ui.log", None
        self.deaths, self._patience = 0, patience_seconds

    def until(self, true: Callable[[], bool], what: str) -> None:
        """Wait, and start the UI again whenever it is gone: what an operator does, or systemd for him."""
        deadline = time.monotonic() + self._patience
        while True:
            began = time.monotonic()
            if self._holds(true):
                return
            if time.monotonic() > deadline:
                raise SystemExit(f"waited {self._patience:.0f} s for {what}; {self.log} ends:\n{self.log.read_text()[-3000:]}")
            time.sleep(max(1.0, PATIENTLY * (time.monotonic() - began)))  # what is rehearsed is the build, not who looks at it

    def _holds(self, true: Callable[[], bool]) -> bool:
        if self.process is not None and self.process.poll() is not None:
            self.deaths += 1
            self.kill()  # what is left of it
            self.start()
        try:
            return true()
        except OSError:  # it is being killed, or starts
            return False

    def kill(self, how: int = signal.SIGKILL) -> None:
        if self.process is not None:
            for process in self.processes():
                _signal(process, how)
            self.process.wait(60)
            self.process = None

    def processes(self, containing: str = "") -> list[int]:
        """The ids of its processes whose command line contains that."""
        found: list[int] = in_session(self.process.pid) if self.process is not None else []
        return [process for process in found if containing in _command(process)]

    def kill_daemon(self) -> int:
        return self._kill_some(self.processes("daemon run"))

    def kill_a_run(self) -> int:
        """The youngest process that executes a run, if any."""
        servers = set(self.processes("api grpc"))
        return self._kill_some([process for process in self.processes("spawn_main") if _parent(process) in servers][-1:])

    @staticmethod
    def _kill_some(processes: list[int]) -> int:
        for process in processes:
            _signal(process, signal.SIGKILL)
        return len(processes)

    def finished(self, fingerprint: str | None = None) -> int:
        """Shards of the generation that is served, or of that one, that have a record."""
        records = self.root / "generations" / fingerprint / "records" if fingerprint else self.root / "shards" / ".." / "records"
        return len([path for path in records.glob("index*.json") if path.name.count(".") == 1])

    def served(self) -> str:
        """The fingerprint of the generation that is served; empty before one is."""
        link = self.root / "shards"
        return os.readlink(link).split("/")[1] if link.is_symlink() else ""

    def backfill(self, partitions: list[str], **settings: Any) -> str:
        """Launch a backfill of these shards, as the launchpad does; its id."""
        config = {"ops": {"shard_index": {"config": settings}}} if settings else {}
        made = self.ask(
            "mutation($p: LaunchBackfillParams!) { launchPartitionBackfill(backfillParams: $p) { __typename"
            " ... on LaunchBackfillSuccess { backfillId } ... on PythonError { message } } }",
            p={
                "selector": {"partitionSetName": "rebuild_shards_partition_set", "repositorySelector": SELECTOR},
                "partitionNames": partitions,
                "runConfigData": config,
            },
        )["launchPartitionBackfill"]
        if made["__typename"] != "LaunchBackfillSuccess":
            raise SystemExit(f"launchPartitionBackfill: {made}")
        return str(made["backfillId"])

    def shown_as_built(self) -> set[str]:
        """The partitions of shard_index that the UI shows as materialized."""
        found = self.ask(
            "query($k: AssetKeyInput!) { assetNodeOrError(assetKey: $k) { ... on AssetNode { assetPartitionStatuses {"
            " ... on DefaultPartitionStatuses { materializedPartitions } } } } }",
            k={"path": ["shard_index"]},
        )
        return set(found["assetNodeOrError"]["assetPartitionStatuses"]["materializedPartitions"])

    def unfinished_runs(self) -> int:
        found = self.ask(
            "query($f: RunsFilter!) { runsOrError(filter: $f) { ... on Runs { results { id } } } }",
            f={"statuses": ["QUEUED", "NOT_STARTED", "STARTING", "STARTED", "CANCELING"]},
        )
        return len(found["runsOrError"]["results"])


def in_session(leader: int) -> list[int]:
    """The ids of all processes of a session, oldest first."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == leader and fields[0] != "Z":
            found.append((int(fields[19]), int(folder.name)))
    return [process for _, process in sorted(found)]


def command(*arguments: object, waits: bool = False) -> str:
    """What `paired-index ARGUMENTS` prints. Raises SystemExit with its words if it fails; `waits`: shards may wait for their files."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PAIRED_INDEX_", "DAGSTER_"))}
    done = subprocess.run([*BATCH, *map(str, arguments)], env=clean, capture_output=True, text=True, check=False)
    if done.returncode and not (waits and "shards wait" in done.stdout + done.stderr):
        raise SystemExit(f"paired-index {' '.join(map(str, arguments))}: exit {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done.stdout


def _command(process: int) -> str:
    try:
        return (Path("/proc") / str(process) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def _parent(process: int) -> int:
    try:
        return int((Path("/proc") / str(process) / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def _signal(process: int, how: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(process, how)
