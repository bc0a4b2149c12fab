"""`paired-index takedown`: rows that must not be found any more."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Optional

import numpy as np
import typer

from paired_index_assets.cli.options import takes_settings
from paired_index_assets.cli.terminal import bars, say
from paired_index_assets.errors import BadInput, MissingInput
from paired_index_assets.rows import Int64
from paired_index_assets.settings import Settings


@takes_settings()
def takedown(
    settings: Settings,
    ids: Annotated[Optional[Path], typer.Option("--ids", help="Text file with one global row id a line.")] = None,
    urls: Annotated[Optional[Path], typer.Option("--urls", help="Text file with one url a line, matched with the metadata.")] = None,
    md5: Annotated[Optional[Path], typer.Option("--md5", help="Text file with one md5 a line, matched with the metadata.")] = None,
    why: Annotated[str, typer.Option(help="Reason, kept in the log.")] = "asked for",
) -> None:
    """Remove rows: searches leave them out at once, the next rebuild for good; the log of what was removed stays."""
    from paired_index_assets.landing.catalog import Catalog
    from paired_index_assets.shards.takedown import add_removed

    given = {name: file for name, file in (("ids", ids), ("url", urls), ("md5", md5)) if file is not None}
    if len(given) != 1:
        raise BadInput("give one of --ids, --urls, --md5")
    ((kind, file),) = given.items()
    lines = _lines(file)
    rows = _whole_numbers(file, lines) if kind == "ids" else _matched(settings, kind, lines)
    total = Catalog.load(settings.build_root.catalog).total_rows
    new = add_removed(settings.build_root, rows, why, when=datetime.now(UTC), source=file.name, total_rows=total)
    say(f"{len(rows):,} rows named, {new:,} newly removed. Searches leave them out from now on;")
    say("the nightly rebuild, or `paired-index build`, takes them out of the shards.")


def _lines(file: Path) -> list[str]:
    try:
        lines = [line.strip() for line in file.read_text().splitlines()]
    except FileNotFoundError as error:
        raise MissingInput(f"{file}: no such file") from error
    if not any(lines):
        raise BadInput(f"{file}: expected one entry a line, found none")
    return [line for line in lines if line]


def _whole_numbers(file: Path, lines: list[str]) -> Int64:
    for number, line in enumerate(lines, start=1):
        if not line.isdigit():
            raise BadInput(f"{file}: line {number}: expected a row id, found {line[:40]!r}; nothing was removed")
    return np.array([int(line) for line in lines], dtype=np.int64)


def _matched(settings: Settings, column: str, values: list[str]) -> Int64:
    from paired_index_assets.serving.metadata import metadata_of
    from paired_index_assets.shards.takedown import ids_of

    metadata = metadata_of(settings.build_root, settings.caption_texts)
    if metadata is None:
        raise BadInput("this build has no metadata to match with; give --ids")
    with bars() as progress:
        rows, unknown = ids_of([(file.url, file.start) for file in metadata.files], column, values, progress=progress)
    if unknown:
        say(f"{len(unknown):,} of {len(values):,} are in no metadata, the first: {unknown[0]}")
    return rows
