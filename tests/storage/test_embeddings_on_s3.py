"""Embedding sets whose parts lie in a bucket: the same rows, mapped from copies."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from object_store import node

from paired_index_assets.embeddings.features import adopt_features
from paired_index_assets.embeddings.sets import EmbeddingSet
from paired_index_assets.files.cache import Cache
from paired_index_assets.files.storage import as_path

ROWS = np.random.default_rng(3).normal(size=(300, 8)).astype(np.float16)


def npy(folder: Path) -> str:
    np.save(folder / "part_0.npy", ROWS[:200])
    np.save(folder / "part_1.npy", ROWS[200:])
    return str(folder / "part_*.npy")


def tensor(folder: Path) -> str:
    torch.save(torch.from_numpy(ROWS), folder / "features.pt")
    return str(folder / "features.pt")


def parquet(folder: Path) -> str:
    pq.write_table(pa.table({"embedding": pa.array(list(ROWS), pa.list_(pa.float16()))}), folder / "features.parquet")
    return str(folder / "features.parquet")


@pytest.mark.parametrize("features", [npy, tensor, parquet])
@pytest.mark.parametrize("from_bucket", [False, True], ids=["from a folder", "from a bucket"])
def test_features_are_taken_over_into_a_bucket_and_any_node_reads_them(features, from_bucket, bucket, tmp_path):
    (tmp_path / "given").mkdir()
    given = features(tmp_path / "given")
    if from_bucket:
        for file in (tmp_path / "given").iterdir():
            as_path(f"{bucket}/given/{file.name}").write_bytes(file.read_bytes())
        given = f"{bucket}/given/{Path(given).name}"
    root, other = node(bucket, tmp_path / "cache"), node(bucket, tmp_path / "other")
    made = adopt_features(root.image_set, given, modality="images", part_rows=128, cache=root.cache)
    found = EmbeddingSet.open(other.image_set, other.cache)
    assert found.fingerprint == made.fingerprint
    assert all(str(part.path).startswith(f"{bucket}/build/embeddings/imported/") for part in found.parts)
    np.testing.assert_array_equal(found[:], ROWS)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(found))[np.array([299, 0, 130])], ROWS[[299, 0, 130]])
    assert [path for path in tmp_path.iterdir() if path.name not in ("given", "cache", "other")] == []


def test_which_rows_are_valid_is_worked_out_once_for_all_nodes(bucket, s3, tmp_path):
    rows = ROWS.copy()
    rows[[7, 250]] = 0
    np.save(tmp_path / "features.npy", rows)
    root = node(bucket, tmp_path / "cache")
    made = adopt_features(root.image_set, str(tmp_path / "features.npy"), modality="images", cache=root.cache)
    assert np.flatnonzero(~made.valid()).tolist() == [7, 250]
    s3.requests.clear()
    assert np.flatnonzero(~EmbeddingSet.open(root.image_set, Cache(tmp_path / "other")).valid()).tolist() == [7, 250]
    assert not [path for method, path in s3.requests if method == "GET" and path.endswith(".npy")]
