"""The whole graph, one run after another in this process: what `paired-index build` does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import dagster as dg

from paired_index_assets.assets.code_location import assemble
from paired_index_assets.assets.embeddings import IN_WORDS
from paired_index_assets.assets.landing import report_landed
from paired_index_assets.assets.lost_runs import this_process
from paired_index_assets.assets.partitions import every, shard_key
from paired_index_assets.assets.resources import ForwardedProgress
from paired_index_assets.assets.shards import SHARD_INDEX
from paired_index_assets.builds.opened import OpenBuild
from paired_index_assets.builds.outlook import outlook, require_what_was_promised, waiting
from paired_index_assets.errors import PairedIndexError
from paired_index_assets.progress import Progress
from paired_index_assets.settings import Settings

TRIED_IN_VAIN = 3  # shards in a row that no source gave, and the others are left waiting
# The terminal has its own progress; Dagster's log lines are in the instance, for the UI.
QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


def build_all(
    settings: Settings, instance: dg.DagsterInstance, progress: Progress, say: Callable[[str], None], tell: Callable[[str], None]
) -> None:
    """Materialise every asset, and every shard whose files can be obtained, in order; the instance records each run.

    `say` gets the name of each asset before it is made, `tell` what of the input it did not use, and what waits for what.

    Raises the PairedIndexError that stopped a run, or one that names the shards that wait for files that were promised. What was finished
    stays, and a second call goes on from there.
    """
    defs = assemble(settings, ForwardedProgress(progress))
    job, (before_shards, after_shards) = defs.resolve_implicit_global_asset_job_def(), around_shards(defs)
    for asset in before_shards:
        say(asset)
        if left := _run(job, instance, asset).get(IN_WORDS):
            tell(str(left.value))
    settings.save()  # only settings that made a trained index are worth remembering
    report_landed(settings, instance)
    shards = outlook(OpenBuild(settings))
    total = len(shards.ready) + len(shards.to_try)
    say(f"shard_index, {total} partitions")
    for done, shard in enumerate(shards.ready, start=1):
        _run(job, instance, "shard_index", partition=shard_key(shard))
        progress("shards", done, total)
    in_vain = 0
    for done, shard in enumerate(shards.to_try, start=len(shards.ready) + 1):
        try:
            _run(job, instance, "shard_index", partition=shard_key(shard))
            in_vain = 0
        except PairedIndexError as error:
            tell(f"shard_index {shard_key(shard)}: {error}")
            in_vain += 1
        progress("shards", done, total)
        if in_vain == TRIED_IN_VAIN:
            break
    build = OpenBuild(settings)
    waits = waiting(build)
    for one in waits:
        tell(f"shard {one.shard} waits for {one.why}")
    if len(waits) < build.catalog.shards:
        for asset in after_shards:
            say(asset)
            _run(job, instance, asset)
    require_what_was_promised(waits, build.catalog.shards)


def around_shards(defs: dg.Definitions) -> tuple[list[str], list[str]]:
    """What the shards are made from, and what is made from them, each before what needs it."""
    graph, shards = defs.resolve_asset_graph(), dg.AssetSelection.assets(SHARD_INDEX)
    before, after = shards.upstream(include_self=False).materializable(), shards.downstream(include_self=False)

    def in_order(selection: dg.AssetSelection) -> list[str]:
        keys = selection.resolve(graph)
        return [key.to_user_string() for key in graph.toposorted_asset_keys if key in keys]

    return in_order(before), in_order(after)


def _run(
    job: dg.JobDefinition, instance: dg.DagsterInstance, asset: str, partition: str | None = None
) -> Mapping[str, dg.MetadataValue[Any]]:
    """Materialise one asset, or one partition of it; without `partition` all of them in the one run. The metadata of the last."""
    key = dg.AssetKey(asset)
    partitions = job.asset_layer.get(key).partitions_def
    done = job.execute_in_process(
        instance=instance,
        asset_selection=[key],
        partition_key=partition,
        run_config=QUIET,
        tags=this_process() | ({} if partitions is None or partition else every(partitions)),
        raise_on_error=False,
    )
    if not done.success:
        raise PairedIndexError(_why(done.all_events) or f"{asset}: the run failed; its log is in the Dagster UI")
    made = [event for event in done.all_events if event.is_step_materialization]
    return made[-1].step_materialization_data.materialization.metadata if made else {}


def _why(events: Sequence[dg.DagsterEvent]) -> str | None:
    """What a person should read: the check that did not pass, else the failure with a name, else the unexpected error."""
    for event in events:
        if event.event_type_value == "ASSET_CHECK_EVALUATION" and not event.asset_check_evaluation_data.passed:
            found = event.asset_check_evaluation_data
            if found.severity == dg.AssetCheckSeverity.ERROR:
                return f"{found.asset_key.to_user_string()}: {found.check_name}: {found.description or 'not passed'}"
    for event in events:
        if event.event_type_value == "STEP_FAILURE":
            failure = event.step_failure_data
            if failure.user_failure_data and failure.user_failure_data.description:
                return failure.user_failure_data.description
            if failure.error is not None:
                cause = failure.error.cause or failure.error
                return (
                    f"{event.step_key}: unexpected {cause.cls_name}: {cause.message}; its traceback is in the run's log in the Dagster UI"
                )
    return None
