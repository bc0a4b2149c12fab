"""What an open index holds is one version: of the embeddings' metadata, of the pictures, and of the files under their names."""

from __future__ import annotations

import base64
import io
import json
import logging
import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from search_builds import SHARDS, Build, WordEncoder, png, promote, rebuild, train
from starlette.testclient import TestClient
from unit_vectors import unit

from paired_index_assets.builds.indexed import catalog_of_set
from paired_index_assets.embeddings.run import embed_images
from paired_index_assets.embeddings.sets import EmbeddingSet
from paired_index_assets.files.held import HeldFile
from paired_index_assets.files.storage import write_json
from paired_index_assets.layout import BuildRoot
from paired_index_assets.readers.open import open_source
from paired_index_assets.serving.server import make_app
from paired_index_assets.serving.service import SearchService
from paired_index_assets.serving.shown import remembered

ROWS, PART_ROWS = 90, 40


class Noticing(WordEncoder):
    """Every picture has a direction of its own: that of its first pixel."""

    def encode_images(self, images):
        seeds = images[:, 0, 0].astype(int)
        rows = np.stack([np.random.default_rng(list(seed)).normal(size=self.dimensions) for seed in seeds])
        return unit(rows)


def colour(which: int, row: int) -> tuple[int, int, int]:
    return (row, which, 7)


def pictures_in(folder: Path, which: int, rows: int = ROWS) -> str:
    """A folder of pictures with captions; of which set and row each is, both say."""
    folder.mkdir(parents=True)
    for row in range(rows):
        (folder / f"{row:03d}.png").write_bytes(png(colour(which, row)))
        (folder / f"{row:03d}.txt").write_text(f"set {which} row {row}")
    return str(folder)


def in_parquet(folder: Path, which: int, rows: int = ROWS) -> str:
    folder.mkdir(parents=True)
    columns = {"png": [png(colour(which, row)) for row in range(rows)], "caption": [f"set {which} row {row}" for row in range(rows)]}
    pq.write_table(pa.table(columns), folder / "pairs.parquet")
    return str(folder / "pairs.parquet")


def in_tars(folder: Path, which: int, rows: int = ROWS) -> str:
    """As img2dataset writes them; one is a part."""
    folder.mkdir(parents=True)
    for number in range(3):
        with tarfile.open(folder / f"{number:05d}.tar", "w") as tar:
            for row in range(number * PART_ROWS, min((number + 1) * PART_ROWS, rows)):
                for suffix, content in ((".png", png(colour(which, row))), (".txt", f"set {which} row {row}".encode())):
                    member = tarfile.TarInfo(f"{row:09d}{suffix}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return str(folder)


def build_from(root: BuildRoot, images: str, seed: int = 1) -> Build:
    """Embed, train and build, as the assets do."""
    write_json(root.settings, {"images": images, "part_rows": PART_ROWS})
    embed_images(open_source(images, "images"), Noticing(), root, part_rows=PART_ROWS, workers=0)
    return index_of(root, seed)


def index_of(root: BuildRoot, seed: int = 1) -> Build:
    made = EmbeddingSet.open(root.image_set)
    vectors = np.asarray(made[:], np.float32)
    catalog = catalog_of_set(made, SHARDS)
    catalog.save(root.catalog)
    trained = train(vectors, vectors, seed=seed, nlist=4)
    build = Build(root, vectors, vectors, trained, catalog, made.parts[0].path.parent)
    promote(root, trained)
    rebuild(build)
    return build


@pytest.fixture(params=[pictures_in, in_parquet, in_tars])
def source(request):
    return request.param


@pytest.fixture
def built(tmp_path, source):
    root = BuildRoot.at(tmp_path / "build")
    return build_from(root, source(tmp_path / "first", 1))


def service_of(build: Build) -> SearchService:
    return SearchService.of_build(build.root, Noticing(), nprobe=100)


def told(service: SearchService, build: Build) -> set[int]:
    """Ask for each of the build's vectors; the sets that the answers are of, each of whose results agrees with itself."""
    sets = set()
    with TestClient(make_app(service), base_url="http://localhost") as client:
        for row in range(0, ROWS, 17):
            answer = client.post("/knn-service", content=json.dumps({"embedding_input": build.images[row].tolist(), "num_images": 5}))
            assert answer.status_code == 200, answer.text
            for hit in answer.json():
                with Image.open(io.BytesIO(base64.b64decode(hit["image"]))) as picture:
                    found_row, which, _ = picture.convert("RGB").getpixel((0, 0))
                assert hit["caption"] == f"set {which} row {found_row}"
                assert found_row == hit["id"]
                sets.add(which)
    return sets


def test_metadata_that_is_written_anew_leaves_the_open_index_its_own(built, source, tmp_path):
    service = service_of(built)
    assert told(service, built) == {1}
    embed_images(open_source(source(tmp_path / "second", 2), "images"), Noticing(), built.root, part_rows=PART_ROWS, workers=0)
    assert told(service, built) == {1}  # the embeddings are others, the shards are not
    service.sets.refresh()
    assert told(service, built) == {1}
    for path in built.root.embeddings.rglob("*"):
        if path.is_file():
            path.unlink()
    service.sets.refresh()
    assert told(service, built) == {1}


def test_a_rebuild_from_another_set_of_pictures_shows_the_new_ones_only(built, source, tmp_path):
    service = service_of(built)
    other = build_from(built.root, source(tmp_path / "second", 2), seed=2)
    service.sets.refresh()
    assert told(service, other) == {2}
    assert told(service_of(other), other) == {2}


def test_a_server_started_between_embedding_and_indexing_shows_nobody_elses(built, source, tmp_path, caplog):
    second = source(tmp_path / "second", 2)
    write_json(built.root.settings, {"images": second, "part_rows": PART_ROWS})
    embed_images(open_source(second, "images"), Noticing(), built.root, part_rows=PART_ROWS, workers=0)
    with TestClient(make_app(service_of(built)), base_url="http://localhost") as client:
        answer = client.post("/knn-service", content=json.dumps({"embedding_input": built.images[3].tolist(), "num_images": 5}))
    assert answer.status_code == 200
    assert answer.json()
    assert not any({"image", "caption"} & set(hit) for hit in answer.json())
    assert "3 of 3 files are not those that were indexed" in caplog.text


def test_pictures_that_have_moved_are_a_warning(built, tmp_path, caplog):
    (tmp_path / "first").rename(tmp_path / "elsewhere")
    with TestClient(make_app(service_of(built)), base_url="http://localhost") as client:
        found = client.post("/knn-service", content=json.dumps({"embedding_input": built.images[3].tolist(), "num_images": 5})).json()
    assert all(hit["caption"].startswith("set 1") and not {"image", "tar"} & set(hit) for hit in found)
    assert "no such file" in caplog.text


def test_pictures_that_have_moved_are_shown_from_where_they_are_said_to_be(built, source, tmp_path, caplog):
    """Copied, so that their dates are others; what decides is that they embed to the vectors that were indexed."""
    spec = remembered(built.root)["images"]
    moved = spec.replace(str(tmp_path / "first"), str(tmp_path / "elsewhere"))
    shutil.copytree(tmp_path / "first", tmp_path / "elsewhere", copy_function=shutil.copyfile)
    shutil.rmtree(tmp_path / "first")
    assert told(SearchService.of_build(built.root, Noticing(), images=moved, nprobe=100), built) == {1}
    other = SearchService.of_build(built.root, Noticing(), images=source(tmp_path / "second", 2), nprobe=100)
    assert not other.sets.current().shown.has_pictures
    assert "not those that were embedded" in caplog.text


def test_a_picture_that_is_replaced_is_not_shown(tmp_path):
    built = build_from(BuildRoot.at(tmp_path / "build"), pictures_in(tmp_path / "first", 1))
    service = service_of(built)
    (tmp_path / "first" / "003.png").write_bytes(png(colour(2, 3)))
    shown = service.sets.current().shown.pictures([2, 3, 4])
    assert [content is not None for content in shown] == [True, False, True]


def test_a_build_that_was_copied_is_compared_by_its_rows(built, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    copy = BuildRoot.at(tmp_path / "copy")
    shutil.copytree(built.root.root.path, copy.root.path, symlinks=True)
    moved = Build(copy, built.images, built.captions, built.trained, built.catalog, built.landing)
    assert told(service_of(moved), moved) == {1}
    assert "comparing its rows" in caplog.text


def test_a_held_file_answers_as_it_was(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"first")
    held = HeldFile(file)
    (tmp_path / "other").write_bytes(b"second")
    os.replace(tmp_path / "other", file)
    with held.open() as one, held.open() as two:
        assert (one.read(2), two.read(), one.read()) == (b"fi", b"first", b"rst")
    assert not held.is_current
    file.unlink()
    with held.open() as stream:
        assert stream.read() == b"first"
    with pytest.raises(FileNotFoundError):
        HeldFile(file)
