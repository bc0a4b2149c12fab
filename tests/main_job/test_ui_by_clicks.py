"""A backfill as a person makes one in Chromium: of all shards, cancelled midway, gone on with; and what may happen while it runs.

`PAIRED_INDEX_SHOTS=folder` keeps a picture of each page.
"""

import os
import shutil
import signal
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from live_ui import Ui

from paired_index_assets.assets.partitions import shard_key

pytestmark = pytest.mark.heavy

NEVER = 86_400  # seconds: nothing but clicks makes shards here
SHARDS = 6
RELOAD = """mutation($name: String!) {
  reloadRepositoryLocation(repositoryLocationName: $name) { __typename ... on WorkspaceLocationEntry { loadStatus } }
}"""


@pytest.fixture(scope="module")
def ui(tmp_path_factory, small_build):
    ui = Ui(tmp_path_factory.mktemp("by_clicks"), small_build, tick_seconds=NEVER)
    ui.start()
    ui.train()
    ui.land(*range(SHARDS))
    yield ui
    ui.kill()


@contextmanager
def browsing(ui):
    browsers = [path for name in ("chromium", "google-chrome", "chromium-browser") if (path := shutil.which(name))]
    if not browsers:
        pytest.skip("no Chromium on this machine: install the package chromium to click")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browsers[0], args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1500, "height": 950}, base_url=f"http://127.0.0.1:{ui.port}")
        page.set_default_timeout(120_000)
        broken = []
        page.on("pageerror", lambda error: broken.append(str(error)))
        try:
            yield page
            assert not broken
        except Exception:
            keep(page, "failed")
            raise
        finally:
            browser.close()


def keep(page, name):
    if folder := os.environ.get("PAIRED_INDEX_SHOTS"):
        page.screenshot(path=Path(folder) / f"{name}.png")


def status(ui, backfill):
    return dict(ui.backfills())[backfill]


def ended(ui, backfill):
    return status(ui, backfill) not in ("REQUESTED", "CANCELING", "FAILING")


def by_failure(ui, backfill):
    """A new backfill of what this one has not made, as its menu's "Re-execute from failure"."""
    asked = "mutation($p: ReexecutionParams!) { reexecutePartitionBackfill(reexecutionParams: $p) { ... on LaunchBackfillSuccess { backfillId } } }"
    return ui.ask(asked, p={"parentRunId": backfill, "strategy": "FROM_FAILURE"})["reexecutePartitionBackfill"]["backfillId"]


def asked_for(ui, *shards):
    asked = "mutation($b: LaunchBackfillParams!) { launchPartitionBackfill(backfillParams: $b) { ... on LaunchBackfillSuccess { backfillId } } }"
    params = {"assetSelection": [{"path": ["shard_index"]}], "partitionNames": [shard_key(shard) for shard in shards]}
    return ui.ask(asked, b=params)["launchPartitionBackfill"]["backfillId"]


def processes_of(session):
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, _, of = stat.read_text().rpartition(")")[2].split()[:4]
            if int(of) == session and state != "Z":
                found.append(stat.parent.name)
    return found


def test_a_backfill_of_all_shards_by_clicks_is_cancelled_midway_and_gone_on_with(ui):
    with browsing(ui) as page:
        page.goto("/assets/shard_index?view=partitions", wait_until="domcontentloaded")
        page.get_by_role("button", name="Materialize").first.click()
        page.get_by_text("All", exact=True).last.click()
        keep(page, "launch")
        page.get_by_role("button", name="Launch backfill").click()
        ui.until(lambda: len(ui.backfills()) == 1, "the backfill that was clicked")
        ((backfill, _),) = ui.backfills()
        ui.until(lambda: len(ui.built()) >= 1, "its first shard")
        page.goto(f"/runs/b/{backfill}", wait_until="domcontentloaded")
        page.locator("[data-testid=backfill_actions_dropdown_toggle]").or_(page.get_by_role("button", name="expand_more")).last.click()
        page.get_by_role("menuitem", name="Cancel backfill").click()
        keep(page, "cancel")
        page.get_by_role("button", name="Cancel backfill").last.click()  # in the dialog that asks
        ui.until(lambda: ended(ui, backfill), "the end of what was cancelled")
        page.wait_for_timeout(4000)
        keep(page, "cancelled")
    assert status(ui, backfill) == "CANCELED"
    made = ui.built()
    assert 1 <= len(made) < SHARDS
    before = {path: path.read_bytes() for path in (ui.root / "shards").glob("knn*[0-9]")}

    goes_on = by_failure(ui, backfill)
    ui.until(lambda: ended(ui, goes_on), "the rest")
    assert status(ui, goes_on) == "COMPLETED_SUCCESS"
    assert ui.built() == list(range(SHARDS))
    assert {path: path.read_bytes() for path in before} == before


def test_code_is_reloaded_while_a_run_goes_on(ui):
    run = ui.start_training(seed=77)
    ui.until(lambda: ui.status(run) == "STARTED", "the run")
    assert ui.ask(RELOAD, name="paired_index")["reloadRepositoryLocation"]["loadStatus"] == "LOADED"
    assert ui.status(run) == "STARTED"
    ui.succeeds(run)
    assert ui.status(run) == "SUCCESS"


def test_a_backfill_is_executed_again_from_its_failure(ui):
    name = ui.catalog.files(2)[0].name
    whole = (ui.landing / name).read_bytes()
    np.save(ui.landing / ".arriving.npy", np.load(ui.source / name).view(np.int16))  # as long as the catalog says, and not float16
    os.replace(ui.landing / ".arriving.npy", ui.landing / name)
    backfill = asked_for(ui, 1, 2, 3)
    ui.until(lambda: ended(ui, backfill), "the end of a backfill with a bad file")
    assert status(ui, backfill) == "COMPLETED_FAILED"
    with browsing(ui) as page:
        failed = ui.ask("{ runsOrError(filter: {statuses: [FAILURE]}) { ... on Runs { results { id } } } }")["runsOrError"]["results"][0][
            "id"
        ]
        page.goto(f"/runs/{failed}", wait_until="domcontentloaded")
        page.get_by_text(name).locator("visible=true").first.wait_for()  # the cause, without a click
        keep(page, "failure")
    (ui.landing / ".arriving.npy").write_bytes(whole)
    os.replace(ui.landing / ".arriving.npy", ui.landing / name)
    runs = len(ui.shard_runs())
    again = by_failure(ui, backfill)
    ui.until(lambda: ended(ui, again), "the retry")
    assert status(ui, again) == "COMPLETED_SUCCESS"
    assert len(ui.shard_runs()) == runs + 1  # of the shard that failed, alone


def test_a_ui_that_is_stopped_leaves_no_process_and_starts_again_what_it_cut_off(ui):
    session, backfill = ui.process.pid, asked_for(ui, *range(SHARDS))
    ui.until(lambda: any(ui.is_running(shard) for shard in range(SHARDS)), "a run")
    assert processes_of(session)
    ui.kill(signal.SIGTERM)
    assert processes_of(session) == []
    ui.start()
    ui.until(lambda: ended(ui, backfill), "the rest of the backfill")
    assert status(ui, backfill) == "COMPLETED_SUCCESS"
