"""Bounds may only rule out what is not the nearest: every list is the dense search's, whatever the vectors."""

import itertools
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from neighbor_cases import plain_neighbors, towers

from paired_index_assets.clustering.kmeans import Training, train_kmeans, train_paired_kmeans
from paired_index_assets.neighbors import assigning, bounds, engine, pruned
from paired_index_assets.neighbors.arithmetic import BFLOAT16
from paired_index_assets.neighbors.assigning import Assigner
from paired_index_assets.neighbors.bounds import Bounds, Frame, basis_of, directions, int8_levels
from paired_index_assets.neighbors.exact import assign
from paired_index_assets.neighbors.grouping import grouped_by_heads, ungrouped
from paired_index_assets.neighbors.pruned import PrunedSearch
from paired_index_assets.neighbors.ways import DENSE, MORE_ROUNDS, ROUNDS, Way, quickest
from paired_index_assets.neighbors.workers import Workspace

look, see = PrunedSearch._look, Frame.see
LEVELS = [0, 63, *([127] if int8_levels() == 127 else [])]


def probe_at_once(monkeypatch):
    monkeypatch.setattr(assigning, "WORTH_PROBING", 1.0)
    monkeypatch.setattr(assigning, "ROWS_WORTH_PROBING", 1)


def search_of(vectors, centroids, width, levels, grouped):
    groups = grouped_by_heads(centroids) if grouped else ungrouped(centroids)
    frame = Frame.of(centroids, basis_of(directions(vectors, centroids), width, spread=levels > 0), levels)
    return PrunedSearch(torch.from_numpy(centroids), Bounds.of(centroids, groups.order.numpy(), frame), groups)


def check(vectors, centroids, *, width, levels, before=None):
    """The lists that bounds decide are those of all scores in float64; returns how many rows they left undecided."""
    rows = torch.from_numpy(vectors)
    guess = None if before is None else torch.from_numpy(before)
    search = search_of(vectors, centroids, width, levels, before is None)
    ids, undecided = search.nearest(rows, torch.linalg.vector_norm(rows, dim=1), guess, Workspace())
    decided = np.setdiff1d(np.arange(len(vectors)), undecided.numpy())
    expected = plain_neighbors(vectors, centroids, 1)[1][:, 0]
    np.testing.assert_array_equal(ids.numpy()[decided], expected[decided])
    return len(undecided)


def spectrum(rng, n, d, kind):
    x = rng.standard_normal((n, d))
    if kind == "steep":
        x *= np.arange(1, d + 1) ** -1.5
    elif kind == "one huge tail":
        x[:, :-1] *= 1e-3
        x[:: max(1, n // 7), -1] *= 1e3
    elif kind == "two clusters":
        x = 0.05 * x + np.where(np.arange(n)[:, None] % 2 == 0, 1.0, -1.0)
    elif kind == "all equal":
        x = np.repeat(x[:1], n, axis=0)
    elif kind == "duplicates":
        x = x[rng.integers(0, max(1, n // 10), n)]
    elif kind == "many lengths":
        x *= 10.0 ** rng.integers(-6, 7, (n, 1))
    return np.ascontiguousarray(x, dtype=np.float32)


KINDS = ["flat", "steep", "one huge tail", "two clusters", "all equal", "duplicates", "many lengths"]


@pytest.mark.parametrize("levels", LEVELS)
@settings(max_examples=20, deadline=None)
@given(
    st.sampled_from(KINDS), st.sampled_from(KINDS), st.integers(1, 90), st.integers(1, 300), st.integers(1, 40), st.integers(0, 2**32),
    st.booleans(), st.floats(0.05, 1.0),
)  # fmt: skip
def test_no_vectors_make_a_bound_rule_out_the_nearest(levels, rows, lists, n, k, d, seed, known, share):
    rng = np.random.default_rng(seed)
    vectors, centroids = spectrum(rng, n, d, rows), spectrum(rng, k, d, lists)
    before = rng.integers(0, k, n) if known else None
    check(vectors, centroids, width=max(1, int(share * d)), levels=levels, before=before)


@pytest.mark.parametrize("levels", LEVELS)
@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32), st.integers(2, 12))
def test_ties_of_small_integers_go_to_the_lower_list(levels, seed, d):
    rng = np.random.default_rng(seed)
    vectors, centroids = (rng.integers(-3, 4, (size, d)).astype(np.float32) for size in (60, 250))
    check(vectors, centroids, width=max(1, d // 2), levels=levels)


@pytest.mark.parametrize("levels", LEVELS)
def test_on_towers_almost_every_row_is_decided_and_from_a_few_dimensions(levels):
    images, _ = towers(20_000, 1, 96, concepts=300)
    centroids = train_kmeans(images, 1024, Training(niter=2)).centroids
    assert check(images[:2_000], centroids, width=32, levels=levels) <= 20
    before = assign(images[:2_000], centroids)
    assert check(images[:2_000], centroids, width=32, levels=levels, before=before) <= 20


def test_rows_with_a_crowd_of_candidates_are_handed_back(monkeypatch):
    monkeypatch.setattr(pruned, "CROWD", 4)
    rng = np.random.default_rng(5)
    vectors, centroids = spectrum(rng, 200, 24, "flat"), spectrum(rng, 500, 24, "flat")
    assert check(vectors, centroids, width=2, levels=0) > 100


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("room", [1, 3, 16])
def test_rows_with_too_many_candidates_for_the_first_look_are_decided_in_the_second(monkeypatch, levels, room):
    monkeypatch.setattr(pruned, "AGAIN", 70)
    monkeypatch.setattr(pruned, "BLOCK", (150, 100))  # neither rows nor centroids fill their last block
    monkeypatch.setattr(pruned, "ROOM", room)
    looks = []
    monkeypatch.setattr(PrunedSearch, "_look", lambda *arguments: looks.append(look(*arguments)) or looks[-1])
    rng = np.random.default_rng(5)
    vectors, centroids = spectrum(rng, 400, 24, "flat"), spectrum(rng, 1_030, 24, "duplicates")
    assert check(vectors, centroids, width=12, levels=levels) == 0
    assert sum(map(len, looks)) > 200  # rows that a first look gave up
    assert len(looks[-1]) == 0


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("crowd", [0, 256])
def test_an_assigner_finds_the_lists_of_assign_block_after_block(monkeypatch, known, dtype, crowd):
    monkeypatch.setattr(pruned, "CROWD", crowd)  # with 0 every row ends in the dense search
    images, _ = towers(9_000, 1, 64, dtype=dtype)
    centroids = train_kmeans(images, 1024, Training(niter=1)).centroids
    assigner = Assigner(ways={known: Way(16, int8_levels())})
    for start in (0, 5_000):
        block = images[start : start + 4_500]
        expected = assign(block, centroids)
        np.testing.assert_array_equal(assigner(block, centroids, before=expected if known else None, device="cpu"), expected)


def scripted(costs):
    """Contenders whose measurements are given; says how often each was timed."""
    timed = dict.fromkeys(costs, 0)

    def cost(way):
        timed[way] += 1
        return costs[way][min(timed[way], len(costs[way])) - 1]

    return [(way, partial(cost, way)) for way in costs], timed


@pytest.mark.parametrize("order", list(itertools.permutations([(DENSE, 15.0), (Way(32, 127), 30.0), (Way(16), 14.9), (Way(64), 62.0)])))
def test_of_all_ways_the_one_that_cost_least_is_chosen_in_whatever_order_they_come(order):
    contenders, _ = scripted({way: [cost] for way, cost in order})
    way, costs = quickest(contenders)
    assert way == Way(16)
    assert costs == dict(order)


@pytest.mark.parametrize("bounds_cost", [0.1, 0.94, 1.06, 4.0])
def test_dense_is_chosen_if_and_only_if_no_bound_costs_less(bounds_cost):
    contenders, _ = scripted({DENSE: [1.0], Way(16): [bounds_cost]})
    assert quickest(contenders)[0] == (DENSE if bounds_cost > 1 else Way(16))


def test_a_moment_s_disturbance_decides_nothing():
    contenders, _ = scripted({DENSE: [1.5, 1.0, 9.0], Way(16): [1.2, 1.2, 1.2], Way(32): [1.4, 7.0, 1.3]})
    way, costs = quickest(contenders)
    assert way == DENSE
    assert costs == {DENSE: 1.0, Way(16): 1.2, Way(32): 1.3}


def test_what_is_far_behind_is_timed_once():
    contenders, timed = scripted({DENSE: [100.0], Way(16): [10.0], Way(32): [1.0], Way(64): [1.2]})
    assert quickest(contenders)[0] == Way(32)
    assert timed == {DENSE: 1, Way(16): 1, Way(32): ROUNDS, Way(64): ROUNDS}


def test_what_is_close_is_timed_again():
    contenders, timed = scripted({Way(16): [1.0] * 9, Way(32): [1.05] * 4 + [0.97], Way(64): [1.2]})
    assert quickest(contenders)[0] == Way(32)
    assert timed == {Way(16): ROUNDS + MORE_ROUNDS, Way(32): ROUNDS + MORE_ROUNDS, Way(64): ROUNDS}


def test_rows_are_looked_at_once_a_training_as_far_as_there_is_memory(monkeypatch):
    seen = []
    monkeypatch.setattr(Frame, "see", lambda *arguments: seen.append(len(arguments[1])) or see(*arguments))
    images, _ = towers(9_000, 1, 64)
    centroids = train_kmeans(images, 1024, Training(niter=1)).centroids
    others = train_kmeans(images, 1024, Training(niter=2)).centroids
    for room, times in ((1 << 30, 1), (100_000, 2)):
        monkeypatch.setattr(assigning, "KEPT_BYTES", room)
        assigner, before = Assigner(ways={True: Way(16, int8_levels())}), assign(images, centroids)
        seen.clear()
        for now in (centroids, others):
            np.testing.assert_array_equal(assigner(images, now, before=before, device="cpu"), assign(images, now))
        assert sum(seen) >= 9_000 * times - 5_000 * (times - 1)
        assert sum(seen) <= 9_000 * times
        assert assigner._kept.nbytes <= room


@pytest.mark.parametrize("known", [False, True])
def test_the_way_is_chosen_by_measuring_once_the_work_is_worth_it(monkeypatch, known):
    monkeypatch.setattr(assigning, "LEAST_VALUES", 0)
    images, _ = towers(6_000, 1, 64)
    centroids = train_kmeans(images, 1024, Training(niter=1)).centroids
    before = assign(images, centroids) if known else None
    assigner = Assigner()
    assigner(images, centroids, before=before, device="cpu")
    assert not assigner.ways
    probe_at_once(monkeypatch)
    assigner(images, centroids, before=before, device="cpu")
    assert list(assigner.ways) == [known]
    assert len(assigner.costs) > 1
    assert DENSE in assigner.costs


def test_the_dense_search_is_timed_in_the_arithmetic_that_the_whole_work_would_have(monkeypatch):
    used = []
    monkeypatch.setattr(assigning, "LEAST_VALUES", 0)
    probe_at_once(monkeypatch)
    monkeypatch.setattr(assigning, "ways", lambda d: [])
    monkeypatch.setattr(engine, "bfloat16_gain", lambda: 2.0)
    monkeypatch.setattr(engine, "WORTH_PROBING", 2.0**12 * 9_000)  # below the whole work, above a sample's

    def watched(vectors, centroids, *, engine=None, **settings):
        used.append(engine)
        return assign(vectors, centroids, engine=engine, **settings)

    monkeypatch.setattr(assigning, "assign", watched)
    images, _ = towers(10_000, 1, 64)
    Assigner()(images, images[:64], device="cpu")
    assert used[0].arithmetic is BFLOAT16


def test_lists_known_and_unknown_in_turn_keep_what_each_needs():
    images, _ = towers(5_000, 1, 64)
    centroids = train_kmeans(images, 1024, Training(niter=1)).centroids
    expected = assign(images, centroids)
    assigner = Assigner(ways={True: Way(16), False: Way(16)})
    made = []
    for before in (expected, None, expected, None):
        np.testing.assert_array_equal(assigner(images, centroids, before=before, device="cpu"), expected)
        made.append(assigner._made[2])
    assert [search.groups.found for search in made] == [False, True, True, True]
    assert made[1] is made[2] is made[3]


def test_few_lists_are_never_ruled_out_one_by_one(monkeypatch):
    probe_at_once(monkeypatch)
    images, _ = towers(4_000, 1, 32)
    assigner = Assigner()
    assigner(images, images[:100], device="cpu")
    assert assigner.ways == {False: DENSE}


@pytest.mark.parametrize("paired", [False, True])
def test_training_with_bounds_makes_the_centroids_of_training_without(monkeypatch, paired):
    images, captions = towers(12_000, 12_000, 64)

    def trained():
        return train_paired_kmeans(images, captions, 1024, Training(niter=4)) if paired else train_kmeans(images, 1024, Training(niter=4))

    expected = trained().centroids
    probe_at_once(monkeypatch)
    monkeypatch.setattr(Assigner, "_fastest", lambda *_: Way(16, int8_levels()))
    np.testing.assert_array_equal(trained().centroids, expected)


def test_a_training_finds_its_directions_and_its_basis_once(monkeypatch):
    found, bases = [], []

    def counted(rows, centroids):
        found.append(directions(rows, centroids))
        return found[-1]

    def kept(of, width, *, spread):
        bases.append(basis_of(of, width, spread=spread))
        return bases[-1]

    monkeypatch.setattr(assigning, "directions", counted)
    monkeypatch.setattr(assigning, "basis_of", kept)
    probe_at_once(monkeypatch)
    monkeypatch.setattr(Assigner, "_fastest", lambda *_: Way(16))
    train_kmeans(towers(5_000, 1, 64)[0], 1024, Training(niter=4))
    assert len(found) == len(bases) == 1


def test_int8_products_are_used_only_as_far_as_they_add_up_rightly(monkeypatch):
    def saturating(largest):
        def multiply(a, b, out):
            pairs = (a.int()[:, None, :] * b.int()[None]).unflatten(2, (-1, 2)).sum(3).clamp(-largest, largest)
            out.copy_(pairs.sum(2))

        return multiply

    for largest, levels in ((2**31, 127), (2**15 - 1, 127), (2 * 127 * 63, 63), (2 * 63 * 63, 0), (100, 0)):
        monkeypatch.setattr(bounds, "multiply_int8", saturating(largest))
        int8_levels.cache_clear()
        assert int8_levels() == levels
    monkeypatch.setattr(bounds, "multiply_int8", lambda *_: (_ for _ in ()).throw(AttributeError("_int_mm")))
    int8_levels.cache_clear()
    assert int8_levels() == 0
    int8_levels.cache_clear()


def test_rows_that_a_way_leaves_undecided_are_counted_as_if_they_were_assigned_among_many(monkeypatch):
    """A few rows alone pay for reading all centroids: that would speak against narrow bounds, which are best for many rows."""
    images, _ = towers(10_000, 1, 64)
    centroids = train_kmeans(images, 2048, Training(niter=1)).centroids
    handed, way, undecided = [], Way(32, int8_levels()), np.arange(100)

    def counted(vectors, centroids, **settings):
        handed.append(len(vectors))
        return assign(vectors, centroids, **settings)

    monkeypatch.setattr(assigning, "assign", counted)
    monkeypatch.setattr(assigning, "cpu_seconds", lambda work: (work(), 1.0)[1])
    monkeypatch.setattr(assigning, "ways", lambda d: [way])
    monkeypatch.setattr(Assigner, "_by_bounds", lambda self, search, vectors, *_: (np.zeros(len(vectors), np.int64), undecided))
    assigner = Assigner()
    assigner.decide(images, centroids)
    (rows,) = set(handed)  # no undecided row is assigned by itself
    assert assigner.costs[way] == pytest.approx((1 + len(undecided) / rows) / rows)
