"""Landing to backfill: what the sensor reports, what automation asks for, what the night rebuilds; nothing twice, nothing lost."""

import shutil

import dagster as dg
import faiss
import numpy as np
import pytest
from automated_world import SHARDS, World

from paired_index_assets.assets.code_location import assemble
from paired_index_assets.assets.partitions import shard_key
from paired_index_assets.assets.resources import ProgressLog
from paired_index_assets.builds.opened import OpenBuild, write_catalog
from paired_index_assets.landing.catalog import Catalog
from paired_index_assets.settings import load_settings


@pytest.fixture
def world(tmp_path, small_build):
    with dg.DagsterInstance.ephemeral() as instance:
        yield World(tmp_path, small_build, instance)


def both(*shards):
    return [(kind, shard_key(s)) for s in shards for kind in ("AssetObservation", "AssetMaterialization")]


def test_the_sensor_reports_complete_shards_once_they_are_quiet(world):
    assert world.tick() == []
    world.land(0, files=1)
    world.land(2)
    assert world.tick() == []  # shard 2 is complete, and waits one tick for quiet; shard 0 is not
    assert world.tick() == both(2)
    assert world.tick() == []
    world.land(0)
    assert world.tick() == []
    assert world.tick() == both(0)
    assert world.tick() == []


def test_a_file_that_is_still_growing_is_not_reported(world):
    world.land(1)
    path = world.landing / world.catalog.files(1)[0].name
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    assert world.tick() == world.tick() == world.tick() == []
    path.write_bytes(whole)
    assert world.tick() == []
    assert world.tick() == both(1)


def test_automation_asks_for_exactly_the_shards_that_are_complete_and_new(world):
    assert world.requested() == []
    world.land(0)
    world.land(3)
    world.tick(), world.tick()
    assert world.requested() == []  # no trained index yet
    world.report_trained("a")
    assert world.requested() == [shard_key(0), shard_key(3)]
    assert world.requested() == []
    world.land(5)
    world.tick(), world.tick()
    assert world.requested() == [shard_key(5)]
    assert world.requested() == []


def test_an_event_that_arrives_in_the_middle_of_a_tick_is_asked_for_once(world):
    world.report_trained("a")
    world.requested()
    with world.reading_the_log_before():
        world.land(0)
        world.land(4)
        world.tick(), world.tick()
        first = world.requested(ticks=1)
    assert sorted(first + world.requested()) == [shard_key(0), shard_key(4)]
    world.build(0), world.build(4)
    with world.reading_the_log_before():
        world.change(4)
        world.tick(), world.tick()
        first = world.requested(ticks=1)
    assert first + world.requested() == [shard_key(4)]
    world.build(4)
    assert world.requested() == []


@pytest.mark.parametrize("idle_ticks", [0, 1])  # 0: the file lands before the very next tick after the request
def test_files_that_land_while_their_shard_is_being_built_are_not_forgotten(world, idle_ticks):
    world.report_trained("a")
    world.requested()
    world.land(0)
    world.land(1)
    world.tick(), world.tick()
    assert world.requested(ticks=2) == [shard_key(0), shard_key(1)]

    def meanwhile():
        assert world.requested(idle_ticks) == []
        world.change(0)
        world.tick(), world.tick()
        assert shard_key(0) not in world.requested()  # not while it is being built

    assert world.build(0, meanwhile).success
    assert world.build(1).success
    assert world.requested() == [shard_key(0)]
    assert world.requested() == []


def test_a_new_trained_index_makes_every_landed_shard_stale_and_an_equal_one_none(world):
    world.report_trained("a")
    world.requested()
    world.land(0)
    world.land(4)
    world.tick(), world.tick()
    world.requested()
    world.build(0), world.build(4)
    world.report_trained("a")
    assert world.requested() == []
    world.report_trained("b")
    assert world.requested() == [shard_key(0), shard_key(4)]


def test_automation_that_is_switched_on_late_builds_what_had_landed(world):
    world.report_trained("a")
    world.land(2)
    world.tick(), world.tick()
    assert world.requested() == [shard_key(2)]
    assert world.requested() == []  # say, a person cancelled that backfill: it is not asked for again


def test_the_night_rebuilds_what_is_stale_and_nothing_else(world):
    assert world.stale() == []
    world.land(0)
    world.land(1)
    assert world.stale() == [shard_key(0), shard_key(1)]
    assert world.build(0).success
    assert world.build(1).success
    assert world.stale() == []
    before = {path: path.read_bytes() for path in (world.root / "shards").glob("knn*[0-9]")}
    world.change(1)
    assert world.stale() == [shard_key(1)]
    assert world.build(1).success
    assert world.stale() == []
    after = {path: path.read_bytes() for path in before}
    assert [path.name[-1] for path in before if before[path] != after[path]] == ["1"]


def test_files_beyond_the_catalog_extend_the_last_shard_and_rebuild_no_other(world):
    world.report_trained("a")
    world.requested()
    for shard in range(SHARDS):
        world.land(shard)
    world.tick(), world.tick()
    assert len(world.requested()) == SHARDS
    for shard in (SHARDS - 2, SHARDS - 1):
        assert world.build(shard).success
    before = {path.name: path.read_bytes() for path in (world.root / "shards").glob("knn*[0-9]")}
    shutil.copyfile(world.landing / world.catalog.files(0)[0].name, world.landing / "zz_more_0.npy")
    assert world.tick() == []  # seen, and quiet only at the next look
    assert world.tick() == []  # appended; its shard's listing waits one tick as any other
    assert world.tick() == both(SHARDS - 1)
    assert world.tick() == []
    assert world.requested() == [shard_key(SHARDS - 1)]
    assert world.build(SHARDS - 1).success
    catalog = Catalog.load(world.root / "catalog.parquet")
    assert catalog.all_files[: len(world.catalog)] == world.catalog.all_files
    after = {path.name: faiss.read_index(str(path)) for path in (world.root / "shards").glob("knn*[0-9]")}
    first, last = sorted(after)
    assert (world.root / "shards" / first).read_bytes() == before[first]
    assert after[last].ntotal == sum(file.rows for file in catalog.files(SHARDS - 1))
    assert after[last].ntotal > faiss.deserialize_index(np.frombuffer(before[last], np.uint8)).ntotal
    assert (
        write_catalog(OpenBuild(world.settings), lambda catalog: None).all_files == catalog.all_files
    )  # a new training keeps what was appended


def test_a_source_that_can_list_its_files_is_watched_like_the_landing_folder(world, tmp_path):
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    for file in world.catalog.files(2):
        shutil.copyfile(world.source / file.name, mirror / file.name)
    world.settings = load_settings(**world.settings.model_dump() | {"sources": f"{mirror},http://127.0.0.1:9/nobody"})
    world.defs = assemble(world.settings, ProgressLog())
    world.job = world.defs.resolve_implicit_global_asset_job_def()
    world.report_trained("a")
    world.requested()
    assert world.tick() == []
    assert world.tick() == both(2)
    assert world.requested() == [shard_key(2)]
    assert world.build(2).success
    assert world.stale() == []
    assert sorted(path.name for path in mirror.iterdir()) == [file.name for file in world.catalog.files(2)]  # used in place, never deleted


def test_a_bad_file_fails_its_shard_by_name_and_no_other(world):
    world.land(0)
    world.land(1)
    file = world.landing / world.catalog.files(0)[0].name
    damaged = np.load(file)
    damaged[:] = np.nan
    np.save(file, damaged)
    failed = world.build(0)
    assert not failed.success
    (event,) = [event for event in failed.all_events if event.event_type_value == "STEP_FAILURE"]
    assert file.name in event.event_specific_data.error_display_string
    assert world.build(1).success
    assert not list((world.root / "shards").glob("knn*index0"))
