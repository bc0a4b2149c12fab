"""`paired-index`: the same core and the same assets as the Dagster UI, from a terminal."""

import importlib.metadata
import sys
from typing import Annotated, NoReturn

import typer

from paired_index_assets.cli import build, catalog, doctor, pack, report, search, serve, status, takedown, ui
from paired_index_assets.cli.stopping import STATUS, stoppable
from paired_index_assets.cli.terminal import errors, fail
from paired_index_assets.errors import PairedIndexError, of_the_system
from paired_index_assets.extras import NAME, missing_extra

app = typer.Typer(
    name="paired-index",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Text search over very large sets of CLIP image embeddings.",
)
app.command()(build.build)
app.command()(search.search)
app.command()(status.status)
app.command()(report.report)
app.command()(serve.serve)
app.command()(pack.pack)
app.command()(takedown.takedown)
app.add_typer(catalog.app, name="catalog")
app.command()(doctor.doctor)
app.command()(ui.ui)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"paired-index {importlib.metadata.version(NAME)}")
        raise typer.Exit


@app.callback()
def of_every_command(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version)] = False,
) -> None:
    """Text search over very large sets of CLIP image embeddings."""


def main() -> None:
    """Run the command; a mistake that has a name is one line on standard error and exit code 1, a command that is stopped exits by its
    signal."""
    with stoppable() as signals:
        try:
            app(obj=signals)
        except BaseException as error:
            if (number := signals.number()) is not None:
                fail_stopped(number)
            named = error if isinstance(error, PairedIndexError) else missing_extra(error) or of_the_system(error)
            if named is None:
                raise
            fail(" ".join(str(named).split()))
            sys.exit(1)


def fail_stopped(number: int) -> NoReturn:
    goes_on = "; what is finished is kept, and the same command goes on from there" if sys.argv[1:2] == ["build"] else ""
    errors.print(f"stopped{goes_on}", soft_wrap=True)
    sys.exit(STATUS + number)


if __name__ == "__main__":
    main()
