from __future__ import annotations

import pyarrow.parquet as pq
import pytest
from sample_packing import pack_folder, pack_parquet, pack_tars
from tiny_encoder import TinyEncoder

from paired_index_assets.embeddings.encoders import load_encoder
from paired_index_assets.sample import sample_model, sample_pairs

SLICE = 300


@pytest.fixture(scope="session")
def encoder():
    return load_encoder(sample_model(), device="cpu")


@pytest.fixture(scope="session")
def tiny():
    return TinyEncoder()


@pytest.fixture(scope="session")
def pairs():
    """The first rows of the shipped sample: dictionaries with key, png, caption, license."""
    table = pq.read_table(sample_pairs(), columns=["row_id", "png", "caption", "license"]).slice(0, SLICE)
    return [{**row, "key": f"{i:09d}"} for i, row in enumerate(table.to_pylist())]


@pytest.fixture(scope="session")
def packed(tmp_path_factory, pairs):
    """The same pairs three ways: a folder, tars as img2dataset writes them, Parquet."""
    root = tmp_path_factory.mktemp("packed")
    return {
        "folder": pack_folder(root / "folder", pairs),
        "tars": pack_tars(root / "tars", pairs, per_tar=120),
        "parquet": pack_parquet(root / "parquet", pairs, per_file=130, row_group=50),
    }
