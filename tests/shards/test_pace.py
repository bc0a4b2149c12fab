"""How far a build is, and when it will be done at the pace of the last hour: laws of `pace_of`, and what `paired-index status` says."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from shard_world import World

from paired_index_assets.files.stamp import modified_at
from paired_index_assets.files.storage import as_path
from paired_index_assets.shards.build import build_shard
from paired_index_assets.shards.pace import Pace, pace_of
from paired_index_assets.shards.segment import segment_name

NOW = 1_800_000_000.0


def looked(world: World, landing: Path | None = None) -> Pace:
    place = as_path(landing) if landing is not None else None
    return pace_of(world.root.generation(world.trained.fingerprint), world.catalog, place, NOW)


def segments(world: World, *minutes_ago: float) -> int:
    """The first files have segments, made so long ago; their rows."""
    folder = Path(world.root.generation(world.trained.fingerprint).segments.path)
    folder.mkdir(parents=True)
    for number, minutes in enumerate(minutes_ago):
        (folder / segment_name(number)).write_bytes(b"segment")
        os.utime(folder / segment_name(number), (NOW - 60 * minutes,) * 2)
    return sum(file.rows for file in world.catalog.all_files[: len(minutes_ago)])


def test_before_anything_is_made_nothing_is_done_and_no_end_is_named(world):
    found = looked(world)
    assert found.landed is None
    assert (found.encoded.done, found.encoded.total, found.encoded.pace) == (0, world.catalog.total_rows, None)
    assert found.left_s is None


def test_the_pace_is_of_the_last_hour_and_does_not_count_rows_made_before_it(world):
    done = segments(world, 300, 200, 30, 20, 10)
    files = world.catalog.all_files
    encoded = looked(world).encoded
    assert encoded.done == done
    assert encoded.pace == pytest.approx((files[3].rows + files[4].rows) / (30 * 60))  # the third ended when the half hour began
    assert encoded.left_s == pytest.approx((world.catalog.total_rows - done) / encoded.pace)


@pytest.mark.parametrize("ago", [(300,), (30,), (0, 0), ()])
def test_of_one_file_or_of_long_ago_or_of_this_moment_no_hour_is_extrapolated_from(world, ago):
    segments(world, *ago)
    pace = looked(world).encoded.pace
    assert pace is None or pace <= world.catalog.total_rows / 60


def test_what_landed_is_what_is_complete_and_the_slower_stage_decides(world, tmp_path):
    files = world.catalog.all_files
    for number, file in enumerate(files):
        os.utime(world.landing / file.name, (NOW - 60 * (50 - 5 * number),) * 2)
    with (world.landing / files[8].name).open("r+b") as stream:  # still arriving
        stream.truncate(200)
    (world.landing / "notes.txt").write_text("not ours")
    segments(world, 50, 49)
    found = looked(world, world.landing)
    assert found.landed is not None
    assert found.landed.done == sum(file.rows for file in files[:8])
    assert found.left_s == max(found.landed.left_s or 0, found.encoded.left_s or 0) == found.encoded.left_s


def test_a_build_that_is_whole_has_nothing_left(world):
    for shard in range(world.catalog.shards):
        build_shard(world.root, world.trained, world.catalog, shard, world.landing)
    found = pace_of(world.root.generation(world.trained.fingerprint), world.catalog, as_path(world.landing), time.time())
    assert found.left_s == 0
    assert found.encoded.done == found.encoded.total == world.catalog.total_rows


@pytest.mark.parametrize(
    ("info", "seconds"),
    [
        ({"LastModified": "2026-11-25T00:00:00+00:00"}, 1_795_564_800.0),
        ({"mtime": 12.5}, 12.5),
        ({"Last-Modified": "Wed, 25 Nov 2026"}, None),
        ({"ETag": "x"}, None),
    ],
)
def test_a_remote_file_has_the_date_that_its_store_gives_it(info, seconds):
    assert modified_at(info) == seconds


def test_status_of_a_finished_build_says_that_nothing_is_left(paired_index, small_build):
    said = paired_index("status", "--root", small_build).stdout
    assert "6 of 6 shards are current" in said
    assert "nothing is left to do" in said
    assert "it is searched" in said


def test_status_before_a_build_says_what_to_do(paired_index, tmp_path):
    refused = paired_index("status", "--root", tmp_path / "none", check=False)
    assert refused.returncode == 1
    assert "\n" not in refused.stderr.strip()
    assert "no index is trained yet" in refused.stderr
