"""Shards from a server that misbehaves, and rows that must not be found any more, through the assets and the command line."""

import shutil

import dagster as dg
import numpy as np
import pytest
from misbehaving import Html, MisbehavingServer, Reset, Status, Truncate

from paired_index_assets import ShardedIndex
from paired_index_assets.assets.code_location import assemble
from paired_index_assets.assets.partitions import shard_key
from paired_index_assets.assets.resources import ProgressLog
from paired_index_assets.embeddings.sets import EmbeddingSet
from paired_index_assets.landing.catalog import Catalog
from paired_index_assets.settings import load_settings


def trained_only(built, root):
    shutil.copytree(built, root, ignore=shutil.ignore_patterns("dagster", "shards", "generations", "report", "manifest.parquet"))
    return root


def build(settings, shard):
    job = assemble(settings, ProgressLog()).resolve_implicit_global_asset_job_def()
    with dg.DagsterInstance.ephemeral() as instance:
        return job.execute_in_process(
            instance=instance, asset_selection=[dg.AssetKey("shard_index")], partition_key=shard_key(shard), raise_on_error=False
        )


def test_a_shard_fetched_from_a_server_that_misbehaves_is_the_shard_of_local_files(tmp_path, small_build):
    root = trained_only(small_build, tmp_path / "root")
    names = [file.name for file in Catalog.load(root / "catalog.parquet").files(2)]
    (tmp_path / "landing").mkdir()
    with MisbehavingServer({name: (small_build / "embeddings/img_emb" / name).read_bytes() for name in names}) as server:
        server.misbehave(names[0], Truncate(1000), Status(503), None)
        server.misbehave(names[1], Html(), Reset(2000), None)
        settings = load_settings(
            root=str(root),
            landing=str(tmp_path / "landing"),
            shards=6,
            sources=f"{server.url}/nowhere,{server.url}",
            download_budget_gb=0.001,
        )
        assert build(settings, 2).success
    made = root / "shards/knn.paired_QT_4bit.index2"
    assert made.read_bytes() == (small_build / "shards/knn.paired_QT_4bit.index2").read_bytes()
    assert not list((root / "downloads").glob("*.npy"))  # deleted once they were encoded


def test_a_shard_whose_files_nobody_has_says_which_and_why(tmp_path, small_build):
    root = trained_only(small_build, tmp_path / "root")
    (tmp_path / "landing").mkdir()
    with MisbehavingServer({}) as server:
        settings = load_settings(root=str(root), landing=str(tmp_path / "landing"), shards=6, sources=server.url)
        failed = build(settings, 1)
    assert not failed.success
    (event,) = [event for event in failed.all_events if event.event_type_value == "STEP_FAILURE"]
    said = event.step_failure_data.user_failure_data.description
    assert all(file.name in said for file in Catalog.load(root / "catalog.parquet").files(1)), said


@pytest.fixture
def own_build(small_build, tmp_path):
    shutil.copytree(small_build, tmp_path / "root")
    return tmp_path / "root"


def test_rows_taken_down_are_not_found_from_now_on_nor_after_the_rebuild(own_build, paired_index, tmp_path):
    queries = np.asarray(EmbeddingSet.open(own_build / "embeddings/images.json")[[3, 700, 1400]], np.float32)
    with ShardedIndex.open(own_build) as index:
        assert set(index.search(queries, 3, nprobe=16)[1][:, :3].ravel()) >= {3, 700, 1400}
        (tmp_path / "ids.txt").write_text("3\n700\n1400\n")
        assert "3 newly removed" in paired_index("takedown", "--root", own_build, "--ids", tmp_path / "ids.txt", "--why", "asked").stdout
        assert not {3, 700, 1400} & set(index.search(queries, 20, nprobe=16)[1].ravel())  # the open index, at once
    untouched = own_build / "shards/knn.paired_QT_4bit.index1"
    before = untouched.stat().st_mtime_ns
    paired_index("build", "--root", own_build)
    with ShardedIndex.open(own_build) as index:
        assert index.ntotal == 1500 - 3
        assert not {3, 700, 1400} & set(index.search(queries, 20, nprobe=16)[1].ravel())
    assert untouched.stat().st_mtime_ns == before
    assert "0 newly removed" in paired_index("takedown", "--root", own_build, "--ids", tmp_path / "ids.txt").stdout


@pytest.mark.parametrize(("content", "word"), [("seven\n", "seven"), ("99999\n", "99999"), ("", "found none")])
def test_a_takedown_list_that_cannot_be_is_refused_whole(small_build, paired_index, tmp_path, content, word):
    (tmp_path / "ids.txt").write_text(content)
    done = paired_index("takedown", "--root", small_build, "--ids", tmp_path / "ids.txt", check=False)
    assert done.returncode == 1
    assert word in done.stderr
    assert not (small_build / "takedown").exists() or not list((small_build / "takedown").glob("*.parquet"))


def test_a_build_takes_files_from_a_source_that_does_not_list_them_and_names_what_it_leaves_waiting(tmp_path, small_build, paired_index):
    root = trained_only(small_build, tmp_path / "root")
    (tmp_path / "landing").mkdir()
    files = {path.name: path.read_bytes() for path in (small_build / "embeddings/img_emb").glob("*.npy")}
    gone = Catalog.load(root / "catalog.parquet").files(4)[0].name
    lost = files.pop(gone)
    with MisbehavingServer(files, lists=False) as server:
        given = ["--landing", tmp_path / "landing", "--shards", 6, "--sources", server.url]
        done = paired_index("build", "--root", root, *given, check=False)
        assert done.returncode == 1
        assert "1 of 6 shards wait: shard 4" in done.stderr
        assert gone in done.stderr
        assert "Done" not in done.stdout
        assert len(list((root / "shards").glob("knn*"))) == 5
        files[gone] = lost
        assert "Done" in paired_index("build", "--root", root, *given).stdout
    assert (root / "shards/knn.paired_QT_4bit.index4").read_bytes() == (small_build / "shards/knn.paired_QT_4bit.index4").read_bytes()
