"""What several rooms' tests share: the shipped sample, and one small build of it made by the real command line."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from paired_index_assets.sample import sample_model, sample_pairs

SMALL_ROWS = 1_500
SMALL_SHARDS = 6


@dataclass(frozen=True)
class Command:
    """`paired-index` in a process of its own, as a user runs it."""

    home: Path

    def __call__(
        self, *arguments: object, check: bool = True, patience_seconds: float = 600, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("PAIRED_INDEX_", "DAGSTER_"))}
        done = subprocess.run(
            [sys.executable, "-m", "paired_index_assets.cli.main", *map(str, arguments)],
            capture_output=True,
            text=True,
            cwd=self.home,
            env=clean | environment,
            check=False,
            timeout=patience_seconds,
        )
        if check and done.returncode:
            raise AssertionError(f"paired-index {arguments}: exit {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done


@pytest.fixture(scope="session")
def small_pairs(tmp_path_factory) -> Path:
    """The first pairs of the sample, pictures and all, as a Parquet of their own."""
    path = tmp_path_factory.mktemp("small") / "pairs.parquet"
    pq.write_table(pq.read_table(sample_pairs()).slice(0, SMALL_ROWS), path)
    return path


@pytest.fixture(scope="session")
def paired_index(tmp_path_factory) -> Command:
    return Command(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="session")
def small_build(tmp_path_factory, small_pairs, paired_index) -> Path:
    """A finished build of `small_pairs`; tests that change it work on a copy."""
    root = tmp_path_factory.mktemp("build") / "root"
    paired_index(
        "build",
        "--root",
        root,
        "--images",
        small_pairs,
        "--model",
        sample_model(),
        "--shards",
        SMALL_SHARDS,
        "--part-rows",
        125,
        "--nlist",
        16,
        "--validation-captions",
        100,
        "--test-captions",
        100,
    )
    return root
