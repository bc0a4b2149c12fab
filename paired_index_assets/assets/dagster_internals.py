"""What Dagster has no public way to tell. The only module that imports its private ones: what moves there is mended here."""

import time

import dagster as dg

EVALUATION_SECONDS = 24 * 3600.0  # Dagster's own limit, of 30 days, cannot be set; an evaluation of 58 shards takes some 90 kB


def keeps_records_on_this_machine(instance: dg.DagsterInstance) -> bool:
    """Whether runs are recorded in SQLite files. No public attribute names the storage's kind."""
    from dagster._core.storage.runs import SqliteRunStorage  # brings SQLAlchemy: not at import

    return isinstance(instance.run_storage, SqliteRunStorage)


def drop_old_evaluations(instance: dg.DagsterInstance) -> None:
    """Forget how automation judged more than a day ago: what it requested, and the runs, stay."""
    storage = instance.schedule_storage
    if storage is not None and storage.supports_auto_materialize_asset_evaluations:
        storage.purge_asset_evaluations(time.time() - EVALUATION_SECONDS)


def forget_partition_status(instance: dg.DagsterInstance, *keys: dg.AssetKey) -> None:
    """Let Dagster count again which partitions of `keys` are materialised.

    Its cache can step over an event that is written while it reads: then a shard that is built stays "missing", in the UI and for
    `AutomationCondition.missing()`, permanently (`dagster asset wipe-partitions-status-cache` is the same by hand).
    """
    instance.wipe_asset_cached_status(list(keys))
