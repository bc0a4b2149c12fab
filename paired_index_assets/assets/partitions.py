"""One partition a shard: static, because the ids of a shard must not depend on what has landed."""

import dagster as dg

from paired_index_assets.settings import load_settings


def shard_key(number: int) -> str:
    return f"shard_{number:02d}"


def shard_number(key: str) -> int:
    return int(key.removeprefix("shard_"))


# Read once at import, as Dagster needs it: another count of shards is another code location.
shard_partitions = dg.StaticPartitionsDefinition([shard_key(number) for number in range(load_settings().shards)])
