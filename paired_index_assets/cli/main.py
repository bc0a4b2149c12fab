"""`paired-index`: the same core and the same assets as the Dagster UI, from a terminal."""

import sys

import click
import typer

from paired_index_assets.cli import build, report, search, ui
from paired_index_assets.cli.terminal import fail
from paired_index_assets.errors import PairedIndexError

app = typer.Typer(
    name="paired-index", no_args_is_help=True, add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False,
    help="Text search over very large sets of CLIP image embeddings.",
)
app.command()(build.build)
app.command()(search.search)
app.command()(report.report)
app.command()(ui.ui)


def main() -> None:
    """Run the command; a mistake that has a name is one line on standard error and exit code 1."""
    try:
        code = app(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        fail("stopped; run the same command again to go on from here")
        sys.exit(130)
    except PairedIndexError as error:
        fail(" ".join(str(error).split()))
        sys.exit(1)
    sys.exit(code or 0)


if __name__ == "__main__":
    main()
