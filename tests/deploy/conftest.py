import pytest
from s3_server import S3Server


@pytest.fixture(scope="session")
def s3_server():
    with S3Server() as server:
        yield server


@pytest.fixture(scope="session")
def paired_index(own_process):
    """Connections and what the environment says of them last as long as a process."""
    return own_process
