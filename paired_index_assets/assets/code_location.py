"""What is deployed, and with which resources: the whole code location, assembled from settings that somebody hands in.

Nothing is read at import. How many partitions there are, and how often sensors look, is settled here: another count of shards or runs is
another code location.
"""

from typing import Any

import dagster as dg

from paired_index_assets.assets import embeddings, landing, packing, pairing, report, shards, training
from paired_index_assets.assets.executor import by_steps
from paired_index_assets.assets.lost_runs import lost_runs_sensor
from paired_index_assets.assets.partitions import shard_partitions, share_partitions
from paired_index_assets.assets.resources import ProgressLog, settings_resource
from paired_index_assets.settings import Settings

_MODULES = [embeddings, pairing, training, shards, packing, report]


def assemble(settings: Settings, progress: ProgressLog) -> dg.Definitions:
    """The code location with these settings; `progress` says how assets report how far they are."""
    loaded: list[Any] = list(dg.load_assets_from_modules(_MODULES))  # Dagster's type allows kinds that modules of ours do not hold
    of_a_shard, of_a_share = shard_partitions(settings), share_partitions(settings)
    landed = landing.landed_embeddings.replace_attributes(partitions_def=of_a_shard)
    return dg.Definitions(
        assets=[landed, embeddings.embedding_parts(of_a_share), pairing.pair_blocks(of_a_share), shards.shard_index(of_a_shard), *loaded],
        asset_checks=dg.load_asset_checks_from_modules(_MODULES),
        resources={"settings": settings_resource(settings), "progress": progress},
        jobs=[training.train(shared_out=of_a_share is not None), shards.rebuild_shards],
        schedules=[shards.nightly_rebuild],
        sensors=[
            landing.landed_embeddings_sensor(settings.tick_seconds),
            shards.index_automation(settings.tick_seconds),
            lost_runs_sensor,
        ],
        executor=by_steps,
    )
