"""`paired-index`: the same core and the same assets as the Dagster UI, from a terminal."""

import sys

import typer

from paired_index_assets.cli import build, catalog, doctor, report, search, serve, takedown, ui
from paired_index_assets.cli.terminal import fail
from paired_index_assets.errors import PairedIndexError

app = typer.Typer(
    name="paired-index",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="Text search over very large sets of CLIP image embeddings.",
)
app.command()(build.build)
app.command()(search.search)
app.command()(report.report)
app.command()(serve.serve)
app.command()(takedown.takedown)
app.add_typer(catalog.app, name="catalog")
app.command()(doctor.doctor)
app.command()(ui.ui)


def main() -> None:
    """Run the command; a mistake that has a name is one line on standard error and exit code 1."""
    try:
        app()
    except PairedIndexError as error:
        fail(" ".join(str(error).split()))
        sys.exit(1)


if __name__ == "__main__":
    main()
