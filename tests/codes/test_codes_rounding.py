"""The roundings do what they claim, and a row's code hangs on that row alone."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paired_index_assets.codes.codec import TILE, train_codec
from paired_index_assets.codes.rounding import coordinate_descent, error_feedback, feedback_matrix, visiting_order


def metric_of(d, rank, seed, ridge=1e-3):
    x = np.random.default_rng(seed).standard_normal((rank, d))
    return x.T @ x / rank + ridge * np.eye(d)


def plain_feedback(targets, metric, top):
    """The recurrence, row by row and dimension by dimension, as it is written in GPTQ and LDLQ."""
    d = len(targets)
    levels, left = np.zeros_like(targets), targets.astype(np.float64).copy()
    for p in range(d):
        levels[p] = np.clip(np.rint(left[p]), 0, top)
        rest = np.linalg.inv(metric[p:, p:])
        left[p + 1 :] -= rest[1:, :1] / rest[0, 0] * (left[p] - levels[p])
    return levels


@pytest.mark.parametrize("d", [1, 5, 64, 65, 130])
def test_blocked_feedback_is_the_plain_recurrence(d):
    metric = metric_of(d, 3 * d, seed=d)
    targets = (7.5 + 3 * np.random.default_rng(1).standard_normal((d, 40))).astype(np.float32)
    levels, errors = error_feedback(targets, feedback_matrix(metric), [15.0] * d)
    plain = plain_feedback(targets, metric, 15)
    assert np.mean(levels != plain) < 1e-3  # a level may flip where float32 and float64 round a tie apart
    assert np.array_equal(errors, levels - targets)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 90), st.integers(1, 60), st.integers(0, 10**6), st.floats(0, 2))
def test_no_pass_of_descent_raises_the_loss(d, rank, seed, weight):
    rng = np.random.default_rng(seed)
    metric = metric_of(d, rank, seed)
    targets = (7.5 + 4 * rng.standard_normal((d, 16))).astype(np.float32)
    expected = (np.sqrt(weight) * rng.standard_normal((d, 16)) / np.sqrt(d)).astype(np.float32)
    levels = targets.round().clip(0, 15)
    errors = levels - targets

    def loss():
        e = (levels - targets).astype(np.float64)
        return np.einsum("ik,ij,jk->k", e, metric, e) + (expected * e).sum(0) ** 2

    losses = [loss()]
    for _ in range(3):
        coordinate_descent(levels, errors, metric.astype(np.float32), expected, [15.0] * d, 1)
        losses.append(loss())
        assert (losses[-1] <= losses[-2] * (1 + 1e-4) + 1e-4).all()
    assert levels.min() >= 0
    assert levels.max() <= 15
    assert np.array_equal(levels, levels.round())
    np.testing.assert_allclose(errors, levels - targets, atol=1e-4)


def test_the_order_visits_all_and_beats_ascending_diagonals():
    metric = metric_of(60, 90, seed=2)
    order = visiting_order(metric)
    assert sorted(order) == list(range(60))
    targets = (7.5 + 2 * np.random.default_rng(3).standard_normal((60, 4000))).astype(np.float32)

    def loss(order):
        ordered = metric[np.ix_(order, order)]
        errors = error_feedback(targets[order], feedback_matrix(ordered), [15.0] * 60)[1]
        return np.einsum("ik,ij,jk->", errors, ordered, errors)

    assert loss(order) < loss(np.argsort(np.diag(metric)))


def test_a_code_does_not_hang_on_batches(clouds):
    images, captions = clouds
    codec = train_codec("QT_4bit", "query", images[:4000], captions[:4000])
    rows = np.random.default_rng(0).permutation(images)[: 2 * TILE + 500]
    whole = codec.encode(rows)
    for size in (1, 7, 500, TILE - 1, TILE, TILE + 1):
        starts = range(0, len(rows), size) if size >= 500 else range(0, 20 * size, size)
        for start in starts:
            assert np.array_equal(codec.encode(rows[start : start + size]), whole[start : start + size]), (size, start)
    shuffled = np.random.default_rng(1).permutation(len(rows))
    assert np.array_equal(codec.encode(rows[shuffled]), whole[shuffled])
    assert np.array_equal(codec.encode(rows.astype(np.float16)), codec.encode(rows.astype(np.float16).astype(np.float32)))


def test_query_aware_codes_rank_better_than_nearest_and_nearest_better_than_faiss(clouds):
    images, captions = clouds
    queries = captions[-1000:]
    truth = np.argsort(-(queries @ images.T), axis=1)[:, :10]

    def recall(rounding):
        codec = train_codec("QT_4bit", rounding, images, captions[:-1000])
        found = np.argsort(-(queries @ codec.decode(codec.encode(images)).T), axis=1)[:, :10]
        return np.mean([len(set(a) & set(b)) for a, b in zip(truth, found, strict=True)]) / 10

    faiss_own, nearest, query = recall("faiss"), recall("nearest"), recall("query")
    assert query > nearest + 0.05
    assert nearest > faiss_own


def test_training_and_encoding_are_reproducible_and_survive_their_arrays(clouds):
    images, captions = clouds
    first, second = (train_codec("QT_4bit", "query", images[:3000], captions[:3000]) for _ in range(2))
    assert all(np.array_equal(first.arrays()[key], second.arrays()[key]) for key in first.arrays())
    again = type(first).from_arrays(first.name, first.rounding, first.arrays())
    assert np.array_equal(again.encode(images[:300]), first.encode(images[:300]))
