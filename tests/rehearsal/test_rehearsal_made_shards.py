"""Shards of made segments are shards: their rows are accounted for, and both they and their packed file are searched."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from laion_rehearsal.made_shards import run, run_all
from laion_rehearsal.plan import scaled

from paired_index_assets.search.sharded import ShardedIndex

LISTS = 256
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
pytestmark = pytest.mark.usefixtures("one_thread")


def test_all_shards_at_a_share_of_their_rows_are_searched_whole_and_packed(tmp_path):
    run_all(tmp_path, share=1e-5, files=80, lists=LISTS)
    rows = scaled(1e-5, 80).total_rows
    for packed in (False, True):
        with ShardedIndex.open(tmp_path / "root", packed=packed) as index:
            assert (len(index.shards), index.ntotal, index.nlist) == (2, rows, LISTS)
    command = [sys.executable, "-m", "laion_rehearsal.searching", "measure", str(tmp_path / "root"), str(tmp_path / "queries.npy"), "1"]
    measured = json.loads(
        subprocess.run(
            command,
            check=True,
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONPATH": f"{BENCHMARKS}{os.pathsep}{BENCHMARKS.parent}"},
        ).stdout
    )
    assert measured["packed"]
    assert measured["rows"] == rows
    assert measured["warm_p50_ms"] > 0
    assert 0 < measured["lists_read"] <= measured["nprobe"]


@pytest.mark.heavy
def test_one_shard_of_full_size_in_pieces_of_one_file(tmp_path):
    lines = run(tmp_path, files=1, lists=LISTS)
    assert sum("build_shard" in line for line in lines) == 1
