"""Recall against its definition written out as loops over sets, and the laws that any right measurement obeys."""

from dataclasses import replace

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from quality_world import World, make_world

from paired_index_assets.errors import BadInput
from paired_index_assets.quality.candidates import candidate_from, filled
from paired_index_assets.quality.codes import DecodedRows, measure_codes
from paired_index_assets.quality.intervals import difference_interval, mean_interval, mean_intervals
from paired_index_assets.quality.recall import RERANK, Measurement, Setting, measure
from paired_index_assets.quality.truth import TIE, GroundTruth, ground_truth


def recall_by_hand(world: World, found: list, query: int, k: int) -> float:
    """Hits / k where an image is right if its exact score is that of the k-th best or better, ties within TIE."""
    exact = world.images.astype(np.float64) @ world.queries[query].astype(np.float64)
    floor = np.sort(exact)[::-1][min(k, len(exact)) - 1] - TIE
    return min(sum(exact[i] >= floor for i in found), k) / min(k, len(exact))


def lists_by_hand(world: World, query: int, setting: Setting) -> list[int]:
    order = list(np.argsort(-(world.centroids @ world.queries[query])))
    if setting.by == "all":
        return order
    if setting.by == "nprobe":
        return order[: int(setting.amount)]
    chosen, scanned = order[:1], int((world.lists == order[0]).sum())
    for candidate in order[1:]:
        scanned += int((world.lists == candidate).sum())
        if scanned > setting.amount * len(world.images):
            break
        chosen.append(candidate)
    return chosen


def test_coverage_and_scanned_are_their_definitions(world):
    found = measure(
        world.candidate(None), world.queries, world.truth, nprobes=(1, 2, 5, 99), shares=(0.01, 0.07, 0.2, 1.0), exhaustive=True
    )
    assert [s.amount for s in found.settings if s.by == "nprobe"] == [1, 2, 5, world.nlist], "nprobe is cut to the lists there are"
    assert found.product is None
    for row, setting in enumerate(found.settings):
        for query in range(0, len(world.queries), 7):
            lists = lists_by_hand(world, query, setting)
            probed = np.flatnonzero(np.isin(world.lists, lists))
            assert found.probed[row, query] == len(lists)
            assert found.scanned[row, query] == len(probed)
            for column, k in enumerate(found.ks):
                assert found.coverage[row, column, query] == pytest.approx(recall_by_hand(world, list(probed), query, k)), (setting, k)


def test_product_and_reranked_are_what_faiss_returns(world):
    index = world.scalar()
    found = measure(
        world.candidate(index), world.queries, world.truth, nprobes=(1, 4), shares=(0.05,), ks=(1, 10), exhaustive=True, rerank=True
    )
    for row, setting in enumerate(found.settings):
        for query in range(0, len(world.queries), 5):
            lists = lists_by_hand(world, query, setting)
            probed = np.flatnonzero(np.isin(world.lists, lists))
            one = world.queries[query : query + 1]
            index.nprobe = len(lists)
            for column, k in enumerate(found.ks):
                coarse = np.zeros((1, len(lists)), np.float32)
                returned = index.search_preassigned(one, min(RERANK * k, len(probed)), np.array([lists]), coarse)[1][0]
                returned = [i for i in returned if i >= 0]
                assert found.product[row, column, query] == pytest.approx(recall_by_hand(world, returned[:k], query, k))
                exact = sorted(returned, key=lambda i: -float(world.images[i] @ one[0]))[:k]  # re-ranked in earnest
                assert found.reranked[row, column, query] == pytest.approx(recall_by_hand(world, exact, query, k))


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), images=st.integers(60, 600), nlist=st.integers(2, 30), d=st.sampled_from([4, 16, 20]))
def test_the_laws_of_recall(seed, images, nlist, d):
    world = make_world(seed, images=images, queries=12, nlist=nlist, d=d, repeats=images // 10, left_out=0)
    asked = {"nprobes": (1, 2, 3, 8, nlist), "shares": (0.02, 0.1, 0.3, 1.0), "ks": (1, 5, 20)}
    coded = measure(world.candidate(world.scalar()), world.queries, world.truth, rerank=True, **asked)
    exact = measure(world.candidate(world.flat()), world.queries, world.truth, **asked)
    for by in ("nprobe", "share"):
        rows = [i for i, s in enumerate(coded.settings) if s.by == by]
        assert (np.diff(coded.coverage[rows], axis=0) >= 0).all(), "more lists never cover less"
        assert (np.diff(exact.product[rows], axis=0) >= 0).all(), "with exact scores more lists never find less"
        assert (np.diff(coded.scanned[rows], axis=0) >= 0).all()
    assert (coded.product <= coded.coverage + 1e-6).all(), "codes find nothing outside the probed lists"
    assert (coded.reranked <= coded.coverage + 1e-6).all()
    assert (coded.reranked >= coded.product - 1e-6).all(), "exact order of more candidates never finds less"
    assert np.allclose(exact.product, exact.coverage), "exact scores lose nothing"
    every = exact.settings.index(Setting("nprobe", nlist))
    assert (exact.product[every] == 1).all()
    assert (exact.coverage[every] == 1).all()
    budget = [
        np.maximum(s.amount * images, exact.scanned[exact.settings.index(Setting("nprobe", 1))]) for s in coded.settings if s.by == "share"
    ]
    assert (coded.scanned[[i for i, s in enumerate(coded.settings) if s.by == "share"]] <= np.array(budget)).all()


def test_equal_images_are_equally_right():
    """Three copies of the best image: whichever is returned, recall@1 is 1, and all three count at k = 3."""
    images = np.eye(8, dtype=np.float32)[[0, 0, 0, 1, 2, 3, 4, 5, 6, 7]]
    queries = np.array([[1, 0.5, 0.1, 0, 0, 0, 0, 0]], np.float32)
    lists = np.array([0, 1, 1, 1, 0, 0, 0, 0, 0, 0])
    world = World(images, queries, np.eye(8, dtype=np.float32)[:2], lists, ground_truth(queries, images))
    second = replace(world.candidate(world.flat()), probe=lambda q, n: (np.zeros((1, n), np.float32), np.array([[1, 0]])[:, :n]))
    found = measure(second, queries, world.truth, nprobes=(1,), shares=(), ks=(1, 2, 3))
    assert found.coverage[0, :, 0].tolist() == pytest.approx([1, 1, 2 / 3])
    assert found.product[0, :, 0].tolist() == pytest.approx([1, 1, 2 / 3])


def test_a_set_smaller_than_k_is_measured_and_never_nan():
    images = np.eye(4, dtype=np.float32)[:3]
    queries = np.vstack([images, np.zeros((1, 4), np.float32)])  # a zero query: every image ties
    world = World(images, queries, np.eye(4, dtype=np.float32)[:2], np.array([0, 1, -1]), ground_truth(queries, images))
    found = measure(world.candidate(world.flat()), queries, world.truth, nprobes=(64,), exhaustive=True, rerank=True)
    for values in (found.coverage, found.product, found.reranked):
        assert np.isfinite(values).all()
    assert found.recall(100, nprobe=2).tolist() == pytest.approx([2 / 3] * 4), "the image in no list is lost"
    assert found.recall(1, nprobe=2)[2] == 0


def test_invalid_images_are_not_in_the_truth(world):
    valid = np.ones(len(world.images), bool)
    valid[::3] = False
    images = world.images.copy()
    images[~valid] = np.nan
    truth = ground_truth(world.queries, images, 10, valid=valid)
    assert valid[truth.ids].all()
    assert truth.searchable == valid.sum()
    by_hand = np.argsort(-(world.queries @ world.images.T) + np.where(valid, 0, np.inf), axis=1)[:, 0]
    assert (np.abs(truth.scores[:, 0] - (world.queries * world.images[by_hand]).sum(1)) < 1e-6).all()
    partial = replace(world.candidate(None), list_of_image=np.where(valid, world.lists, -1))
    assert measure(partial, world.queries, truth, nprobes=(world.nlist,), shares=(1.0,), ks=(10,)).images == valid.sum()
    with pytest.raises(BadInput):
        ground_truth(world.queries, images, 10)
    with pytest.raises(BadInput, match="none of"):
        ground_truth(world.queries, images, 10, valid=np.zeros(len(images), bool))


def test_query_blocks_do_not_change_the_measurement(world, monkeypatch):
    whole = measure(world.candidate(world.scalar()), world.queries, world.truth)
    monkeypatch.setattr("paired_index_assets.quality.recall.BLOCK_BYTES", 32 * world.nlist * 7)
    seen = []
    parts = measure(
        world.candidate(world.scalar()), world.queries, world.truth, progress=lambda step, done, total: seen.append((done, total))
    )
    assert np.array_equal(whole.product, parts.product)
    assert np.array_equal(whole.coverage, parts.coverage)
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1]


def test_codes_measured_by_decoding_are_codes_measured_by_scanning(world):
    everywhere = replace(world, lists=np.maximum(world.lists, 0))  # none left out
    index = everywhere.scalar()
    whole = measure(everywhere.candidate(index), world.queries, world.truth, nprobes=(), shares=(), exhaustive=True, rerank=True)
    decoded = DecodedRows(index.sq.compute_codes(world.images), index.sq.decode, world.images.shape[1])
    alone = measure_codes("QT_4bit faiss", decoded, world.queries, world.truth, bytes_per_vector=16, rerank=True)
    assert np.allclose(alone.recall, whole.product[0], atol=0.11)  # equal codes tie: which of them comes back differs
    assert np.abs(alone.recall.mean(1) - whole.product[0].mean(1)).max() < 0.004
    assert np.abs(alone.reranked.mean(1) - whole.reranked[0].mean(1)).max() < 0.004


class OwnTrained:
    """The part of a TrainedIndex that is measured, on faiss's own codes."""

    method, levels, learned, coarse_dots, nprobe = "kmeans", 1, False, 24, 8

    class codec:
        name, rounding, axes, code_size = "QT_4bit", "faiss", "", 16
        transform_queries = staticmethod(np.asarray)

    def __init__(self, world: World):
        self.nlist, self.world = world.nlist, world

    def probe(self, queries, nprobe, *, widen=True):
        return self.world.probe(queries, nprobe)

    def empty_index(self) -> faiss.IndexIVFScalarQuantizer:
        index = self.world.scalar()
        index.reset()
        return index


@pytest.mark.parametrize("nlist", [24, 300])  # list numbers of one and of two bytes
def test_a_candidate_from_lists_and_codes_is_the_index_that_faiss_fills(nlist):
    world = make_world(5, nlist=nlist)
    index, trained = world.scalar(), OwnTrained(world)
    candidate = candidate_from(trained, world.lists, index.sq.compute_codes(world.images))
    assert (candidate.name, candidate.codec, candidate.bytes_per_vector) == (f"kmeans, {nlist} lists, QT_4bit faiss", "QT_4bit faiss", 16)
    ours = measure(candidate, world.queries, world.truth)
    assert np.array_equal(ours.product, measure(world.candidate(index), world.queries, world.truth).product)
    assert measure(candidate_from(trained, world.lists, None), world.queries, world.truth).product is None
    with pytest.raises(BadInput, match="expected"):
        filled(trained.empty_index(), world.lists, np.zeros((3, 16), np.uint8))


def test_what_does_not_belong_together_is_refused(world):
    candidate = world.candidate(None)
    with pytest.raises(BadInput, match="59 queries"):
        measure(candidate, world.queries[1:], world.truth)
    with pytest.raises(BadInput, match="not finite"):
        measure(candidate, np.where(np.arange(60)[:, None] == 3, np.float32(np.nan), world.queries), world.truth)
    with pytest.raises(BadInput, match="list_of_image"):
        measure(replace(candidate, list_of_image=world.lists[1:]), world.queries, world.truth)
    with pytest.raises(BadInput, match="list_of_image"):
        measure(replace(candidate, nlist=3), world.queries, world.truth)
    with pytest.raises(BadInput, match="probe gave lists"):
        measure(replace(candidate, probe=lambda q, n: (np.zeros((len(q), 1)), np.zeros((len(q), 1), np.int64))), world.queries, world.truth)
    for wrong in ({"nprobes": (0,)}, {"shares": (1.5,)}, {"ks": ()}):
        with pytest.raises(BadInput, match="expected nprobe >= 1"):
            measure(candidate, world.queries, world.truth, **wrong)
    with pytest.raises(BadInput, match="100 deep"):
        measure(candidate, world.queries, world.truth, ks=(101,))
    with pytest.raises(BadInput, match="no product recall@10 at nprobe 8"):
        measure(candidate, world.queries, world.truth).recall(10, nprobe=8, of="product")
    with pytest.raises(BadInput, match="0 queries"):
        ground_truth(world.queries[:0], world.images)


def test_ties_at_the_end_of_the_truth_are_relevant():
    truth = GroundTruth(np.array([[5, 6, 7, 8]]), np.array([[0.9, 0.5, 0.5, 0.4]], np.float32), 10, 10, 3)
    assert [int(truth.relevant(k)[0]) for k in (1, 2, 3)] == [1, 3, 3]


def test_intervals_are_the_bootstrap_and_pairing_narrows_them():
    rng = np.random.default_rng(0)
    ours = rng.binomial(10, 0.8, 400).astype(np.float32) / 10
    theirs = np.clip(ours - (rng.random(400) < 0.2) / 10, 0, 1).astype(np.float32)
    interval = mean_interval(ours, seed=7)
    assert interval == mean_interval(ours, seed=7) != mean_interval(ours, seed=8)
    assert interval.low < interval.mean < interval.high
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * ours.std() / 20, rel=0.1), "the normal width, for a mean of 400"
    paired = difference_interval(ours, theirs, seed=7)
    assert paired.mean == pytest.approx((ours - theirs).mean())
    assert paired.low > 0
    assert paired.low > 0 or paired.high < 0
    assert paired.high - paired.low < 0.5 * (interval.high - interval.low)
    assert mean_intervals(np.stack([ours, theirs]), seed=7)[0] == interval, "one resampling for all rows"
    assert difference_interval(ours, ours, seed=7).low <= 0 <= difference_interval(ours, ours, seed=7).high
    with pytest.raises(BadInput, match="same queries"):
        difference_interval(ours, theirs[1:], seed=7)


def test_a_measurement_keeps_every_query(world):
    found: Measurement = measure(world.candidate(world.scalar()), world.queries, world.truth)
    assert found.recall(10, nprobe=8).shape == (60,)
    assert found.recall(10, share=0.01, of="coverage").dtype == np.float32
    assert found.imbalance == pytest.approx(world.nlist * (np.bincount(world.lists[5:], minlength=world.nlist) ** 2.0).sum() / (1495**2))
    assert found.in_lists == 1495
