"""The files of `deploy/` are ones that Dagster takes, and hold no secret."""

import json
import os
import re
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from dagster._core.instance.config import dagster_instance_config
from dagster._core.instance.ref import InstanceRef

from paired_index_assets.settings import ENVIRONMENT_PREFIX, load_settings

DEPLOY = Path(__file__).parents[2] / "deploy"
YAMLS = sorted(DEPLOY.rglob("*.yaml"))
ADDRESSES = {"DAGSTER_POSTGRES_HOST": "db", "DAGSTER_POSTGRES_PORT": "5432", "RAY_DASHBOARD": "http://head:8265"}


@pytest.mark.parametrize("home", ["one-machine", "postgres-ray"])
def test_dagster_takes_the_settings(home, monkeypatch):
    text = (DEPLOY / home / "dagster.yaml").read_text()
    for name in re.findall(r"env: (\w+)", text):
        monkeypatch.setenv(name, ADDRESSES.get(name, "x"))
    taken, _ = dagster_instance_config(str(DEPLOY / home))  # raises with what is wrong
    assert taken == yaml.safe_load(text)
    assert taken["run_monitoring"]["enabled"]
    assert taken["run_retries"]["enabled"]


def test_the_run_launcher_gets_its_address_from_the_environment(monkeypatch):
    pytest.importorskip("dagster_ray", reason="dagster-ray is not installed: `make cluster` does it")
    monkeypatch.setenv("RAY_DASHBOARD", ADDRESSES["RAY_DASHBOARD"])
    launcher = InstanceRef.from_dir(str(DEPLOY / "postgres-ray")).run_launcher
    assert launcher.address == ADDRESSES["RAY_DASHBOARD"]


def test_the_settings_for_one_machine_are_those_that_come_with_the_package():
    assert os.path.samefile(DEPLOY / "one-machine/dagster.yaml", str(files("paired_index_assets.assets").joinpath("dagster.yaml")))


def test_the_values_for_kubernetes_start_what_there_is_with_settings_that_exist():
    values = yaml.safe_load((DEPLOY / "kubernetes/values.yaml").read_text())
    (deployment,) = values["dagster-user-deployments"]["deployments"]
    how, module = deployment["dagsterApiGrpcArgs"]
    assert (how, bool(find_spec(module))) == ("--python-module", True)
    environment = {entry["name"]: entry["value"] for entry in deployment["env"]}
    settings = load_settings(
        ask_root=False, **{name.removeprefix(ENVIRONMENT_PREFIX).lower(): value for name, value in environment.items()}
    )
    assert settings.root == environment["PAIRED_INDEX_ROOT"]
    assert any(Path(settings.cache).is_relative_to(mount["mountPath"]) for mount in deployment["volumeMounts"])
    assert {volume["name"] for volume in deployment["volumes"]} == {mount["name"] for mount in deployment["volumeMounts"]}


def test_on_kubernetes_no_more_runs_start_than_find_a_place_and_each_has_the_secrets_of_its_code():
    values = yaml.safe_load((DEPLOY / "kubernetes/values.yaml").read_text())
    launcher = values["runLauncher"]["config"]["k8sRunLauncher"]
    (deployment,) = values["dagster-user-deployments"]["deployments"]
    assert launcher["runK8sConfig"]["containerConfig"]["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert values["concurrency"]["pools"]["defaultLimit"] == values["concurrency"]["runs"]["maxConcurrentRuns"]
    assert launcher["envSecrets"] == deployment["envSecrets"]


@pytest.mark.parametrize("path", YAMLS, ids=[str(path.relative_to(DEPLOY)) for path in YAMLS])
def test_no_password_is_written_in_a_file(path):
    said = json.dumps(yaml.safe_load(path.read_text()))
    assert not re.findall(r'"[^"]*(?:password|secret_?access|token)[^"]*": "[^"]+"', said, re.IGNORECASE)
