"""What the learned table adds, and what it must never do."""

import warnings

import faiss
import numpy as np
import pytest

from paired_index_assets.errors import BadInput
from paired_index_assets.routing.training import Lesson, RoutingWarning, train_routing

NLIST = 60


@pytest.fixture(scope="module")
def world():
    """Images and captions with a gap, lists of images by k-means, and the ten best images of each caption."""
    rng = np.random.default_rng(5)
    d, n = 24, 6000
    things = (2 * rng.standard_normal((300, d)))[rng.integers(0, 300, n)] + rng.standard_normal((n, d))
    bend = np.eye(d) + 0.35 * rng.standard_normal((d, d)) / np.sqrt(d)
    images, captions = things + 2 * rng.standard_normal(d), things @ bend + 2 * rng.standard_normal(d) + rng.standard_normal((n, d))
    images, captions = (np.float32(rows / np.linalg.norm(rows, axis=1, keepdims=True)) for rows in (images, captions))
    kmeans = faiss.Kmeans(d, NLIST, niter=8, spherical=True, seed=1, max_points_per_centroid=1000)
    kmeans.train(images)
    lists = np.argmax(images @ kmeans.centroids.T, axis=1)
    top = faiss.knn(captions, images, 10, metric=faiss.METRIC_INNER_PRODUCT)[1]
    return kmeans.centroids, lists, captions, top


def found_at(table, captions, top_lists, sizes, share):
    total = 0.0
    for query, wanted in zip(captions, top_lists, strict=True):
        order = np.argsort(-(table @ query), kind="stable")
        probed = order[np.cumsum(sizes[order]) <= share * sizes.sum()]
        total += np.isin(wanted, np.append(probed, order[0])).mean()
    return total / len(captions)


def test_learned_routing_finds_more_than_centroids_on_captions_never_seen(world):
    centroids, lists, captions, top = world
    table = train_routing(centroids, lists, Lesson(captions[:5000], top[:5000]), seed=1)
    sizes = np.bincount(lists, minlength=NLIST)
    unseen = captions[5000:], lists[top[5000:]], sizes, 0.05
    assert found_at(table, *unseen) > found_at(centroids, *unseen) + 0.03


def test_the_same_seed_learns_the_same_table(world):
    centroids, lists, captions, top = world
    first, second = (train_routing(centroids, lists, Lesson(captions[:2000], top[:2000]), seed=7, epochs=2) for _ in range(2))
    other = train_routing(centroids, lists, Lesson(captions[:2000], top[:2000]), seed=8, epochs=2)
    assert np.array_equal(first, second)
    assert not np.array_equal(first, other)


def test_lists_without_labels_stay_near_their_start(world):
    centroids, lists, captions, top = world
    asked = lists[top[:5000]]
    cold = np.unique(asked)[:5]
    kept = ~np.isin(asked, cold).any(axis=1)
    table = train_routing(centroids, lists, Lesson(captions[:5000][kept], top[:5000][kept]), seed=1)
    scale = np.linalg.norm(table, axis=1) / np.linalg.norm(centroids, axis=1)
    along = np.einsum("ij,ij->i", table, centroids) / np.linalg.norm(table, axis=1)
    assert np.isfinite(scale).all()
    assert along[cold].min() > 0.3


def test_captions_without_a_common_direction_lose_nothing(world):
    """The part of the bias that no linear score can hold is left out: still no worse than the centroids on captions never seen."""
    centroids, lists, captions, top = world
    turned = captions.copy()
    turned[::2] *= -1  # their mean is about zero, and half of them ask for the images that are least alike
    top = top.copy()
    top[::2] = np.random.default_rng(3).integers(0, len(lists), (1, 10))
    table = train_routing(centroids, lists, Lesson(turned[:5000], top[:5000]), seed=1)
    unseen = turned[5000:], lists[top[5000:]], np.bincount(lists, minlength=NLIST), 8 / NLIST
    assert found_at(table, *unseen) >= found_at(centroids, *unseen)


def test_few_captions_leave_the_centroids(world):
    centroids, lists, captions, top = world
    with pytest.warns(RoutingWarning, match="fewer than"):
        table = train_routing(centroids, lists, Lesson(captions[:50], top[:50]))
    assert np.array_equal(table, centroids)


def test_labels_that_teach_nothing_do_no_harm(world):
    """Random labels: an epoch is only taken if it covers more of honest validation captions than the centroids do."""
    centroids, lists, captions, top = world
    noise = np.random.default_rng(0).integers(0, len(lists), top[:3000].shape)
    judges = captions[5000:], top[5000:]
    table = train_routing(centroids, lists, Lesson(captions[:3000], noise), judges=Lesson(*judges), epochs=2)
    asked = judges[0], lists[judges[1]], np.bincount(lists, minlength=NLIST), 8 / NLIST
    assert found_at(table, *asked) >= found_at(centroids, *asked) - 1e-9


def test_rows_that_are_broken_or_left_out_teach_nothing(world):
    centroids, lists, captions, top = world
    left_out = lists.copy()
    left_out[top[0, 3]] = -1
    bad = captions[:2000].copy()
    bad[5], bad[6] = np.nan, 0
    with pytest.warns(RoutingWarning, match="left out"):
        table = train_routing(centroids, left_out, Lesson(bad, top[:2000]), epochs=1)
    assert np.isfinite(table).all()


def test_all_captions_equal_and_empty_lists_make_no_nan(world):
    centroids, lists, captions, top = world
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = train_routing(
            np.vstack([centroids, centroids[:3]]), lists, Lesson(np.repeat(captions[:1], 500, 0), np.repeat(top[:1], 500, 0)), epochs=2
        )
    assert np.isfinite(table).all()


def test_what_does_not_belong_together_is_said(world):
    centroids, lists, captions, top = world
    with pytest.raises(BadInput, match="same dimensions"):
        train_routing(centroids, lists, Lesson(captions[:, :5], top))
    with pytest.raises(BadInput, match="captions, k"):
        train_routing(centroids, lists, Lesson(captions, top[:5]))
    with pytest.raises(BadInput, match="lists these centroids made"):
        train_routing(centroids[:10], lists, Lesson(captions, top))
    with pytest.raises(BadInput, match="rows of the images"):
        train_routing(centroids, lists[:100], Lesson(captions, top))
