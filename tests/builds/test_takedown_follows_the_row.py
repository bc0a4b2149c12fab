"""Removed rows stay removed wherever they go in changed data; a list of one data set means nothing in another."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from upath import UPath

from paired_index_assets.builds.metadata import Metadata, metadata_of
from paired_index_assets.builds.opened import OpenBuild, write_catalog
from paired_index_assets.embeddings.sets import SetPart, write_set
from paired_index_assets.errors import BadInput, DamagedArtifact
from paired_index_assets.landing.catalog import Catalog
from paired_index_assets.layout import BuildRoot
from paired_index_assets.settings import load_settings
from paired_index_assets.shards.removals import add_removed, read_log, read_removed

D = 8
NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)


class Build:
    """A root whose image set is made, and made again, of parts of rows; with or without metadata."""

    def __init__(self, folder: Path, **more: object) -> None:
        self.folder = folder
        self.settings = load_settings(root=str(folder / "root"), shards=2, **more)
        self.root = self.settings.build_root

    def make(self, vectors: np.ndarray, *, cuts: tuple[int, ...] = (), allow: bool = False, **columns: list) -> np.ndarray:
        """The removed ids once the build has this set."""
        folder = self.folder / "features"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        parts = []
        edges = [0, *cuts, len(vectors)]
        for number, (a, b) in enumerate(pairwise(edges)):
            path = folder / f"img_emb_{number}.npy"
            np.save(path, vectors[a:b])
            metadata = None
            if columns:
                metadata = folder / f"metadata_{number}.parquet"
                pq.write_table(pa.table({name: values[a:b] for name, values in columns.items()}), metadata)
            parts.append(SetPart(UPath(path), b - a, f"{number}", metadata and UPath(metadata)))
        write_set(self.root.image_set, parts, model="m", modality="images")
        self.catalog = self.catalogued(allow)
        return read_removed(self.root, self.catalog.data_set)

    def catalogued(self, allow: bool = False) -> Catalog:
        return write_catalog(OpenBuild(self.settings.model_copy(update={"allow_lost_takedowns": allow})), self.described)

    def described(self, catalog: Catalog) -> Metadata | None:
        return metadata_of(self.root, None, catalog)

    def take_down(self, *ids: int) -> None:
        of = self.catalog.data_set
        add_removed(
            self.root,
            np.array(ids),
            "asked",
            when=NOON,
            data_set=of,
            traits_of=OpenBuild(self.settings).data_set_of(self.catalog, self.described).traits,
        )


@pytest.fixture
def build(tmp_path: Path) -> Build:
    return Build(tmp_path)


def vectors(count: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, D)).astype(np.float16)


@settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    order=st.permutations(range(30)),
    removed=st.sets(st.integers(0, 29), min_size=1),
    fresh=st.integers(0, 5),
    cut=st.integers(1, 29),
    dtype=st.sampled_from(["<f2", "<f4"]),
)
def test_removed_rows_are_removed_wherever_they_are_in_the_new_data(tmp_path_factory, order, removed, fresh, cut, dtype):
    build = Build(tmp_path_factory.mktemp("build"))
    old = vectors(30)
    build.make(old, cuts=(11,))
    build.take_down(*removed)
    new = np.concatenate([vectors(fresh, 2), old[list(order)]]).astype(dtype)
    now = {fresh + at for at, row in enumerate(order) if row in removed}
    assert set(build.make(new, cuts=(cut,)).tolist()) == now
    assert set(build.make(old, cuts=(11,)).tolist()) == removed


def test_a_build_of_the_same_data_logs_nothing(build):
    build.make(vectors(20))
    build.take_down(3, 4)
    before = Path(build.root.removed.path).read_bytes()
    assert build.make(vectors(20)).tolist() == [3, 4]
    assert Path(build.root.removed.path).read_bytes() == before


@pytest.mark.parametrize("identified_by", ["url", "md5", "key"])
def test_rows_embedded_anew_are_known_by_what_their_metadata_says(build, identified_by):
    names = [f"name-{row}" for row in range(20)]
    captions = ["the same for all"] * 20
    build.make(vectors(20), **{identified_by: names, "caption": captions})
    build.take_down(3, 7)
    order = np.random.default_rng(3).permutation(20)
    ids = build.make(vectors(20, 9)[order], **{identified_by: [names[row] for row in order], "caption": captions})
    assert sorted(order[ids]) == [3, 7]


def test_keys_that_only_count_rows_say_nothing(build):
    counted = [f"{row:09d}" for row in range(21)]
    captions = [f"caption {row}" for row in range(20)]
    old = vectors(20)
    build.make(old, key=counted[:20], caption=captions)
    build.take_down(3)
    anew = np.concatenate([vectors(1, 8), vectors(20, 9)])
    assert build.make(anew, key=counted, caption=["a new one", *captions]).tolist() == [4]


def test_rows_that_look_the_same_are_all_removed_unless_a_key_tells_them_apart(build):
    old = vectors(20)
    old[5] = old[3]
    build.make(old)
    build.take_down(3)
    assert build.make(np.roll(old, 1, axis=0)).tolist() == [4, 6]


def test_a_list_of_one_data_set_does_not_apply_to_another(build):
    build.make(vectors(60))
    build.take_down(59, 4)
    with pytest.raises(BadInput, match=r"2 of 2 rows that were taken down are not found.*--allow-lost-takedowns"):
        build.make(vectors(60, 2))
    assert build.make(vectors(60, 2), allow=True).tolist() == []
    assert build.make(vectors(60, 2)).tolist() == []  # accepted once is accepted for these data
    build.take_down(7)
    with pytest.raises(BadInput, match="1 of 3 rows"):  # and what was lost is back, and still not wanted
        build.make(vectors(60))
    assert build.make(vectors(60), allow=True).tolist() == [4, 59]
    assert build.make(np.concatenate([vectors(60, 2), vectors(60)])).tolist() == [7, 64, 119]


def test_a_landed_file_that_is_replaced_takes_the_removal_along(tmp_path):
    landing = tmp_path / "landing"
    landing.mkdir()
    np.save(landing / "0.npy", vectors(20))
    np.save(landing / "1.npy", vectors(20, 2))
    build = Build(tmp_path, landing=str(landing))
    write_set(build.root.image_set, [SetPart(UPath(landing) / "0.npy", 20, "")], model="m", modality="images")
    build.catalog = build.catalogued()
    build.take_down(3, 25)
    np.save(landing / "0.npy", vectors(20)[::-1])
    (landing / "1.npy").unlink()  # encoded, and deleted to make room
    catalog = build.catalogued()
    assert read_removed(build.root, catalog.data_set).tolist() == [16, 25]


def test_a_log_without_data_sets_is_read_as_one_of_the_first(build):
    build.make(vectors(20), cuts=(10,))
    old = pa.table({"id": pa.array([12]), "why": ["asked"], "when": [NOON], "source": ["old.txt"]})
    Path(build.root.removed.parent.path).mkdir()
    pq.write_table(old, build.root.removed.path)
    assert build.make(vectors(20), cuts=(10,)).tolist() == [12]
    build.take_down(2)
    assert build.make(vectors(20), cuts=(10,)).tolist() == [2, 12]


@pytest.mark.parametrize("damage", ["deleted", "an older copy"])
def test_a_log_that_shrank_is_refused_everywhere(build, damage):
    build.make(vectors(20))
    build.take_down(3)
    older = Path(build.root.removed.path).read_bytes()
    build.take_down(4)
    if damage == "deleted":
        shutil.rmtree(build.root.removed.parent.path)
    else:
        Path(build.root.removed.path).write_bytes(older)
    with pytest.raises(DamagedArtifact, match=r"removed\.parquet: \d removals, expected at least 2.*Restore it"):
        build.make(vectors(20))
    with pytest.raises(DamagedArtifact):
        build.take_down(5)
    Path(build.root.removals.path).unlink()
    assert len(read_log(BuildRoot.at(build.root.root))) == (0 if damage == "deleted" else 1)
