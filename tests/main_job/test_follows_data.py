"""Derived work follows data, not runs: what was made again from the same data, and came out the same, makes nothing else run."""

import dagster as dg
import pytest
from automated_world import SHARDS, World

from paired_index_assets.assets.partitions import shard_key
from paired_index_assets.assets.shards import SHARD_INDEX

FOLLOWING = ("index_manifest", "packed_index", "recall_report")
EVERY_SHARD = [shard_key(shard) for shard in range(SHARDS)]


@pytest.fixture
def world(tmp_path, small_build):
    """Everything landed, everything built, automation at rest."""
    with dg.DagsterInstance.ephemeral() as instance:
        world = World(tmp_path, small_build, instance)
        world.land_everything()
        assert world.asked() == EVERY_SHARD
        assert world.build_all().success
        assert world.make(*FOLLOWING).success
        assert world.asked() == []
        yield world


def test_a_backfill_that_changes_nothing_is_followed_by_nothing_and_a_changed_shard_by_one_run_of_each(world):
    assert world.build_all().success
    assert world.asked() == []
    world.change(3)
    world.tick(), world.tick()
    assert world.asked() == [shard_key(3)]
    assert world.build_all().success
    assert world.asked() == ["index_manifest"]
    assert world.make("index_manifest").success
    assert world.asked() == ["packed_index", "recall_report"]
    assert world.make("packed_index").success
    assert world.make("recall_report").success
    assert world.asked() == []
    assert world.make("index_manifest").success  # by hand, and the same as before
    assert world.asked() == []


@pytest.mark.parametrize("looks", [0, 2])  # ticks between one run and the next
def test_what_a_person_made_from_the_new_data_is_not_made_again(world, looks):
    world.change(2)
    world.tick(), world.tick()
    assert world.asked(looks) in ([], [shard_key(2)])
    assert world.build_all().success
    world.asked(looks)
    assert world.make(*FOLLOWING).success  # the last run of "Materialize all"
    assert world.asked() == []
    world.report_trained("b")
    assert world.asked(1) == []  # seen, and asked for on the next tick; a person is faster
    assert world.build_all().success
    assert world.asked() == []


def test_a_shard_that_changes_while_the_manifest_is_made_is_not_left_out_of_it(world, monkeypatch):
    from paired_index_assets.shards import manifest

    world.change(1)
    world.tick(), world.tick()
    world.build(1)
    real = manifest.write_manifest

    def then_change(*arguments):
        written = real(*arguments)
        monkeypatch.undo()
        world.change(4)
        world.tick(), world.tick()
        assert world.build(4).success
        assert "index_manifest" not in world.asked()  # not while it is being made
        return written

    monkeypatch.setattr(manifest, "write_manifest", then_change)
    assert world.make("index_manifest").success
    assert "index_manifest" in world.asked()


def test_a_cancelled_backfill_is_followed_by_nothing(world):
    with world.building(2):
        assert world.asked() == []
    assert world.asked() == []


def test_what_failed_is_asked_for_again_when_its_data_change_and_not_before(world, monkeypatch):
    from paired_index_assets.shards import manifest

    world.change(1)
    world.tick(), world.tick()
    world.build(1)
    assert "index_manifest" in world.asked()

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(manifest, "write_manifest", full)
        assert not world.make("index_manifest").success
    assert world.asked() == []
    world.change(2)
    world.tick(), world.tick()
    world.build(2)
    assert "index_manifest" in world.asked()


def test_pairs_centroids_and_manifest_made_again_keep_their_data_version(world):
    def version(asset):
        event = world.instance.get_latest_materialization_event(dg.AssetKey(asset))
        return event.tags["dagster/data_version"]

    made = ("caption_image_pairs", "paired_centroids", "trained_index", "index_manifest")
    found = []
    for _ in range(2):
        for asset in made:
            assert world.make(asset).success
        found.append({asset: version(asset) for asset in made})
    assert found[0] == found[1]
    assert len(set(found[0].values())) == len(made)
    assert world.make(SHARD_INDEX, partition=shard_key(0)).success
