"""What a person does in the Dagster UI beside what happens by itself: backfill some shards, retry a failed one, see what is stale."""

import os
import shutil

import numpy as np
import pytest
from live_ui import Ui

from paired_index_assets.assets.partitions import shard_key

pytestmark = pytest.mark.heavy


@pytest.fixture(scope="module")
def ui(tmp_path_factory, small_build):
    ui = Ui(tmp_path_factory.mktemp("by_hand"), small_build)
    ui.start()
    ui.train()
    yield ui
    ui.kill()


def backfill(ui, *shards):
    """What the dialog "Materialize ..." sends."""
    launched = ui.ask(
        "mutation($b: LaunchBackfillParams!) { launchPartitionBackfill(backfillParams: $b) {"
        " __typename ... on LaunchBackfillSuccess { backfillId } } }",
        b={"assetSelection": [{"path": ["shard_index"]}], "partitionNames": [shard_key(shard) for shard in shards]},
    )["launchPartitionBackfill"]
    assert launched["__typename"] == "LaunchBackfillSuccess", launched
    return launched["backfillId"]


def stale(ui):
    """partition -> FRESH, STALE or MISSING, as the asset's page shows it."""
    found = ui.ask(
        "query($k: AssetKeyInput!, $p: [String!]) { assetNodeOrError(assetKey: $k) { ... on AssetNode {"
        " staleStatusByPartition(partitions: $p) } } }",
        k={"path": ["shard_index"]},
        p=[shard_key(shard) for shard in range(5)],
    )
    return found["assetNodeOrError"]["staleStatusByPartition"]


def runs_of(ui, shard):
    """Ids, newest first."""
    tags = [{"key": "dagster/partition", "value": shard_key(shard)}]
    found = ui.ask("query($f: RunsFilter!) { runsOrError(filter: $f) { ... on Runs { results { id } } } }", f={"tags": tags})
    return [run["id"] for run in found["runsOrError"]["results"]]


def test_a_person_backfills_some_shards(ui):
    ui.land(0, 2)
    ui.until(lambda: ui.built() == [0, 2], "the shards that landed")
    ui.until(lambda: all(status == "COMPLETED_SUCCESS" for _, status in ui.backfills()), "the end of what happened by itself")
    before = {path: path.read_bytes() for path in (ui.root / "shards").glob("knn*[0-9]")}
    (ui.root / "shards/knn.paired_QT_4bit.index2").unlink()
    by_hand = backfill(ui, 0, 2)
    ui.until(lambda: dict(ui.backfills())[by_hand] == "COMPLETED_SUCCESS", "the backfill by hand")
    assert {path: path.read_bytes() for path in (ui.root / "shards").glob("knn*[0-9]")} == before


def test_a_shard_that_failed_is_retried_by_hand(ui):
    name = ui.catalog.files(1)[0].name
    bad = ui.landing / ".arriving.npy"
    np.save(bad, np.load(ui.source / name).view(np.int16))  # as long as the catalog says, and not float16
    for file in ui.catalog.files(1)[1:]:
        shutil.copyfile(ui.source / file.name, ui.landing / file.name)
    os.replace(bad, ui.landing / name)
    ui.until(lambda: runs_of(ui, 1) and ui.status(runs_of(ui, 1)[0]) == "FAILURE", "the failure")
    stamp = (ui.landing / name).stat().st_mtime_ns
    shutil.copyfile(ui.source / name, bad)
    os.utime(bad, ns=(stamp, stamp))  # mended so that nothing but a person knows
    os.replace(bad, ui.landing / name)
    failed = runs_of(ui, 1)[0]
    retry = {"parentRunId": failed, "strategy": "ALL_STEPS"}
    ui.succeeds(ui.launch("launchRunReexecution(reexecutionParams: $p)", "ReexecutionParams", retry))
    assert ui.built() == [0, 1, 2]


def test_a_new_trained_index_makes_every_shard_stale_until_it_is_rebuilt(ui):
    ui.until(lambda: [stale(ui)[shard] for shard in range(3)] == ["FRESH"] * 3, "everything fresh")
    before = {path.name: path.read_bytes() for path in (ui.root / "shards").glob("knn*[0-9]")}
    ui.train(seed=77)
    ui.until(lambda: "STALE" in stale(ui)[:3], "stale shards")
    ui.until(lambda: [stale(ui)[shard] for shard in range(3)] == ["FRESH"] * 3, "the rebuild")
    after = {path.name: path.read_bytes() for path in (ui.root / "shards").glob("knn*[0-9]")}
    assert after.keys() == before.keys()
    assert all(after[name] != before[name] for name in before)
