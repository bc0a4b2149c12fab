"""The proofs of a rehearsal hold for what was built well, and fail for each way in which it could be wrong."""

import dataclasses
import shutil
from datetime import UTC, datetime
from pathlib import Path

import faiss
import numpy as np
import pytest
from laion_rehearsal import landing, proofs
from laion_rehearsal.drive import what_was_wrong
from laion_rehearsal.plan import Plan
from laion_rehearsal.proofs import NotProven
from laion_rehearsal.published import write_published

from paired_index_assets.codes.codec import train_codec
from paired_index_assets.landing.landed import Listing
from paired_index_assets.layout import BuildRoot
from paired_index_assets.shards.build import build_shard
from paired_index_assets.shards.manifest import write_manifest
from paired_index_assets.shards.removals import add_removed
from paired_index_assets.shards.truth import TestCaptions
from paired_index_assets.trained.artifact import TrainedIndex

pytestmark = pytest.mark.usefixtures("one_thread")
K = 20


@dataclasses.dataclass(frozen=True)
class World:
    plan: Plan
    trained: TrainedIndex
    captions: TestCaptions
    removed: np.ndarray
    listing: Listing

    @property
    def catalog(self):
        return self.plan.catalog


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """80 files in two shards, one of them rebuilt lossily, a few rows unusable and a few taken down; and the same built undisturbed."""
    plan = Plan(tmp_path_factory.mktemp("built"), share=3e-5, seed=1, files=80)
    for file in plan.catalog:
        if file.file_id not in plan.mischief.missing:
            landing.land(plan, file)
    write_published(plan)
    images, captions = (
        np.concatenate([make(n, 200) for n in range(3)]).astype(np.float32) for make in (plan.geometry.images, plan.geometry.captions)
    )
    trained = TrainedIndex("kmeans", 16, 768, images[:16].copy(), train_codec("QT_4bit", "nearest", images, captions))
    removed = np.asarray([11, 500, 1_700], np.int64)
    listing = proofs.build_undisturbed(plan, plan.catalog, trained, removed, plan.work / "again")
    world = World(plan, trained, TestCaptions(captions[:30]), removed, listing)
    root = BuildRoot.at(plan.root)
    add_removed(root, removed, "asked for", when=datetime.now(UTC))
    for shard in range(plan.catalog.shards):
        build_shard(root, trained, plan.catalog, shard, listing, captions=world.captions)
    write_manifest(root, trained, plan.catalog)
    return world


@pytest.fixture
def world(built, tmp_path):
    """A copy that a test may spoil."""
    work = tmp_path / "work"
    shutil.copytree(built.plan.work, work, symlinks=True)
    return dataclasses.replace(built, plan=dataclasses.replace(built.plan, work=work))


def shard_file(world: World, shard: int) -> Path:
    return next((world.plan.root / "shards").glob(f"knn.*.index{shard}"))


def rewrite(path: Path, change) -> None:
    index = faiss.read_index(str(path))
    change(index)
    faiss.write_index(index, str(path))


def test_what_was_built_well_is_proven(built):
    plan, catalog = built.plan, built.catalog
    assert f"{catalog.total_rows - 3 - 2:,} of {catalog.total_rows:,} ids" in proofs.every_id_once(plan, catalog, built.removed)
    assert "2 of 2 shards" in proofs.same_bytes(plan, catalog, plan.work / "again")
    exact = proofs.by_brute_force(built.captions.vectors, catalog, built.listing, built.removed, K)
    assert f"30 captions x {K}" in proofs.truth_is_exact(plan, catalog, built.captions, built.removed, exact)
    curve = proofs.recall_over_all(plan, built.captions.vectors, exact, [1, 16])
    assert curve[-1][0] == 16
    assert curve[-1][2] == pytest.approx(1)
    assert curve[-1][1] > curve[0][1]


def test_a_lost_id_is_named(world):
    rewrite(shard_file(world, 1), lambda index: index.remove_ids(np.asarray([1_900])))
    with pytest.raises(NotProven, match=r"id 1900 is 0 times in a list, expected 1 times; 1 ids"):
        proofs.every_id_once(world.plan, world.catalog, world.removed)


def test_an_id_that_is_there_twice_is_named(world):
    rewrite(shard_file(world, 0), lambda index: index.add_with_ids(np.ones((1, 768), np.float32), np.asarray([42])))
    with pytest.raises(NotProven, match=r"id 42 is 2 times in a list, expected 1 times"):
        proofs.every_id_once(world.plan, world.catalog, world.removed)


def test_an_id_that_was_taken_down_and_is_there_is_named(world):
    with pytest.raises(NotProven, match=r"id 12 is 1 times in a list, expected 0 times"):
        proofs.every_id_once(world.plan, world.catalog, np.sort(np.append(world.removed, 12)))


def test_an_id_of_another_shard_is_named(world):
    shutil.copyfile(shard_file(world, 0), shard_file(world, 1))
    with pytest.raises(NotProven, match=r"index1: ids 0 to"):
        proofs.every_id_once(world.plan, world.catalog, world.removed)


def test_a_shard_that_is_not_there_is_named(world):
    shard_file(world, 1).unlink()
    with pytest.raises(NotProven, match="no file of shard 1; expected one of each of 2"):
        proofs.every_id_once(world.plan, world.catalog, world.removed)


def test_another_byte_is_found(world):
    path = shard_file(world, 1)
    content = bytearray(path.read_bytes())
    content[-9_000] ^= 1
    path.write_bytes(content)
    with pytest.raises(NotProven, match=r"index1: sha256 [0-9a-f]{64}, expected [0-9a-f]{64} of"):
        proofs.same_bytes(world.plan, world.catalog, world.plan.work / "again")


def test_a_shard_that_still_holds_the_rows_of_a_file_that_was_replaced_is_found(built):
    file = next(file for file in built.catalog if file.file_id not in built.plan.mischief.missing)
    assert f"{file.name}, replaced" in proofs.replaced_is_served(built.plan, file, version=0)
    with pytest.raises(NotProven, match=rf"shard {file.shard}: made of {file.name} with sha256"):
        proofs.replaced_is_served(built.plan, file)


def test_a_truth_that_misses_a_row_is_found(built):
    """Brute force knows a row that truth was not told of: the same as a truth that lost it."""
    plan, catalog = built.plan, built.catalog
    exact = proofs.by_brute_force(built.captions.vectors, catalog, built.listing, built.removed, K)
    best = int(exact.ids[4, 0])
    without = np.sort(np.append(built.removed, best))
    with pytest.raises(NotProven, match=r"caption \d+: its neighbour .* by brute force"):
        proofs.truth_is_exact(plan, catalog, built.captions, without, exact)


def test_equal_scores_under_another_id_are_found(built):
    plan, catalog = built.plan, built.catalog
    exact = proofs.by_brute_force(built.captions.vectors, catalog, built.listing, built.removed, K)
    exact.ids[7, 0] = 3 if exact.ids[7, 0] != 3 else 5
    with pytest.raises(NotProven, match=r"caption 7: id \d is among its best 20 by brute force and not in the truth"):
        proofs.truth_is_exact(plan, catalog, built.captions, built.removed, exact)


def test_a_generation_that_gets_less_while_it_is_served_is_a_fault():
    whole, grown, new = ["a", 44, 10, ""], ["a", 45, 11, ""], ["b", 45, 11, ""]
    assert what_was_wrong({"seen": [whole, grown, new], "errors": []}) == []
    assert what_was_wrong({"seen": [grown, whole], "errors": []}) == ["a was served with 45 shards, then a with 44"]
    assert what_was_wrong({"seen": [grown, ["b", 3, 1, ""]], "errors": []}) == ["a was served with 45 shards, then b with 3"]
    assert what_was_wrong({"seen": [whole, ["b", 44, 10, ""], whole], "errors": []}) == [
        "the served generation changed 2 times, expected once"
    ]
    assert what_was_wrong({"seen": [whole], "errors": ["damaged"]}) == ["damaged"]
