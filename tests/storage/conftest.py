import pytest
from object_store import _server, bucket, s3

__all__ = ["_server", "bucket", "s3"]


@pytest.fixture(scope="session")
def paired_index(own_process):
    """Connections and what the environment says of them last as long as a process."""
    return own_process
