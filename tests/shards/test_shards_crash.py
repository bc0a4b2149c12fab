"""A build may be killed at any moment, run twice at once, or run out of disk: what is finished stays, and the end is the same."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import faiss
import numpy as np
import pytest
import shard_child
from misbehaving import MisbehavingServer
from shard_world import World, land

from paired_index_assets.errors import Busy
from paired_index_assets.files.locks import only_writer
from paired_index_assets.landing.catalog import Catalog
from paired_index_assets.layout import BuildRoot
from paired_index_assets.shards.build import build_shard
from paired_index_assets.shards.generations import served_generation
from paired_index_assets.shards.record import finished_record
from paired_index_assets.shards.truth import TestCaptions

PATIENCE = 900  # seconds until a child counts as hanging


@pytest.fixture(scope="module")
def processes() -> multiprocessing.context.ForkServerContext:
    """Children that start in milliseconds, everything imported."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["paired_index_assets.shards.build"])
    return context


@pytest.fixture
def place(world: World, tmp_path: Path) -> Path:
    world.trained.save(tmp_path / "trained.index")
    world.catalog.save(tmp_path / "catalog.parquet")
    return tmp_path


def contents(root: Path) -> dict[str, bytes]:
    """Every finished file under a root, by name."""
    return {str(f.relative_to(root)): f.read_bytes() for f in sorted(root.rglob("*")) if f.is_file() and not f.name.endswith(".lock")}


def uninterrupted(world: World, root: Path, captions: TestCaptions | None = None) -> dict[str, bytes]:
    for shard in range(world.catalog.shards):
        build_shard(BuildRoot.at(root), world.trained, world.catalog, shard, world.landing, captions=captions, block_rows=100)
    return contents(root)


def finish(process: ForkServerProcess) -> int:
    process.join(PATIENCE)
    assert process.exitcode is not None, "the build hangs"
    return process.exitcode


def all_ids(world: World, root: Path) -> np.ndarray:
    ids = []
    for shard in range(world.catalog.shards):
        index = faiss.read_index(str(root / f"shards/knn.paired_QT_4bit.index{shard}"))
        lists = index.invlists
        ids += [faiss.rev_swig_ptr(lists.get_ids(n), lists.list_size(n)).copy() for n in range(index.nlist) if lists.list_size(n)]
    return np.sort(np.concatenate(ids))


def killed_builds(
    world: World,
    place: Path,
    processes: multiprocessing.context.ForkServerContext,
    kills: int,
    a_build: int,
    build: Callable[..., None] = shard_child.build_everything,
    *arguments: object,
    compared: Callable[[Path], dict[str, bytes]] = contents,
    captions: TestCaptions | None = None,
) -> None:
    """Kill builds at random moments, starting each where the last one died, until `kills` died; compare every finished one.

    `a_build` is about how often one build is killed until it is finished. `build` is called with `place`, a root and `arguments`.
    """
    uninterrupted(world, place / "expected", captions)
    expected = compared(place / "expected")
    for warm in range(2):  # the first child also waits for the server's imports
        started = time.monotonic()
        assert finish(_started(processes, build, place, place / f"timed{warm}", *arguments)) == 0
        lasts = time.monotonic() - started
    rng, killed, finished, root = random.Random(11), 0, 0, place / "root"
    while killed < kills or not finished:
        child = _started(processes, build, place, root, *arguments)
        child.join(rng.uniform(0, 2 * lasts / a_build))
        if child.exitcode is None and killed < kills:
            os.kill(child.pid, signal.SIGKILL)
        code = finish(child)
        assert code in (0, -signal.SIGKILL)
        killed += code != 0
        if code == 0:
            assert compared(root) == expected
            assert np.array_equal(all_ids(world, root), np.arange(world.catalog.total_rows))
            finished += 1
            shutil.rmtree(root)


def _started(processes: multiprocessing.context.ForkServerContext, run: object, *arguments: object) -> ForkServerProcess:
    child = processes.Process(target=run, args=arguments)
    child.start()
    return child


def test_builds_killed_at_ten_random_moments_end_with_the_same_bytes(world: World, place: Path, processes) -> None:
    killed_builds(world, place, processes, kills=10, a_build=4)


def large_world(world: World, place: Path) -> World:
    """58 shards of 40 small files, as LAION-2B has them."""
    rng = np.random.default_rng(5)
    land(place / "landing", rng.integers(1, 40, 58 * 40).tolist())
    large = dataclasses.replace(world, landing=place / "landing", catalog=Catalog.scan(place / "landing", shards=58))
    large.trained.save(place / "trained.index")
    large.catalog.save(place / "catalog.parquet")
    return large


def shards_alone(root: Path) -> dict[str, bytes]:
    """The index files: the records beside them name other stamps where files came from a server."""
    return {path.name: path.read_bytes() for path in sorted((root / "shards").glob("knn*.index*[0-9]"))}


def killed_builds_from_a_server(world: World, place: Path, processes, kills: int, a_build: int) -> None:
    with MisbehavingServer(world.landing) as server:
        server.misbehave_by_chance(seed=3, share=0.4)
        build = shard_child.build_everything_fetched
        killed_builds(world, place, processes, kills, a_build, build, server.url, compared=shards_alone)
    assert not list((place / "timed1/downloads").glob("*.npy"))  # deleted once they were encoded


def test_builds_from_a_server_that_misbehaves_killed_at_ten_random_moments_end_with_the_same_bytes(
    world: World, place: Path, processes
) -> None:
    killed_builds_from_a_server(world, place, processes, kills=10, a_build=4)


@pytest.mark.heavy
def test_58_shards_of_40_files_from_a_server_that_misbehaves_killed_at_fifty_random_moments_end_with_the_same_bytes(
    world: World, tmp_path: Path, processes
) -> None:
    large = large_world(world, tmp_path)
    killed_builds_from_a_server(large, tmp_path, processes, kills=50, a_build=25)


@pytest.mark.heavy
def test_builds_of_58_shards_of_40_files_killed_at_sixty_random_moments_end_with_the_same_bytes(
    world: World, tmp_path: Path, processes
) -> None:
    large = large_world(world, tmp_path)
    killed_builds(large, tmp_path, processes, kills=60, a_build=25)


def test_a_build_killed_before_any_one_flush_or_rename_ends_with_the_same_bytes(world: World, place: Path, processes) -> None:
    one = dataclasses.replace(world, catalog=Catalog.of(world.catalog.files(0)[:2]))
    one.catalog.save(place / "catalog.parquet")
    expected = uninterrupted(one, place / "expected")
    for moment in range(100):
        root = place / f"root{moment}"
        first = finish(_started(processes, shard_child.build_and_die_at, place, root, moment))
        for name in contents(root) if root.exists() else ():
            assert name in expected or name.endswith((".tmp", ".next.json")), "a file has its name before it is finished"
        if (root / "shards").exists():
            assert finished_record(served_generation(BuildRoot.at(root)).shard("QT_4bit", 0)) is not None
        assert finish(_started(processes, shard_child.build_everything, place, root)) == 0
        assert contents(root) == expected
        if first == 0:
            break
    assert moment >= 4 * 3  # two segments, a shard, a record: a flush, a rename and a flush of the folder each


def test_a_second_writer_of_a_shard_stops_with_a_clear_line(world: World) -> None:
    with only_writer(world.place(0).lock), pytest.raises(Busy, match=f"held by process {os.getpid()}"):
        build_shard(world.root, world.trained, world.catalog, 0, world.landing)
    build_shard(world.root, world.trained, world.catalog, 0, world.landing)


def test_two_builds_at_once_leave_one_right_shard(world: World, place: Path, processes) -> None:
    expected = uninterrupted(world, place / "expected")
    children = [_started(processes, shard_child.build_everything, place, place / "root") for _ in range(3)]
    codes = [finish(child) for child in children]
    assert 0 in codes
    for child, code in zip(children, codes, strict=True):
        if code:
            assert code == shard_child.FAILED
            assert (place / f"error-{child.pid}.txt").read_text().startswith("Busy: ")
    assert contents(place / "root") == expected


def test_a_full_disk_stops_the_build_and_loses_nothing(world: World, place: Path) -> None:
    """On a real small file system, mounted in a name space of its own (root, or a user name space)."""
    small = place / "small"
    small.mkdir()
    expected = uninterrupted(world, place / "expected")
    needed = sum(map(len, expected.values()))
    script = (
        f'mount -t tmpfs -o size={needed // 2} none {small} && ({sys.executable} {shard_child.__file__} {place} {small}; echo "exit $?"; '
        f"cp -r {small} {place / 'saved'})"
    )
    outcome = subprocess.run(["unshare", "-rm", "sh", "-c", script], capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert f"exit {shard_child.FAILED}" in outcome.stdout, outcome.stderr
    (error,) = place.glob("error-*.txt")
    assert error.read_text().startswith("OutOfDisk: ")
    saved = contents(place / "saved")
    assert any(name.endswith(".segment") for name in saved)
    assert all(expected[name] == content for name, content in saved.items())
    again = uninterrupted(world, place / "saved")
    assert again == expected
