"""`paired-index takedown`: rows that must not be found any more."""

from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from paired_index_assets.cli.options import takes_settings
from paired_index_assets.cli.terminal import bars, say
from paired_index_assets.errors import BadInput
from paired_index_assets.rows import Int64
from paired_index_assets.settings import Settings

if TYPE_CHECKING:
    from paired_index_assets.builds.following import DataSet


@takes_settings()
def takedown(
    settings: Settings,
    ids: Annotated[Optional[Path], typer.Option("--ids", help="Text file with one global row id a line.")] = None,
    urls: Annotated[Optional[Path], typer.Option("--urls", help="Text file with one url a line, matched with the metadata.")] = None,
    md5: Annotated[Optional[Path], typer.Option("--md5", help="Text file with one md5 a line, matched with the metadata.")] = None,
    why: Annotated[str, typer.Option(help="Reason, kept in the log.")] = "asked for",
) -> None:
    """Remove rows: searches leave them out at once, the next rebuild permanently; the log of what was removed stays.

    Exit code 1 if a line of the list is no row's: the others are still removed.
    """
    from paired_index_assets.builds.metadata import metadata_of
    from paired_index_assets.builds.opened import OpenBuild
    from paired_index_assets.shards.manifest import served_data_set
    from paired_index_assets.shards.matching import read_list, row_ids
    from paired_index_assets.shards.removals import add_removed

    given = {name: file for name, file in (("ids", ids), ("url", urls), ("md5", md5)) if file is not None}
    if len(given) != 1:
        raise BadInput("give one of --ids, --urls, --md5")
    ((kind, file),) = given.items()
    build = OpenBuild(settings)
    root, catalog = build.root, build.catalog
    if served_data_set(root) not in ("", catalog.data_set):
        raise BadInput(
            f"{root.root}: a build of other data has begun and not ended, so an id has two meanings; finish it with `paired-index build`"
        )
    lines = read_list(file)
    found = build.data_set_of(catalog, partial(metadata_of, root, settings.caption_texts, landing=settings.landing))
    rows, unknown = (row_ids(file, lines), []) if kind == "ids" else _matched(found, kind, lines)
    new = add_removed(
        root,
        rows,
        why,
        when=datetime.now(UTC),
        source=file.name,
        total_rows=catalog.total_rows,
        data_set=catalog.data_set,
        traits_of=found.traits,
    )
    say(f"{len(rows):,} rows named, {new:,} newly removed. Searches leave them out from now on;")
    say("the nightly rebuild, or `paired-index build`, takes them out of the shards.")
    if unknown:
        for line in unknown:
            say(line)
        raise BadInput(
            f"{file}: the {len(unknown):,} lines above, of {len(lines):,}, are in no metadata of this build; nothing was removed for them"
        )


def _matched(found: "DataSet", column: str, values: list[str]) -> tuple[Int64, list[str]]:
    from paired_index_assets.shards.matching import ids_of

    if found.metadata is None:
        raise BadInput("this build has no metadata to match with; give --ids")
    with bars() as progress:
        return ids_of([(file.url, file.start) for file in found.metadata.files], column, values, progress=progress)
