"""The asset `packed_index`: follows the shards where it is wanted, and is checked against them."""

from datetime import UTC, datetime

import dagster as dg
import numpy as np
import pytest
from search_builds import rebuild

from paired_index_assets.assets.packing import packed_index, packed_index_is_its_shards
from paired_index_assets.assets.resources import ProgressLog, build_resource
from paired_index_assets.builds.opened import OpenBuild
from paired_index_assets.search.packed import read_pack
from paired_index_assets.search.sharded import IN_USE, ShardedIndex
from paired_index_assets.search.shardset import served_index
from paired_index_assets.settings import load_settings
from paired_index_assets.shards.removals import add_removed


@pytest.fixture
def made(fresh):
    """What a run of the asset and its check says."""

    def run(**settings):
        given = load_settings(root=str(fresh.root.root), landing=str(fresh.landing), **settings)
        resources = {"build": build_resource(given), "progress": ProgressLog()}
        done = dg.materialize([one.definition(given) for one in (packed_index, packed_index_is_its_shards)], resources=resources)
        (event,), (check,) = done.asset_materializations_for_node("packed_index"), done.get_asset_check_evaluations()
        return {name: value.value for name, value in event.metadata.items()}, check

    return run


def test_what_it_makes_is_searched_and_left_alone_until_something_changes(fresh, made):
    first, check = made()
    assert (first["dagster/row_count"], first["unchanged"]) == (len(fresh.images), False)
    assert check.passed
    assert check.description == f"{len(fresh.images):,} vectors of {fresh.catalog.shards} shards"
    assert ShardedIndex.open(fresh.root).packed == IN_USE
    assert made()[0]["unchanged"] is True
    np.save(fresh.landing / "img_emb_0002.npy", fresh.images[731:1631][::-1].astype(np.float16))
    rebuild(fresh)
    assert ShardedIndex.open(fresh.root).packed != IN_USE
    second, check = made()
    assert second["unchanged"] is False
    assert second["sha256"] != first["sha256"]
    assert check.passed
    assert ShardedIndex.open(fresh.root).packed == IN_USE


def test_it_waits_for_shards_and_makes_nothing_where_it_is_not_wanted(fresh, made):
    said, check = made(packed=False)
    assert "not wanted" in said["packed"]
    assert check.passed
    for shard in (2, 4):
        fresh.place(shard).record.unlink()
    assert made()[0]["packed"] == "waits for 2 shards, first: 2"
    assert read_pack(served_index(fresh.root).generation) is None


def check_of(build):
    return packed_index_is_its_shards.judge(OpenBuild(load_settings(root=str(build.root.root))))


def test_its_check_reads_the_file_and_fails_for_any_byte_that_is_another(fresh, made):
    made()
    add_removed(fresh.root, np.arange(9), "asked", when=datetime.now(UTC))
    assert check_of(fresh).passed  # removed since: not found, and gone from the next
    record = read_pack(served_index(fresh.root).generation)
    file = served_index(fresh.root).generation.packed / record.file
    content = file.read_bytes()
    for at in (len(content) // 2, len(content) - 3):
        file.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        found = check_of(fresh)
        assert not found.passed
        assert record.file in found.description
        assert "\n" not in found.description
    file.unlink()
    assert not check_of(fresh).passed
