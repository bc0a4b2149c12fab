"""Rows that were refused where they were made have an outcome, and count as nothing new where their file is encoded."""

from __future__ import annotations

from dataclasses import replace

import faiss
import numpy as np
import pytest
from shard_world import World

from paired_index_assets.builds.indexed import listing_of_set
from paired_index_assets.embeddings.sets import SetPart, write_set
from paired_index_assets.errors import BadInput
from paired_index_assets.landing.landed import list_folder
from paired_index_assets.shards.build import build_shard


def spoil(world: World, name: str, rows: slice, value: float = 0.0) -> None:
    path = world.landing / name
    vectors = np.load(path)
    vectors[rows] = value
    np.save(path, vectors)


def made(world: World):
    """The landed files as this project's own parts: each row has an outcome."""
    return {name: replace(landed, outcomes=True) for name, landed in list_folder(world.landing).items()}


def test_a_file_most_of_whose_rows_were_refused_before_is_no_reason_to_stop(world: World) -> None:
    spoil(world, "img_emb_0000.npy", slice(0, 200))
    spoil(world, "img_emb_0001.npy", slice(None))  # a tar that could not be read at all
    with pytest.raises(BadInput, match=r"img_emb_0000\.npy: 200 of 300 rows cannot be used \(200 zero\).*Get the file again"):
        build_shard(world.root, world.trained, world.catalog, 0, world.landing)
    record = build_shard(world.root, world.trained, world.catalog, 0, made(world)).record
    assert [file.zero for file in record.files] == [200, 120, 0]
    assert faiss.read_index(str(world.shard_file(0))).ntotal == 100 + 64


def test_what_no_outcome_explains_still_counts(world: World) -> None:
    spoil(world, "img_emb_0000.npy", slice(0, 200), np.nan)
    with pytest.raises(BadInput, match=r"200 of 300 rows cannot be used \(200 NaN or infinite\)"):
        build_shard(world.root, world.trained, world.catalog, 0, made(world))
    spoil(world, "img_emb_0000.npy", slice(None), 2.0)
    with pytest.raises(BadInput, match=r"\(300 not of unit norm\).*Normalise"):
        build_shard(world.root, world.trained, world.catalog, 0, made(world))


def test_parts_with_metadata_have_outcomes_and_a_part_without_rows_stays_out(world: World, tmp_path) -> None:
    np.save(world.landing / "empty.npy", np.zeros((0, 32), np.float16))
    folder = list_folder(world.landing)
    parts = [
        SetPart(folder["img_emb_0000.npy"].path, 300, "a", folder["img_emb_0000.npy"].path.with_name("metadata.parquet")),
        SetPart(folder["empty.npy"].path, 0, "b", folder["empty.npy"].path.with_name("empty.parquet")),
        SetPart(folder["img_emb_0001.npy"].path, 120, "c"),
    ]
    images = write_set(tmp_path / "images.json", parts, model=None, modality="images")
    assert {name: landed.outcomes for name, landed in listing_of_set(images).items()} == {
        "img_emb_0000.npy": True,
        "img_emb_0001.npy": False,
    }
