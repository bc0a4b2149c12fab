import faiss
import numpy as np
import pytest
from neighbor_cases import towers

from paired_index_assets.neighbors.exact import exact_neighbors

TIE = 1e-6


@pytest.mark.parametrize("k", [1, 10, 100])
def test_the_neighbors_are_those_of_faiss_ties_aside(k):
    images, captions = towers(20_000, 500, 96)
    scores, ids = exact_neighbors(captions, images, k)
    faiss_scores, faiss_ids = faiss.knn(captions, images, k, metric=faiss.METRIC_INNER_PRODUCT)
    np.testing.assert_allclose(scores, faiss_scores, atol=TIE)
    beyond_ties = (ids != faiss_ids) & ~_tied(scores)
    assert not beyond_ties.any()


def _tied(scores):
    """Whether a score is within TIE of the one before or after it, or the last, whose rival may be outside."""
    close = np.abs(np.diff(scores, axis=1)) < TIE
    tied = np.zeros(scores.shape, bool)
    tied[:, 1:] |= close
    tied[:, :-1] |= close
    tied[:, -1] = scores.shape[1] > 1
    return tied
