from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from search_builds import Build, make, picture_of

from paired_index_assets.layout import BuildRoot


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
