"""Code location `paired_index`: what is deployed, and with which resources."""

import dagster as dg

from paired_index_assets.assets import embeddings, landing, pairing, report, shards, training
from paired_index_assets.assets.lost_runs import lost_runs_sensor
from paired_index_assets.assets.resources import ProgressLog, settings_resource
from paired_index_assets.settings import Settings, load_settings

_MODULES = [embeddings, pairing, training, shards, report]


def assemble(settings: Settings, progress: ProgressLog) -> dg.Definitions:
    """The code location with these settings; `progress` says how assets report how far they are."""
    return dg.Definitions(
        assets=[landing.landed_embeddings, *dg.load_assets_from_modules(_MODULES)],
        asset_checks=dg.load_asset_checks_from_modules(_MODULES),
        resources={"settings": settings_resource(settings), "progress": progress},
        jobs=[embeddings.embed_in_parts, pairing.pair_in_parts, training.train, shards.rebuild_shards],
        schedules=[shards.nightly_rebuild],
        sensors=[landing.landed_embeddings_sensor, shards.index_automation, lost_runs_sensor],
        executor=dg.multiprocess_executor.configured({"max_concurrent": 2}),
    )


@dg.definitions
def defs() -> dg.Definitions:
    return assemble(load_settings(), ProgressLog())
