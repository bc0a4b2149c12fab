"""An index that finds less than image k-means does not reach the shards, unless it is asked for."""

import json

import numpy as np
import pytest
from unit_vectors import unit


@pytest.fixture
def features(tmp_path):
    """Noisy captions with no gap to their images: there the lists of paired k-means lose to those of the images."""
    rng = np.random.default_rng(3)
    rows, d = 6_000, 32
    images = rng.standard_normal((150, d))[rng.integers(0, 150, rows)] + 0.6 * rng.standard_normal((rows, d))
    captions = images + 2.0 * rng.standard_normal((rows, d))
    for name, vectors in (("image", images), ("caption", captions)):
        np.save(tmp_path / f"{name}.npy", unit(vectors))
    return ["--image-features", tmp_path / "image.npy", "--caption-features", tmp_path / "caption.npy"]


def test_a_regression_stops_the_build_in_one_line_and_can_be_allowed(features, paired_index, tmp_path):
    root = tmp_path / "root"
    sizes = ["--nlist", 512, "--niter", 1, "--shards", 2, "--validation-captions", 1500, "--test-captions", 200]
    command = ["build", "--root", root, *features, "--method", "paired_kmeans", *sizes]
    stopped = paired_index(*command, check=False)
    assert stopped.returncode == 1
    assert len(stopped.stderr.strip().splitlines()) == 1
    assert "trained_index_is_no_worse_than_image_kmeans" in stopped.stderr
    assert "set allow_regression to use it anyway" in stopped.stderr
    promoted = json.loads((root / "trained/promoted.json").read_text())
    assert promoted["regression"]
    assert promoted["gain_high"] < 0
    assert not (root / "shards").exists()
    assert "Done." in paired_index(*command, "--allow-regression").stdout
    assert len(list((root / "shards").glob("knn.*[0-9]"))) == 2
