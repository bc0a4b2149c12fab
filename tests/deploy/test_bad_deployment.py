"""A deployment with a wrong address, password or bucket says so in one line, within half a minute, before anything is built."""

import contextlib
import shutil
import socket
from pathlib import Path

import pytest

from paired_index_assets.sample import sample_pairs

DAGSTER_YAML, ONE_MACHINE = (Path(__file__).parents[2] / "deploy" / name / "dagster.yaml" for name in ("postgres-ray", "one-machine"))
PATIENCE = {"patience_seconds": 90.0}  # half a minute, and the start of a process on a busy machine
BUILD = ["build", "--images", sample_pairs()]


@contextlib.contextmanager
def port(*, accepts: bool):
    """One where connections are refused, or one where they are taken and nothing is ever said."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if accepts:
            server.listen()
        yield server.getsockname()[1]


def line_of(done):
    assert done.returncode == 1, done.stdout + done.stderr
    said = done.stderr.strip()
    assert said.startswith("error: ")
    assert "\n" not in said
    return said


def test_an_object_store_that_never_answers(paired_index, tmp_path):
    with port(accepts=True) as number:
        reach = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{number}", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
        given = reach | {"DAGSTER_HOME": str(tmp_path), "COLUMNS": "200"}
        assert "s3://bucket/build" in line_of(paired_index(*BUILD, "--root", "s3://bucket/build", check=False, **PATIENCE, **given))
        shutil.copy(ONE_MACHINE, tmp_path / "dagster.yaml")
        asked = paired_index("doctor", "--root", "s3://bucket/build", check=False, **PATIENCE, **given)
    assert line_of(asked) == "error: root: see the table for what to do"
    (bad,) = [line for line in asked.stdout.splitlines() if "FIX" in line]
    assert "s3://bucket/build" in bad
    assert "SqliteRunStorage answers" in asked.stdout  # the other parts are asked all the same


@pytest.fixture
def home(tmp_path):
    pytest.importorskip("dagster_postgres", reason="dagster-postgres is not installed: `make cluster` does it")
    shutil.copy(DAGSTER_YAML, tmp_path / "dagster.yaml")
    return tmp_path


def environment(home, number):
    postgres = {"HOST": "127.0.0.1", "PORT": str(number), "USER": "dagster", "PASSWORD": "secret-word", "DB": "dagster"}
    of_dagster = {"DAGSTER_HOME": str(home), "DAGSTER_COMPUTE_LOGS": str(home / "logs"), "RAY_DASHBOARD": "http://127.0.0.1:1"}
    return of_dagster | {f"DAGSTER_POSTGRES_{name}": value for name, value in postgres.items()}


@pytest.mark.parametrize("accepts", [False, True], ids=["a closed port", "a port that never answers"])
def test_a_database_that_does_not_answer(accepts, home, paired_index):
    with port(accepts=accepts) as number:
        said = line_of(paired_index(*BUILD, "--root", home / "root", check=False, **PATIENCE, **environment(home, number)))
    assert "dagster.yaml" in said
    assert "secret-word" not in said


def test_a_variable_that_is_not_set(home, paired_index):
    given = environment(home, 1)
    del given["DAGSTER_POSTGRES_PASSWORD"]
    said = line_of(paired_index("ui", "--root", home / "root", check=False, **PATIENCE, **given))
    assert "DAGSTER_POSTGRES_PASSWORD" in said


def test_doctor_says_for_each_part_what_to_fix(home, paired_index):
    with port(accepts=False) as number:
        done = paired_index("doctor", "--root", home / "root", check=False, COLUMNS="200", **environment(home, number))
    assert done.returncode == 1
    (line,) = [line for line in done.stdout.splitlines() if "FIX" in line]
    assert "Dagster" in line
    assert done.stderr.strip() == "error: Dagster: see the table for what to do"
