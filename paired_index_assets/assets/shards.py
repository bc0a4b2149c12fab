"""The 58 shard indices, the manifest that lists them, and when they are rebuilt."""

import inspect
from typing import TYPE_CHECKING

import dagster as dg

from paired_index_assets.assets.automation import follow_when_quiet, rebuild_on_change
from paired_index_assets.assets.built import built_asset, built_check
from paired_index_assets.assets.facts import Stopwatch, column_schema, markdown_table, path, rows_and_rate
from paired_index_assets.assets.landing import landed_embeddings
from paired_index_assets.assets.one_run import one_after_another
from paired_index_assets.assets.partitions import shard_key, shard_number
from paired_index_assets.assets.resources import BuildResource
from paired_index_assets.assets.training import trained_index
from paired_index_assets.errors import MissingInput, PairedIndexError, Transient
from paired_index_assets.landing.landed import landed_by_shard, version_of
from paired_index_assets.progress import Progress

if TYPE_CHECKING:  # Dagster reads these modules in every process it starts: what is only worked with is imported by the work
    from paired_index_assets.builds.opened import OpenBuild


@built_asset(
    *("landing", "sources", "downloads", "download_budget_gb", "parallel_downloads", "rebuild_from", "in_place"),
    group_name="index",
    kinds={"faiss"},
    code_version="1",
    pool="shards",
    deps=[landed_embeddings.key, trained_index.key],
    automation_condition=rebuild_on_change,
    # Only what may get better by itself is tried again (errors.Transient): mistakes and damage fail at once.
    retry_policy=dg.RetryPolicy(max_retries=2, delay=30, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.PLUS_MINUS),
)
def shard_index(context: dg.AssetExecutionContext, build: "OpenBuild", progress: Progress) -> dg.MaterializeResult | dg.AssetCheckResult:
    """One shard as a plain faiss IVF file with global row ids: landed file, validated block, list number, code, segment, shard.

    Each file is encoded once and kept as a segment, so that a killed run loses at most one file; unchanged files are not read again
    and an unchanged shard is not touched.
    """
    if context.has_partition_key:
        return _built(build, context.partition_key, progress)
    from paired_index_assets.builds.opened import OpenBuild

    return one_after_another(context, SHARD_INDEX, lambda key: _built(OpenBuild(build.settings), key, progress))


def _built(build: "OpenBuild", key: str, progress: Progress) -> dg.MaterializeResult:
    from paired_index_assets.evidence.captions import captions_reported_on
    from paired_index_assets.shards.build import build_shard, data_version
    from paired_index_assets.shards.sweeping import sweep

    watch, shard = Stopwatch(), shard_number(key)
    trained, catalog, listing = build.promoted, build.catalog, build.listing
    sweep(build.root, trained.fingerprint, catalog, in_place=build.settings.in_place)  # room for what is made now
    captions = captions_reported_on(build)
    made = build_shard(build.root, trained, catalog, shard, listing, supply=build.supply(progress), captions=captions, progress=progress)
    version = version_of(landed_by_shard(listing, catalog).get(shard, []))
    return dg.MaterializeResult(
        metadata={
            **rows_and_rate(sum(file.indexed for file in made.record.files), watch.seconds),
            "unchanged": made.unchanged,
            "files": len(made.record.files),
            "files_encoded": len(made.encoded),
            "rows_left_out": sum(made.left_out.values()),
            "lossy_files": len(made.lossy_files),
            "files_without_truth": len(made.without_truth),
            "bytes": made.record.bytes,
            "sha256": made.record.sha256,
            "trained": trained.fingerprint,
            "path": dg.MetadataValue.path(str(made.path)),
        },
        data_version=dg.DataVersion(data_version(trained.fingerprint, version, made.record.removed)),
        check_results=[_reads_back(build, shard)],
    )


SHARD_INDEX = shard_index.key


def reading_back(partitions: dg.StaticPartitionsDefinition) -> dg.AssetCheckSpec:
    """The check of a shard, in the same step: a run of one shard is one process."""
    return dg.AssetCheckSpec(
        "shard_reads_back", asset=SHARD_INDEX, blocking=True, partitions_def=partitions, description=inspect.getdoc(_reads_back)
    )


def _reads_back(build: "OpenBuild", shard: int) -> dg.AssetCheckResult:
    """The file on disk is the one its record describes, every row of its files is in one list or left out for a reason, and a sample of
    rows, decoded by stock faiss, is what lies under their ids in the landed files."""
    from paired_index_assets.evidence.conservation import account_of_build
    from paired_index_assets.shards.record import verify_shard

    trained = build.promoted
    try:
        record = verify_shard(build.root.generation(trained.fingerprint).shard(trained.codec.name, shard), build.root.cache)
        (found,) = account_of_build(build, build.catalog, trained, [shard])
    except Transient:
        raise  # that it could not be read says nothing about the shard
    except PairedIndexError as error:
        return dg.AssetCheckResult(passed=False, description=str(error))
    counts = {"vectors": found.in_lists, "rows_compared": found.compared, "sources_gone": len(found.gone)}
    return dg.AssetCheckResult(passed=True, description=f"shard {shard}: {found}", metadata={**counts, "sha256": record.sha256})


@built_asset(
    "in_place",
    group_name="index",
    kinds={"parquet"},
    code_version="1",
    automation_condition=follow_when_quiet,
    deps=[dg.AssetDep(SHARD_INDEX, partition_mapping=dg.AllPartitionMapping())],
)
def index_manifest(context: dg.AssetExecutionContext, build: "OpenBuild", progress: Progress) -> dg.MaterializeResult:
    """One row a landed file: where its rows are, how many can be found, what was left out and why, what made its shard."""
    from paired_index_assets.files.tables import digest_of_table
    from paired_index_assets.shards.manifest import MANIFEST_COLUMNS, MANIFEST_SCHEMA, write_manifest
    from paired_index_assets.shards.record import finished_shards
    from paired_index_assets.shards.state import shard_states
    from paired_index_assets.shards.sweeping import sweep

    root, fingerprint = build.root, build.promoted.fingerprint
    table = write_manifest(root, build.promoted, build.catalog, build.normalized)
    states = shard_states(root, build.promoted.codec.name, fingerprint, build.catalog, build.listing)
    unfinished = [[shard_key(s.shard), s.state, s.why] for s in states if s.state != "current"]
    metadata = {
        "dagster/row_count": table.num_rows,
        "dagster/column_schema": column_schema({f.name: (str(f.type), MANIFEST_COLUMNS[f.name]) for f in MANIFEST_SCHEMA}),
        "shards": f"{len(states) - len(unfinished)} of {len(states)} current",
        "rows_indexed": sum(n or 0 for n in table["indexed"].to_pylist()),
        "rows_left_out": sum(n or 0 for n in table["left_out"].to_pylist()),
        "bytes": sum(record.bytes for record in finished_shards(root.generation(fingerprint)).values()),
        "path": path(root.manifest),
    }
    sweep(root, fingerprint, build.catalog, in_place=build.settings.in_place, quiet=True)
    if unfinished:
        metadata["unfinished"] = markdown_table(["shard", "state", "why"], unfinished)
    return dg.MaterializeResult(metadata=metadata, data_version=dg.DataVersion(digest_of_table(table)))


@built_check(asset=index_manifest.key)
def every_shard_is_current(build: "OpenBuild") -> dg.AssetCheckResult:
    """Every shard is there, and made by the promoted trained index from the files that are there."""
    from paired_index_assets.shards.manifest import read_manifest

    shards, manifest, fingerprint = build.catalog.shards, read_manifest(build.root), build.promoted.fingerprint
    made = {s for s, trained in zip(manifest["shard"].to_pylist(), manifest["trained"].to_pylist(), strict=True) if trained == fingerprint}
    return dg.AssetCheckResult(
        passed=len(made) == shards, severity=dg.AssetCheckSeverity.WARN, description=f"{len(made)} of {shards} shards are of {fingerprint}"
    )


@built_check(asset=index_manifest.key, blocking=True)
def every_row_is_accounted_for(build: "OpenBuild") -> dg.AssetCheckResult:
    """Rows of the image set = rows of the catalog = in lists + left out by reason + taken down, file by file."""
    from paired_index_assets.evidence.conservation import rows_are_conserved

    try:
        return dg.AssetCheckResult(passed=True, description=rows_are_conserved(build))
    except PairedIndexError as error:
        return dg.AssetCheckResult(passed=False, description=str(error))


def index_automation(tick_seconds: int) -> dg.AutomationConditionSensorDefinition:
    """Asks the automation conditions of the shards, the manifest and the report every `tick_seconds`."""
    return dg.AutomationConditionSensorDefinition(
        "index_automation",
        target=dg.AssetSelection.groups("index", "quality"),
        minimum_interval_seconds=tick_seconds,
        default_status=dg.DefaultSensorStatus.RUNNING,
        use_user_code_server=True,  # where `MadeFromOtherData` is known
        description="Builds the shards that have landed or are stale, as one backfill; then the manifest, the packed file and the report.",
    )


rebuild_shards = dg.define_asset_job(
    "rebuild_shards", selection=dg.AssetSelection.assets(SHARD_INDEX), description="Shards by partition; unchanged ones are left alone."
)


@dg.schedule(
    job=rebuild_shards,
    cron_schedule="0 2 * * *",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Every night, the shards that the files on disk say are stale, and nothing else: what events and retries have missed.",
)
def nightly_rebuild(context: dg.ScheduleEvaluationContext, build: dg.ResourceParam[BuildResource]) -> list[dg.RunRequest] | dg.SkipReason:
    """Every night, the shards that the files on disk say are stale, and nothing else: what events and retries have missed.

    A shard is stale if its files, its trained index or the rows taken down are not those it was made from. One run a shard.
    """
    from paired_index_assets.shards.state import stale_shards

    opened = build.open()
    try:
        catalog, trained = opened.catalog, opened.promoted
    except MissingInput as error:
        return dg.SkipReason(str(error))
    stale = stale_shards(opened.root, trained.codec.name, trained.fingerprint, catalog, opened.listing)
    night = f"{context.scheduled_execution_time:%Y-%m-%d}"
    if not stale:
        return dg.SkipReason(f"all {catalog.shards} shards are current or wait for files")
    return [dg.RunRequest(run_key=f"{night}-{shard}", partition_key=shard_key(shard)) for shard in stale]
