"""Whatever starts Dagster on this project: it is the one code location, and what `paired-index ui` would add is said in one line."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from paired_index_assets.assets.instance import dagster_home, workspace_of
from paired_index_assets.settings import load_settings

ROOT = Path(__file__).parents[2]
LOAD = "import dagster_project.definitions as project; print(len(project.defs().resolve_all_asset_specs()) > 0)"


def loaded(tmp_path, **environment):
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PAIRED_INDEX_", "DAGSTER_"))}
    done = subprocess.run(
        [sys.executable, "-c", LOAD],
        env=clean | {"PAIRED_INDEX_ROOT": str(tmp_path / "build"), **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "True\n"
    return done.stderr


def test_without_a_home_one_line_says_what_is_missing_and_how_to_have_it(tmp_path):
    said = loaded(tmp_path)
    assert said.count("\n") == 1
    assert "DAGSTER_HOME is not set" in said
    assert f"export DAGSTER_HOME={tmp_path}/build/dagster PAIRED_INDEX_ROOT={tmp_path}/build" in said


def test_a_home_without_pools_and_retries_is_one_line_too(tmp_path):
    said = loaded(tmp_path, DAGSTER_HOME=str(tmp_path))
    assert said.count("\n") == 1
    assert "no dagster.yaml" in said


def test_with_the_home_of_the_ui_nothing_is_missing(tmp_path, monkeypatch):
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    home = dagster_home(load_settings(root=str(tmp_path / "build")))
    assert loaded(tmp_path, DAGSTER_HOME=str(home)) == ""


@pytest.mark.parametrize("of", ["the clone", "paired-index ui"])
def test_a_workspace_names_the_same_module_and_location(of, tmp_path):
    path = ROOT / "workspace.yaml" if of == "the clone" else workspace_of(tmp_path)
    (one,) = yaml.safe_load(path.read_text())["load_from"]
    dg = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["dg"]["project"]
    module = one["python_module"]
    assert (module["module_name"], module["location_name"]) == (dg["code_location_target_module"], dg["code_location_name"])
