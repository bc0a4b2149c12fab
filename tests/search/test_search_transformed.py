"""Files whose queries are transformed and whose lists are found in two levels, as captions taught: stock faiss finds what our search finds."""

import faiss
import numpy as np
import pytest
from search_builds import NLIST
from test_search_sharded import shard_by_shard

from paired_index_assets.search.sharded import ShardedIndex
from paired_index_assets.shards.build import build_shard


@pytest.mark.parametrize("nprobe", [None, 1, 5, 9])
@pytest.mark.parametrize("n", [1, 7, 80])
def test_results_are_those_of_stock_faiss_shard_by_shard(transformed, n, nprobe):
    queries = transformed.captions[:n]
    with ShardedIndex.open(transformed.root.root) as index:
        scores, ids = index.search(queries, 10, nprobe=nprobe)
    expected_scores, expected_ids = shard_by_shard(transformed, queries, 10, nprobe or transformed.trained.nprobe)
    np.testing.assert_allclose(scores, expected_scores, atol=1e-6)
    differing = ids != expected_ids
    assert differing.mean() < 0.02
    np.testing.assert_allclose(scores[differing], expected_scores[differing], atol=1e-6)


def test_every_list_is_probed_when_every_list_is_asked_for(transformed):
    queries = transformed.captions[:50]
    with ShardedIndex.open(transformed.root.root) as index:
        scores = index.search(queries, 10, nprobe=NLIST)[0]
    codes = transformed.trained.encode(np.concatenate([np.load(f) for f in sorted(transformed.landing.glob("*.npy"))]))[1]
    exact = -np.sort(-(queries @ transformed.trained.codec.decode(codes).T), axis=1)[:, :10]
    np.testing.assert_allclose(scores, exact, atol=1e-5)


def test_a_shard_says_how_it_is_to_be_searched(transformed):
    index = faiss.read_index(str(transformed.shard_files()[0]))
    ivf = faiss.downcast_index(faiss.extract_index_ivf(index))
    assert isinstance(index, faiss.IndexPreTransform)
    assert isinstance(ivf, faiss.IndexIVFScalarQuantizer)
    assert (index.d, ivf.nlist, ivf.code_size) == (transformed.trained.d, NLIST, transformed.trained.d // 2)
    assert ivf.nprobe == transformed.trained.nprobe
    assert faiss.downcast_index(ivf.quantizer).nprobe == transformed.trained.groups.nprobe


def test_building_again_changes_no_byte(transformed):
    before = [file.read_bytes() for file in transformed.shard_files()]
    for shard in range(transformed.catalog.shards):
        build_shard(transformed.root, transformed.trained, transformed.catalog, shard, transformed.landing)
    assert [file.read_bytes() for file in transformed.shard_files()] == before
