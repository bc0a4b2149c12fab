"""Without a landing folder, what is indexed is the image set: its parts in its order, and never a caption. No folder is scanned for it."""

from __future__ import annotations

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from upath import UPath

from paired_index_assets import ShardedIndex
from paired_index_assets.builds.opened import OpenBuild, append_landed, write_catalog
from paired_index_assets.embeddings.features import adopt_features
from paired_index_assets.embeddings.sets import EmbeddingSet
from paired_index_assets.landing.landed import read_blocks
from paired_index_assets.settings import load_settings

D = 8


def save_npy(path, matrix):
    with UPath(path).open("wb") as stream:
        np.save(stream, matrix)


def save_parquet(path, matrix):
    pq.write_table(pa.table({"embedding": pa.array(list(matrix), pa.list_(pa.float16()))}), path)


WRITERS = {
    ".npy": save_npy,
    ".pt": lambda path, matrix: torch.save(torch.from_numpy(matrix), path),
    ".safetensors": lambda path, matrix: save_file({"features": torch.from_numpy(matrix)}, path),
    ".parquet": save_parquet,
}


def rows_like(modality, count, seed):
    """Every row tells where it is from: images start with a positive number, captions with a negative one."""
    rows = np.random.default_rng(seed).standard_normal((count, D)).astype(np.float16)
    rows[:, 0] = (1 if modality == "images" else -1) * (1 + np.arange(count))
    return rows


def catalogued_rows(of):
    """What the shards will be made of: the rows of every catalogued file, read where the build finds it, with their ids."""
    catalog, listing = write_catalog(OpenBuild(of), lambda catalog: None), OpenBuild(of).listing
    found, ids = [], []
    for file in catalog:
        for block in read_blocks(file, listing[file.name].path):
            found.append(block.vectors)
            ids.append(block.start_row + np.arange(len(block.vectors)))
    return np.concatenate(found), np.concatenate(ids)


def assert_the_images_are_catalogued_and_nothing_else(of):
    images, captions = OpenBuild(of).images, OpenBuild(of).captions
    found, ids = catalogued_rows(of)
    np.testing.assert_array_equal(ids, np.arange(len(images)))
    np.testing.assert_array_equal(found, images[:])
    assert (np.asarray(captions[:])[:, 0] < 0).all()
    assert (found[:, 0] > 0).all()


layouts = st.fixed_dictionaries(
    {
        "suffix": st.sampled_from(sorted(WRITERS)),
        "counts": st.lists(st.integers(1, 40), min_size=1, max_size=4),
        "shards": st.integers(1, 3),
        "part_rows": st.sampled_from([7, 1000]),
        "place": st.sampled_from(["one folder", "a folder a modality", "a folder a file"]),
        "given": st.sampled_from(["listed", "listed backwards", "glob"]),
        "remote": st.booleans(),
        "twice": st.booleans(),
    }
)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(layout=layouts)
def test_the_catalog_of_a_build_without_landing_folder_is_its_image_set(tmp_path_factory, layout):
    home = tmp_path_factory.mktemp("set")
    counts, suffix = layout["counts"], layout["suffix"]
    remote = layout["remote"] and suffix == ".npy"
    base = UPath(f"memory://{home.name}") if remote else UPath(home / "features")
    of = load_settings(root=str(home / "root"), shards=min(layout["shards"], sum(counts)))
    for seed, modality in enumerate(("images", "captions")):
        all_rows = rows_like(modality, sum(counts), seed)
        specs = []
        for number, rows in enumerate(np.split(all_rows, np.cumsum(counts)[:-1])):
            folder = {"one folder": base, "a folder a modality": base / modality, "a folder a file": base / modality / str(number)}[
                layout["place"]
            ]
            folder.mkdir(parents=True, exist_ok=True)
            name = (
                f"{modality[:3]}_{number}" if layout["place"] == "one folder" else "features" if "file" in layout["place"] else f"{number}"
            )
            WRITERS[suffix](str(folder / f"{name}{suffix}"), rows)
            specs.append(str(folder / f"{name}{suffix}"))
        if layout["given"] == "glob":
            pattern = {"one folder": f"{modality[:3]}_*", "a folder a modality": f"{modality}/*", "a folder a file": f"{modality}/*/*"}
            specs = [str(base / f"{pattern[layout['place']]}{suffix}")]
        elif layout["given"] == "listed backwards":
            specs = specs[::-1]
        if layout["twice"]:
            specs = [*specs, *specs]
        root = of.build_root
        adopt_features(
            root.embedding_set(modality),
            specs,
            modality=modality,
            part_rows=layout["part_rows"],
            cache=root.cache,
        )
    assert len(OpenBuild(of).images) == sum(counts) * (1 + layout["twice"])
    assert_the_images_are_catalogued_and_nothing_else(of)


def test_three_parquet_files_of_each_become_an_index_of_the_images(small_build, paired_index, tmp_path):
    """As a user gives them: a build by the command line, read by stock faiss."""
    for modality, kind in (("a", "images"), ("b", "captions")):
        rows = EmbeddingSet.open(small_build / f"embeddings/{kind}.json")[:600]
        (tmp_path / modality).mkdir()
        for number in range(3):
            save_parquet(tmp_path / modality / f"{number}.parquet", rows[number * 200 : number * 200 + 200])
    given = ["--image-features", tmp_path / "a", "--caption-features", tmp_path / "b", "--shards", 2, "--nlist", 8]
    paired_index("build", "--root", tmp_path / "root", *given, "--validation-captions", 60, "--test-captions", 60)
    found = [faiss.read_index(str(tmp_path / f"root/shards/knn.paired_QT_4bit.index{n}")) for n in range(2)]
    assert sum(index.ntotal for index in found) == 600
    with ShardedIndex.open(tmp_path / "root") as index:
        images = np.asarray(EmbeddingSet.open(small_build / "embeddings/images.json")[:600], np.float32)
        ids = index.search(images[::7], 3, nprobe=8)[1]
    assert np.mean([number in row for number, row in zip(range(0, 600, 7), ids.tolist(), strict=True)]) > 0.95


@pytest.mark.parametrize("names", [("b.npy", "a.npy"), ("part_10.npy", "part_9.npy"), ("1/img.npy", "0/img.npy")])
def test_the_order_that_was_given_is_the_order_of_the_ids(tmp_path, names):
    of = load_settings(root=str(tmp_path / "root"), shards=2)
    images = rows_like("images", 60, 1)
    for name, rows in zip(names, np.split(images, 2), strict=True):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        np.save(tmp_path / name, rows)
    adopt_features(of.build_root.image_set, [str(tmp_path / name) for name in names], modality="images")
    np.save(tmp_path / "cap.npy", rows_like("captions", 60, 2))
    adopt_features(of.build_root.caption_set, str(tmp_path / "cap.npy"), modality="captions")
    assert_the_images_are_catalogued_and_nothing_else(of)
    np.testing.assert_array_equal(catalogued_rows(of)[0], images)


def test_captions_that_lie_in_the_landing_folder_are_neither_catalogued_nor_appended(tmp_path):
    for name in ("img_0", "img_1", "cap_0", "cap_1"):
        np.save(tmp_path / f"{name}.npy", rows_like("images" if name[0] == "i" else "captions", 20, 1))
    given = {"image_features": str(tmp_path / "img_*.npy"), "caption_features": f"{tmp_path}/cap_0.npy,{tmp_path}/cap_1.npy"}
    of = load_settings(root=str(tmp_path / "root"), landing=str(tmp_path), shards=2, **given)
    adopt_features(of.build_root.image_set, given["image_features"], modality="images")
    assert [file.name for file in write_catalog(OpenBuild(of), lambda catalog: None)] == ["img_0.npy", "img_1.npy"]
    np.save(tmp_path / "img_2.npy", rows_like("images", 20, 3))
    unknown = append_landed(OpenBuild(of), {}).unknown
    assert append_landed(OpenBuild(of), unknown).added == ["img_2.npy"]
