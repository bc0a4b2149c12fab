"""A small world for shard tests: clustered unit vectors with a gap between images and captions, landed as .npy files."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from unit_vectors import unit

from paired_index_assets.codes.codec import train_codec
from paired_index_assets.codes.transformed import train_transformed
from paired_index_assets.landing.catalog import Catalog
from paired_index_assets.layout import BuildRoot, ShardPlace
from paired_index_assets.trained.artifact import TrainedIndex
from paired_index_assets.trained.coarse import group_lists

DIMENSIONS = 32
NLIST = 16


@dataclass(frozen=True)
class World:
    """A landing folder, its catalog, a trained index and a root to build in."""

    root: BuildRoot
    landing: Path
    catalog: Catalog
    trained: TrainedIndex

    def elsewhere(self, root: Path) -> World:
        return dataclasses.replace(self, root=BuildRoot.at(root))

    def place(self, shard: int) -> ShardPlace:
        return self.root.generation(self.trained.fingerprint).shard("QT_4bit", shard)

    def shard_file(self, shard: int) -> Path:
        return Path(self.place(shard).file.path)

    def record_file(self, shard: int) -> Path:
        return Path(self.place(shard).record.path)


def unit_rows(rows: int, seed: int, *, gap: float = 0.0) -> np.ndarray:
    """(rows, DIMENSIONS) float32 unit vectors around sixty centres, moved along one direction by `gap`."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(7).normal(size=(60, DIMENSIONS))
    vectors = centres[rng.integers(0, 60, rows)] + 0.5 * rng.normal(size=(rows, DIMENSIONS))
    vectors[:, 0] += gap * np.sqrt(DIMENSIONS)
    return unit(vectors)


def train(seed: int = 0, rounding: str = "nearest") -> TrainedIndex:
    """With rounding "transformed", lists are behind a quantizer of two levels too."""
    images, captions = unit_rows(2000, 100 + seed), unit_rows(600, 200 + seed, gap=0.5)
    whole = rounding == "transformed"
    codec = train_transformed(images, captions) if whole else train_codec("QT_4bit", rounding, images, captions)
    groups = group_lists(images[:NLIST], seed=seed) if whole else None
    return TrainedIndex("paired_kmeans", NLIST, DIMENSIONS, images[:NLIST].copy(), codec, "test-model", {}, groups)


def land(folder: Path, rows: list[int], seed: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, count in enumerate(rows):
        np.save(folder / f"img_emb_{number:04d}.npy", unit_rows(count, 1000 + seed + number).astype(np.float16))


@pytest.fixture(scope="session")
def trained_index() -> TrainedIndex:
    return train()


@pytest.fixture
def world(tmp_path: Path, trained_index: TrainedIndex) -> World:
    """Nine files of uneven length in three shards."""
    land(tmp_path / "landing", [300, 120, 64, 500, 1, 230, 90, 410, 33])
    catalog = Catalog.scan(tmp_path / "landing", shards=3)
    return World(BuildRoot.at(tmp_path / "build"), tmp_path / "landing", catalog, trained_index)
