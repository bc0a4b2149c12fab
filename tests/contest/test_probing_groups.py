"""In how many groups of lists a query looks: as few as find what all of them would, by sums of our own."""

import math
from dataclasses import replace

import faiss
import numpy as np
import pytest
from unit_vectors import unit

from paired_index_assets.clustering.kmeans import Training, train_kmeans
from paired_index_assets.codes.codec import train_codec
from paired_index_assets.contest import probing
from paired_index_assets.contest.probing import GROUP_LOSS, GROUP_SHARES, with_fewest_groups
from paired_index_assets.neighbors.exact import assign
from paired_index_assets.quality.truth import ground_truth
from paired_index_assets.trained.artifact import TrainedIndex
from paired_index_assets.trained.coarse import group_lists

D, ROWS, NLIST, SHARE, K = 32, 6000, 256, 0.05, 10


@pytest.fixture(scope="module", params=[0.2, 1.5], ids=["captions near images", "captions far from images"])
def world(request):
    rng = np.random.default_rng(3)
    things = (2 * rng.standard_normal((400, D)))[rng.integers(0, 400, ROWS)] + rng.standard_normal((ROWS, D))
    images, captions = unit(things), unit(things[:1500] + request.param * rng.standard_normal((1500, D)) + 0.3)
    centroids = train_kmeans(images, NLIST, Training(niter=3, seed=1)).centroids
    codec = train_codec("QT_4bit", "nearest", images, captions)
    trained = TrainedIndex("kmeans", NLIST, D, centroids, codec, groups=group_lists(centroids, seed=1))
    return trained, images, captions[:400], assign(images, centroids)


def coverage(trained, looked, images, queries, lists):
    """Mean share of the ten best images in the lists probed at SHARE, looking in `looked` groups: plain loops."""
    truth = faiss.knn(queries, images, K, metric=faiss.METRIC_INNER_PRODUCT)[1]
    sizes, groups = np.bincount(lists, minlength=NLIST), trained.groups
    hits = 0.0
    for query, best in zip(queries, truth, strict=True):
        near = np.argsort(-(groups.centroids @ query), kind="stable")[:looked]
        inside = np.flatnonzero(np.isin(groups.of_list, near))
        order = inside[np.argsort(-(trained.centroids[inside] @ query), kind="stable")]
        within = np.cumsum(sizes[order]) <= int(SHARE * ROWS)
        within[0] = True
        hits += np.isin(lists[best], order[within]).mean()
    return hits / len(queries)


def test_a_query_looks_in_the_fewest_groups_that_cost_next_to_nothing(world):
    trained, images, queries, lists = world
    found = with_fewest_groups(trained, lists, queries, ground_truth(queries, images), SHARE)
    count = len(trained.groups.centroids)
    tried = sorted({math.ceil(share * count) for share in GROUP_SHARES} | {count})
    most = coverage(trained, count, images, queries, lists)
    good = [looked for looked in tried if coverage(trained, looked, images, queries, lists) >= most - GROUP_LOSS]
    assert found.groups.nprobe == good[0]
    assert replace(found, groups=trained.groups).fingerprint == trained.fingerprint


def test_a_larger_loss_lets_fewer_groups_do(world, monkeypatch):
    trained, images, queries, lists = world
    truth = ground_truth(queries, images)
    looked = []
    for loss in (0.0, 0.01, 1.0):
        monkeypatch.setattr(probing, "GROUP_LOSS", loss)
        looked.append(with_fewest_groups(trained, lists, queries, truth, SHARE).groups.nprobe)
    assert looked == sorted(looked, reverse=True)
    assert looked[-1] == math.ceil(GROUP_SHARES[0] * len(trained.groups.centroids))


def test_lists_of_one_level_stay_as_they_are(world):
    trained, images, queries, lists = world
    flat = replace(trained, groups=None)
    assert with_fewest_groups(flat, lists, queries, ground_truth(queries, images), SHARE) is flat
