import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from neighbor_cases import ARITHMETICS, engine, plain_neighbors, towers

from paired_index_assets.neighbors import cpu, exact
from paired_index_assets.neighbors import engine as engines
from paired_index_assets.neighbors.exact import assign, exact_neighbors, nearest
from paired_index_assets.rows import Selected


def same(found, expected):
    np.testing.assert_array_equal(found[1], expected[1])
    np.testing.assert_array_equal(found[0], expected[0])
    assert found[0].dtype == np.float32
    assert found[1].dtype == np.int64


@pytest.mark.parametrize("arithmetic", ARITHMETICS.values(), ids=ARITHMETICS)
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("k", [1, 2, 10, 100, 1000])
def test_the_answer_is_that_of_sorting_every_float64_score(k, dtype, arithmetic):
    images, captions = towers(5_000, 150, 48, dtype=dtype)
    same(exact_neighbors(captions, images, k, engine=engine(arithmetic, base_bytes=2_100 * 48 * 4)), plain_neighbors(captions, images, k))


@pytest.mark.parametrize("arithmetic", ARITHMETICS.values(), ids=ARITHMETICS)
@given(
    st.data(), st.integers(1, 40), st.integers(1, 3000), st.integers(1, 9), st.sampled_from([np.float16, np.float32]),
    st.sampled_from([1e-4, 1.0, 300.0]),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_any_small_integers_however_tied_come_in_order_of_score_then_id(arithmetic, data, nq, n, d, dtype, scale):
    values = st.integers(-3, 3)
    queries = data.draw(hnp.arrays(np.int8, (nq, d), elements=values)).astype(dtype) * dtype(scale)
    seed = data.draw(st.integers(0, 2**32))
    base = np.random.default_rng(seed).integers(-3, 4, (n, d)).astype(dtype) * dtype(scale)
    k = data.draw(st.integers(1, min(n, 130)))
    same(exact_neighbors(queries, base, k, engine=engine(arithmetic)), plain_neighbors(queries, base, k))


@pytest.mark.parametrize("arithmetic", ARITHMETICS.values(), ids=ARITHMETICS)
@pytest.mark.parametrize("k", [1, 7])
def test_masses_of_exact_and_of_near_ties_are_resolved(k, arithmetic):
    rng = np.random.default_rng(1)
    one = rng.standard_normal(33).astype(np.float32)
    base = np.repeat(one[None], 4_000, axis=0)
    base[1_000:2_000] *= 1 + np.float32(2e-7) * rng.integers(0, 4, (1_000, 1)).astype(np.float32)
    queries = np.stack([one, -one, rng.standard_normal(33).astype(np.float32)])
    assert len(base) > k + cpu.CROWD
    same(exact_neighbors(queries, base, k, engine=engine(arithmetic, base_bytes=1_500 * 33 * 4)), plain_neighbors(queries, base, k))


def test_vectors_of_very_different_lengths_are_compared_by_inner_product():
    rng = np.random.default_rng(2)
    base = (rng.standard_normal((3_000, 20)) * 10.0 ** rng.integers(-6, 7, (3_000, 1))).astype(np.float32)
    queries = (rng.standard_normal((50, 20)) * 10.0 ** rng.integers(-6, 7, (50, 1))).astype(np.float32)
    for arithmetic in ARITHMETICS.values():
        same(exact_neighbors(queries, base, 5, engine=engine(arithmetic)), plain_neighbors(queries, base, 5))


def test_clusters_that_lie_together_in_the_base_do_not_crowd_out_each_other():
    images, captions = towers(6_000, 80, 32, concepts=6)
    images = images[np.argsort(images @ captions[0])]  # the best come last, or first, all in one tile
    for base in (images, images[::-1]):
        same(exact_neighbors(captions, base, 50, memory_bytes=1 << 18), plain_neighbors(captions, base, 50))


@pytest.mark.parametrize("memory_bytes", [1, 1 << 16, 1 << 28])
def test_the_answer_does_not_depend_on_how_much_is_read_at_a_time(memory_bytes):
    images, captions = towers(4_000, 300, 24, dtype=np.float16)
    same(exact_neighbors(captions, images, 12, memory_bytes=memory_bytes), plain_neighbors(captions, images, 12))


def test_memory_maps_slices_fortran_order_and_reversed_rows_just_work(tmp_path):
    images, captions = towers(2_000, 100, 16, dtype=np.float16)
    expected = plain_neighbors(captions, images, 3)
    np.save(tmp_path / "images.npy", images)
    np.save(tmp_path / "fortran.npy", np.asfortranarray(images))
    wide = np.zeros((4_000, 32), np.float16)
    wide[::2, 1::2] = images
    for base in (
        np.load(tmp_path / "images.npy", mmap_mode="r"), np.load(tmp_path / "fortran.npy", mmap_mode="r"), np.asfortranarray(images),
        wide[::2, 1::2], images[::-1][::-1], images.astype(np.float32), Selected(images, np.arange(2_000)),
    ):  # fmt: skip
        same(exact_neighbors(np.asfortranarray(captions), base, 3), expected)


def test_nearest_is_the_first_of_the_neighbors():
    images, captions = towers(300, 2_500, 40)
    scores, ids = nearest(captions, images)
    expected = plain_neighbors(captions, images, 1)
    same((scores[:, None], ids[:, None]), expected)


def test_fewer_base_rows_than_a_group_and_a_single_query():
    images, captions = towers(5, 1, 3)
    same(exact_neighbors(captions, images, 5), plain_neighbors(captions, images, 5))
    same(exact_neighbors(captions, images[:1], 1), plain_neighbors(captions, images[:1], 1))


def test_progress_grows_to_the_number_of_queries():
    images, captions = towers(3_000, 200, 8)
    seen = []
    exact_neighbors(captions, images, 2, memory_bytes=1 << 15, progress=lambda step, done, total: seen.append((step, done, total)))
    assert {(step, total) for step, _, total in seen} == {("neighbors", 200)}
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)
    assert seen[-1][1] == 200
    assert len(seen) > 2


def test_the_callers_thread_settings_are_left_alone():
    before = torch.get_num_threads()
    images, captions = towers(500, 300, 8)
    nearest(captions, images)
    assert torch.get_num_threads() == before


def test_bfloat16_is_taken_for_large_work_where_it_was_measured_to_be_faster(monkeypatch):
    def chosen(gain, multiply_adds):
        monkeypatch.setattr(engines, "bfloat16_gain", lambda: gain)
        return engines.choose("cpu", 10, 10**6, multiply_adds, 1 << 28).arithmetic

    assert chosen(3.0, 1e12) == ARITHMETICS["bfloat16"]
    assert chosen(1.2, 1e12) == ARITHMETICS["float32"]
    assert chosen(3.0, 1e9) == ARITHMETICS["float32"]


def test_the_probe_measures_a_ratio_on_this_machine():
    assert 0 <= engines.bfloat16_gain() < 100


@pytest.mark.parametrize("arithmetic", ARITHMETICS.values(), ids=ARITHMETICS.keys())
@pytest.mark.parametrize("k", [1, 7])
def test_the_best_is_found_where_every_score_is_below_zero_or_some_are(arithmetic, k):
    captions, images = towers(3_000, 200, 40, gap=0.1)[::-1]
    below = -np.abs(images), np.abs(captions)
    assert plain_neighbors(below[1], below[0], 1)[0].max() < 0
    for queries, base in ((below[1], below[0]), (np.concatenate([captions, -captions]), images)):
        same(exact_neighbors(queries, base, k, engine=engine(arithmetic)), plain_neighbors(queries, base, k))


@pytest.mark.parametrize("gain", [0.0, 9.0], ids=ARITHMETICS.keys())
def test_assignment_alone_is_that_of_the_search_ties_and_repeated_centroids_included(monkeypatch, gain):
    monkeypatch.setattr(engines, "WORTH_PROBING", 0)
    monkeypatch.setattr(engines, "bfloat16_gain", lambda: gain)
    images, centroids = towers(5_000, 300, 33)
    centroids[200:] = centroids[:100]
    for memory_bytes in (1 << 28, 1 << 10):  # one block of centroids, and several
        monkeypatch.setattr(exact, "SMALLEST_BLOCK", 64)
        np.testing.assert_array_equal(assign(images, centroids, memory_bytes=memory_bytes), plain_neighbors(images, centroids, 1)[1][:, 0])
