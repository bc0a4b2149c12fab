import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from unit_vectors import unit

from paired_index_assets.clustering.clusters import Clustering
from paired_index_assets.clustering.kmeans import (
    Training,
    first_centroids,
    segment_sums,
    train_kmeans,
    train_paired_kmeans,
    updated_centroids,
)
from paired_index_assets.clustering.validation import Validation, coverage
from paired_index_assets.errors import BadInput, DamagedArtifact, MissingInput
from paired_index_assets.neighbors.exact import nearest

CONCEPTS, D = 60, 24


def pairs(n, *, seed=0, gap=0.5):
    """Captions with the image each was matched to: both near a concept, apart by a constant gap. Images repeat."""
    rng = np.random.default_rng(seed)
    concepts, shift = np.random.default_rng(99).standard_normal((CONCEPTS, D)), np.random.default_rng(98).standard_normal(D) * gap
    of_image = rng.integers(0, CONCEPTS, n)
    images = unit(concepts[of_image] + 0.4 * rng.standard_normal((n, D)) + shift)
    matched = rng.integers(0, n, n)
    captions = unit(concepts[of_image[matched]] + 0.4 * rng.standard_normal((n, D)) - shift)
    return images[matched], captions


def paired_kmeans_in_numpy(images, captions, centroids, niter):
    """Algorithm 1 of arXiv 2402.04416 in six lines, for data that leaves no list empty."""
    for _ in range(niter):
        lists = (images.astype(np.float64) @ centroids.T.astype(np.float64)).argmax(axis=1)
        sums = np.stack([captions[lists == number].astype(np.float64).sum(axis=0) for number in range(len(centroids))])
        assert (np.bincount(lists, minlength=len(centroids)) > 0).all()
        centroids = unit(sums)
    return centroids, lists


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_it_agrees_with_the_algorithm_written_out_in_numpy(paired, dtype):
    images, captions = (side.astype(dtype) for side in pairs(3_000))
    summed = captions if paired else images
    start = first_centroids(images, 20, seed=7)
    for niter in (1, 5, 10):
        expected, lists = paired_kmeans_in_numpy(images.astype(np.float32), summed.astype(np.float32), start, niter)
        found = (
            train_paired_kmeans(images, captions, 20, Training(niter=niter, seed=7))
            if paired
            else train_kmeans(images, 20, Training(niter=niter, seed=7))
        )
        np.testing.assert_allclose(found.centroids, expected, atol=1e-5)
        assert [step.split for step in found.history] == [0] * niter
        assert found.best_iteration == niter - 1
    before = train_paired_kmeans(images, summed, 20, Training(niter=9, seed=7)).centroids
    np.testing.assert_array_equal(nearest(images, before)[1], lists)


def test_the_start_is_of_different_images_even_when_most_rows_repeat():
    images, _ = pairs(500)
    repeated = np.concatenate([np.repeat(images[:1], 2_000, axis=0), images[:90]])
    start = first_centroids(repeated, 60, seed=3)
    assert len(np.unique(start, axis=0)) == 60
    np.testing.assert_allclose(np.linalg.norm(start, axis=1), 1, atol=1e-6)
    assert not np.array_equal(start, first_centroids(repeated, 60, seed=4))


def test_the_history_tells_objective_imbalance_and_time():
    images, captions = pairs(2_000)
    told = []
    found = train_paired_kmeans(images, captions, 16, Training(niter=3, progress=lambda *step, **facts: told.append((step, facts))))
    start = first_centroids(images, 16, seed=1234)
    scores = images @ start.T
    sizes = np.bincount(scores.argmax(1), minlength=16)
    own = np.einsum("ij,ij->i", captions, start[scores.argmax(1)])
    assert found.history[0].objective == pytest.approx(own.mean(), abs=1e-6)
    assert found.history[0].imbalance == pytest.approx(16 * (sizes / 2_000) @ (sizes / 2_000))
    assert all(step.seconds > 0 and math.isnan(step.recall) for step in found.history)
    assert [step for step, _ in told] == [("training", n, 3) for n in (1, 2, 3)]
    assert told[0][1]["objective"] == found.history[0].objective


def test_empty_lists_get_half_of_another_and_every_centroid_ends_as_a_different_unit_vector():
    rng = np.random.default_rng(5)
    ten = unit(rng.standard_normal((10, D)))
    images = unit(np.repeat(ten, 100, axis=0) + 1e-3 * rng.standard_normal((1_000, D)))
    captions = np.repeat(unit(rng.standard_normal((10, D))), 100, axis=0)  # ten different centroids at most, before splitting
    found = train_paired_kmeans(images, captions, 64, Training(niter=4))
    assert sum(step.split for step in found.history) > 0
    np.testing.assert_allclose(np.linalg.norm(found.centroids, axis=1), 1, atol=1e-6)
    assert np.isfinite(found.centroids).all()
    assert len(np.unique(found.centroids, axis=0)) == 64
    again = train_paired_kmeans(images, captions, 64, Training(niter=4))
    np.testing.assert_array_equal(found.centroids, again.centroids)


@settings(max_examples=30, deadline=None)
@given(st.integers(4, 40), st.integers(1, 3), st.integers(2, 300), st.integers(0, 2**32 - 1))  # on a circle float32 has too few places
def test_however_often_a_list_is_halved_its_parts_have_different_centroids(d, full, empty, seed):
    rng = np.random.default_rng(seed)
    sums = np.concatenate([unit(rng.standard_normal((full, d))), np.zeros((empty, d))]).astype(np.float64)
    sizes = np.concatenate([np.full(full, 1_000), np.zeros(empty, np.int64)])
    centroids, split = updated_centroids(sums, sizes, np.zeros((full + empty, d), np.float32), seed)
    assert split == empty
    assert len(np.unique(centroids, axis=0)) == full + empty
    np.testing.assert_allclose(np.linalg.norm(centroids, axis=1), 1, atol=1e-6)


def test_members_that_cancel_out_count_as_an_empty_list():
    images = unit(np.array([[1, 0.01], [1, -0.01], [-1, 0.01], [-1, -0.01]], dtype=np.float32))
    captions = np.array([[1, 0], [-1, 0], [1, 0], [1, 0]], dtype=np.float32)
    found = train_paired_kmeans(images, captions, 2, Training(niter=2))
    assert np.isfinite(found.centroids).all()


@given(st.integers(0, 10**6))
@settings(max_examples=5, deadline=None)
def test_pairs_survive_subsampling_and_tearing_them_apart_costs_recall(seed):
    images, captions = pairs(12_000, seed=seed)
    held_images, held_captions = pairs(400, seed=seed + 1)
    truth = Validation(held_captions, held_images[:, None], scanned=0.05)

    def recall(captions):
        found = train_paired_kmeans(images, captions, CONCEPTS, Training(niter=4, max_points_per_centroid=100))  # half of the pairs
        return coverage(truth, found.centroids, np.bincount(nearest(images, found.centroids)[1], minlength=CONCEPTS))

    together = recall(captions)
    apart = recall(captions[np.random.default_rng(seed).permutation(len(captions))])
    assert together > 0.5
    assert apart < together - 0.2


def test_a_subsample_of_everything_is_everything():
    images, captions = pairs(1_000)
    whole = train_paired_kmeans(images, captions, 10, Training(max_points_per_centroid=100))
    np.testing.assert_array_equal(
        whole.centroids, train_paired_kmeans(images, captions, 10, Training(max_points_per_centroid=10**6)).centroids
    )
    assert not np.array_equal(whole.centroids, train_paired_kmeans(images, captions, 10, Training(max_points_per_centroid=50)).centroids)


def test_with_a_validation_the_iteration_of_the_best_coverage_is_kept():
    images, captions = pairs(4_000)
    held_images, held_captions = pairs(300, seed=1)
    truth = Validation(held_captions, held_images[:, None], scanned=0.03)
    found = train_paired_kmeans(images, captions, 32, Training(niter=6, validation=truth))
    recalls = [step.recall for step in found.history]
    assert found.best_iteration == int(np.argmax(recalls))
    for niter in range(1, 7):
        centroids = train_paired_kmeans(images, captions, 32, Training(niter=niter)).centroids
        sizes = np.bincount(nearest(images, centroids)[1], minlength=32)
        assert recalls[niter - 1] == coverage(truth, centroids, sizes)
        if niter == found.best_iteration + 1:
            np.testing.assert_array_equal(found.centroids, centroids)


def test_coverage_counts_a_list_by_the_part_that_the_budget_reaches():
    centroids = np.eye(3, dtype=np.float32)
    sizes = np.array([10, 20, 70])
    caption = unit(np.array([[3.0, 2.0, 1.0]]))  # probes lists 0, 1, 2
    images = np.eye(3, dtype=np.float32)[None]  # one true image in each
    for scanned, expected in ((0.05, 0.5), (0.10, 1), (0.20, 1.5), (0.30, 2), (0.65, 2.5), (1.0, 3)):
        assert coverage(Validation(caption, images, scanned), centroids, sizes) == pytest.approx(expected / 3)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_sums_are_those_of_float64_and_the_same_bits_however_rows_are_stored_and_with_any_number_of_threads(dtype):
    rng = np.random.default_rng(0)
    rows, lists = rng.standard_normal((40_000, 3)).astype(dtype), rng.integers(0, 7, 40_000)
    expected = np.zeros((7, 3))
    np.add.at(expected, lists, rows.astype(np.float64))
    sums = segment_sums(rows, lists, 7)
    np.testing.assert_allclose(sums, expected, atol=2e-4)  # of some 6,000 terms of size 1: 1e-7 of what was added
    read_only = rows.copy()
    read_only.flags.writeable = False
    for given_as in (read_only, np.asfortranarray(rows), rows[::-1].copy()[::-1]):
        np.testing.assert_array_equal(segment_sums(given_as, lists, 7), sums)
    torch.set_num_threads(torch.get_num_threads() + 3)
    np.testing.assert_array_equal(segment_sums(rows, lists, 7), sums)


def test_a_clustering_comes_back_from_its_file_as_it_was(tmp_path):
    images, captions = pairs(600)
    found = train_paired_kmeans(images, captions, 8, Training(niter=2))
    found.save(tmp_path / "clusters.npz")
    loaded = Clustering.load(tmp_path / "clusters.npz")
    np.testing.assert_array_equal(loaded.centroids, found.centroids)
    assert repr(loaded.history) == repr(found.history)  # NaN is not equal to itself
    assert loaded.best_iteration == found.best_iteration
    (tmp_path / "clusters.npz").write_bytes((tmp_path / "clusters.npz").read_bytes()[:-200])
    with pytest.raises(DamagedArtifact, match=r"clusters.npz: .*train again"):
        Clustering.load(tmp_path / "clusters.npz")
    with pytest.raises(MissingInput, match="no such file"):
        Clustering.load(tmp_path / "none.npz")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda i, c: (i, c[:-1], 4), "found 50 images and 49 captions"),
        (lambda i, c: (i, c[:, :-1], 4), f"images have {D} dimensions and captions {D - 1}"),
        (lambda i, c: (i, c, 51), "nlist: expected 1 .. 50"),
        (lambda i, c: (i, c, 0), "found 0"),
        (lambda i, c: (np.repeat(i[:5], 10, axis=0), c, 6), "5 different vectors in 50 rows, fewer than nlist = 6"),
        (lambda i, c: (with_nan(i, 31), c, 50), "images: row 31 holds NaN"),
        (lambda i, c: (with_nan(i, 31), c, 2), "images: row 31 holds NaN"),
        (lambda i, c: (i, with_nan(c, 49), 2), "captions: row 49 holds NaN"),
        (lambda i, c: (i.astype(np.float64), c, 2), "images: expected float16 or float32, found float64"),
    ],
)
def test_bad_input_is_refused(change, message):
    images, captions, nlist = change(*pairs(50))
    with pytest.raises(BadInput, match=message):
        train_paired_kmeans(images, captions, nlist)


def test_a_validation_of_the_wrong_shape_is_refused():
    images, captions = pairs(50)
    with pytest.raises(BadInput, match=r"captions \(m, d\) and images \(m, top, d\)"):
        Validation(captions, images)
    with pytest.raises(BadInput, match="share scanned"):
        Validation(captions, images[:, None], scanned=0)


def with_nan(rows, row):
    rows = rows.copy()
    rows[row, 3] = np.nan
    return rows
