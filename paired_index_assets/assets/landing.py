"""Embedding files as they land: an external asset, and the sensor that says what has arrived.

The sensor only reports; what is built because of it is decided by `automation.rebuild_on_change`. Each report is an observation and
then a materialization with the same data version: staleness reads the first, automation and the partition bar the second.
"""

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TypeGuard

import dagster as dg

from paired_index_assets.assets.partitions import shard_key
from paired_index_assets.assets.resources import BuildResource
from paired_index_assets.errors import MissingInput, PairedIndexError
from paired_index_assets.files.storage import as_path
from paired_index_assets.landing.catalog import Catalog
from paired_index_assets.landing.landed import LandedFile, Listing, complete_shards, landed_by_shard, version_of
from paired_index_assets.settings import Settings

if TYPE_CHECKING:  # Dagster reads these modules in every process it starts: what is only worked with is imported by the work
    from paired_index_assets.builds.opened import OpenBuild

landed_embeddings = dg.AssetSpec(
    "landed_embeddings",
    group_name="landing",
    kinds={"numpy"},
    description="The embedding files of each shard, once all of them have arrived. Reported by `landed_embeddings_sensor`; nothing runs here.",
)


def report_quiet_shards(context: dg.SensorEvaluationContext, build: dg.ResourceParam[BuildResource]) -> dg.SensorResult | dg.SkipReason:
    """Report each shard all of whose files are there with the catalog's sizes, and whose listing did not change since the last tick.

    The wait of one tick makes one report of forty files that are replaced in a row. Files in the landing folder that the catalog does not
    name are appended to its last shard, once they are quiet too. The cursor holds what was reported and what waits, so a restarted daemon
    reports nothing twice and forgets nothing.
    """
    from paired_index_assets.builds.opened import append_landed

    looked = build.open()
    state = _remembered(context.cursor)
    try:
        appended = append_landed(looked, state["unknown"])
    except MissingInput as error:
        return dg.SkipReason(str(error))
    catalog = appended.catalog
    looked.catalog = catalog
    complete = _complete(looked.available, catalog)
    versions = {shard_key(shard): version_of(files) for shard, files in complete.items()}
    changed = {key: version for key, version in versions.items() if state["reported"].get(key) != version}
    settled = {key: version for key, version in changed.items() if state["waiting"].get(key) == version}
    cursor = json.dumps(
        {
            "reported": state["reported"] | settled,
            "waiting": {k: v for k, v in changed.items() if k not in settled},
            "unknown": appended.unknown,
        },
        sort_keys=True,
    )
    if appended.added:
        context.log.info(f"appended to shard {catalog.shards - 1}, the last: {', '.join(appended.added)}")
    if not settled:
        context.update_cursor(cursor)
        found = (
            f"{len(changed)} shards changed, waiting one tick for quiet"
            if changed
            else f"nothing new in {looked.settings.landing or looked.root.image_set}: {len(complete)} of {catalog.shards} shards are complete"
        )
        return dg.SkipReason("; not appended: ".join([found + _how_far(looked), *appended.refused.values()]))
    events = [event for shard, files in complete.items() if shard_key(shard) in settled for event in _report(shard, files)]
    # A tick that starts no run reads "skipped" whatever it did, so its reason says what it reported.
    reported = f"reported {', '.join(sorted(settled))}; {len(complete)} of {catalog.shards} shards are complete{_how_far(looked)}"
    return dg.SensorResult(asset_events=events, cursor=cursor, skip_reason=dg.SkipReason(reported))


def _how_far(build: "OpenBuild") -> str:
    """When the promoted trained index will have every row, for who looks at the sensor's page; nothing before there is one."""
    from paired_index_assets.shards.pace import pace_of
    from paired_index_assets.trained.promotion import read_promotion

    try:
        generation = build.root.generation(read_promotion(build.root).fingerprint)
    except PairedIndexError:
        return ""
    landing = build.settings.landing
    return f"; {pace_of(generation, build.catalog, as_path(landing) if landing else None).said()}"


def landed_embeddings_sensor(tick_seconds: int) -> dg.SensorDefinition:
    """`report_quiet_shards`, asked every `tick_seconds`."""
    named = dg.sensor(
        name="landed_embeddings_sensor",
        minimum_interval_seconds=tick_seconds,
        default_status=dg.DefaultSensorStatus.RUNNING,
        tags={"stage": "landing"},
        description="Reports the shards whose files have all arrived, once they were quiet for a tick; `index_automation` builds them.",
    )
    return named(report_quiet_shards)


def _remembered(cursor: str | None) -> dict[str, dict[str, str]]:
    """What the last tick left; nothing where the cursor is not one of this sensor: then every shard is reported once more, which does no harm."""
    try:
        found = json.loads(cursor or "{}")
    except (ValueError, RecursionError):
        found = {}
    found = found if isinstance(found, dict) else {}
    kept = {name: found.get(name) for name in ("reported", "waiting", "unknown")}
    return {name: value if _is_text(value) else {} for name, value in kept.items()}


def _is_text(found: Any) -> TypeGuard[dict[str, str]]:
    return isinstance(found, dict) and all(isinstance(value, str) for value in found.values())


def report_landed(settings: Settings, instance: dg.DagsterInstance) -> None:
    """Report every complete shard at once: for builds without a daemon. A version that was reported before is reported again, harmlessly."""
    from paired_index_assets.builds.opened import OpenBuild

    build = OpenBuild(settings)
    for shard, files in _complete(build.available, build.catalog).items():
        for event in _report(shard, files):
            instance.report_runless_asset_event(event)


def _complete(listing: Listing, catalog: Catalog) -> dict[int, list[LandedFile]]:
    landed = landed_by_shard(listing, catalog)
    return {shard: landed[shard] for shard in complete_shards(listing, catalog)}


def _report(shard: int, files: list[LandedFile]) -> Iterable[dg.AssetObservation | dg.AssetMaterialization]:
    tags = {"dagster/data_version": version_of(files)}
    metadata = {"files": len(files), "bytes": sum(file.size for file in files)}
    for event in (dg.AssetObservation, dg.AssetMaterialization):
        yield event(landed_embeddings.key, partition=shard_key(shard), metadata=metadata, tags=tags)
