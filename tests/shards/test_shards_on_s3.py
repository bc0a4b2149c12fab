"""A build on an object store: the same bytes, any node goes on where another stopped, and a reader sees the old or the new whole."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from itertools import cycle, islice
from pathlib import Path

import faiss
import numpy as np
import pytest
from object_store import node
from s3_server import Slow, Status, Truncate, every
from shard_world import World, unit_rows

from paired_index_assets.errors import BadInput, DamagedArtifact, MissingInput, OutOfDisk
from paired_index_assets.files import storage
from paired_index_assets.files.cache import Cache
from paired_index_assets.files.storage import as_path, digest_of, require_reachable
from paired_index_assets.landing.landed import list_folder
from paired_index_assets.layout import BuildRoot, ShardPlace
from paired_index_assets.search.packed import pack, verify_pack
from paired_index_assets.search.sharded import IN_USE, ShardedIndex
from paired_index_assets.search.shardset import served_index
from paired_index_assets.shards.accounting import account_of_shard
from paired_index_assets.shards.build import build_shard
from paired_index_assets.shards.manifest import read_lengths, read_manifest, write_manifest
from paired_index_assets.shards.record import finished_record, read_record, shard_file, verify_shard
from paired_index_assets.shards.removals import add_removed, read_removed
from paired_index_assets.shards.state import stale_shards
from paired_index_assets.shards.truth import TestCaptions, truth_path
from paired_index_assets.shards.truths import sweep_truths
from paired_index_assets.trained.artifact import TrainedIndex
from paired_index_assets.trained.promotion import Promotion
from paired_index_assets.trained.promotion import promote as promote_index

CODEC = "QT_4bit"


def build(root: BuildRoot, world: World, shard: int = 0, **options: object):
    return build_shard(root, world.trained, world.catalog, shard, options.pop("landing", world.landing), **options)


def place_in(root: BuildRoot, world: World, shard: int = 0) -> ShardPlace:
    return root.generation(world.trained.fingerprint).shard(CODEC, shard)


def content(root: BuildRoot, world: World, shard: int) -> bytes:
    place = place_in(root, world, shard)
    record = finished_record(place)
    assert record is not None
    return shard_file(place, record).read_bytes()


def promote(root: BuildRoot, trained: TrainedIndex) -> None:
    path = root.trained_index(trained.nlist, CODEC, trained.method, trained.fingerprint)
    trained.save(path)
    promote_index(root, Promotion(path.name, trained.fingerprint))


def finished(root: BuildRoot, world: World) -> BuildRoot:
    """Everything a search needs."""
    world.catalog.save(root.catalog)
    promote(root, world.trained)
    for shard in range(world.catalog.shards):
        build(root, world, shard)
    write_manifest(root, world.trained, world.catalog)
    return root


def test_shards_and_records_are_the_local_ones_byte_for_byte(bucket, world, tmp_path):
    remote = node(bucket, tmp_path / "cache")
    for shard in range(world.catalog.shards):
        build(world.root, world, shard)
        made = build(remote, world, shard)
        assert content(remote, world, shard) == content(world.root, world, shard)
        assert read_record(place_in(remote, world, shard)) == read_record(place_in(world.root, world, shard))
        assert made.path.name == f"knn.paired_QT_4bit.index{shard}.{made.record.sha256[:16]}"
        assert verify_shard(place_in(remote, world, shard), remote.cache) == made.record
        assert build(remote, world, shard).unchanged
    assert stale_shards(remote, CODEC, world.trained.fingerprint, world.catalog, {}) == []


def test_another_node_goes_on_from_the_segments_of_one_that_is_gone(bucket, world, tmp_path):
    files = [file.name for file in world.catalog.files(0)]
    for place, names in (("one", files[:2]), ("other", files[2:])):
        (tmp_path / place).mkdir()
        for name in names:
            shutil.copy2(world.landing / name, tmp_path / place / name)
    with pytest.raises(MissingInput, match=files[2]):
        build(node(bucket, tmp_path / "cache-one"), world, landing=tmp_path / "one")
    remote = node(bucket, tmp_path / "cache-other")
    made = build(remote, world, landing=tmp_path / "other")
    assert made.encoded == (files[2],)
    build(world.root, world)
    assert content(remote, world, 0) == content(world.root, world, 0)


def test_a_segment_that_was_altered_in_the_bucket_is_made_again(bucket, world, tmp_path):
    remote = node(bucket, tmp_path / "cache")
    build(remote, world)
    (segment, *_) = remote.generation(world.trained.fingerprint).segments.glob("*.segment")
    whole = segment.read_bytes()
    segment.write_bytes(whole[:-50] + bytes(50))
    place_in(remote, world).record.unlink()
    assert len(build(remote, world).encoded) == 1
    assert segment.read_bytes() == whole


def test_the_bytes_are_the_same_on_a_server_in_trouble(bucket, s3, world, tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "BACKOFF_S", 0.01)
    build(world.root, world)
    remote = node(bucket, tmp_path / "cache")
    s3.faults = every(4, Status(503), Truncate(100), Slow(0.05, piece=4096), Status(500))
    build(remote, world)
    s3.faults = None
    assert content(remote, world, 0) == content(world.root, world, 0)


def test_two_nodes_that_build_the_same_shard_at_once_leave_one_whole_file(bucket, s3, world, tmp_path):
    world.trained.save(tmp_path / "trained.index")
    world.catalog.save(tmp_path / "catalog.parquet")
    script = """
        import sys
        from pathlib import Path
        from paired_index_assets.files.cache import Cache
        from paired_index_assets.landing.catalog import Catalog
        from paired_index_assets.layout import BuildRoot
        from paired_index_assets.shards.build import build_shard
        from paired_index_assets.files.storage import as_path
        from paired_index_assets.trained.artifact import TrainedIndex
        url, folder, cache = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
        trained, catalog = TrainedIndex.load(folder / "trained.index"), Catalog.load(folder / "catalog.parquet")
        print("ready", flush=True)
        sys.stdin.readline()
        build_shard(BuildRoot(as_path(url), Cache(cache)), trained, catalog, 0, folder / "landing")
    """
    children = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(script), f"{bucket}/build", str(tmp_path), str(tmp_path / f"cache-{number}")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | s3.environment,
        )
        for number in range(2)
    ]
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
    for child in children:
        child.communicate(b"\n")
    assert [child.returncode for child in children] == [0, 0]
    remote = node(bucket, tmp_path / "cache")
    assert len(list(place_in(remote, world).generation.shards.iterdir())) == 1
    build(world.root, world)
    assert content(remote, world, 0) == content(world.root, world, 0)
    assert verify_shard(place_in(remote, world, 0), remote.cache).indexed == 484


def test_a_reader_sees_the_old_or_the_new_whole_while_shard_and_trained_index_are_rewritten(bucket, world, tmp_path):
    writer, reader = node(bucket, tmp_path / "writer"), node(bucket, tmp_path / "reader")
    removals = [np.empty(0, np.int64), np.arange(10, 60)]
    contents = {}
    for removed in removals:
        made = build(world.root, world, removed=removed)
        contents[made.record.sha256] = made.record.indexed
    others = {trained.fingerprint: trained for trained in (world.trained, dataclasses.replace(world.trained, model="another"))}

    def write(removed: np.ndarray, trained: TrainedIndex) -> None:
        promote(writer, trained)
        build_shard(writer, trained, world.catalog, 0, world.landing, removed=removed)

    write(removals[0], world.trained)

    def rewrite() -> None:
        for removed, trained in islice(zip(cycle(removals[::-1]), cycle(reversed(others.values())), strict=False), 8):
            write(removed, trained)

    seen: set[str] = set()
    pool = ThreadPoolExecutor(1)
    writing = pool.submit(rewrite)
    while not writing.done():
        served = served_index(reader)
        place = served.shards[0]
        record = finished_record(place)
        assert record is not None
        local = reader.cache.local(shard_file(place, record), sha256=record.sha256)
        assert digest_of(local.path) == record.sha256
        assert faiss.read_index(str(local.path)).ntotal == record.indexed == contents[record.sha256]
        assert record.trained == served.trained.fingerprint
        seen |= {record.sha256, record.trained}
    writing.result()
    assert seen == set(contents) | set(others)


def test_of_the_versions_the_current_and_the_one_before_are_kept(world, tmp_path):
    remote = BuildRoot(as_path(f"memory://versions-{tmp_path.name}"), Cache(tmp_path / "cache"))
    made = [build(remote, world, removed=np.arange(count)) for count in range(4)]
    assert sorted(path.name for path in place_in(remote, world).generation.shards.iterdir()) == sorted(m.path.name for m in made[2:])


def test_a_copy_that_was_altered_and_a_file_that_was_are_told_apart(bucket, world, tmp_path):
    remote = node(bucket, tmp_path / "cache")
    made = build(remote, world)
    copy = remote.cache.local(made.path, sha256=made.record.sha256).path
    copy.write_bytes(copy.read_bytes()[:-1] + b"x")
    with pytest.raises(DamagedArtifact, match=f"{copy}: sha256 .* delete this copy of {made.path}"):
        verify_shard(place_in(remote, world, 0), remote.cache)
    made.path.write_bytes(copy.read_bytes())
    copy.unlink()
    with pytest.raises(DamagedArtifact, match=f"{made.path}: sha256 .* build it again"):
        verify_shard(place_in(remote, world, 0), remote.cache)


def test_a_search_of_the_bucket_finds_what_a_search_of_the_folder_finds(bucket, world, tmp_path):
    local, remote = finished(world.root, world), finished(node(bucket, tmp_path / "cache"), world)
    queries = unit_rows(30, seed=5)
    with ShardedIndex.open(local) as one, ShardedIndex.open(remote, verify=True) as other:
        for mine, theirs in zip(one.search(queries, 10), other.search(queries, 10), strict=True):
            np.testing.assert_array_equal(mine, theirs)
    names = read_manifest(remote)["shard_file"].to_pylist()
    assert all((remote.root / name).exists() for name in names)
    assert read_lengths(remote.parquet_lengths)[2] == list(dict.fromkeys(names))


def test_shards_that_do_not_fit_the_cache_are_refused_with_the_setting_to_raise(bucket, world, tmp_path):
    remote = finished(node(bucket, tmp_path / "cache"), world)
    with pytest.raises(OutOfDisk, match="raise cache_budget_gb"):
        ShardedIndex.open(BuildRoot(remote.root, Cache(tmp_path / "small", 20_000)))


def test_a_pack_in_the_bucket_is_the_local_one_and_is_searched_from_the_cache(bucket, world, tmp_path):
    local, remote = finished(world.root, world), finished(node(bucket, tmp_path / "cache"), world)
    (mine, _), (theirs, made) = pack(local), pack(remote)
    assert (made, theirs.file, theirs.sha256, theirs.shards) == (True, mine.file, mine.sha256, mine.shards)
    assert pack(node(bucket, tmp_path / "another")) == (theirs, False)
    assert verify_pack(node(bucket, tmp_path / "another")) == theirs
    queries, reader = unit_rows(80, seed=5), node(bucket, tmp_path / "reader")
    with ShardedIndex.open(local, packed=False) as shards, ShardedIndex.open(reader, verify=True) as packed:
        assert packed.packed == IN_USE
        assert [file.parent for file in packed.files] == [tmp_path / "reader"]  # and no shard was copied
        for one, other in zip(shards.search(queries, 10), packed.search(queries, 10), strict=True):
            np.testing.assert_array_equal(one, other)
        before = packed.search(queries, 10)
        add_removed(remote, before[1][:, 0], "asked", when=datetime(2026, 1, 1, tzinfo=UTC))
        after, made = pack(remote)
        assert made
        assert after.rows == theirs.rows - len(np.unique(before[1][:, 0]))
        folder = served_index(remote).generation.packed
        assert {file.name for file in folder.glob("knn.packed_*")} == {theirs.file, after.file}  # readers may be copying the last one
    with ShardedIndex.open(node(bucket, tmp_path / "later")) as later:
        assert not np.isin(later.search(queries, 10)[1], before[1][:, 0]).any()
        assert later.ntotal == after.rows


def test_a_pack_that_is_cut_in_the_bucket_is_not_searched(bucket, world, tmp_path):
    remote = finished(node(bucket, tmp_path / "cache"), world)
    record, _ = pack(remote)
    file = served_index(remote).generation.packed / record.file
    file.write_bytes(file.read_bytes()[:-100])
    with ShardedIndex.open(node(bucket, tmp_path / "reader")) as index:
        assert "run `paired-index pack` again" in index.packed or record.file in index.packed
        assert index.shards == tuple(range(world.catalog.shards))
    assert pack(node(bucket, tmp_path / "other")) == (record, True)


def test_what_is_taken_down_is_gone_from_a_search_of_the_bucket(bucket, world, tmp_path, monkeypatch):
    monkeypatch.setattr("paired_index_assets.files.watched.LOOK_SECONDS", 0.0)
    remote = finished(node(bucket, tmp_path / "cache"), world)
    with ShardedIndex.open(remote) as index:
        query = unit_rows(1, seed=5)
        first = int(index.search(query, 1)[1][0, 0])
        for row_id in (first, 7):
            add_removed(remote, np.array([row_id]), "asked", when=datetime(2026, 1, 1, tzinfo=UTC))
        assert int(index.search(query, 1)[1][0, 0]) != first
    assert read_removed(remote, "").tolist() == sorted({first, 7})


def test_removals_asked_for_at_the_same_moment_are_all_in_the_log(bucket, tmp_path):
    remote, when = node(bucket, tmp_path), datetime(2026, 1, 1, tzinfo=UTC)
    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(lambda row: add_removed(remote, np.array([row]), "asked", when=when), range(6))) == 6
    assert read_removed(remote, "").tolist() == list(range(6))
    assert add_removed(remote, np.arange(5, 8), "asked again", when=when) == 2


def test_a_wrong_bucket_and_a_store_that_does_not_answer_are_one_line(bucket, s3, monkeypatch):
    require_reachable(as_path(f"{bucket}/build"))
    with pytest.raises(BadInput, match="s3://no-such-bucket/build: there is no bucket 'no-such-bucket'"):
        require_reachable(as_path("s3://no-such-bucket/build"))
    with pytest.raises(BadInput, match="Unsupported filesystem: 'nonsense'"):
        require_reachable(as_path("nonsense://a/b"))


def test_nothing_is_written_to_a_folder_named_like_the_url(bucket, world, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = {path for path in Path().rglob("*") if "cache" not in path.parts}
    finished(node(bucket, tmp_path / "cache"), world)
    assert {path for path in Path().rglob("*") if "cache" not in path.parts} == before


def test_truths_in_a_bucket_are_the_local_ones_and_its_rows_are_accounted_for(bucket, world, tmp_path):
    remote, captions = node(bucket, tmp_path / "cache"), TestCaptions(unit_rows(20, 17, gap=0.5))
    removed = np.array([3, 70])
    for shard in range(world.catalog.shards):
        build(world.root, world, shard, captions=captions, removed=removed)
        build(remote, world, shard, captions=captions, removed=removed)
        found = account_of_shard(remote, world.trained, world.catalog, shard, list_folder(world.landing), removed=removed, seed=1)
        assert found.compared == min(100, found.rows)
    for file in world.catalog:
        mine, theirs = (truth_path(root, captions.digest, file).read_bytes() for root in (remote, world.root))
        assert mine == theirs
    sweep_truths(remote, keep="0" * 16)
    assert not truth_path(remote, captions.digest, world.catalog.all_files[0]).exists()
