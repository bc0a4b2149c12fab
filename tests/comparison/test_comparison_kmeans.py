import faiss
import numpy as np
import pytest
from unit_vectors import unit

from paired_index_assets.clustering.kmeans import Training, first_centroids, train_kmeans

ROWS, D, NLIST, NITER = 20_000, 48, 128, 10


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((300, D))[rng.integers(0, 300, ROWS)] + 0.8 * rng.standard_normal((ROWS, D))
    return unit(vectors)


def test_k_means_reaches_the_objective_of_faiss_over_random_starts(images):
    ours, theirs = [], []
    for seed in range(1, 5):
        ours.append(train_kmeans(images, NLIST, Training(niter=NITER, seed=seed)).history[-1].objective)
        rival = faiss.Kmeans(D, NLIST, niter=NITER, spherical=True, seed=seed, max_points_per_centroid=ROWS)
        rival.train(images)
        theirs.append(rival.obj[-1] / ROWS)
    assert np.mean(ours) == pytest.approx(np.mean(theirs), rel=0.01)  # seeds differ by about that much


def test_from_the_same_start_every_iteration_is_that_of_faiss(images):
    start = first_centroids(images, NLIST, seed=5)
    ours = train_kmeans(images, NLIST, Training(niter=NITER, seed=5))
    theirs = faiss.Kmeans(D, NLIST, niter=NITER, spherical=True, max_points_per_centroid=ROWS)
    theirs.train(images, init_centroids=start)
    stats = theirs.iteration_stats
    np.testing.assert_allclose([step.objective for step in ours.history], [step["obj"] / ROWS for step in stats], rtol=1e-5)
    np.testing.assert_allclose([step.imbalance for step in ours.history], [step["imbalance_factor"] for step in stats], rtol=1e-3)
    assert [step.split for step in ours.history] == [step["nsplit"] for step in stats]
    np.testing.assert_allclose(ours.centroids, theirs.centroids, atol=1e-3)
