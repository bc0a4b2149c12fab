import faiss
import numpy as np
import pytest
from quality_world import World, make_world

from paired_index_assets.errors import BadInput
from paired_index_assets.quality.peers import PEERS, Lists, measure_peers, peer_candidate
from paired_index_assets.quality.recall import Measurement


@pytest.fixture(scope="module")
def large() -> World:
    return make_world(1, images=2000, queries=80, nlist=16, d=16)


@pytest.fixture(scope="module")
def lists(large) -> Lists:
    return Lists("kmeans", large.centroids, large.lists)


@pytest.fixture(scope="module")
def measured(large, lists) -> dict[str, Measurement]:
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)  # product quantizers of few rows train far slower with threads that wait for each other
    found = measure_peers(lists, large.images, large.queries, large.truth, nprobes=(2, 16), shares=(0.1,), exhaustive=True)
    faiss.omp_set_num_threads(threads)
    return {m.codec: m for m in found}


def test_every_peer_is_measured_in_the_same_lists(measured):
    assert list(measured) == list(PEERS)
    coverage = next(iter(measured.values())).coverage
    for found in measured.values():
        assert np.array_equal(found.coverage, coverage), "lists and probing are the same, only the codes differ"
        assert (found.product <= found.coverage + 1e-6).all()
        assert (found.reranked >= found.product - 1e-6).all()
        assert found.build_seconds > 0


def test_more_bits_find_more(measured):
    at = {name: float(found.recall(10).mean()) for name, found in measured.items()}
    assert at["faiss QT_4bit"] < at["faiss QT_6bit"] < at["faiss QT_8bit"]
    assert at["faiss RaBitQ 3-bit"] < at["faiss RaBitQ 4-bit"]
    assert min(at.values()) > 0.5, "none is broken: a wrong rotation or residual would find next to nothing"
    every_image = measured["faiss QT_8bit"].coverage[measured["faiss QT_8bit"].settings.index(measured["faiss QT_8bit"].settings[-1])]
    assert every_image.mean() > 0.99


def test_bytes_are_what_faiss_stores(measured):
    assert {name: measured[name].bytes_per_vector for name in ("faiss QT_4bit", "faiss QT_6bit", "faiss QT_8bit")} == {
        "faiss QT_4bit": 8, "faiss QT_6bit": 12, "faiss QT_8bit": 16,
    }  # fmt: skip
    assert measured["faiss PQ, d/2 bytes"].bytes_per_vector == measured["faiss OPQ+PQ, d/2 bytes"].bytes_per_vector == 8
    assert measured["faiss RaBitQ 4-bit"].bytes_per_vector > 8, "4 bits a dimension and the factors of the vector"


def test_a_peer_finds_what_faiss_alone_finds(large):
    """RaBitQ, the most intricate: rotation, residuals and coarse scores go the same way as in an index that faiss makes and probes itself."""
    everywhere = Lists("kmeans", large.centroids, np.maximum(large.lists, 0))
    candidate = peer_candidate("faiss RaBitQ 4-bit", everywhere, large.images)
    coarse, probed = candidate.probe(large.queries, 16)
    ours = candidate.scan(large.queries, 10, probed, coarse)
    rotation = faiss.RandomRotationMatrix(16, 16)
    rotation.init(1234)
    quantizer = faiss.IndexFlatIP(16)
    quantizer.add(rotation.apply(large.centroids))
    index = faiss.IndexIVFRaBitQ(quantizer, 16, 16, faiss.METRIC_INNER_PRODUCT, True, 4)
    index.qb, index.nprobe = 8, 16
    index.train(rotation.apply(large.images))
    vectors, ids = rotation.apply(large.images), np.arange(len(large.images))
    index.add_core(len(ids), faiss.swig_ptr(vectors), faiss.swig_ptr(ids), faiss.swig_ptr(everywhere.list_of_image))
    theirs = index.search(rotation.apply(large.queries), 10)[1]
    assert np.mean([len(set(a) & set(b)) for a, b in zip(ours, theirs, strict=True)]) > 9.9


def test_unknown_peers_and_wrong_shapes_are_refused(large, lists):
    with pytest.raises(BadInput, match="QT_5bit"):
        peer_candidate("QT_5bit", lists, large.images)
    with pytest.raises(BadInput, match="a list for every image"):
        peer_candidate("faiss QT_4bit", lists, large.images[1:])
