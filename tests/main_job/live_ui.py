"""`paired-index ui` for real: web server and daemon in processes of their own, asked by GraphQL as the pages ask."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import numpy as np

from paired_index_assets.assets.partitions import shard_key
from paired_index_assets.assets.training import paired_centroids, trained_index
from paired_index_assets.files.stamp import stamp_of
from paired_index_assets.files.storage import read_json
from paired_index_assets.landing.catalog import Catalog

PATIENCE_SECONDS = 420  # for two busy cores; each wait ends as soon as what it waits for is there
SELECTOR = {"repositoryName": "__repository__", "repositoryLocationName": "paired_index"}


class Ui:
    """`paired-index ui` on a trained build with an empty landing folder, whose sensors look every `tick_seconds`."""

    def __init__(self, folder, built, tick_seconds=3):
        self.root, self.landing, self.source = folder / "root", folder / "landing", built / "embeddings/img_emb"
        shutil.copytree(built, self.root, ignore=shutil.ignore_patterns("dagster", "shards", "generations", "report", "manifest.parquet"))
        self.landing.mkdir()
        settings = read_json(self.root / "settings.json")
        (self.root / "settings.json").write_text(json.dumps(settings | {"landing": str(self.landing), "tick_seconds": tick_seconds}))
        self.catalog = Catalog.load(self.root / "catalog.parquet")
        self.log = folder / "ui.log"
        self.process = None

    def start(self):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("PAIRED_INDEX_", "DAGSTER_"))}
        command = [sys.executable, "-m", "paired_index_assets.cli.main", "ui", "--root", str(self.root), "--port", str(self.port)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=clean, start_new_session=True)
        self.until(lambda: self.answers(), "the web server")

    def kill(self, how=signal.SIGKILL):
        if self.process is not None:
            os.killpg(self.process.pid, how)
            self.process.wait(30)
            self.process = None

    def answers(self):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/server_info", timeout=5):
                return True
        except OSError:
            return False

    def ask(self, text, **variables):
        body = json.dumps({"query": text, "variables": variables}).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/graphql", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            content = json.load(answer)
        assert "errors" not in content, content
        return content["data"]

    def status(self, run):
        return self.ask("query($r: ID!) { runOrError(runId: $r) { ... on Run { status } } }", r=run)["runOrError"]["status"]

    def until(self, true, what):
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not true():
            assert self.process is None or self.process.poll() is None, f"the UI stopped:\n{self.log.read_text()[-3000:]}"
            assert time.monotonic() < deadline, f"waited for {what}:\n{self.log.read_text()[-3000:]}"
            time.sleep(1)

    def land(self, *shards):
        for shard in shards:
            for file in self.catalog.files(shard):
                shutil.copyfile(self.source / file.name, self.landing / file.name)

    def change(self, shard):
        """One file of a landed shard arrives anew, other rows in it, under its name in one step."""
        path = self.landing / self.catalog.files(shard)[0].name
        rows = np.load(path)
        np.save(self.landing / ".arriving.npy", np.roll(rows, 1, axis=0))
        os.replace(self.landing / ".arriving.npy", path)
        return stamp_of(path)

    def is_running(self, shard):
        tags = [{"key": "dagster/partition", "value": shard_key(shard)}]
        found = self.ask(
            "query($f: RunsFilter!) { runsOrError(filter: $f) { ... on Runs { results { id } } } }",
            f={"statuses": ["STARTED"], "tags": tags},
        )
        return bool(found["runsOrError"]["results"])

    def built_from(self, shard):
        """The stamp of the first file that a finished shard was made from."""
        record = json.loads((self.root / f"shards/../records/index{shard}.json").read_text())
        return record["files"][0]["stamp"]

    def built(self):
        return sorted(int(path.name.rpartition("index")[2]) for path in (self.root / "shards").glob("knn*[0-9]"))

    def backfills(self):
        """(id, status) of every backfill."""
        found = self.ask("{ partitionBackfillsOrError { ... on PartitionBackfills { results { id status } } } }")
        return [(row["id"], row["status"]) for row in found["partitionBackfillsOrError"]["results"]]

    def shard_runs(self):
        """The shard of every run that had one, sorted; a shard that ran twice is there twice."""
        found = self.ask("{ runsOrError { ... on Runs { results { tags { key value } } } } }")["runsOrError"]["results"]
        return sorted(tag["value"] for run in found for tag in run["tags"] if tag["key"] == "dagster/partition")

    def latest(self, asset):
        found = self.ask(
            "query($k: AssetKeyInput!) { assetOrError(assetKey: $k) { ... on Asset { assetMaterializations(limit: 1) { runId } } } }",
            k={"path": [asset]},
        )
        events = found["assetOrError"].get("assetMaterializations", [])
        return events[0]["runId"] if events else None

    def launch(self, mutation, kind, params):
        """The id of the run that `mutation($p)` launches."""
        launched = self.ask(
            f"mutation($p: {kind}!) {{ {mutation} {{ __typename ... on LaunchRunSuccess {{ run {{ runId }} }} }} }}", p=params
        )
        (answer,) = launched.values()
        assert answer["__typename"] == "LaunchRunSuccess", launched
        return answer["run"]["runId"]

    def train(self, **settings):
        self.succeeds(self.start_training(**settings))

    def start_training(self, **settings):
        asked = {one.name: {"config": {n: v for n, v in settings.items() if n in one.takes}} for one in (paired_centroids, trained_index)}
        config = {"ops": asked} if settings else {}
        selected = {"selector": SELECTOR | {"jobName": "train"}, "runConfigData": config}
        return self.launch("launchRun(executionParams: $p)", "ExecutionParams", selected)

    def succeeds(self, run):
        self.until(lambda: self.status(run) in ("SUCCESS", "FAILURE"), f"the end of run {run}")
        assert self.status(run) == "SUCCESS", self.errors(run)

    def errors(self, run):
        found = self.ask(
            "query($r: ID!) { logsForRun(runId: $r) { ... on EventConnection { events {"
            " ... on ErrorEvent { error { message cause { message } } } ... on MessageEvent { message } } } } }",
            r=run,
        )
        return [event for event in found["logsForRun"]["events"] if event.get("error")]
