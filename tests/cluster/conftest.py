"""One cluster on this machine for all tests here, and a build in its bucket whose shards are for it to build."""

import os
import sys
from pathlib import Path

import pytest

from paired_index_assets.sample import sample_model

DEPLOY = Path(__file__).parents[2] / "deploy"
S3_SERVER = Path(__file__).parents[1] / "servers" / "s3_server.py"

SHARDS = 6
SIZES = ["--shards", SHARDS, "--part-rows", 125, "--nlist", 16, "--validation-captions", 100, "--test-captions", 100]


@pytest.fixture(scope="session")
def trouble(tmp_path_factory):
    """While this file exists the S3 server has trouble, and writes into it what it did."""
    return tmp_path_factory.mktemp("trouble") / "log"


@pytest.fixture(scope="session")
def cluster(trouble):
    pytest.importorskip("dagster_ray", reason="the cluster's packages are not installed: `make test-cluster` does it")
    from local_cluster import LocalCluster

    before = dict(os.environ)
    more = {"PAIRED_INDEX_SHARDS": str(SHARDS), "PAIRED_INDEX_PARALLEL_RUNS": "3"}
    with LocalCluster(workers=2, more=more, s3=[sys.executable, str(S3_SERVER), "--trouble", str(trouble)]) as cluster:
        yield cluster
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def alone(cluster, small_pairs):
    """shard -> sha256 as one process builds it; then its shards are gone, and Dagster runs."""
    from cluster_demo import build_alone, remove_shards

    digests = build_alone(cluster, "--images", small_pairs, "--model", sample_model(), *SIZES)
    remove_shards(cluster)
    cluster.start_dagster()
    return digests


@pytest.fixture(scope="session")
def paired_index(own_process):
    """Connections and what the environment says of them last as long as a process."""
    return own_process
