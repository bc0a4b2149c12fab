from object_store import _server, bucket, s3
from shard_world import trained_index, world

__all__ = ["_server", "bucket", "s3", "trained_index", "world"]
