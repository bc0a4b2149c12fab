"""Fixtures: a real S3 server on loopback, an empty bucket in it, and nodes that know nothing of each other but the bucket.

from object_store import _server, bucket, s3   # in a conftest
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from s3_server import S3Server

from paired_index_assets.files.cache import Cache
from paired_index_assets.files.storage import as_path
from paired_index_assets.layout import BuildRoot

_buckets = itertools.count()


@pytest.fixture(scope="session")
def _server() -> Iterator[S3Server]:
    with S3Server() as server:
        yield server


@pytest.fixture
def s3(_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """The server, behaving; this process's environment leads to it."""
    for name, value in _server.environment.items():
        monkeypatch.setenv(name, value)
    fsspec.get_filesystem_class("s3").clear_instance_cache()
    _server.requests.clear()
    yield _server
    _server.faults = None
    fsspec.get_filesystem_class("s3").clear_instance_cache()


@pytest.fixture
def bucket(s3: S3Server) -> str:
    """The URL of an empty bucket."""
    name = f"bucket-{next(_buckets)}"
    fsspec.filesystem("s3").mkdir(name)
    return f"s3://{name}"


def node(bucket: str, folder: Path) -> BuildRoot:
    """The build in `bucket` as a machine sees it whose cache is `folder`."""
    return BuildRoot(as_path(f"{bucket}/build"), Cache(folder))
