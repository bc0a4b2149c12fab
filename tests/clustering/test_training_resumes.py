"""Training is killed as a power cut would, and goes on to the same bits."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from paired_index_assets.clustering.clusters import Clustering, unpacked
from paired_index_assets.clustering.kmeans import Training, train_kmeans, train_paired_kmeans
from paired_index_assets.clustering.validation import Validation

NITER, NLIST, D = 8, 48, 16

TRAINING = """
import os, signal, sys
from pathlib import Path
import numpy as np
from paired_index_assets.clustering.kmeans import Training, train_paired_kmeans
from paired_index_assets.clustering.validation import Validation

folder, kill_after = Path(sys.argv[1]), int(sys.argv[2])
images, captions = np.load(folder / "images.npy"), np.load(folder / "captions.npy")

def report(step, done, total, **facts):
    print(done, flush=True)
    if done == kill_after:
        os.kill(os.getpid(), signal.SIGKILL)

truth = Validation(captions[:100], images[:100, None], scanned=0.05)
found = train_paired_kmeans(
    images, captions, int(sys.argv[3]), Training(niter=int(sys.argv[4]), checkpoint=folder / "checkpoint.npz", validation=truth, progress=report))
found.save(folder / "clusters.npz")
"""


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(3)
    for name in ("images", "captions"):
        np.save(tmp_path / f"{name}.npy", rng.standard_normal((3_000, D)).astype(np.float32))
    return tmp_path


def train(folder, kill_after):
    return subprocess.run(
        [sys.executable, "-c", TRAINING, str(folder), str(kill_after), str(NLIST), str(NITER)], capture_output=True, text=True, check=False
    )


def inputs(folder):
    images, captions = np.load(folder / "images.npy"), np.load(folder / "captions.npy")
    return images, captions, Validation(captions[:100], images[:100, None], scanned=0.05)


def test_training_killed_twice_ends_with_the_identical_centroids(folder):
    images, captions, truth = inputs(folder)
    expected = train_paired_kmeans(images, captions, NLIST, Training(niter=NITER, validation=truth))
    for kill_after, steps in ((3, "1 2 3"), (6, "4 5 6"), (-1, "7 8")):
        done = train(folder, kill_after)
        assert done.returncode == (-signal.SIGKILL if kill_after > 0 else 0), done.stderr
        assert done.stdout.split() == steps.split()
    found = Clustering.load(folder / "clusters.npz")
    np.testing.assert_array_equal(found.centroids, expected.centroids)
    assert found.best_iteration == expected.best_iteration
    for ours, theirs in zip(found.history, expected.history, strict=True):
        assert (ours.objective, ours.imbalance, ours.split, ours.recall) == (
            theirs.objective, theirs.imbalance, theirs.split, theirs.recall,
        )  # fmt: skip


@pytest.mark.parametrize("change", ["images", "captions", "seed", "nlist", "niter", "method"])
def test_a_checkpoint_of_other_inputs_or_settings_is_not_used(folder, change):
    images, captions, _ = inputs(folder)
    checkpoint = folder / "checkpoint.npz"
    train_paired_kmeans(images, captions, NLIST, Training(niter=3, checkpoint=checkpoint))
    settings = {"nlist": NLIST, "niter": 3, "seed": 1234}
    if change == "images":
        images = images[::-1].copy()
    elif change == "captions":
        captions = captions.copy()
        captions[1_500, 3] += 1e-3
    elif change in settings:
        settings[change] += 1
    if change == "method":
        expected = train_kmeans(images, NLIST, Training(niter=3))
        found = train_kmeans(images, NLIST, Training(niter=3, checkpoint=checkpoint))
    else:
        nlist = settings.pop("nlist")
        expected = train_paired_kmeans(images, captions, nlist, Training(**settings))
        found = train_paired_kmeans(images, captions, nlist, Training(**settings, checkpoint=checkpoint))
    np.testing.assert_array_equal(found.centroids, expected.centroids)


def test_a_damaged_checkpoint_is_not_used_and_not_in_the_way(folder):
    images, captions, _ = inputs(folder)
    checkpoint = folder / "checkpoint.npz"
    expected = train_paired_kmeans(images, captions, NLIST, Training(niter=3, checkpoint=checkpoint))
    for content in (b"", checkpoint.read_bytes()[:300], os.urandom(500)):
        checkpoint.write_bytes(content)
        found = train_paired_kmeans(images, captions, NLIST, Training(niter=3, checkpoint=checkpoint))
        np.testing.assert_array_equal(found.centroids, expected.centroids)
    assert {"run", "centroids", "best"} <= unpacked(checkpoint).keys()


def test_a_finished_training_is_not_done_again(folder):
    images, captions, _ = inputs(folder)
    steps = []
    for _ in range(2):
        found = train_paired_kmeans(
            images,
            captions,
            NLIST,
            Training(niter=3, checkpoint=folder / "checkpoint.npz", progress=lambda _, done, __, **___: steps.append(done)),
        )
    assert steps == [1, 2, 3]
    assert len(found.history) == 3
