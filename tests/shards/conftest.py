from shard_world import trained_index, world

__all__ = ["trained_index", "world"]
