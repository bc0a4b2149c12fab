"""`paired-index catalog`: which embedding files there should be, and what indexing them will take."""

from pathlib import Path
from typing import Annotated, Any

import typer

from paired_index_assets.cli.options import takes_settings
from paired_index_assets.cli.terminal import bars, console, table
from paired_index_assets.landing.catalog import Catalog
from paired_index_assets.settings import LAION_2B, Settings

app = typer.Typer(no_args_is_help=True, help="Make, show and plan catalogs of embedding files.")
NAMED = Annotated[str, typer.Argument(help=f"A catalog file, or `{LAION_2B}`.")]


@app.command()
def scan(
    url: Annotated[str, typer.Argument(help="Folder of .npy files, or one .npy file: a path or any fsspec URL.")],
    out: Annotated[Path, typer.Option("--out", help="Where to write the catalog.")] = Path("catalog.parquet"),
    shards: Annotated[int, typer.Option(help="Shards to deal the files to.", min=1)] = 58,
) -> None:
    """Read the headers of a set of .npy files and write their catalog."""
    with bars() as progress:
        catalog = Catalog.scan(url, shards=shards, progress=progress)
    catalog.save(out)
    console.print(
        f"wrote {out}: {len(catalog):,} files, {catalog.total_rows:,} rows of {catalog.dimensions}, {catalog.shards} shards",
        highlight=False,
    )


@app.command()
def show(catalog: NAMED = LAION_2B) -> None:
    """Print a catalog, one line a shard."""
    found = named(catalog)
    rows = []
    for shard in range(found.shards):
        files, (first, stop) = found.files(shard), found.shard_range(shard)
        missing = [file.name for file in files if file.known_missing]
        rows.append([shard, len(files), f"{first:,}", f"{stop - first:,}", _bytes(sum(f.bytes for f in files)), ", ".join(missing)])
    table(f"{len(found):,} files, {found.total_rows:,} rows", ["shard", "files", "first row", "rows", "size", "known missing"], rows)


@app.command()
@takes_settings(also=("nlist",))
def plan(settings: Settings, catalog: NAMED = LAION_2B) -> None:
    """Print bytes, memory and time before anything runs. Times are estimates from given rates, not measurements of this machine."""
    from paired_index_assets.landing.plan import Rates, plan_build

    found = named(catalog)
    made = plan_build(found, nlist=settings.lists_for(found.total_rows))
    rates = Rates()
    rows: list[list[Any]] = [
        ["files, shards", f"{made.files:,}, {made.shards}"],
        ["rows, dimensions", f"{made.rows:,}, {made.dimensions}"],
        ["inverted lists", f"{made.nlist:,}"],
        ["known missing", f"{made.missing_files} files, {made.missing_rows:,} rows, {made.waiting_shards} shards wait for them"],
        ["input", f"{_bytes(made.input_bytes)}, largest file {_bytes(made.largest_file_bytes)}"],
        ["segments, shards", f"{_bytes(made.segment_bytes)}, {_bytes(made.shard_bytes)} (largest {_bytes(made.largest_shard_bytes)})"],
        ["memory to build a shard", _bytes(made.build_memory_bytes)],
        ["memory to search", _bytes(made.search_memory_bytes)],
        ["fetching", f"{_hours(made.fetch_s)} at {_bytes(rates.fetch_bytes)}/s"],
        ["assigning", f"{_hours(made.assign_s)} at {rates.flops / 1e9:,.0f} GFLOP/s"],
        ["writing", f"{_hours(made.write_s)} at {_bytes(rates.write_bytes)}/s"],
        ["in all", f"about {_hours(made.longest_s)}: fetching, assigning and writing overlap"],
    ]
    table(f"plan for {catalog}", ["", ""], rows)


def named(catalog: str) -> Catalog:
    return Catalog.laion2b() if catalog == LAION_2B else Catalog.load(catalog)


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:,.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} TB"


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:,.1f} h" if seconds >= 3600 else f"{seconds / 60:,.1f} min"
