"""Which Dagster instance a build belongs to: one beside its files, so that the UI shows what the command line did."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

import dagster as dg

from dagster_project.lost_runs import end_lost_runs
from paired_index_assets.errors import BadInput
from paired_index_assets.settings import Settings
from paired_index_assets.storage import is_local


def dagster_home(settings: Settings) -> Path:
    """DAGSTER_HOME if it is set, otherwise `dagster/` under the root; made, with the commented dagster.yaml in it, if absent.

    Raises BadInput if DAGSTER_HOME is not set and the root is not a local folder.
    """
    given = os.environ.get("DAGSTER_HOME")
    if not given and not is_local(settings.build_root.root):
        raise BadInput(f"root {settings.root} is not a local folder: set DAGSTER_HOME to a folder for Dagster's own records")
    home = (Path(given) if given else Path(settings.root) / "dagster").absolute()
    home.mkdir(parents=True, exist_ok=True)
    if not (home / "dagster.yaml").exists():
        (home / "dagster.yaml").write_text(files("dagster_project").joinpath("dagster.yaml").read_text())
    return home


@contextmanager
def instance_of(settings: Settings) -> Iterator[dg.DagsterInstance]:
    """The build's instance, in which no run is left that a killed process or a restarted machine cut off."""
    home = dagster_home(settings)
    os.environ["DAGSTER_HOME"] = str(home)
    with dg.DagsterInstance.get() as instance:
        end_lost_runs(instance)
        yield instance
