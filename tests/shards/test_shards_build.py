"""A shard is what faiss itself would have made of the same files."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import faiss
import numpy as np
import pytest
from shard_world import NLIST, World, land, train, unit_rows

from paired_index_assets.codes.formats import ivf_of
from paired_index_assets.errors import BadInput, DamagedArtifact, MissingInput
from paired_index_assets.fetching.obtain import Obtained
from paired_index_assets.files.storage import digest_of
from paired_index_assets.landing import landed
from paired_index_assets.landing.catalog import Catalog, CatalogFile
from paired_index_assets.landing.landed import list_folder
from paired_index_assets.layout import BuildRoot
from paired_index_assets.progress import silent
from paired_index_assets.shards import assemble
from paired_index_assets.shards.build import ShardSummary, build_shard
from paired_index_assets.shards.encode import SegmentEncoder, segment_path
from paired_index_assets.shards.record import finished_record, read_failure, read_record, verify_shard
from paired_index_assets.shards.segment import open_segment, read_header, write_segment
from paired_index_assets.shards.state import shard_states, stale_shards
from paired_index_assets.shards.sweeping import sweep


def build_all(world: World, **options: object) -> list[ShardSummary]:
    return [build_shard(world.root, world.trained, world.catalog, s, world.landing, **options) for s in range(world.catalog.shards)]


def filled_by_faiss(world: World, shard: int, leave_out: tuple[int, ...] = ()) -> bytes:
    """The bytes faiss writes for an index that was given every row's list and code one file after another."""
    index = world.trained.empty_index()
    ivf = ivf_of(index)
    for file in world.catalog.files(shard):
        vectors = np.load(world.landing / file.name)[file.offset : file.offset + file.rows].astype(np.float32)
        ids = np.arange(file.start_row, file.stop_row)
        keep = np.isfinite(vectors).all(axis=1) & vectors.any(axis=1) & ~np.isin(ids, leave_out)
        lists, codes = world.trained.encode(vectors[keep])
        for number, code, row_id in zip(lists, codes, ids[keep], strict=True):
            ivf.invlists.add_entries(int(number), 1, faiss.swig_ptr(np.array([row_id])), faiss.swig_ptr(code))
    index.ntotal = ivf.ntotal = ivf.invlists.compute_ntotal()
    return faiss.serialize_index(index).tobytes()


@pytest.mark.parametrize("rounding", ["transformed", "query", "nearest", "faiss"])
def test_a_shard_has_the_bytes_faiss_would_write(world: World, rounding: str) -> None:
    world = dataclasses.replace(world, trained=train(rounding=rounding))
    for summary in build_all(world):
        assert summary.path.read_bytes() == filled_by_faiss(world, summary.shard)
        assert summary.record.sha256 == digest_of(summary.path)


@pytest.mark.parametrize("merge_bytes", [1, 100, 5000])
def test_the_bytes_do_not_depend_on_how_many_lists_are_merged_at_once(
    world: World, merge_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assemble, "MERGE_BYTES", merge_bytes)
    assert build_all(world)[0].path.read_bytes() == filled_by_faiss(world, 0)


def test_a_shard_with_most_lists_empty_has_the_bytes_faiss_would_write(world: World, tmp_path: Path) -> None:
    one = tmp_path / "one"
    one.mkdir()
    np.save(one / "a.npy", np.repeat(unit_rows(1, 5), 20, axis=0))
    few = dataclasses.replace(world, landing=one, catalog=Catalog.scan(one, shards=1), root=BuildRoot.at(tmp_path / "few"))
    assert build_all(few)[0].path.read_bytes() == filled_by_faiss(few, 0)


@pytest.mark.parametrize("rounding", ["transformed", "nearest"])
def test_stock_faiss_finds_what_decoding_and_inner_products_find(world: World, rounding: str) -> None:
    world = dataclasses.replace(world, trained=train(rounding=rounding))
    build_all(world)
    queries = unit_rows(20, 9, gap=0.5)
    for shard in range(world.catalog.shards):
        index = faiss.read_index(str(world.shard_file(shard)))
        ivf = ivf_of(index)
        ivf.nprobe = NLIST
        if rounding == "transformed":
            faiss.downcast_index(ivf.quantizer).nprobe = NLIST
        scores, ids = index.search(queries, 10)
        codes, all_ids = zip(
            *[
                (world.trained.encode(np.load(world.landing / f.name).astype(np.float32))[1], np.arange(f.start_row, f.stop_row))
                for f in world.catalog.files(shard)
            ],
            strict=True,
        )
        exact = queries @ world.trained.codec.decode(np.concatenate(codes)).T
        best = np.argsort(-exact, axis=1, kind="stable")[:, :10]
        np.testing.assert_allclose(scores, np.take_along_axis(exact, best, axis=1), atol=1e-5)
        assert np.mean(ids == np.concatenate(all_ids)[best]) > 0.99  # the rest are ties of equal scores


def test_ids_beyond_int32_are_kept(world: World, tmp_path: Path) -> None:
    first = 2_170_000_000
    files = [CatalogFile(0, "absent.npy", 0, 0, first, 0, 32, "<f2", 1)]
    names = [f.name for f in world.catalog.files(0)]
    start = first
    for number, name in enumerate(names, start=1):
        rows = len(np.load(world.landing / name))
        files.append(CatalogFile(number, name, 1, start, rows, 0, 32, "<f2", (world.landing / name).stat().st_size))
        start += rows
    high = dataclasses.replace(world, catalog=Catalog.of(files))
    build_shard(high.root, high.trained, high.catalog, 1, high.landing)
    index = faiss.read_index(str(high.shard_file(1)))
    index.nprobe = NLIST
    assert index.search(unit_rows(50, 3), 5)[1].min() >= first
    assert high.shard_file(1).read_bytes() == filled_by_faiss(high, 1)


def test_slices_of_one_big_file_become_shards(world: World, tmp_path: Path) -> None:
    big = tmp_path / "big"
    big.mkdir()
    np.save(big / "all.npy", unit_rows(1003, 4).astype(np.float16))
    sliced = dataclasses.replace(world, landing=big, catalog=Catalog.scan(big / "all.npy", shards=5))
    for summary in build_all(sliced):
        assert summary.path.read_bytes() == filled_by_faiss(sliced, summary.shard)
    assert sum(read_record(sliced.place(s)).indexed for s in range(5)) == 1003


def test_rows_that_cannot_be_searched_are_left_out_and_counted(world: World) -> None:
    name = world.catalog.files(1)[0].name
    vectors = np.load(world.landing / name)
    vectors[[3, 7]] = 0
    vectors[11, 5] = np.nan
    vectors[12, 0] = np.inf
    np.save(world.landing / name, vectors)
    gone = (world.catalog.files(1)[0].start_row, world.catalog.files(1)[0].start_row + 3, world.catalog.files(1)[1].start_row)
    summary = build_shard(world.root, world.trained, world.catalog, 1, world.landing, removed=np.array(gone))
    assert summary.left_out == {"not_finite": 2, "zero": 2, "taken_down": 2}
    assert summary.record.files[0].indexed + 5 == summary.record.files[0].rows
    assert summary.path.read_bytes() == filled_by_faiss(world, 1, gone)
    segment = open_segment(segment_path(world.root, world.trained.fingerprint, world.catalog.files(1)[0]))
    assert sorted(set(range(segment.header.rows)) - set(segment.rows.tolist())) == [3, 7, 11, 12]
    assert segment.left_out() == {"not_finite": 2, "zero": 2}


def test_an_unchanged_shard_is_not_touched(world: World) -> None:
    before = {s.path: (s.path.stat().st_mtime_ns, world.record_file(s.shard).stat().st_mtime_ns) for s in build_all(world)}
    again = build_all(world)
    assert all(s.unchanged and not s.encoded for s in again)
    assert {s.path: (s.path.stat().st_mtime_ns, world.record_file(s.shard).stat().st_mtime_ns) for s in again} == before


def test_a_changed_file_costs_its_own_segment_and_shard(world: World) -> None:
    build_all(world)
    digests = [digest_of(world.shard_file(s)) for s in range(3)]
    changed = world.catalog.files(1)[1]
    np.save(world.landing / changed.name, unit_rows(changed.rows, 77).astype(np.float16))
    assert stale_shards(world.root, "QT_4bit", world.trained.fingerprint, world.catalog, list_folder(world.landing)) == [1]
    again = build_all(world)
    assert [s.unchanged for s in again] == [True, False, True]
    assert again[1].encoded == (changed.name,)
    assert [digest_of(world.shard_file(s)) == digests[s] for s in range(3)] == [True, False, True]
    assert world.shard_file(1).read_bytes() == filled_by_faiss(world, 1)


def test_a_touched_file_changes_nothing(world: World) -> None:
    build_all(world)
    path, before = world.shard_file(2), world.shard_file(2).stat().st_mtime_ns
    touched = world.landing / world.catalog.files(2)[0].name
    np.save(touched, np.load(touched))
    assert stale_shards(world.root, "QT_4bit", world.trained.fingerprint, world.catalog, list_folder(world.landing)) == [2]
    assert build_all(world)[2].unchanged
    assert path.stat().st_mtime_ns == before
    assert stale_shards(world.root, "QT_4bit", world.trained.fingerprint, world.catalog, list_folder(world.landing)) == []


def never_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    def add(_: SegmentEncoder, file: CatalogFile, __: object) -> None:
        pytest.fail(f"{file.name} is encoded again")

    monkeypatch.setattr(SegmentEncoder, "add", add)


def test_a_build_that_was_copied_with_its_landing_folder_encodes_and_writes_nothing(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_all(world)
    build, landing = Path(world.root.root.path), world.landing
    for folder in (build, landing):
        folder.rename(folder.with_name(f"{folder.name}.away"))
        subprocess.run(["cp", "-r", folder.with_name(f"{folder.name}.away"), folder], check=True)
    fingerprint, listing = world.trained.fingerprint, list_folder(landing)
    assert stale_shards(world.root, "QT_4bit", fingerprint, world.catalog, listing) == [0, 1, 2]
    never_encoded(monkeypatch)
    before = {s: world.shard_file(s).stat() for s in range(3)}
    assert all(summary.unchanged and not summary.encoded for summary in build_all(world))
    assert {s: world.shard_file(s).stat() for s in range(3)} == before
    assert stale_shards(world.root, "QT_4bit", fingerprint, world.catalog, listing) == []
    gone = world.catalog.files(1)[0].start_row
    assert [summary.unchanged for summary in build_all(world, removed=np.array([gone]))] == [True, False, True]  # from the same segments


def test_a_file_replaced_by_another_of_the_same_size_and_time_is_noticed(world: World) -> None:
    build_all(world)
    path = world.landing / world.catalog.files(1)[0].name
    facts = path.stat()
    np.save(path.with_name("other.npy"), np.load(path)[::-1])
    os.utime(path.with_name("other.npy"), ns=(facts.st_atime_ns, facts.st_mtime_ns))
    path.with_name("other.npy").rename(path)
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (facts.st_size, facts.st_mtime_ns)
    assert stale_shards(world.root, "QT_4bit", world.trained.fingerprint, world.catalog, list_folder(world.landing)) == [1]
    again = build_all(world)
    assert [summary.encoded for summary in again] == [(), (path.name,), ()]
    assert world.shard_file(1).read_bytes() == filled_by_faiss(world, 1)


def test_a_touched_file_is_not_encoded_where_another_of_its_shard_is(world: World) -> None:
    build_all(world)
    changed, _, touched = (world.landing / file.name for file in world.catalog.files(1))
    os.utime(touched)
    np.save(changed, np.load(changed)[::-1])
    assert build_all(world)[1].encoded == (changed.name,)
    assert stale_shards(world.root, "QT_4bit", world.trained.fingerprint, world.catalog, list_folder(world.landing)) == []


@pytest.mark.parametrize("when", ["before it is read", "while it is read", "when it has been read"])
def test_a_landed_file_that_is_deleted_meanwhile_is_one_line_and_the_others_are_kept(
    world: World, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = world.catalog.files(0)[1]
    path, listing = world.landing / late.name, list_folder(world.landing)
    if when == "before it is read":
        path.unlink()
    progress = (
        (lambda step, *_, **facts: path.unlink(missing_ok=True) if facts.get("file") == late.name else None) if "has" in when else silent
    )
    if when == "while it is read":
        blocks = landed.read_blocks

        def lost(file: CatalogFile, place: object, **options: int) -> Iterator[landed.LandedBlock]:
            for block in blocks(file, place, **options):
                path.unlink(missing_ok=True)
                yield block

        monkeypatch.setattr("paired_index_assets.shards.encode.read_blocks", lost)
    with pytest.raises(MissingInput) as refused:
        build_shard(world.root, world.trained, world.catalog, 0, listing, progress=progress, block_rows=50)
    assert f"waits for 1 files: {late.name} was there and is gone" in str(refused.value)
    assert "\n" not in str(refused.value)
    segments = world.root.generation(world.trained.fingerprint).segments
    assert len(list(segments.iterdir())) == 2


def test_an_appended_file_extends_the_last_shard_alone(world: World) -> None:
    build_all(world)
    np.save(world.landing / "img_emb_0009.npy", unit_rows(75, 88).astype(np.float16))
    longer = dataclasses.replace(world, catalog=world.catalog.extend(world.landing))
    again = build_all(longer)
    assert [s.unchanged for s in again] == [True, True, False]
    assert again[2].encoded == ("img_emb_0009.npy",)
    assert again[2].path.read_bytes() == filled_by_faiss(longer, 2)


def test_a_new_trained_index_makes_everything_stale_and_its_old_segments_can_go(world: World) -> None:
    build_all(world)
    newer = dataclasses.replace(world, trained=train(seed=1))
    states = shard_states(world.root, "QT_4bit", newer.trained.fingerprint, world.catalog, list_folder(world.landing))
    assert [state.state for state in states] == ["stale"] * 3
    again = build_all(newer)
    assert not any(s.unchanged for s in again)
    assert sum(len(s.encoded) for s in again) == 9
    assert sweep(world.root, newer.trained.fingerprint, world.catalog) == [f"generation {world.trained.fingerprint}"]
    assert all(s.unchanged for s in build_all(newer))


def test_a_takedown_rebuilds_the_shards_it_touches_and_encodes_nothing(world: World) -> None:
    build_all(world)
    gone = world.catalog.files(1)[0].start_row + 2
    again = build_all(world, removed=np.array([gone]))
    assert [(s.unchanged, s.encoded) for s in again] == [(True, ()), (False, ()), (True, ())]
    assert again[1].path.read_bytes() == filled_by_faiss(world, 1, (gone,))


def test_a_shard_all_of_whose_rows_were_taken_down_is_an_empty_index(world: World) -> None:
    files = world.catalog.files(0)
    everything = np.arange(files[0].start_row, files[-1].stop_row)
    summary = build_shard(world.root, world.trained, world.catalog, 0, world.landing, removed=everything[::-1])
    assert (summary.record.indexed, summary.left_out["taken_down"]) == (0, len(everything))
    assert faiss.read_index(str(summary.path)).search(unit_rows(1, 3), 2)[1].tolist() == [[-1, -1]]
    assert summary.path.read_bytes() == filled_by_faiss(world, 0, tuple(everything.tolist()))
    states = shard_states(
        world.root, "QT_4bit", world.trained.fingerprint, world.catalog, list_folder(world.landing), removed=everything[::-1]
    )
    assert [state.state for state in states] == ["current", "stale", "stale"]


def test_finished_segments_stand_when_their_files_are_gone(world: World) -> None:
    files = world.catalog.files(0)
    encoder = SegmentEncoder(world.root, world.trained)
    for file in files:
        encoder.add(file, list_folder(world.landing)[file.name])
    encoder.flush()
    expected = filled_by_faiss(world, 0)
    for file in files:
        (world.landing / file.name).unlink()
    summary = build_shard(world.root, world.trained, world.catalog, 0, world.landing)
    assert summary.encoded == ()
    assert summary.path.read_bytes() == expected
    assert build_shard(world.root, world.trained, world.catalog, 0, world.landing).unchanged


def test_a_shard_waits_for_missing_files_and_keeps_what_it_has(world: World) -> None:
    late = world.catalog.files(0)[1]
    content = (world.landing / late.name).read_bytes()
    (world.landing / late.name).unlink()
    states = shard_states(world.root, "QT_4bit", world.trained.fingerprint, world.catalog, list_folder(world.landing))
    assert [state.state for state in states] == ["waiting", "stale", "stale"]
    assert late.name in states[0].why
    with pytest.raises(MissingInput, match=late.name):
        build_shard(world.root, world.trained, world.catalog, 0, world.landing)
    assert not world.shard_file(0).exists()
    (world.landing / late.name).write_bytes(content)
    assert build_shard(world.root, world.trained, world.catalog, 0, world.landing).encoded == (late.name,)


@pytest.mark.parametrize("cut", [1, 40, 1000, -1])
def test_a_truncated_segment_is_recognised_and_made_again(world: World, cut: int) -> None:
    build_all(world)
    file = world.catalog.files(0)[0]
    path = segment_path(world.root, world.trained.fingerprint, file)
    whole = path.read_bytes()
    path.write_bytes(whole[:cut])
    with pytest.raises(DamagedArtifact, match=path.name):
        open_segment(path)
    world.shard_file(0).unlink()
    assert build_shard(world.root, world.trained, world.catalog, 0, world.landing).encoded == (file.name,)
    assert path.read_bytes() == whole
    assert world.shard_file(0).read_bytes() == filled_by_faiss(world, 0)


def test_an_altered_segment_is_recognised_and_made_again(world: World) -> None:
    build_all(world)
    path = segment_path(world.root, world.trained.fingerprint, world.catalog.files(0)[0])
    whole = path.read_bytes()
    for place in (len(whole) // 2, len(whole) - 3):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        read_header(path)
        world.shard_file(0).unlink()
        build_shard(world.root, world.trained, world.catalog, 0, world.landing)
        assert path.read_bytes() == whole
        assert world.shard_file(0).read_bytes() == filled_by_faiss(world, 0)


def test_an_altered_shard_is_made_again(world: World) -> None:
    build_all(world)
    path = world.shard_file(0)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(DamagedArtifact, match="sha256"):
        verify_shard(world.place(0))
    assert not build_shard(world.root, world.trained, world.catalog, 0, world.landing).unchanged
    assert path.read_bytes() == whole
    assert verify_shard(world.place(0)).shard == 0


def test_a_shard_is_its_old_or_its_new_one_whole_at_each_moment_of_its_replacement(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    build_all(world)
    seen, rename = [], os.replace

    def watched(source: str, target: str) -> None:
        rename(source, target)
        record = finished_record(world.place(1))
        assert record is not None
        assert record.sha256 == digest_of(world.shard_file(1))
        seen.append(record.indexed)

    monkeypatch.setattr(os, "replace", watched)
    rows = sum(file.rows for file in world.catalog.files(1))
    build_shard(world.root, world.trained, world.catalog, 1, world.landing, removed=np.array([world.catalog.files(1)[0].start_row]))
    assert seen == [rows, rows - 1, rows - 1]  # the next record, the shard, the next record in the record's place


@pytest.mark.parametrize("last", ["next_record", "file"])
def test_a_build_killed_inside_a_replacement_is_taken_up(world: World, last: str, monkeypatch: pytest.MonkeyPatch) -> None:
    build_all(world)
    rename = os.replace

    def killed(source: str, target: str) -> None:
        rename(source, target)
        if Path(target) == Path(getattr(world.place(1), last).path):
            raise KeyboardInterrupt

    gone = np.array([world.catalog.files(1)[0].start_row])
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(os, "replace", killed)
        build_shard(world.root, world.trained, world.catalog, 1, world.landing, removed=gone)
    record = finished_record(world.place(1))
    assert record is not None
    assert record.sha256 == digest_of(world.shard_file(1))
    summary = build_all(world, removed=gone)[1]
    assert summary.unchanged == (last == "file")
    assert summary.path.read_bytes() == filled_by_faiss(world, 1, tuple(gone))
    assert not world.place(1).next_record.exists()


def test_a_damaged_segment_without_its_file_says_what_has_to_land(world: World) -> None:
    build_all(world)
    file = world.catalog.files(0)[2]
    path = segment_path(world.root, world.trained.fingerprint, file)
    whole = bytearray(path.read_bytes())
    whole[-40] ^= 1
    path.write_bytes(whole)
    (world.landing / file.name).unlink()
    world.shard_file(0).unlink()
    with pytest.raises(MissingInput, match=file.name):
        build_shard(world.root, world.trained, world.catalog, 0, world.landing)


def test_codes_out_of_step_with_their_ids_are_found_before_the_shard_gets_its_name(world: World) -> None:
    file = world.catalog.files(0)[0]
    build_shard(world.root, world.trained, world.catalog, 0, world.landing)
    segment = open_segment(segment_path(world.root, world.trained.fingerprint, file))
    lists, codes = np.zeros(file.rows, np.int64), np.zeros((file.rows, world.trained.codec.code_size), np.uint8)
    lists[segment.rows], codes[segment.rows] = segment.lists, segment.codes(0, segment.header.kept)
    write_segment(segment.path, segment.header, np.roll(lists, 1), np.roll(codes, 1, axis=0), np.zeros(file.rows, np.uint8))
    world.shard_file(0).unlink()
    with pytest.raises(DamagedArtifact, match="its code decodes"):
        build_shard(world.root, world.trained, world.catalog, 0, world.landing)
    assert not world.shard_file(0).exists()


def test_failures_are_kept_until_a_build_succeeds(world: World) -> None:
    bad, missing = world.catalog.files(0)[0], world.catalog.files(0)[1]
    content = (world.landing / bad.name).read_bytes()
    (world.landing / bad.name).write_bytes(b"<!DOCTYPE html><html>not found</html>")
    (world.landing / missing.name).rename(world.landing / "away")
    with pytest.raises(BadInput, match="HTML") as caught:
        build_shard(world.root, world.trained, world.catalog, 0, world.landing)
    assert missing.name in str(caught.value)
    assert list(read_failure(world.place(0))) == [bad.file_id, missing.file_id]
    (world.landing / bad.name).write_bytes(content)
    (world.landing / "away").rename(world.landing / missing.name)
    summary = build_shard(world.root, world.trained, world.catalog, 0, world.landing)
    assert summary.encoded == (bad.name, missing.name)
    assert read_failure(world.place(0)) == {}


def test_the_same_files_in_another_folder_give_the_same_shards(world: World, tmp_path: Path) -> None:
    build_all(world)
    other = tmp_path / "other"
    land(other, [300, 120, 64, 500, 1, 230, 90, 410, 33])
    moved = dataclasses.replace(world, landing=other, root=BuildRoot.at(tmp_path / "second"))
    for mine, theirs in zip(build_all(world), build_all(moved), strict=True):
        assert mine.path.read_bytes() == theirs.path.read_bytes()
        assert mine.record.inputs == theirs.record.inputs


def test_files_are_had_one_at_a_time_from_a_supply_that_deletes_them(world: World, tmp_path: Path) -> None:
    """A disk for one file serves a shard of three; the segments outlive the files."""
    expected = filled_by_faiss(world, 0)
    far, cache = world.landing.rename(tmp_path / "far"), world.landing
    cache.mkdir()
    asked, most = [], 0

    def supply(files: Sequence[CatalogFile]) -> Iterator[Obtained]:
        nonlocal most
        for file in files:
            asked.append(file.name)
            shutil.copy(far / file.name, cache / file.name)
            most = max(most, len(list(cache.iterdir())))
            yield Obtained(file, list_folder(cache)[file.name])
            (cache / file.name).unlink()

    summary = build_shard(world.root, world.trained, world.catalog, 0, cache, supply=supply)
    assert summary.path.read_bytes() == expected
    assert (asked, most) == ([file.name for file in world.catalog.files(0)], 1)
    assert build_shard(world.root, world.trained, world.catalog, 0, cache, supply=supply).unchanged
    assert len(asked) == 3


def test_a_supply_says_why_a_file_is_not_to_be_had(world: World) -> None:
    def supply(files: Sequence[CatalogFile]) -> Iterator[Obtained]:
        for file in files:
            there = file.file_id != 1
            yield Obtained(file, list_folder(world.landing)[file.name] if there else None, "" if there else "404 at every source")

    with pytest.raises(MissingInput, match=r"waits for 1 files: img_emb_0001\.npy 404 at every source"):
        build_shard(world.root, world.trained, world.catalog, 0, {}, supply=supply)
    assert "404" in read_failure(world.place(0))[1]


def test_progress_counts_the_rows_of_the_shard_and_never_falls(world: World) -> None:
    seen: dict[str, list[tuple[int, int]]] = {}
    build_shard(
        world.root,
        world.trained,
        world.catalog,
        0,
        world.landing,
        block_rows=50,
        progress=lambda step, done, total, **facts: seen.setdefault(step, []).append((done, total)),
    )
    rows = sum(file.rows for file in world.catalog.files(0))
    assert list(seen) == ["encode", "assemble"]
    for marks in seen.values():
        assert {total for _, total in marks} == {rows}
        assert [done for done, _ in marks] == sorted(done for done, _ in marks)
        assert marks[-1][0] == rows
