"""The Dagster UI for real: web server, daemon, sensor, backfill, a kill, and a browser that looks at the pages."""

import shutil

import pytest
from live_ui import Ui

pytestmark = pytest.mark.daemon


@pytest.fixture(scope="module")
def ui(tmp_path_factory, small_build):
    ui = Ui(tmp_path_factory.mktemp("ui"), small_build)
    ui.start()
    yield ui
    ui.kill()


def test_the_whole_graph_materialises_from_the_ui_and_landing_does_the_rest(ui):
    """In one story, because a web server and a daemon take half a minute to start."""
    ui.train()

    ui.land(1, 3, 4)
    ui.until(lambda: ui.built() == [1, 3, 4], "the shards that landed")
    ui.until(lambda: all(status == "COMPLETED_SUCCESS" for _, status in ui.backfills()), "the end of the backfill")
    assert ui.shard_runs() == ["shard_01", "shard_03", "shard_04"]  # each asked for once

    before = {path: path.read_bytes() for path in (ui.root / "shards").glob("knn*[0-9]")}
    ui.land(0)
    ui.kill()  # web server, daemon and code server, at no good moment
    ui.land(2)
    ui.start()
    ui.until(lambda: ui.built() == [0, 1, 2, 3, 4], "the shards that landed around the kill")
    ui.until(lambda: ui.latest("recall_report") is not None and ui.latest("index_manifest") is not None, "manifest and report")
    assert {path: path.read_bytes() for path in before} == before

    first = ui.change(3)
    ui.until(lambda: ui.is_running(3), "the run for the changed file")
    second = ui.change(3)  # while its shard is being built
    assert second != first
    ui.until(lambda: ui.built_from(3) == second, "the file that landed while its shard was being built")
    assert {path: path.read_bytes() for path in before if not path.name.endswith("index3")} == {
        path: content for path, content in before.items() if not path.name.endswith("index3")
    }


def test_a_browser_shows_lineage_partitions_checks_and_the_recall_picture(ui, tmp_path):
    browsers = [path for name in ("chromium", "google-chrome", "chromium-browser") if (path := shutil.which(name))]
    if not browsers:
        pytest.skip("no Chromium on this machine: install the package chromium to look at the pages")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browsers[0], args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1500, "height": 950})
        page.set_default_timeout(120_000)
        broken = []
        page.on("pageerror", lambda error: broken.append(str(error)))
        for path, words in {
            "/asset-groups/": ["embeddings", "training", "landing", "index", "quality"],
            "/assets/shard_index?view=partitions&partition=shard_03": ["shard_03", "sha256", "rows_left_out"],
            "/assets/trained_index?view=checks": ["trained_index_is_no_worse_than_image_kmeans"],
            "/automation": ["landed_embeddings_sensor", "nightly_rebuild", "index_automation"],
        }.items():
            page.goto(f"http://127.0.0.1:{ui.port}{path}", wait_until="domcontentloaded")
            for word in words:
                page.get_by_text(word).locator("visible=true").first.wait_for()
        page.goto(f"http://127.0.0.1:{ui.port}/assets/recall_report?view=overview", wait_until="domcontentloaded")
        glance = page.locator("img[src^='data:image/svg+xml']").first  # in the overview, without a click
        glance.wait_for()
        assert glance.evaluate("image => image.naturalWidth") > 100
        page.get_by_text("[Show Markdown]").first.click()
        picture = page.locator("img[src^='data:image/png']").first
        picture.wait_for()
        assert picture.evaluate("image => image.naturalWidth") > 500
        assert not broken
        browser.close()
