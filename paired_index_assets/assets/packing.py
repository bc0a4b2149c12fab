"""The shards once more as one file, for the machine that searches."""

from typing import TYPE_CHECKING

import dagster as dg

from paired_index_assets.assets.automation import follow_when_quiet
from paired_index_assets.assets.built import built_asset, built_check
from paired_index_assets.assets.facts import Stopwatch, path
from paired_index_assets.assets.shards import index_manifest
from paired_index_assets.errors import PairedIndexError
from paired_index_assets.progress import Progress

if TYPE_CHECKING:  # Dagster reads these modules in every process it starts: what is only worked with is imported by the work
    from paired_index_assets.builds.opened import OpenBuild


@built_asset(
    "packed",
    group_name="index",
    kinds={"faiss"},
    code_version="1",
    pool="shards",
    deps=[index_manifest.key],
    automation_condition=follow_when_quiet,
)
def packed_index(context: dg.AssetExecutionContext, build: "OpenBuild", progress: Progress) -> dg.MaterializeResult:
    """All shards that are served as one file, list by list: the same vectors, found faster; searches use it while it is of these shards.

    Follows the manifest. As large as the shards: the setting `packed` says whether it is wanted. While shards are missing it waits.
    """
    from paired_index_assets.search.packed import pack, unfinished_shards

    settings, watch = build.settings, Stopwatch()
    if not settings.packed:
        return dg.MaterializeResult(metadata={"packed": "not wanted: the setting packed is off"})
    if waiting := unfinished_shards(settings.build_root):
        return dg.MaterializeResult(metadata={"packed": f"waits for {len(waiting)} shards, first: {waiting[0]}"})
    record, made = pack(settings.build_root, progress=progress)
    return dg.MaterializeResult(
        metadata={
            "dagster/row_count": record.rows,
            "unchanged": not made,
            "bytes": record.bytes,
            "bytes_per_vector": round(record.bytes / max(1, record.rows), 1),
            "sha256": record.sha256,
            "seconds": round(watch.seconds, 2),
            "path": path(settings.build_root.generation(record.trained).packed / record.file),
        },
        data_version=dg.DataVersion(record.sha256),
    )


@built_check(asset=packed_index.key)
def packed_index_is_its_shards(build: "OpenBuild") -> dg.AssetCheckResult:
    """The file on disk: its sum, every id of the shards once, and the answers to a sample of queries, which are those from the shards."""
    from paired_index_assets.search.packed import verify_pack

    try:
        record = verify_pack(build.root)
    except PairedIndexError as error:
        return dg.AssetCheckResult(passed=False, description=str(error))
    found = "none is searched: the shards are" if record is None else f"{record.rows:,} vectors of {len(record.shards)} shards"
    return dg.AssetCheckResult(passed=True, description=found)
