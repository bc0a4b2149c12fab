"""One partition a shard: static, because the ids of a shard must not depend on what has landed. And the parts of a shared-out pairing."""

import dagster as dg

from paired_index_assets.settings import load_settings


def shard_key(number: int) -> str:
    return f"shard_{number:02d}"


def shard_number(key: str) -> int:
    return int(key.removeprefix("shard_"))


def part_number(key: str) -> int:
    return int(key.removeprefix("part_"))


# Read once at import, as Dagster needs it: another count of shards is another code location.
_settings = load_settings()
shard_partitions = dg.StaticPartitionsDefinition([shard_key(number) for number in range(_settings.shards)])
pairing_partitions = dg.StaticPartitionsDefinition([f"part_{number:02d}" for number in range(_settings.pairing_parts)])
