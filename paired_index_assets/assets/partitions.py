"""One partition a shard: static, because the ids of a shard must not depend on what has landed. And one a run that shares work with others."""

import dagster as dg

from paired_index_assets.settings import Settings
from paired_index_assets.shares import WHOLE, Share


def shard_key(number: int) -> str:
    return f"shard_{number:02d}"


def shard_number(key: str) -> int:
    return int(key.removeprefix("shard_"))


def share_of(context: dg.AssetExecutionContext, parallel_runs: int) -> Share:
    """What a run makes of an asset with `share_partitions`."""
    if parallel_runs == 1:
        return WHOLE
    return Share(tuple(int(key.removeprefix("part_")) for key in context.partition_keys), parallel_runs)


def shard_partitions(settings: Settings) -> dg.StaticPartitionsDefinition:
    return dg.StaticPartitionsDefinition([shard_key(number) for number in range(settings.shards)])


def share_partitions(settings: Settings) -> dg.StaticPartitionsDefinition | None:
    """None for one run: then what it makes is a step among others, in a run with them."""
    if settings.parallel_runs == 1:
        return None
    return dg.StaticPartitionsDefinition([f"part_{number:02d}" for number in range(settings.parallel_runs)])


def every(partitions: dg.PartitionsDefinition[str]) -> dict[str, str]:
    """The tags of a run of all partitions; what has none is made as in any run."""
    keys = partitions.get_partition_keys()
    return {"dagster/asset_partition_range_start": keys[0], "dagster/asset_partition_range_end": keys[-1]}
