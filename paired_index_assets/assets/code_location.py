"""What is deployed, and with which resources: the whole code location, assembled from settings that somebody hands in.

Nothing is read at import. How many partitions there are, and how often sensors look, is settled here: another count of shards or runs is
another code location.
"""

from datetime import timedelta
from typing import Any

import dagster as dg

from paired_index_assets.assets import embeddings, landing, packing, pairing, report, shards, training
from paired_index_assets.assets.built import BuiltAsset, BuiltCheck, found_in
from paired_index_assets.assets.executor import by_steps
from paired_index_assets.assets.lost_runs import lost_runs_sensor
from paired_index_assets.assets.partitions import shard_partitions, share_partitions
from paired_index_assets.assets.resources import ProgressLog, build_resource
from paired_index_assets.settings import Settings

# Of the manifest and the report. They follow the shards, so that they are as old as the last change: a month is a question, not a fault.
NOT_LOOKED_AT = dg.FreshnessPolicy.time_window(fail_window=timedelta(days=62), warn_window=timedelta(days=31))
_MODULES = [embeddings, pairing, training, shards, packing, report]
ASSETS, CHECKS = found_in(_MODULES, BuiltAsset), found_in(_MODULES, BuiltCheck)
OF_THE_LOCATION = (
    "shards",
    "shards_per_run",
    "parallel_runs",
    "tick_seconds",
)  # another of these is another code location, not another run


def assemble(settings: Settings, progress: ProgressLog) -> dg.Definitions:
    """The code location with these settings; `progress` says how assets report how far they are."""
    of_a_shard, of_a_share = shard_partitions(settings), share_partitions(settings)
    more: dict[BuiltAsset, dict[str, Any]] = {
        embeddings.embedding_parts: {"partitions_def": of_a_share},
        pairing.pair_blocks: {"partitions_def": of_a_share},
        shards.shard_index: {
            "partitions_def": of_a_shard,
            "check_specs": [shards.reading_back(of_a_shard)],
            "output_required": False,  # of a run of several shards, which records each as it is made
            "backfill_policy": dg.BackfillPolicy.multi_run(settings.shards_per_run) if settings.shards_per_run > 1 else None,
        },
    }
    landed = landing.landed_embeddings.replace_attributes(partitions_def=of_a_shard)
    return dg.Definitions(
        assets=dg.map_asset_specs(_as_shown, [landed, *(one.definition(settings, **more.get(one, {})) for one in ASSETS)]),
        asset_checks=[one.definition(settings) for one in CHECKS],
        resources={"build": build_resource(settings), "progress": progress},
        jobs=[training.train(shared_out=of_a_share is not None), shards.rebuild_shards],
        schedules=[shards.nightly_rebuild],
        sensors=[
            landing.landed_embeddings_sensor(settings.tick_seconds),
            shards.index_automation(settings.tick_seconds),
            lost_runs_sensor,
        ],
        executor=by_steps,
    )


def _as_shown(spec: dg.AssetSpec) -> dg.AssetSpec:
    """The tag by which a page finds what belongs to a stage, as sensors have it; and how old what is made last may become."""
    policy = NOT_LOOKED_AT if spec.key.to_user_string() in ("index_manifest", "recall_report") else None
    return spec.merge_attributes(tags={"stage": spec.group_name or ""}).replace_attributes(freshness_policy=policy)
