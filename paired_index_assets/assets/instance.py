"""Which Dagster instance a build belongs to: one beside its files, so that the UI shows what the command line did."""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

import dagster as dg

from paired_index_assets.assets.dagster_internals import forget_partition_status
from paired_index_assets.assets.lost_runs import end_lost_runs, free_left_places
from paired_index_assets.errors import BadInput, Busy, PairedIndexError, SourceUnavailable
from paired_index_assets.files.deadline import within
from paired_index_assets.files.locks import only_writer
from paired_index_assets.files.storage import is_local
from paired_index_assets.settings import Settings, absolute

OPEN_SECONDS = 20.0  # for the first answer of Dagster's own records, its imports too; ten of them are the driver's, see deploy/postgres-ray/dagster.yaml
LAUNCHER_SECONDS = 5.0
WORKSPACE = """\
load_from:
  - python_module:
      module_name: dagster_project.definitions
      location_name: paired_index
"""


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
        (home / "dagster.yaml").write_text(files("paired_index_assets.assets").joinpath("dagster.yaml").read_text())
    return home


def not_as_by_ui(settings: Settings) -> str | None:
    """What `paired-index ui` would have done and whoever started Dagster did not, in one line; None if nothing is missing."""
    given = os.environ.get("DAGSTER_HOME")
    beside = f"{settings.root}/dagster" if is_local(settings.build_root.root) else "/a/local/folder"
    if not given:
        return (
            "DAGSTER_HOME is not set: runs are recorded in a temporary folder, without pools, retries and what was built before. "
            f"Start with `paired-index ui --root {settings.root}`, or first: export DAGSTER_HOME={absolute(beside)} "
            f"PAIRED_INDEX_ROOT={absolute(settings.root)}"
        )
    if not (Path(given) / "dagster.yaml").exists():
        return f"{given}: no dagster.yaml, so no pools and no retries. Put deploy/one-machine/dagster.yaml there and start again"
    return None


def workspace_of(home: Path) -> Path:
    """`workspace.yaml` in `home`: the code location under the one name it has everywhere, so that sensors keep their cursors."""
    workspace = home / "workspace.yaml"
    workspace.write_text(WORKSPACE)
    return workspace


@contextmanager
def only_daemon(home: Path) -> Iterator[None]:
    """For the time of the block, no other `paired-index ui` works on the records in `home`. Raises Busy if one does, or another daemon of
    this machine: two would ask for the same runs twice."""
    with only_writer(home / "ui.lock"):
        for process in daemons_of(home):
            raise Busy(f"{home}: process {process} is a Dagster daemon on the same records; stop it, or give another root or DAGSTER_HOME")
        yield


def daemons_of(home: Path) -> list[int]:
    """The Dagster daemons of this machine that work on the records in `home`, as far as one may see."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
            if not any(word == "dagster._daemon" or word.endswith("/dagster-daemon") for word in command):
                continue
            environment = (process / "environ").read_bytes().split(b"\0")
        except OSError:  # it has ended, or is another user's
            continue
        where = [Path(os.fsdecode(entry[len(b"DAGSTER_HOME=") :])) for entry in environment if entry.startswith(b"DAGSTER_HOME=")]
        if any(folder.resolve() == home.resolve() for folder in where):
            found.append(int(process.name))
    return sorted(found)


@contextmanager
def instance_of(settings: Settings) -> Iterator[dg.DagsterInstance]:
    """The build's instance, in which no run is left that a killed process or a restarted machine cut off. Raises as `open_instance`."""
    home = dagster_home(settings)
    os.environ["DAGSTER_HOME"] = str(home)
    try:
        with open_instance(home) as instance:
            end_lost_runs(instance)
            free_left_places(instance)
            forget_partition_status(instance, dg.AssetKey("shard_index"), dg.AssetKey("landed_embeddings"))
            yield instance
    except PairedIndexError:
        raise
    except Exception as error:
        if (reason := _of_the_database(error)) is None:
            raise
        raise BadInput(
            f"{home}: Dagster's own records cannot be written ({reason}); free some space or make them writable, or set DAGSTER_HOME to "
            "another folder; what is finished is kept"
        ) from error


def open_instance(home: Path) -> dg.DagsterInstance:
    """The instance that `home`/dagster.yaml describes, asked for one run. Raises BadInput, in one line, if it does not answer."""
    yaml = home / "dagster.yaml"

    def ask() -> dg.DagsterInstance:
        instance = dg.DagsterInstance.from_config(str(home))
        instance.get_runs(limit=1)
        return instance

    before = logging.root.manager.disable
    logging.disable(logging.WARNING)  # the driver's account of each try; what it comes to is raised
    try:
        return within(OPEN_SECONDS, f"{yaml}: storage", ask)
    except PairedIndexError:
        raise
    except dg.DagsterInvalidConfigError as error:
        problems = "; ".join(one.message.partition("Stack Trace")[0] for one in error.errors)
        raise BadInput(f"{yaml}: {problems}") from error
    except Exception as error:  # of the driver, of SQLAlchemy, of a package that is not installed: the innermost says what is wrong
        raise BadInput(f"{yaml}: {_innermost(error)}; check what it says, and the environment variables that the file names") from error
    finally:
        logging.disable(before)


def reach_launcher(instance: dg.DagsterInstance) -> str:
    """What launches runs, asked whether it is there. Raises SourceUnavailable, in one line, for a Ray cluster that does not answer."""
    launcher = instance.run_launcher
    address = getattr(launcher, "address", None)
    if address is None:
        return f"{type(launcher).__name__}: runs are processes of this machine"
    import requests

    try:
        answer = requests.get(f"{address}/api/version", timeout=LAUNCHER_SECONDS)
        answer.raise_for_status()
        return f"{type(launcher).__name__}: Ray {answer.json()['ray_version']} at {address}"
    except (requests.RequestException, ValueError, KeyError) as error:
        raise SourceUnavailable(
            f"run_launcher: no Ray dashboard at {address} ({_innermost(error)}); start the head node, or mend the address"
        ) from error


def _of_the_database(error: BaseException) -> str | None:
    """What the database of Dagster's records says, in one line, where that is what went wrong somewhere below `error`."""
    below: BaseException | None = error
    while below is not None:
        if isinstance(below, sqlite3.Error) or type(below).__module__.startswith(("sqlalchemy.", "psycopg2")):
            return _innermost(below)
        below = below.__cause__ or below.__context__
    return None


def _innermost(error: BaseException) -> str:
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
