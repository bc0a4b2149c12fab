"""`paired-index catalog`: which embedding files there should be, and what indexing them will take."""

from pathlib import Path
from typing import Annotated, Any

import typer

from paired_index_assets.cli.options import takes_settings
from paired_index_assets.cli.terminal import bars, say, table
from paired_index_assets.errors import BadInput
from paired_index_assets.files.storage import as_path, is_local, nearest_folder
from paired_index_assets.landing.catalog import Catalog
from paired_index_assets.progress import duration
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
    say(f"wrote {out}: {len(catalog):,} files, {catalog.total_rows:,} rows of {catalog.dimensions}, {catalog.shards} shards")


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
@takes_settings(also=("nlist", "test_captions"))
def plan(
    settings: Settings,
    catalog: NAMED = LAION_2B,
    nodes: Annotated[str, typer.Option(help="Numbers of machines to plan for, as 1,8,64.")] = "1,8,64",
    gpus: Annotated[int, typer.Option(help="GPUs a machine.", min=0)] = 0,
    disk_gbps: Annotated[
        float | None,
        typer.Option("--disk-gbps", help="Gigabits a second of a machine's disk; else the root's (or the cache's) is measured."),
    ] = None,
    net_gbps: Annotated[float, typer.Option("--net-gbps", help="Gigabits a second of a machine's line.", min=0.001)] = 1.0,
    pairs: Annotated[int, typer.Option(help="Captions that will train, each matched among as many images.", min=1)] = 20_000_000,
    measure: Annotated[bool, typer.Option(help="Measure this machine's rates first: some thirty seconds.")] = True,
) -> None:
    """Print bytes, memory and time before anything runs, on one machine and on more."""
    from paired_index_assets.planning.plan import plan_build
    from paired_index_assets.planning.rates import Rates, measure_rates
    from paired_index_assets.planning.scaling import scale

    found = named(catalog)
    counts = _counts(nodes)
    total = found.total_rows
    # the most lists that may be promoted: in two levels, if captions are enough to train them
    pairs = min(pairs, total)
    flat, fine = settings.lists_for(total), settings.fine_lists_for(total, pairs)
    made = plan_build(found, nlist=fine or flat, pairs=pairs, trained=sorted({flat, fine or flat}))
    root = settings.build_root.root
    disk = nearest_folder(root if is_local(root) else as_path(settings.build_root.cache.folder))
    shape: dict[str, int] = {"file_rows": made.rows // made.files, "captions": settings.test_captions}
    rates = measure_rates(disk, made.dimensions, made.nlist, **shape) if measure else Rates()
    rates = rates.with_given(disk_gbps=disk_gbps, net_gbps=net_gbps)
    rows: list[list[Any]] = [
        ["files, shards", f"{made.files:,}, {made.shards}"],
        ["rows, dimensions", f"{made.rows:,}, {made.dimensions}"],
        ["inverted lists", f"{made.nlist:,} in {'two levels' if fine else 'one level'}"],
        ["pairs to train on", f"{made.pairs:,}"],
        ["known missing", f"{made.missing_files} files, {made.missing_rows:,} rows, {made.waiting_shards} shards wait for them"],
        ["input", f"{_bytes(made.input_bytes)}, largest file {_bytes(made.largest_file_bytes)}"],
        ["segments, shards", f"{_bytes(made.segment_bytes)}, {_bytes(made.shard_bytes)} (largest {_bytes(made.largest_shard_bytes)})"],
        ["packed file", f"{_bytes(made.packed_bytes)}, the shards once more; --no-packed does without"],
        ["disk in all", f"{_bytes(made.disk_bytes)}, the input and the packed file among it"],
        [
            "disk for a new trained index",
            f"{_bytes(made.retrain_bytes)} with the shards served meanwhile, {_bytes(made.segment_bytes + made.shard_bytes)} --in-place",
        ],
        ["memory to train", _bytes(made.train_memory_bytes)],
        ["memory to build a shard", _bytes(made.build_memory_bytes)],
        ["memory to search", _bytes(made.search_memory_bytes)],
    ]
    table(f"plan for {catalog}", ["", ""], rows)
    table(
        "a machine's rates",
        ["", "", ""],
        [
            [what, rate, "measured here" if name in rates.measured else "given"]
            for what, name, rate in (
                (
                    "assignment on its processor",
                    "flops",
                    f"{rates.flops / 1e9:,.0f} GFLOP/s{f', {rates.assigned_by}' * bool(rates.assigned_by)}",
                ),
                ("pairing on its processor", "pairing_flops", f"{rates.pairing_flops / 1e9:,.0f} GFLOP/s"),
                ("learning on its processor", "gemm_flops", f"{rates.gemm_flops / 1e9:,.0f} GFLOP/s"),
                ("assignment on a GPU", "gpu_flops", f"{rates.gpu_flops / 1e12:,.0f} TFLOP/s"),
                ("encoding on its processor", "encode_rows", f"{rates.encode_rows:,.0f} rows/s"),
                ("truth on its processor", "truth_rows", f"{rates.truth_rows:,.0f} rows/s, {settings.test_captions:,} captions"),
                ("encoding on a GPU", "gpu_encode_rows", f"{rates.gpu_encode_rows:,.0f} rows/s"),
                ("disk", "disk_bytes", f"{_bytes(rates.disk_bytes)}/s"),
                ("line", "fetch_bytes", f"{_bytes(rates.fetch_bytes)}/s"),
                ("putting a shard together", "assemble_bytes", f"{_bytes(rates.assemble_bytes)}/s"),
                ("a small file, for good", "file_s", f"{1e3 * rates.file_s:.1f} ms"),
                ("start of a run", "run_s", f"{rates.run_s:.0f} s"),
                ("a run's choice of how to assign", "probe_s", f"{rates.probe_s:.1f} s"),
            )
        ],
    )
    if rates.busy:
        say(f"this machine is busy (load {rates.load:.1f} a core): an idle one has higher rates; plan again when it is", "yellow")
    scaled = [scale(made, rates, count, gpus) for count in counts]
    resources = [name for name in scaled[0].seconds if any(one.seconds[name] for one in scaled)]
    table(
        f"projected from these rates, {gpus} GPUs a machine",
        ["machines", "pairing", "training", *resources, "assembly", "starts", "in all", "binds"],
        [
            [
                one.nodes,
                *map(
                    duration,
                    (one.pairing_s, one.training_s, *map(one.seconds.__getitem__, resources), one.assembly_s, one.overhead_s, one.whole_s),
                ),
                one.binds,
            ]
            for one in scaled
        ],
    )


def _counts(given: str) -> list[int]:
    counts = [int(word) if word.isdigit() else 0 for word in given.replace(" ", "").split(",")]
    if min(counts) < 1:
        raise BadInput(f"--nodes {given}: expected numbers of machines, as 1,8,64")
    return counts


def named(catalog: str) -> Catalog:
    return Catalog.laion2b() if catalog == LAION_2B else Catalog.load(catalog)


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:,.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} TB"
