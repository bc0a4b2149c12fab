"""`paired-index ui`: the Dagster web server and daemon on one build."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from paired_index_assets.cli.options import takes_settings
from paired_index_assets.cli.terminal import say
from paired_index_assets.settings import Settings, absolute, load_settings


@takes_settings()
def ui(
    settings: Settings,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)] = 3000,
) -> None:
    """Open the Dagster UI on a build: materialise, backfill, watch. Its sensors and schedules run while it does."""
    settings = load_settings(**settings.model_dump() | {"root": absolute(settings.root)})
    from paired_index_assets.assets.instance import dagster_home, instance_of, reach_launcher, workspace_of

    os.environ.update(settings.environment())
    with instance_of(settings) as instance:  # sets DAGSTER_HOME, and ends what a crash left unfinished
        reach_launcher(instance)
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    # `dagster dev` is marked as superseded by `dg dev`, which wants a project folder; an installed package has none.
    os.environ.setdefault("PYTHONWARNINGS", "ignore::UserWarning,ignore::FutureWarning")
    say(f"Dagster UI on {settings.root}: http://{host}:{port}  (Ctrl-C stops it)")
    sys.stdout.flush()
    quiet = ["--log-level", "warning", "--code-server-log-level", "warning"]
    workspace = workspace_of(dagster_home(settings))
    os.execvp("dagster", ["dagster", "dev", "-w", str(workspace), "-h", host, "-p", str(port), *quiet])
