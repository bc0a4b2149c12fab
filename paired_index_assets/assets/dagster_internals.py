"""What Dagster has no public way to tell. The only module that imports its private ones: what moves there is mended here."""

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import dagster as dg

if TYPE_CHECKING:  # what an Executor and a condition are handed, and what define_asset_job returns, has no public name
    from dagster._core.asset_graph_view.asset_graph_view import AssetGraphView
    from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition as UnresolvedAssetJobDefinition
    from dagster._core.execution.context.system import PlanOrchestrationContext as PlanOrchestrationContext
    from dagster._core.execution.plan.plan import ExecutionPlan as ExecutionPlan

EVALUATION_SECONDS = 24 * 3600.0  # Dagster's own limit, of 30 days, cannot be set; an evaluation of 58 shards takes some 90 kB
CODE_VERSION_TAG = "dagster/code_version"
BACKFILL_TAG = "dagster/backfill"
INPUT_EVENT_TAG = "dagster/input_event_pointer/"


def keeps_records_on_this_machine(instance: dg.DagsterInstance) -> bool:
    """Whether runs are recorded in SQLite files. No public attribute names the storage's kind."""
    from dagster._core.storage.runs import SqliteRunStorage  # brings SQLAlchemy: not at import

    return isinstance(instance.run_storage, SqliteRunStorage)


def drop_old_evaluations(instance: dg.DagsterInstance) -> None:
    """Forget how automation judged more than a day ago: what it requested, and the runs, stay."""
    storage = instance.schedule_storage
    if storage is not None and storage.supports_auto_materialize_asset_evaluations:
        storage.purge_asset_evaluations(time.time() - EVALUATION_SECONDS)


def is_whole(instance: dg.DagsterInstance, run: dg.DagsterRun) -> bool:
    """Whether every step of a run succeeded, whatever its status says: its process can be killed after the last one."""
    from dagster._core.execution.stats import StepEventStatus

    if run.execution_plan_snapshot_id is None:
        return False
    planned = instance.get_execution_plan_snapshot(run.execution_plan_snapshot_id).step_keys_to_execute
    ended = {step.step_key: step.status for step in instance.get_run_step_stats(run.run_id)}
    return bool(planned) and all(ended.get(step) in (StepEventStatus.SUCCESS, StepEventStatus.SKIPPED) for step in planned)


def report_run_succeeded(instance: dg.DagsterInstance, run: dg.DagsterRun, message: str) -> None:
    """As the run would have said itself."""
    event = dg.DagsterEvent(event_type_value=dg.DagsterEventType.RUN_SUCCESS.value, job_name=run.job_name, message=message)
    instance.report_dagster_event(event, run.run_id)


def forget_partition_status(instance: dg.DagsterInstance, *keys: dg.AssetKey) -> None:
    """Let Dagster count again which partitions of `keys` are materialised.

    Its cache can step over an event that is written while it reads: then a shard that is built stays "missing", in the UI and for
    `AutomationCondition.missing()`, permanently (`dagster asset wipe-partitions-status-cache` is the same by hand).
    """
    instance.wipe_asset_cached_status(list(keys))


def latest_tags(instance: dg.DagsterInstance, key: dg.AssetKey, partition: str | None) -> Mapping[str, str] | None:
    """What the newest materialization of `key` recorded of its code and inputs; None if it was never made."""
    asked = dg.AssetRecordsFilter(asset_key=key, asset_partitions=None if partition is None else [partition])
    records = instance.fetch_materializations(asked, limit=1).records
    return (records[0].event_log_entry.tags or {}) if records else None


def input_event(tags: Mapping[str, str], key: dg.AssetKey) -> int | None:
    """The newest event of an input when the step that recorded `tags` began; None where there was none."""
    event = tags.get(f"{INPUT_EVENT_TAG}{key.to_user_string()}", "")
    return int(event) if event.isdigit() else None


async def changed_since(view: "AssetGraphView", key: dg.AssetKey, event: int | None) -> Any:
    """The partitions of `key` whose data version is another than it was at that event; without one, those that are there."""
    from dagster._core.definitions.temporal_context import TemporalContext

    then = TemporalContext(effective_dt=view.effective_dt, last_event_id=event)
    return await view.compute_data_version_changed_since_temporal_context_subset(key=key, temporal_context=then)


def version_tags(context: dg.AssetExecutionContext, key: dg.AssetKey, version: dg.DataVersion | None) -> dict[str, str]:
    """What Dagster records with the output of a step: its data version, and the code and the inputs as they were when the step began."""
    from dagster._core.execution.plan import execute_step

    step = context.op_execution_context.get_step_execution_context()
    code, inputs = execute_step._get_code_version(key, step), execute_step._get_input_provenance_data(key, step)
    tags = execute_step._build_data_version_tags(version or dg.DataVersion(context.run_id), code, inputs, version is not None)
    backfill = context.run.tags.get(BACKFILL_TAG)
    return tags | ({BACKFILL_TAG: backfill} if backfill else {})
