"""Several shards in one run: each is finished, recorded and checked as in a run of its own, whatever becomes of the others."""

import dagster as dg
import numpy as np
import pytest
from automated_world import SHARDS, World

import paired_index_assets.shards.build
from paired_index_assets.assets.code_location import assemble
from paired_index_assets.assets.partitions import shard_key
from paired_index_assets.assets.resources import ProgressLog
from paired_index_assets.assets.shards import SHARD_INDEX
from paired_index_assets.settings import load_settings


@pytest.fixture
def world(tmp_path, small_build):
    """Everything has landed, nothing is built."""
    with dg.DagsterInstance.ephemeral() as instance:
        world = World(tmp_path, small_build, instance)
        world.land_everything()
        yield world


def checked(world, run):
    """partition -> whether its check passed, in a run."""
    found = [event.asset_check_evaluation_data for event in run.all_events if event.event_type_value == "ASSET_CHECK_EVALUATION"]
    return {one.partition: one.passed for one in found if one.partition}


def test_shards_of_one_run_are_recorded_as_those_of_their_own_runs_and_followed_once(world):
    assert world.asked() == [shard_key(shard) for shard in range(SHARDS)]
    run = world.build_all()
    assert run.success
    assert checked(world, run) == dict.fromkeys(map(shard_key, range(SHARDS)), True)
    assert world.asked() == ["index_manifest"]
    recorded = [world.latest(shard) for shard in range(SHARDS)]
    assert [metadata["unchanged"].value for _, metadata in recorded] == [False] * SHARDS
    for shard, (tags, _) in enumerate(recorded):
        assert world.build(shard).success
        alone, metadata = world.latest(shard)
        assert metadata["unchanged"].value
        assert alone["dagster/data_version"] == tags["dagster/data_version"]
        assert alone.keys() == tags.keys()
        assert alone["dagster/code_version"] == tags["dagster/code_version"]
    assert len({tags["dagster/data_version"] for tags, _ in recorded}) == SHARDS


def test_a_shard_that_fails_keeps_no_other_from_being_built_and_the_run_names_it(world):
    file = world.landing / world.catalog.files(1)[0].name
    damaged = np.load(file)
    damaged[:] = np.nan
    np.save(file, damaged)
    run = world.build_all()
    assert not run.success
    (failure,) = [event for event in run.all_events if event.event_type_value == "STEP_FAILURE"]
    assert f"1 of {SHARDS} partitions failed: shard_01: " in failure.event_specific_data.user_failure_data.description
    assert file.name in failure.event_specific_data.user_failure_data.description
    assert world.instance.get_materialized_partitions(SHARD_INDEX) == {shard_key(n) for n in range(SHARDS) if n != 1}


def test_what_is_built_when_a_run_breaks_off_is_recorded(world, monkeypatch):
    real, built = paired_index_assets.shards.build.build_shard, []

    def then_broken_off(*arguments, **named):
        if len(built) == 2:
            raise dg.Failure("broken off", allow_retries=False)
        built.append(1)
        return real(*arguments, **named)

    monkeypatch.setattr(paired_index_assets.shards.build, "build_shard", then_broken_off)
    assert not world.build_all().success
    assert world.instance.get_materialized_partitions(SHARD_INDEX) == {shard_key(0), shard_key(1)}


def test_a_backfill_takes_as_many_shards_a_run_as_the_setting_says(world):
    for asked, policy in ((1, None), (SHARDS, dg.BackfillPolicy.multi_run(SHARDS))):
        settings = load_settings(**world.settings.model_dump() | {"shards_per_run": asked})
        defs = assemble(settings, ProgressLog())
        assert defs.resolve_asset_graph().get(SHARD_INDEX).backfill_policy == policy
