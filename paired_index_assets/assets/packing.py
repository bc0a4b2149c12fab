"""The shards once more as one file, for the machine that searches."""

import dagster as dg

from paired_index_assets.assets.automation import follow_when_quiet
from paired_index_assets.assets.facts import Stopwatch, failing_in_one_line, path
from paired_index_assets.assets.resources import ProgressLog, SettingsResource
from paired_index_assets.assets.shards import index_manifest
from paired_index_assets.errors import PairedIndexError


@dg.asset(
    group_name="index", kinds={"faiss"}, code_version="1", pool="shards", deps=[index_manifest], automation_condition=follow_when_quiet
)
@failing_in_one_line()
def packed_index(
    context: dg.AssetExecutionContext, settings: SettingsResource, progress: dg.ResourceParam[ProgressLog]
) -> dg.MaterializeResult:
    """All shards that are served as one file, list by list: the same vectors, found faster; searches use it while it is of these shards.

    Follows the manifest. As large as the shards: the setting `packed` says whether it is wanted. While shards are missing it waits.
    """
    from paired_index_assets.search.packed import pack, unfinished_shards

    read, watch = settings.read(), Stopwatch()
    if not read.packed:
        return dg.MaterializeResult(metadata={"packed": "not wanted: the setting packed is off"})
    if waiting := unfinished_shards(read.build_root):
        return dg.MaterializeResult(metadata={"packed": f"waits for {len(waiting)} shards, first: {waiting[0]}"})
    record, made = pack(read.build_root, progress=progress.of(context))
    return dg.MaterializeResult(
        metadata={
            "dagster/row_count": record.rows,
            "unchanged": not made,
            "bytes": record.bytes,
            "bytes_per_vector": round(record.bytes / max(1, record.rows), 1),
            "sha256": record.sha256,
            "seconds": round(watch.seconds, 2),
            "path": path(read.build_root.generation(record.trained).packed / record.file),
        },
        data_version=dg.DataVersion(record.sha256),
    )


@dg.asset_check(asset=packed_index)
@failing_in_one_line()
def packed_index_is_its_shards(settings: SettingsResource) -> dg.AssetCheckResult:
    """The file on disk: its sum, every id of the shards once, and the answers to a sample of queries, which are those from the shards."""
    from paired_index_assets.search.packed import verify_pack

    try:
        record = verify_pack(settings.read().build_root)
    except PairedIndexError as error:
        return dg.AssetCheckResult(passed=False, description=str(error))
    found = "none is searched: the shards are" if record is None else f"{record.rows:,} vectors of {len(record.shards)} shards"
    return dg.AssetCheckResult(passed=True, description=found)
