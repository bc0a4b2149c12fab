from object_store import _server, bucket, s3

__all__ = ["_server", "bucket", "s3"]
