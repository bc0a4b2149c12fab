"""The rehearsal itself, at a thousandth of LAION's rows: half an hour on two idle cores, more on busy ones."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
PATIENCE_SECONDS = 2 * 3600


@pytest.mark.heavy
def test_a_thousandth_of_laion_is_landed_killed_retrained_and_proven(tmp_path):
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PAIRED_INDEX_", "DAGSTER_"))}
    done = subprocess.run(
        [sys.executable, "-m", "laion_rehearsal", "--share", "0.001", "--work", str(tmp_path / "work")],
        env=clean | {"PYTHONPATH": os.pathsep.join([str(BENCHMARKS), clean.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_SECONDS,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for proven in ("ids are in one list each", "58 of 58 shards", "exact neighbours over", "queries during the retraining"):
        assert proven in done.stdout
    assert not (tmp_path / "work").exists()
    assert (tmp_path / "work.md").exists()
