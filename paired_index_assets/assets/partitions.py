"""One partition a shard: static, because the ids of a shard must not depend on what has landed. And one a run that shares work with others."""

import dagster as dg

from paired_index_assets.settings import Settings, load_settings
from paired_index_assets.shares import Share


def shard_key(number: int) -> str:
    return f"shard_{number:02d}"


def shard_number(key: str) -> int:
    return int(key.removeprefix("shard_"))


def share_of(key: str, settings: Settings) -> Share:
    return Share(int(key.removeprefix("part_")), settings.parallel_runs)


# Read once at import, as Dagster needs it: another count of shards or runs is another code location.
_settings = load_settings()
shard_partitions = dg.StaticPartitionsDefinition([shard_key(number) for number in range(_settings.shards)])
share_partitions = dg.StaticPartitionsDefinition([f"part_{number:02d}" for number in range(_settings.parallel_runs)])
