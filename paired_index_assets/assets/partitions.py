"""One partition a shard: static, because the ids of a shard must not depend on what has landed. And one a run that shares work with others."""

import dagster as dg

from paired_index_assets.settings import Settings
from paired_index_assets.shares import Share


def shard_key(number: int) -> str:
    return f"shard_{number:02d}"


def shard_number(key: str) -> int:
    return int(key.removeprefix("shard_"))


def share_of(key: str, settings: Settings) -> Share:
    return Share(int(key.removeprefix("part_")), settings.parallel_runs)


def shard_partitions(settings: Settings) -> dg.StaticPartitionsDefinition:
    return dg.StaticPartitionsDefinition([shard_key(number) for number in range(settings.shards)])


def share_partitions(settings: Settings) -> dg.StaticPartitionsDefinition:
    return dg.StaticPartitionsDefinition([f"part_{number:02d}" for number in range(settings.parallel_runs)])
