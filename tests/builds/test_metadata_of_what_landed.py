"""Where a sample is trained on and other files are indexed, ids are described by what lies beside those files, never by the sample's captions."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from paired_index_assets.builds.metadata import metadata_of
from paired_index_assets.embeddings.features import adopt_features
from paired_index_assets.landing.catalog import Catalog
from paired_index_assets.layout import BuildRoot

SAMPLE, LANDED = 12, 30


@pytest.fixture
def build(tmp_path):
    """12 pairs to train on with their captions, and two files of 15 rows that landed."""
    rows = np.random.default_rng(0).standard_normal((LANDED, 8)).astype(np.float32)
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16)
    landing = tmp_path / "img_emb"
    landing.mkdir()
    np.save(tmp_path / "sample.npy", rows[:SAMPLE])
    for number, part in enumerate(np.split(rows, 2)):
        np.save(landing / f"img_emb_{number:04d}.npy", part)
    root = BuildRoot.at(tmp_path / "root")
    Catalog.scan(landing, shards=2).save(root.catalog)
    adopt_features(root.image_set, [str(tmp_path / "sample.npy")], modality="images")
    pq.write_table(pa.table({"caption": [f"of the sample {number}" for number in range(SAMPLE)]}), tmp_path / "sample.parquet")
    return root


def write_beside(tmp_path, file):
    (tmp_path / "metadata").mkdir(exist_ok=True)
    captions = [f"landed {15 * file + number}" for number in range(15)]
    pq.write_table(pa.table({"caption": captions}), tmp_path / "metadata" / f"metadata_{file:04d}.parquet")


def test_ids_are_described_by_the_folder_beside_the_landing_folder(tmp_path, build):
    write_beside(tmp_path, 1)
    found = metadata_of(build, str(tmp_path / "sample.parquet"), landing=str(tmp_path / "img_emb"))
    assert [row and row["caption"] for row in found.rows([3, 15, 29])] == [None, "landed 15", "landed 29"]


def test_the_captions_of_a_sample_describe_no_id_of_what_landed(tmp_path, build):
    assert metadata_of(build, str(tmp_path / "sample.parquet"), landing=str(tmp_path / "img_emb")) is None


def test_texts_of_every_indexed_row_are_taken(tmp_path, build):
    write_beside(tmp_path, 0)
    pq.write_table(pa.table({"caption": [f"given {number}" for number in range(LANDED)]}), tmp_path / "all.parquet")
    found = metadata_of(build, str(tmp_path / "all.parquet"), landing=str(tmp_path / "img_emb"))
    assert found.rows([3])[0]["caption"] == "given 3"
