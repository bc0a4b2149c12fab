"""The whole graph, one run after another in this process: what `paired-index build` does."""

from __future__ import annotations

from collections.abc import Callable

import dagster as dg

from dagster_project.definitions import assemble
from paired_index_assets.assets.landing import landed_shards, report_landed
from paired_index_assets.assets.partitions import shard_key
from paired_index_assets.assets.resources import ForwardedProgress
from paired_index_assets.errors import DamagedArtifact, PairedIndexError
from paired_index_assets.progress import Progress
from paired_index_assets.settings import Settings

BEFORE_SHARDS = ("caption_embeddings", "image_embeddings", "caption_image_pairs", "paired_centroids", "trained_index")
AFTER_SHARDS = ("index_manifest", "recall_report")
# The terminal has its own progress; Dagster's log lines are in the instance, for the UI.
QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


def build_all(settings: Settings, instance: dg.DagsterInstance, progress: Progress, say: Callable[[str], None]) -> None:
    """Materialise every asset, and every shard whose files have landed, in order; the instance records each run.

    Raises the PairedIndexError that stopped a run. What was finished stays, and a second call goes on from there.
    """
    job = assemble(settings, ForwardedProgress(progress)).resolve_implicit_global_asset_job_def()
    for asset in BEFORE_SHARDS:
        say(asset)
        _run(job, instance, asset)
    settings.save()  # only settings that made a trained index are worth remembering
    report_landed(settings, instance)
    shards = landed_shards(settings)
    say(f"shard_index, {len(shards)} partitions")
    for done, shard in enumerate(shards, start=1):
        _run(job, instance, "shard_index", partition=shard_key(shard))
        progress("shards", done, len(shards))
    for asset in AFTER_SHARDS:
        say(asset)
        _run(job, instance, asset)


def _run(job: dg.JobDefinition, instance: dg.DagsterInstance, asset: str, partition: str | None = None) -> None:
    try:
        job.execute_in_process(instance=instance, asset_selection=[dg.AssetKey(asset)], partition_key=partition, run_config=QUIET)
    except dg.Failure as failure:
        raise _named(failure) from failure
    except dg.DagsterError as error:
        raise DamagedArtifact(f"{asset}: {error}") from error


def _named(failure: dg.Failure) -> PairedIndexError:
    cause = failure.__cause__
    return cause if isinstance(cause, PairedIndexError) else PairedIndexError(failure.description or str(failure))
