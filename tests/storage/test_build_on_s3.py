"""`paired-index build --root s3://...` from a terminal: the same shards and the same answers as in a folder."""

from __future__ import annotations

from pathlib import Path

import fsspec
import numpy as np
import pytest
from s3_server import Slow, Status, Truncate, every

from paired_index_assets.layout import BuildRoot
from paired_index_assets.sample import sample_model
from paired_index_assets.shards.generations import served_generation
from paired_index_assets.shards.record import finished_record

TROUBLE = every(20, Status(503), Truncate(300), Slow(0.05), Status(500))


@pytest.mark.parametrize("faults", [None, pytest.param(TROUBLE, marks=pytest.mark.heavy)], ids=["calm", "in trouble"])
def test_a_build_in_a_bucket_is_the_build_in_a_folder(faults, bucket, s3, small_build, small_pairs, paired_index, tmp_path):
    root = f"{bucket}/build"
    environment = s3.environment | {"DAGSTER_HOME": str(tmp_path / "dagster"), "PAIRED_INDEX_CACHE": str(tmp_path / "cache")}
    s3.faults = faults
    of_the_small_build = ["--part-rows", 125, "--shards", 6, "--nlist", 16, "--validation-captions", 100, "--test-captions", 100]
    paired_index("build", "--root", root, "--images", small_pairs, "--model", sample_model(), *of_the_small_build, **environment)
    local, remote = BuildRoot.at(small_build), BuildRoot.at(root)
    for number in range(6):
        mine, theirs = (finished_record(served_generation(place).shard("QT_4bit", number)) for place in (local, remote))
        assert mine is not None
        assert theirs is not None
        assert (mine.sha256, mine.inputs) == (theirs.sha256, theirs.inputs)  # but not their stamps: times there, tags here
    np.save(tmp_path / "queries.npy", np.load(small_build / "embeddings/text_emb/text_emb_0003.npy"))
    found = []
    for place, more in ((small_build, {}), (root, environment)):
        out = tmp_path / f"{len(found)}.npz"
        paired_index("search", "--root", place, "--queries", tmp_path / "queries.npy", "-k", 7, "--out", out, **more)
        found.append(np.load(out))
    np.testing.assert_array_equal(found[0]["ids"], found[1]["ids"])
    np.testing.assert_array_equal(found[0]["scores"], found[1]["scores"])
    s3.faults = None
    names = set(fsspec.filesystem("s3").find(root.removeprefix("s3://")))
    assert {f"{root.removeprefix('s3://')}/{name}" for name in ("manifest.parquet", "report/recall.json", "trained/promoted.json")} <= names


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, ["cannot be reached", "credentials"]),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_MAX_ATTEMPTS": "1"}, ["cannot be reached", "127.0.0.1:9"]),
        ({"bucket": "s3://no-such-bucket"}, ["there is no bucket 'no-such-bucket'"]),
    ],
    ids=["no credentials", "no server", "no bucket"],
)
def test_a_store_that_cannot_be_used_is_one_line_before_anything_starts(
    changed, words, bucket, s3, small_pairs, paired_index, tmp_path: Path
):
    environment = s3.environment | {"DAGSTER_HOME": str(tmp_path), "AWS_EC2_METADATA_DISABLED": "true", "HOME": str(tmp_path)} | changed
    root = f"{environment.pop('bucket', bucket)}/build"
    done = paired_index("build", "--root", root, "--images", small_pairs, check=False, **environment)
    assert done.returncode == 1
    (said,) = done.stderr.strip().splitlines()
    for word in [root, *words]:
        assert word in said
    assert list(tmp_path.iterdir()) == []
