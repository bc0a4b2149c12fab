"""`paired-index status`: how far a build is, what it waits for, and when it will be done."""

from paired_index_assets.cli.options import takes_settings
from paired_index_assets.cli.terminal import say, table
from paired_index_assets.files.storage import as_path
from paired_index_assets.progress import duration
from paired_index_assets.settings import Settings
from paired_index_assets.shards.pace import Stage

WHYS = 8  # shards that are not current and say why


@takes_settings()
def status(settings: Settings) -> None:
    """Say how far a build is, what its shards wait for, and when it will be done; beside a daemon that works, or without one."""
    from paired_index_assets.builds.opened import OpenBuild
    from paired_index_assets.builds.outlook import waiting
    from paired_index_assets.shards.generations import served_if_any
    from paired_index_assets.shards.pace import pace_of

    build = OpenBuild(settings)
    trained, catalog, root = build.promoted, build.catalog, build.root
    mine, served = root.generation(trained.fingerprint), served_if_any(root)
    others = "nothing is searched yet" if served is None else f"searched until it is whole: {served.fingerprint}"
    say(
        f"{root.root}: {trained.fingerprint}, {trained.nlist:,} lists of {trained.d} dimensions; {'it is searched' if served == mine else others}"
    )
    found = pace_of(mine, catalog, as_path(settings.landing) if settings.landing else None)
    rows = [["encoded", *_said(found.encoded)]]
    if found.landed is not None:
        rows.insert(0, ["landed", *_said(found.landed)])
    table(f"{catalog.total_rows:,} rows in {len(catalog):,} files", ["rows", "", "share", "lately, rows/h", "left"], rows)
    waits = waiting(build)
    say(f"{catalog.shards - len(waits)} of {catalog.shards} shards are current")
    for one in waits[:WHYS]:
        say(f"  shard {one.shard}: {one.why}")
    if len(waits) > WHYS:
        say(f"  and {len(waits) - WHYS} more")
    say(found.said() if waits else "nothing is left to do")


def _said(stage: Stage) -> list[str]:
    pace = f"{3600 * stage.pace:,.0f}" if stage.pace else ""
    left = "" if stage.left_s is None else duration(stage.left_s) if stage.left_s else "done"
    return [f"{stage.done:,}", f"{stage.done / max(1, stage.total):.1%}", pace, left]
