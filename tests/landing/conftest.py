"""Small landing folders and quick rules."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from unit_vectors import random_unit

from paired_index_assets.fetching.fetch import FetchRules
from paired_index_assets.fetching.sources import Patience


@pytest.fixture
def unit_rows() -> Callable[..., np.ndarray]:
    """unit_rows(rows, d, seed): seeded vectors normalised in half precision, as LAION's are."""

    def make(rows: int, d: int = 16, seed: int = 0) -> np.ndarray:
        return random_unit(rows, d, seed, np.float16)

    return make


@pytest.fixture
def landing_folder(tmp_path: Path, unit_rows: Callable[..., np.ndarray]) -> Callable[..., Path]:
    """landing_folder([rows of each file], d): a folder of img_emb_0.npy, img_emb_1.npy ..."""

    def make(counts: list[int], d: int = 16, name: str = "published") -> Path:
        folder = tmp_path / name
        folder.mkdir()
        for number, rows in enumerate(counts):
            np.save(folder / f"img_emb_{number}.npy", unit_rows(rows, d, number))
        return folder

    return make


@pytest.fixture
def quick() -> FetchRules:
    return FetchRules(attempts=4, backoff_s=0.005, sync_bytes=1 << 16, patience=Patience(connect_s=2, stall_s=0.3))
