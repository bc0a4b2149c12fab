"""`paired-index doctor` on a real deployment: every part answers, or it says which does not."""

import shutil
from pathlib import Path

import pytest

pytestmark = pytest.mark.cluster


def test_doctor_finds_every_part_of_a_good_deployment_and_names_the_bad_one(cluster, alone, paired_index, tmp_path):
    from cluster_demo import build_root

    good = {name: value for name, value in cluster.environment.items() if name.startswith(("AWS_", "DAGSTER_", "RAY_", "PAIRED_INDEX_"))}
    build_root(cluster).manifest.unlink(missing_ok=True)  # it may be older than the shards that other tests built since
    done = paired_index("doctor", COLUMNS="400", **good)
    assert "PostgresRunStorage answers" in done.stdout
    assert "Ray 2" in done.stdout

    wrong = paired_index("doctor", check=False, COLUMNS="400", **good | {"DAGSTER_POSTGRES_PASSWORD": "not-this-one"})
    (line,) = [line for line in wrong.stdout.splitlines() if "FIX" in line]
    assert "Dagster" in line
    assert "password authentication failed" in wrong.stdout
    assert "not-this-one" not in wrong.stdout + wrong.stderr

    second = paired_index("ui", check=False, **good)
    assert second.returncode == 1
    assert "is a Dagster daemon on the same records" in second.stderr

    shutil.copy(Path(good["DAGSTER_HOME"]) / "dagster.yaml", tmp_path)
    nobody = paired_index("ui", check=False, **good | {"DAGSTER_HOME": str(tmp_path), "RAY_DASHBOARD": "http://127.0.0.1:1"})
    assert nobody.returncode == 1
    assert nobody.stderr.startswith("error: run_launcher: no Ray dashboard at http://127.0.0.1:1")
