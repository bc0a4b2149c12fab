"""`paired-index ui`: the Dagster web server and daemon on one build."""

import os
import socket
import sys
from pathlib import Path
from typing import Annotated

import typer

from paired_index_assets.cli.options import takes_settings
from paired_index_assets.cli.supervised import dagster_command, run
from paired_index_assets.cli.terminal import say
from paired_index_assets.errors import BadInput
from paired_index_assets.settings import Settings, absolute, load_settings


@takes_settings()
def ui(
    settings: Settings,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)] = 3000,
) -> None:
    """Open the Dagster UI on a build: materialise, backfill, watch. Its sensors and schedules run while it does."""
    settings = load_settings(**settings.model_dump() | {"root": absolute(settings.root)})
    from paired_index_assets.assets.instance import dagster_home, instance_of, only_daemon, reach_launcher, workspace_of

    home = dagster_home(settings)
    os.environ.update(settings.environment())
    with only_daemon(home):
        with instance_of(settings) as instance:  # sets DAGSTER_HOME, and ends what a crash left unfinished
            reach_launcher(instance)
        _require_free(host, port)
        os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
        # `dagster dev` is marked as superseded by `dg dev`, which wants a project folder; an installed package has none.
        os.environ.setdefault("PYTHONWARNINGS", "ignore::UserWarning,ignore::FutureWarning")
        say(f"Dagster UI on {settings.root}: http://{host}:{port}  (Ctrl-C stops it)")
        sys.stdout.flush()
        quiet = ["--log-level", "warning", "--code-server-log-level", "warning"]
        run(dagster_command("dev", "-w", str(workspace_of(home)), "-h", host, "-p", str(port), *quiet), say)


def _require_free(host: str, port: int) -> None:
    try:
        with socket.create_server((host, port)):
            pass
    except OSError as error:
        raise BadInput(
            f"--host {host} --port {port}: {error.strerror or error}; give another --port, or stop what listens there"
        ) from error
