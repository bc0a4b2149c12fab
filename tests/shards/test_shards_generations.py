"""Which generation is served, when the next one takes its place, and what goes."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import random
import shutil
import signal
import time
from pathlib import Path

import faiss
import numpy as np
import pytest
import shard_child
from object_store import node
from shard_world import World, land, train

from paired_index_assets.errors import BadInput, DamagedArtifact, MissingInput
from paired_index_assets.files.cache import Cache
from paired_index_assets.files.locks import only_writer
from paired_index_assets.files.storage import as_path
from paired_index_assets.landing.catalog import Catalog
from paired_index_assets.layout import BuildRoot
from paired_index_assets.search.sharded import ShardedIndex
from paired_index_assets.shards import sweeping
from paired_index_assets.shards.build import build_shard
from paired_index_assets.shards.generations import served_generation
from paired_index_assets.shards.manifest import write_manifest
from paired_index_assets.shards.record import finished_record
from paired_index_assets.shards.sweeping import being_made, bytes_of, sweep, unexpected


def build_all(world: World) -> None:
    for shard in range(world.catalog.shards):
        build_shard(world.root, world.trained, world.catalog, shard, world.landing)


@pytest.fixture
def newer(world: World) -> World:
    """The same files under another trained index."""
    return dataclasses.replace(world, trained=train(seed=1))


def served(world: World) -> str | None:
    generation = served_generation(world.root)
    return generation and generation.fingerprint


def names(folder: object) -> list[str]:
    return sorted(path.name for path in folder.iterdir())  # type: ignore[attr-defined]


def test_a_first_generation_is_served_from_its_first_shard_on(world: World) -> None:
    assert served(world) is None
    build_shard(world.root, world.trained, world.catalog, 1, world.landing)
    assert served(world) == world.trained.fingerprint
    assert names(Path(world.root.shards.path)) == ["knn.paired_QT_4bit.index1"]


def test_a_next_generation_is_served_once_it_has_every_shard_of_the_one_before(world: World, newer: World) -> None:
    build_all(world)
    link = Path(world.root.shards.path)
    for shard in (2, 0, 1):
        assert served(world) == world.trained.fingerprint
        assert names(link) == [f"knn.paired_QT_4bit.index{n}" for n in range(3)]
        build_shard(newer.root, newer.trained, newer.catalog, shard, newer.landing)
    assert served(world) == newer.trained.fingerprint
    assert os.readlink(link) == f"generations/{newer.trained.fingerprint}/shards"
    assert all((link / f"knn.paired_QT_4bit.index{n}").read_bytes() == newer.shard_file(n).read_bytes() for n in range(3))


def test_shards_that_wait_for_files_keep_no_next_generation_from_being_served(world: World, newer: World) -> None:
    (world.landing / world.catalog.files(1)[0].name).unlink()
    for one in (world, newer):
        for shard in (0, 2):
            build_shard(one.root, one.trained, one.catalog, shard, one.landing)
    assert served(world) == newer.trained.fingerprint


@pytest.mark.parametrize("shards", [2, 5])
def test_a_next_generation_of_fewer_or_more_shards_is_served_when_it_finds_all_that_the_one_before_does(
    world: World, newer: World, shards: int
) -> None:
    build_all(world)
    dealt = dataclasses.replace(newer, catalog=Catalog.scan(world.landing, shards=shards))
    dealt.catalog.save(world.root.catalog)
    for shard in range(shards):
        with ShardedIndex.open(world.root) as index:
            assert (index.fingerprint, index.ntotal) == (world.trained.fingerprint, world.catalog.total_rows)
        manifest = write_manifest(world.root, newer.trained, dealt.catalog)
        assert sum(manifest["indexed"].to_pylist()) == world.catalog.total_rows
        build_shard(dealt.root, dealt.trained, dealt.catalog, shard, dealt.landing)
        sweep(world.root, newer.trained.fingerprint, dealt.catalog)
    with ShardedIndex.open(world.root) as index:
        assert (index.fingerprint, index.ntotal) == (newer.trained.fingerprint, world.catalog.total_rows)
    assert len(names(Path(world.root.shards.path))) == shards


def test_a_next_generation_of_other_files_is_served_when_all_of_it_is_there(world: World, newer: World, tmp_path: Path) -> None:
    build_all(world)
    land(tmp_path / "other", [50, 60, 70], seed=500)
    for file in list((tmp_path / "other").iterdir()):
        file.rename(file.with_name(f"other_{file.name}"))
    other = dataclasses.replace(newer, landing=tmp_path / "other", catalog=Catalog.scan(tmp_path / "other", shards=3))
    for shard in range(3):
        assert served(world) == world.trained.fingerprint
        build_shard(other.root, other.trained, other.catalog, shard, other.landing)
    assert served(world) == newer.trained.fingerprint


def test_a_late_run_of_the_generation_before_does_not_bring_it_back(world: World, newer: World) -> None:
    from paired_index_assets.trained.promotion import Promotion, promote

    build_all(world)
    promote(world.root, Promotion("images.index", newer.trained.fingerprint))
    build_all(newer)
    build_all(world)
    assert served(world) == newer.trained.fingerprint


def test_the_root_can_be_moved(world: World, tmp_path: Path) -> None:
    build_all(world)
    moved = Path(world.root.root.path).rename(tmp_path / "moved")
    assert ShardedIndex.open(moved).ntotal == world.catalog.total_rows


def test_a_copy_that_followed_links_is_served_as_it_is_and_has_its_link_after_the_next_build(world: World, tmp_path: Path) -> None:
    build_all(world)
    copied = tmp_path / "copied"
    shutil.copytree(Path(world.root.root.path), copied)
    assert not (copied / "shards").is_symlink()
    assert ShardedIndex.open(copied).ntotal == world.catalog.total_rows
    build_all(world.elsewhere(copied))
    assert (copied / "shards").is_symlink()
    assert ShardedIndex.open(copied).ntotal == world.catalog.total_rows
    assert not (copied / "shards.before").exists()


def test_a_build_of_an_earlier_release_is_refused_and_built_anew_beside_what_is_the_users(world: World) -> None:
    folder = Path(world.root.shards.path)
    folder.mkdir(parents=True)
    (folder / "knn.paired_QT_4bit.index0").write_bytes(b"12345")
    (folder / "knn.paired_QT_4bit.index0.json").write_text(json.dumps({"bytes": 5, "sha256": "ab", "trained": "cd"}))
    (folder / "knn.paired_QT_4bit.index7").write_bytes(b"mine")
    with pytest.raises(BadInput, match=r"shards of an earlier release.*run `build` again"):
        ShardedIndex.open(world.root)
    build_all(world)
    assert ShardedIndex.open(world.root).ntotal == world.catalog.total_rows
    assert names(folder.with_name("shards.before")) == ["knn.paired_QT_4bit.index7"]
    assert any("shards.before: files that were in" in line for line in unexpected(world.root, None, world.catalog))


@pytest.mark.parametrize("target", ["/etc", "generations/../../x/shards", "generations/0123456789abcdef"])
def test_a_link_to_anything_else_is_refused(world: World, target: str) -> None:
    build_all(world)
    link = Path(world.root.shards.path)
    link.unlink()
    link.symlink_to(target)
    with pytest.raises(DamagedArtifact, match="expected generations/FINGERPRINT/shards; build again"):
        ShardedIndex.open(world.root)
    build_all(world)
    assert ShardedIndex.open(world.root).ntotal == world.catalog.total_rows


@pytest.mark.parametrize("content", ["null", "[]", "{}", '{"generation": 7}', '{"generation": "../../x"}', "nonsense"])
def test_a_pointer_to_anything_else_is_refused(world: World, tmp_path: Path, content: str) -> None:
    remote = BuildRoot(as_path(f"memory://pointer-{tmp_path.name}"), Cache(tmp_path / "cache"))
    build_shard(remote, world.trained, world.catalog, 0, world.landing)
    remote.served.write_text(content)
    with pytest.raises(DamagedArtifact, match=r"served\.json.*build again"):
        ShardedIndex.open(remote)
    build_shard(remote, world.trained, world.catalog, 0, world.landing)
    assert ShardedIndex.open(remote, partial=True).shards == (0,)


def test_the_generation_before_goes_when_the_next_is_whole_and_nobody_reads_it(world: World, newer: World) -> None:
    build_all(world)
    reader = ShardedIndex.open(world.root)
    build_shard(newer.root, newer.trained, newer.catalog, 0, newer.landing)
    assert sweep(world.root, newer.trained.fingerprint, world.catalog) == [f"segments of generation {world.trained.fingerprint}"]
    assert reader.search(np.eye(32, dtype=np.float32)[:1], 3)[1].min() >= 0
    build_all(newer)
    assert sweep(world.root, newer.trained.fingerprint, world.catalog) == []
    assert any("neither served nor being made" in line for line in unexpected(world.root, newer.trained.fingerprint, world.catalog))
    reader.close()
    assert sweep(world.root, newer.trained.fingerprint, world.catalog) == [f"generation {world.trained.fingerprint}"]
    assert names(world.root.generations) == [newer.trained.fingerprint]


def test_a_generation_that_was_never_served_goes_when_another_is_promoted(world: World, newer: World) -> None:
    build_all(world)
    build_shard(newer.root, newer.trained, newer.catalog, 0, newer.landing)
    assert f"generation {newer.trained.fingerprint}" in sweep(world.root, "0" * 16, world.catalog)
    assert served(world) == world.trained.fingerprint


def test_a_generation_that_is_being_built_in_does_not_go(world: World, newer: World) -> None:
    build_all(world)
    build_all(newer)
    with only_writer(world.place(1).lock):
        assert sweep(world.root, newer.trained.fingerprint, world.catalog) == []
    assert len(sweep(world.root, newer.trained.fingerprint, world.catalog)) == 1


def test_in_place_the_generation_before_goes_first(world: World, newer: World) -> None:
    build_all(world)
    assert sweep(world.root, newer.trained.fingerprint, world.catalog, in_place=True) == [f"generation {world.trained.fingerprint}"]
    with pytest.raises(MissingInput, match="no shards yet"):
        ShardedIndex.open(world.root)
    build_shard(newer.root, newer.trained, newer.catalog, 0, newer.landing)
    assert ShardedIndex.open(world.root, partial=True).shards == (0,)


def test_folders_that_are_no_generation_are_left_alone(world: World) -> None:
    build_all(world)
    theirs = Path(world.root.generations.path) / "notes"
    theirs.mkdir()
    assert sweep(world.root, world.trained.fingerprint, world.catalog) == []
    assert theirs.exists()


def test_shards_beyond_the_catalog_go_by_their_records_and_what_is_the_users_stays_and_is_named(world: World) -> None:
    build_all(world)
    theirs = world.shard_file(9)
    theirs.write_bytes(b"an index of my own")
    fewer = dataclasses.replace(world, catalog=Catalog.scan(world.landing, shards=2))
    build_all(fewer)
    assert any("shards 2 are beyond the catalog" in line for line in unexpected(world.root, world.trained.fingerprint, fewer.catalog))
    assert sweep(world.root, world.trained.fingerprint, fewer.catalog) == [str(world.place(2))]
    folder = Path(world.root.shards.path)
    assert names(folder) == ["knn.paired_QT_4bit.index0", "knn.paired_QT_4bit.index1", "knn.paired_QT_4bit.index9"]
    ids = [faiss.read_index(str(folder / name)).ntotal for name in names(folder)[:2]]
    assert sum(ids) == world.catalog.total_rows
    assert unexpected(world.root, world.trained.fingerprint, fewer.catalog) == [f"{theirs}: not a shard of this build; move it elsewhere"]


def test_segments_of_files_that_left_the_catalog_go(world: World) -> None:
    build_all(world)
    fewer = Catalog.of(world.catalog.files(0) + world.catalog.files(1))
    assert not any(line.endswith(".segment") for line in sweep(world.root, world.trained.fingerprint, fewer))
    sweep(world.root, world.trained.fingerprint, fewer, quiet=True)
    segments = world.root.generation(world.trained.fingerprint).segments
    assert names(segments) == [f"{file.file_id:06d}.segment" for file in fewer]


def test_what_is_being_made_beside_the_served_and_what_it_takes_is_told(world: World, newer: World) -> None:
    build_all(world)
    assert being_made(world.root, world.trained.fingerprint, world.catalog) is None
    build_shard(newer.root, newer.trained, newer.catalog, 1, newer.landing)
    made = being_made(world.root, newer.trained.fingerprint, world.catalog)
    assert made is not None
    assert (made.finished, made.lacking) == ((1,), (0, 2))
    assert bytes_of(made.generation) > newer.shard_file(1).stat().st_size


def test_in_a_bucket_a_pointer_is_switched_and_the_generation_before_goes_after_a_while(
    bucket, world, newer, tmp_path, monkeypatch
) -> None:
    remote = node(bucket, tmp_path / "cache")
    for one in (world, newer):
        for shard in range(3):
            build_shard(remote, one.trained, one.catalog, shard, one.landing)
            generation = served_generation(remote)
            assert generation is not None
            whole = one is newer and shard == 2
            assert generation.fingerprint == (newer if whole else world).trained.fingerprint
    world.catalog.save(remote.catalog)
    assert sweep(remote, newer.trained.fingerprint, world.catalog) == []
    monkeypatch.setattr(sweeping, "GRACE_SECONDS", 0.0)
    assert sweep(remote, newer.trained.fingerprint, world.catalog) == [f"generation {world.trained.fingerprint}"]
    assert ShardedIndex.open(remote).ntotal == world.catalog.total_rows
    fewer = Catalog.of(world.catalog.files(0) + world.catalog.files(1))
    assert f"{remote.generation(newer.trained.fingerprint).shard('QT_4bit', 2)}" in sweep(remote, newer.trained.fingerprint, fewer)
    assert len(names(remote.generation(newer.trained.fingerprint).shards)) == 2


def test_a_retraining_killed_at_random_moments_leaves_one_whole_generation_served(world: World, newer: World, tmp_path: Path) -> None:
    """Stock faiss reads, between any two kills, all shards of one generation and every id once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["paired_index_assets.shards.build"])
    root = BuildRoot.at(tmp_path / "root")
    worlds = {one.trained.fingerprint: one for one in (world, newer)}
    for name, one in (("old", world), ("new", newer)):
        (tmp_path / name).mkdir()
        one.trained.save(tmp_path / name / "trained.index")
        one.catalog.save(tmp_path / name / "catalog.parquet")
        (tmp_path / name / "landing").symlink_to(world.landing)
    shard_child.build_everything(tmp_path / "old", Path(root.root.path))
    started = time.monotonic()
    warm = context.Process(target=shard_child.rebuild_and_sweep, args=(tmp_path / "new", tmp_path / "warm"))
    warm.start()
    warm.join()
    lasts, rng, killed, seen = time.monotonic() - started, random.Random(3), 0, set()
    while killed < 12 or len(seen) < 2:
        child = context.Process(target=shard_child.rebuild_and_sweep, args=(tmp_path / "new", Path(root.root.path)))
        child.start()
        child.join(rng.uniform(0, lasts / 3) if killed < 12 else None)
        if child.exitcode is None:
            os.kill(child.pid, signal.SIGKILL)
        child.join()
        killed += child.exitcode != 0
        fingerprint = Path(os.readlink(root.shards.path)).parts[1]
        folder = Path(root.shards.path)
        assert names(folder) == [f"knn.paired_QT_4bit.index{n}" for n in range(3)]
        assert sum(faiss.read_index(str(path)).ntotal for path in folder.iterdir()) == world.catalog.total_rows
        assert all(finished_record(root.generation(fingerprint).shard("QT_4bit", n)).trained == fingerprint for n in range(3))
        assert ShardedIndex.open(root).fingerprint == worlds[fingerprint].trained.fingerprint
        seen.add(fingerprint)
        if fingerprint == newer.trained.fingerprint and killed < 12:  # from the start
            shutil.rmtree(root.root.path)
            shard_child.build_everything(tmp_path / "old", Path(root.root.path))
