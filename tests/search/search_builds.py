"""Small finished builds, made by the project's own shard builder from seeded clustered vectors with a modality gap."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from unit_vectors import unit

from paired_index_assets.codes.codec import train_codec
from paired_index_assets.codes.transformed import train_transformed
from paired_index_assets.landing.catalog import Catalog
from paired_index_assets.layout import BuildRoot, ShardPlace
from paired_index_assets.rows import Float32
from paired_index_assets.shards.build import build_shard
from paired_index_assets.shards.manifest import write_manifest
from paired_index_assets.trained.artifact import TrainedIndex
from paired_index_assets.trained.coarse import group_lists
from paired_index_assets.trained.promotion import Promotion
from paired_index_assets.trained.promotion import promote as promote_index

D, NLIST, SHARDS = 24, 40, 7
FILE_ROWS = (700, 31, 900, 257, 1, 640, 333, 512, 128)  # dealt to shards of unequal size
MODEL = "test-encoder/1"


@dataclass(frozen=True)
class Build:
    root: BuildRoot
    images: Float32
    captions: Float32
    trained: TrainedIndex
    catalog: Catalog
    landing: Path

    def place(self, shard: int) -> ShardPlace:
        return self.root.generation(self.trained.fingerprint).shard(self.trained.codec.name, shard)

    def shard_files(self) -> list[Path]:
        return [Path(self.place(s).file.path) for s in range(self.catalog.shards)]


def clustered(seed: int, d: int = D, rows: int = sum(FILE_ROWS)) -> tuple[Float32, Float32]:
    """Images and captions, row i a pair; every tenth image is a copy of an earlier one, as in any crawl."""
    draw = np.random.default_rng(seed)
    topics = draw.normal(size=(60, d))
    of = draw.integers(0, len(topics), rows)
    images = unit(topics[of] + 0.6 * draw.normal(size=(rows, d)))
    images[10::10] = images[draw.integers(0, 10, len(images[10::10]))]
    gap = draw.normal(size=d)
    captions = unit(images + 0.4 * draw.normal(size=(rows, d)) + 0.5 * gap / np.linalg.norm(gap))
    return images, captions


def train(
    images: Float32, captions: Float32, *, seed: int, nlist: int = NLIST, codec: str = "QT_4bit", transformed: bool = False
) -> TrainedIndex:
    """With `transformed` codes behind a transform of queries, and lists behind a quantizer of two levels, with places that captions taught."""
    _, distinct = np.unique(images, axis=0, return_index=True)  # equal centroids would make the choice of lists a matter of taste
    centroids = unit(images[np.random.default_rng(seed).choice(distinct, nlist, replace=False)] + 0.01)
    if not transformed:
        return TrainedIndex("kmeans", nlist, images.shape[1], centroids, train_codec(codec, "nearest", images, captions), model=MODEL)
    coded, groups = train_transformed(images, captions), group_lists(centroids, seed=seed)
    routing = (30 * centroids + np.random.default_rng(seed).normal(size=centroids.shape)).astype(np.float32)
    return TrainedIndex("kmeans", nlist, images.shape[1], centroids, coded, model=MODEL, groups=groups, routing=routing)


def promote(root: BuildRoot, trained: TrainedIndex) -> None:
    path = root.trained_index(trained.nlist, trained.codec.name, trained.method, trained.fingerprint)
    trained.save(path)
    promote_index(root, Promotion(path.name, trained.fingerprint))


def make(folder: Path, seed: int = 1, *, transformed: bool = False, file_rows: Sequence[int] = FILE_ROWS) -> Build:
    root, landing = BuildRoot.at(folder / "build"), folder / "landing"
    images, captions = clustered(seed, rows=sum(file_rows))
    trained = train(images, captions, seed=seed, transformed=transformed)
    landing.mkdir(parents=True)
    edges = np.concatenate([[0], np.cumsum(file_rows)])
    for number, (first, stop) in enumerate(pairwise(edges)):
        np.save(landing / f"img_emb_{number:04d}.npy", images[first:stop].astype(np.float16))
    catalog = Catalog.scan(landing, shards=SHARDS)
    catalog.save(root.catalog)
    promote(root, trained)
    build = Build(root, images, captions, trained, catalog, landing)
    rebuild(build)
    return build


def rebuild(build: Build, *, manifest: bool = True) -> None:
    for shard in range(build.catalog.shards):
        build_shard(build.root, build.trained, build.catalog, shard, build.landing)
    if manifest:
        write_manifest(build.root, build.trained, build.catalog)


class WordEncoder:
    """A small model of its own kind: a text is the sum of its words' seeded directions, a picture that of its mean colour."""

    identity = MODEL
    dimensions = D

    def encode_texts(self, texts: Sequence[str]) -> Float32:
        return np.stack([unit(sum(map(_direction, text.split() or [""]))[None])[0] for text in texts])

    def prepare_image(self, image: Image.Image) -> Float32:
        return np.asarray(image.convert("RGB").resize((4, 4)), np.float32)

    def encode_images(self, images: Float32) -> Float32:
        colours = images.mean(axis=(1, 2)) / 255 + 0.01
        return unit(colours @ np.stack([_direction(colour) for colour in ("red", "green", "blue")]))


def _direction(word: str) -> Float32:
    return np.random.default_rng(list(word.encode())).normal(size=D).astype(np.float32)


def png(colour: tuple[int, int, int]) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(out, "PNG")
    return out.getvalue()


def picture_of(row: int) -> bytes:
    """The picture of an id: its colour says which."""
    return png((row % 256, row // 256, 0))


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Shared by all tests that only read."""
    return make(tmp_path_factory.mktemp("finished"))


@pytest.fixture(scope="session")
def transformed(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """As `finished`, with a transform of queries before the codes and a coarse quantizer of two levels."""
    return make(tmp_path_factory.mktemp("transformed"), transformed=True)


@pytest.fixture
def fresh(finished: Build, tmp_path: Path) -> Build:
    """A copy that the test may change."""
    shutil.copytree(Path(finished.root.root.path), tmp_path / "build")
    shutil.copytree(finished.landing, tmp_path / "landing")
    return Build(
        BuildRoot.at(tmp_path / "build"), finished.images, finished.captions, finished.trained, finished.catalog, tmp_path / "landing"
    )


@pytest.fixture(scope="session")
def make_build(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Build]:
    return lambda seed: make(tmp_path_factory.mktemp("build"), seed)


@pytest.fixture(scope="session")
def searchable_pairs(finished: Build, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Parquet whose row i describes id i, pictures included."""
    ids = range(len(finished.images))
    columns = {
        "png": [picture_of(i) for i in ids],
        "caption": [f"caption {i}" for i in ids],
        "url": [f"https://e.org/{i}" for i in ids],
        "NSFW": ["NSFW" if i % 7 == 0 else "UNLIKELY" for i in ids],
        "score": [float("nan")] * len(ids),
    }
    path = tmp_path_factory.mktemp("pairs") / "pairs.parquet"
    pq.write_table(pa.table(columns), path)
    return str(path)
