"""Every row of a shard is accounted for by what its file holds: whatever is wrong with it is named in one line."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import faiss
import numpy as np
import pytest
from shard_world import World, train, unit_rows

from paired_index_assets.codes.formats import ivf_of
from paired_index_assets.errors import DamagedArtifact, MissingInput
from paired_index_assets.files.storage import digest_of
from paired_index_assets.landing.catalog import Catalog
from paired_index_assets.landing.landed import list_folder, read_rows
from paired_index_assets.shards.accounting import SAMPLED_ROWS, Account, account_of_shard
from paired_index_assets.shards.build import build_shard
from paired_index_assets.shards.record import read_record, write_record
from paired_index_assets.shards.removals import add_removed

NOBODY = np.empty(0, np.int64)
NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)


def accounted(world: World, shard: int = 0, *, removed: np.ndarray = NOBODY, seed: int = 3) -> Account:
    return account_of_shard(world.root, world.trained, world.catalog, shard, list_folder(world.landing), removed=removed, seed=seed)


def build(world: World, shard: int = 0, removed: np.ndarray = NOBODY) -> None:
    build_shard(world.root, world.trained, world.catalog, shard, world.landing, removed=removed)


def altered(world: World, change: Callable[[faiss.Index], object], shard: int = 0) -> None:
    """The shard file after `change(index)`, and a record that says so."""
    file = world.shard_file(shard)
    index = faiss.read_index(str(file))
    change(index)
    faiss.write_index(index, str(file))
    record = read_record(world.place(shard))
    write_record(world.place(shard), dataclasses.replace(record, sha256=digest_of(file), bytes=file.stat().st_size))


def ids_of_largest(index: faiss.Index) -> np.ndarray:
    ivf = ivf_of(index)
    number = max(range(ivf.nlist), key=ivf.invlists.list_size)
    return faiss.rev_swig_ptr(ivf.invlists.get_ids(number), ivf.invlists.list_size(number))


@pytest.mark.parametrize("rounding", ["transformed", "query", "nearest", "faiss"])
def test_a_right_shard_is_accounted_for_row_by_row(world: World, rounding: str) -> None:
    world = dataclasses.replace(world, trained=train(rounding=rounding))
    name = world.catalog.files(0)[0].name
    vectors = np.load(world.landing / name)
    vectors[[3, 7]], vectors[11, 5] = 0, np.nan
    np.save(world.landing / name, vectors)
    removed = np.array([0, 3, 200])
    build(world, removed=removed)
    found = accounted(world, removed=removed)
    assert (found.rows, found.in_lists, found.not_finite, found.zero, found.taken_down) == (484, 479, 1, 2, 2)
    assert found.compared == SAMPLED_ROWS
    assert not found.gone


def test_what_was_taken_down_of_another_data_set_is_no_loss_of_this_one(world: World) -> None:
    world = dataclasses.replace(world, catalog=world.catalog.of_data_set("this one"))
    add_removed(world.root, np.array([5, 9]), "asked", when=NOON, data_set="this one")
    for other in ("", "another"):
        add_removed(world.root, np.array([20, 21, 22]), "asked", when=NOON, data_set=other)
    build_shard(world.root, world.trained, world.catalog, 0, world.landing)
    found = account_of_shard(world.root, world.trained, world.catalog, 0, list_folder(world.landing), seed=3)
    assert (found.rows, found.in_lists, found.taken_down) == (484, 482, 2)
    altered(world, lambda index: index.remove_ids(np.array([20])))
    with pytest.raises(DamagedArtifact, match=r"of img_emb_0000\.npy 297 rows are in lists; its record says 300 rows = 298 in lists"):
        account_of_shard(world.root, world.trained, world.catalog, 0, list_folder(world.landing), seed=3)


def test_other_seeds_look_at_other_rows(world: World) -> None:
    build(world)
    ids = {seed: np.random.default_rng([seed, 0]).choice(484, SAMPLED_ROWS, replace=False) for seed in (1, 2)}
    assert set(ids[1]) != set(ids[2])
    assert accounted(world, seed=1).compared == accounted(world, seed=2).compared == SAMPLED_ROWS


@pytest.mark.parametrize("rounding", ["transformed", "query"])
def test_ids_that_were_permuted_are_found_out(world: World, rounding: str) -> None:
    world = dataclasses.replace(world, trained=train(rounding=rounding))

    def permute(index: faiss.Index) -> None:
        for number in range(ivf_of(index).nlist):
            if size := ivf_of(index).invlists.list_size(number):
                ids = faiss.rev_swig_ptr(ivf_of(index).invlists.get_ids(number), size)
                ids[:] = np.roll(ids.copy(), 1)

    build(world)
    altered(world, permute)
    with pytest.raises(DamagedArtifact, match=r"row \d+, of img_emb_\d+.npy: its code decodes .* the codec's error is"):
        accounted(world)


def test_a_shard_made_of_other_vectors_is_found_out(world: World) -> None:
    """As many rows, unit vectors too: captions in the place of images."""
    images = {file.name: np.load(world.landing / file.name) for file in world.catalog.files(0)}
    build(world)
    right = read_record(world.place(0))
    for number, name in enumerate(images):
        np.save(world.landing / name, unit_rows(len(images[name]), 40 + number, gap=0.5).astype(np.float16))
    build(world)
    wrong = read_record(world.place(0))
    for name, rows in images.items():
        np.save(world.landing / name, rows)
    assert len(accounted(world).gone) == 3  # files that were replaced: the shard is stale, which is for a build to see
    write_record(world.place(0), dataclasses.replace(wrong, files=right.files))
    with pytest.raises(DamagedArtifact, match="its code decodes"):
        accounted(world)


def test_an_id_that_is_there_twice_is_found_out(world: World) -> None:
    def repeat(index: faiss.Index) -> None:
        ids = ids_of_largest(index)
        ids[1] = ids[0]

    build(world)
    altered(world, repeat)
    with pytest.raises(DamagedArtifact, match="484 ids in its lists, 483 of them different"):
        accounted(world)


def test_an_id_of_another_shard_is_found_out(world: World) -> None:
    def move(index: faiss.Index) -> None:
        ids_of_largest(index)[0] += 100_000

    build(world)
    altered(world, move)
    with pytest.raises(DamagedArtifact, match="expected 0 to 483"):
        accounted(world)


def test_a_row_that_is_missing_is_found_out(world: World) -> None:
    build(world)
    altered(world, lambda index: index.remove_ids(np.array([5])))
    with pytest.raises(DamagedArtifact, match=r"of img_emb_0000\.npy 299 rows are in lists; its record says 300 rows = 300 in lists"):
        accounted(world)


def test_a_row_that_was_taken_down_and_is_in_a_list_is_found_out(world: World) -> None:
    build(world, removed=np.array([5]))
    altered(world, lambda index: ids_of_largest(index).__setitem__(0, 5))  # in the place of a row that may be found
    with pytest.raises(DamagedArtifact, match="row 5 was taken down and is in a list"):
        accounted(world, removed=np.array([5]))


def test_a_takedown_that_is_not_built_yet_is_no_fault(world: World) -> None:
    build(world)
    assert accounted(world, removed=np.array([5, 6])).taken_down == 0


def test_files_that_are_gone_are_named_and_the_others_compared(world: World) -> None:
    build(world)
    name = world.catalog.files(0)[0].name
    (world.landing / name).unlink()
    found = accounted(world)
    assert found.gone == (name,)
    assert 0 < found.compared < SAMPLED_ROWS
    assert "the source of 1 files is gone or another now" in str(found)


def test_files_that_were_appended_since_are_no_fault(world: World) -> None:
    files = world.catalog.all_files
    before = dataclasses.replace(world, catalog=Catalog.of(files[:-1]))
    build(before, shard=2)
    found = accounted(world, shard=2)
    assert found.rows == sum(file.rows for file in files[6:8])
    moved = Catalog.of([dataclasses.replace(file, name=f"other-{file.name}") for file in files])
    with pytest.raises(DamagedArtifact, match="made of other files or rows"):
        accounted(dataclasses.replace(world, catalog=moved), shard=2)


def test_a_shard_that_is_not_there_says_so(world: World) -> None:
    with pytest.raises(MissingInput, match="no finished shard"):
        accounted(world)


def test_rows_of_a_slice_are_read_one_by_one(tmp_path: Path) -> None:
    rows = unit_rows(50, 1).astype(np.float16)
    np.save(tmp_path / "a.npy", rows)
    catalog = Catalog.scan(tmp_path / "a.npy", shards=2)
    second = catalog.files(1)[0]
    asked = np.array([0, 3, second.rows - 1])
    np.testing.assert_array_equal(read_rows(second, tmp_path / "a.npy", asked), rows[second.offset + asked])
