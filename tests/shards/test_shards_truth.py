"""The truth kept beside the segments is brute force over the same rows: after kills, takedowns and changes of files and captions too."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import shard_child
from shard_world import DIMENSIONS, World, land, train, unit_rows
from test_shards_crash import contents, killed_builds, place, processes

from paired_index_assets.errors import BadInput, DamagedArtifact, MissingInput
from paired_index_assets.landing.landed import landed_file
from paired_index_assets.quality.truth import DEEPEST_K, TIES_KEPT
from paired_index_assets.rows import Int64
from paired_index_assets.shards.build import ShardSummary, build_shard
from paired_index_assets.shards.record import read_record
from paired_index_assets.shards.truth import TestCaptions, captions_to_judge, read_truth, truth_path
from paired_index_assets.shards.truths import IndexedFile, WholeTruth, keep_truths, sweep_truths, whole_truth

__all__ = ["place", "processes"]
NOBODY = np.empty(0, np.int64)
CAPTIONS = TestCaptions(unit_rows(40, 17, gap=0.5))


@pytest.fixture
def large_files(world: World, tmp_path: Path) -> World:
    """Files of more rows than a truth lists."""
    land(tmp_path / "large", [900, 700, 40, 650])
    folder = tmp_path / "large"
    return dataclasses.replace(world, landing=folder, catalog=world.catalog.scan(folder, shards=2))


def build(world: World, *, captions: TestCaptions = CAPTIONS, removed: Int64 = NOBODY, **options: object) -> list[ShardSummary]:
    root, trained, catalog = world.root, world.trained, world.catalog
    return [
        build_shard(root, trained, catalog, s, world.landing, captions=captions, removed=removed, **options) for s in range(catalog.shards)
    ]


def merged(world: World, *, captions: TestCaptions = CAPTIONS, removed: Int64 = NOBODY) -> WholeTruth:
    files = []
    for shard in range(world.catalog.shards):
        record = read_record(world.place(shard))
        files += [(file, mine.content) for file, mine in zip(world.catalog.files(shard), record.files, strict=True)]
    return whole_truth(world.root, captions, files, removed, total_rows=world.catalog.total_rows)


def brute_force(world: World, captions: TestCaptions, removed: Int64) -> tuple[np.ndarray, np.ndarray]:
    """Scores and ids of every indexed row, best first, equal scores by id: float64 sums, rounded once."""
    rows = [np.load(world.landing / file.name)[file.offset :][: file.rows].astype(np.float64) for file in world.catalog]
    rows = np.concatenate(rows)
    usable = np.isfinite(rows).all(1) & rows.any(1)
    usable[removed] = False
    scores = (captions.vectors.astype(np.float64) @ np.where(usable[:, None], rows, 0).T).astype(np.float32)
    scores[:, ~usable] = -np.inf
    order = np.argsort(-scores, axis=1, kind="stable")[:, : min(usable.sum(), DEEPEST_K + TIES_KEPT)]
    return np.take_along_axis(scores, order, 1), order


def assert_is_brute_force(world: World, *, captions: TestCaptions = CAPTIONS, removed: Int64 = NOBODY) -> None:
    found, (scores, ids) = merged(world, captions=captions, removed=removed), brute_force(world, captions, removed)
    assert found.proven.all()
    known = found.truth.ids >= 0
    assert known[:, : min(DEEPEST_K, ids.shape[1])].all()
    np.testing.assert_array_equal(found.truth.ids[known], ids[known])
    np.testing.assert_array_equal(found.truth.scores[known], scores[known])
    assert found.truth.searchable == sum(len(np.load(world.landing / n)) for n in world.catalog.by_name) - _left_out(world, removed)


def _left_out(world: World, removed: Int64) -> int:
    rows = np.concatenate([np.load(world.landing / file.name)[file.offset :][: file.rows] for file in world.catalog]).astype(np.float32)
    usable = np.isfinite(rows).all(1) & rows.any(1)
    usable[removed] = False
    return int((~usable).sum())


@pytest.mark.parametrize("block_rows", [1 << 15, 100, 37])
def test_the_truth_made_while_encoding_is_brute_force_over_the_same_rows(world: World, block_rows: int) -> None:
    build(world, block_rows=block_rows)
    assert_is_brute_force(world)


def test_a_thousand_captions_have_the_truth_of_brute_force(large_files: World) -> None:
    captions = TestCaptions(unit_rows(1000, 3, gap=0.5))
    build(large_files, captions=captions, block_rows=200)
    assert_is_brute_force(large_files, captions=captions)


def test_rows_that_cannot_be_searched_are_in_no_truth(world: World) -> None:
    path = world.landing / world.catalog.files(1)[0].name
    rows = np.load(path)
    rows[3:9] = CAPTIONS.vectors[0]  # would be the best of all
    rows[3, 1], rows[4, 2], rows[5] = np.nan, np.inf, 0
    np.save(path, rows)
    build(world)
    assert_is_brute_force(world)
    start = world.catalog.files(1)[0].start_row
    assert set(merged(world).truth.ids[0, :3]) == {start + 6, start + 7, start + 8}


def test_truth_leaves_out_what_is_taken_down(large_files: World) -> None:
    build(large_files)
    best = merged(large_files).truth.ids
    for removed in (best[0, :5], best[:, 0], best[:, :60], np.arange(0, 890), np.arange(large_files.catalog.total_rows - 30)):
        removed = np.unique(removed)
        build(large_files, removed=removed)
        assert_is_brute_force(large_files, removed=removed)


def test_a_takedown_that_is_not_built_yet_is_struck_off_all_the_same(large_files: World) -> None:
    build(large_files)
    removed = np.unique(merged(large_files).truth.ids[:, :20])
    found, (_, ids) = merged(large_files, removed=removed), brute_force(large_files, CAPTIONS, removed)
    for caption, mine in zip(np.flatnonzero(found.proven), found.truth.ids, strict=True):
        known = mine[mine >= 0]
        np.testing.assert_array_equal(known, ids[caption, : len(known)])
        assert len(known) >= DEEPEST_K


def test_what_cannot_be_proven_after_a_takedown_is_not_claimed(large_files: World) -> None:
    """All rows that are listed of a lone file go, and nobody has built since: its next best are not known."""
    alone = dataclasses.replace(large_files, catalog=large_files.catalog.of(large_files.catalog.all_files[:1]))
    build(alone)
    listed = read_truth(alone.root, CAPTIONS.digest, alone.catalog.all_files[0])[1].ids
    found = merged(alone, removed=np.sort(listed[7]))
    assert not found.proven[7]
    assert len(found.truth) == int(found.proven.sum()) < len(CAPTIONS)
    build(alone, removed=np.sort(listed[7]))
    assert_is_brute_force(alone, removed=np.sort(listed[7]))


def test_how_deep_a_truth_is_kept_does_not_depend_on_when_rows_were_taken_down(large_files: World) -> None:
    build(large_files)
    first = np.unique(merged(large_files).truth.ids[:, :30])
    both = np.unique(np.concatenate([first, np.arange(100, 400)]))
    build(large_files, removed=first)
    build(large_files, removed=both)
    at_once = large_files.elsewhere(Path(large_files.root.root.path).with_name("at-once"))
    build(at_once, removed=both)
    assert _truths(large_files) == _truths(at_once)


def _truths(world: World) -> dict[str, bytes]:
    return {name: content for name, content in contents(Path(world.root.root.path)).items() if name.startswith("truth/")}


def test_a_retraining_leaves_the_truth_alone(world: World) -> None:
    build(world)
    before = {path: path.stat().st_mtime_ns for path in Path(world.root.root.path).glob("truth/*/*")}
    build(dataclasses.replace(world, trained=train(seed=5)))
    assert {path: path.stat().st_mtime_ns for path in Path(world.root.root.path).glob("truth/*/*")} == before
    assert len(before) == len(world.catalog)


def test_another_set_of_captions_has_a_truth_of_its_own_and_no_shard_is_built_for_it(world: World) -> None:
    build(world)
    others = TestCaptions(unit_rows(25, 99, gap=0.5))
    assert all(summary.unchanged and not summary.without_truth for summary in build(world, captions=others))
    assert_is_brute_force(world, captions=others)
    assert_is_brute_force(world)


def test_truths_of_captions_that_are_asked_no_more_go_and_nothing_else_does(world: World) -> None:
    others = TestCaptions(unit_rows(25, 99, gap=0.5))
    build(world)
    build(world, captions=others)
    mine = Path(world.root.truth("notes").path)
    mine.mkdir()
    sweep_truths(world.root, keep=others.digest)
    assert sorted(path.name for path in mine.parent.iterdir()) == sorted([others.digest, "notes"])
    assert_is_brute_force(world, captions=others)


@pytest.mark.parametrize("damage", ["deleted", "cut", "flipped", "of another file"])
def test_a_truth_that_is_lost_or_altered_is_made_again_to_the_same_bytes(world: World, damage: str) -> None:
    build(world)
    before = _truths(world)
    path = truth_path(world.root, CAPTIONS.digest, world.catalog.all_files[3])
    if damage == "deleted":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-7])
    elif damage == "flipped":
        whole = bytearray(path.read_bytes())
        whole[len(whole) // 2] ^= 4
        path.write_bytes(whole)
    else:
        shutil.copy(truth_path(world.root, CAPTIONS.digest, world.catalog.all_files[4]).path, path.path)
    with pytest.raises((MissingInput, DamagedArtifact)):
        merged(world)
    assert all(summary.unchanged for summary in build(world))
    assert _truths(world) == before


def test_a_file_that_changed_has_the_truth_of_its_new_rows(world: World) -> None:
    build(world)
    np.save(world.landing / world.catalog.all_files[3].name, unit_rows(500, 77).astype(np.float16))
    build(world)
    assert_is_brute_force(world)


def test_a_truth_is_never_a_reason_to_miss_a_file_that_is_gone(world: World) -> None:
    build(world)
    gone = world.catalog.files(0)[1]
    (world.landing / gone.name).unlink()
    assert all(not summary.without_truth for summary in build(world))
    truth_path(world.root, CAPTIONS.digest, gone).unlink()
    summaries = build(world)
    assert [summary.unchanged for summary in summaries] == [True] * 3
    assert summaries[0].without_truth == (gone.name,)
    with pytest.raises(MissingInput, match=f"1 of 9 indexed files .*{gone.name}"):
        merged(world)


def test_builds_killed_at_ten_random_moments_end_with_the_same_truth(world: World, place: Path, processes) -> None:
    np.save(place / shard_child.CAPTIONS, CAPTIONS.vectors)
    killed_builds(world, place, processes, kills=10, a_build=4, captions=CAPTIONS)


def test_truths_are_made_of_files_that_are_given_and_of_no_others(world: World) -> None:
    build(world)
    file = world.catalog.all_files[0]
    content = read_record(world.place(0)).files[0].content
    others = TestCaptions(unit_rows(5, 1))
    there = landed_file(world.landing / file.name)
    assert keep_truths(world.root, others, [IndexedFile(file, content, None)], NOBODY) == [IndexedFile(file, content, None)]
    assert keep_truths(world.root, others, [IndexedFile(file, "other rows", there)], NOBODY)
    assert not keep_truths(world.root, others, [IndexedFile(file, content, there)], NOBODY)


def test_captions_are_all_judged_in_small_builds_and_a_seeded_thousand_in_large_ones() -> None:
    test = np.arange(0, 12_000, 3)
    assert np.array_equal(captions_to_judge(test, 200_000, 128, 1024, seed=1), test)
    laion = captions_to_judge(test, 2_170_337_258, 768, 131_072, seed=1)
    assert len(np.unique(laion)) == 1_000
    assert np.isin(laion, test).all()
    assert np.array_equal(laion, captions_to_judge(test, 2_170_337_258, 768, 131_072, seed=1))
    assert np.array_equal(captions_to_judge(test[:1310], 2_170_337_258, 768, 131_072, seed=1), test[:1310])


def test_captions_that_are_not_finite_are_refused() -> None:
    with pytest.raises(BadInput, match="finite"):
        TestCaptions(np.full((2, DIMENSIONS), np.nan, np.float32))
