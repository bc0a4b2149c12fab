"""The rounding does what it claims, and a row's code hangs on that row alone: not on what is beside it, nor on the processor."""

import hashlib
import os
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paired_index_assets.codes.codec import TILE, train_codec
from paired_index_assets.codes.rounding import Rounding, feedback_matrix, visiting_order


def metric_of(d, rank, seed, ridge=1e-3):
    x = np.random.default_rng(seed).standard_normal((rank, d))
    return x.T @ x / rank + ridge * np.eye(d)


def made(r, d, seed, *, rank=5, weight=0.5, passes=1, base=True, missed=True, wide=0):
    """A rounding of (n, d) rows to r axes, the first `wide` of 8 bits."""
    rng = np.random.default_rng(seed)
    return Rounding(
        order=rng.permutation(r),
        base=(rng.standard_normal((r, d)) / np.sqrt(d)).astype(np.float32) if base else None,
        first=np.full(r, -2, np.float32),
        step=rng.uniform(0.2, 0.4, r).astype(np.float32),
        tops=np.repeat(np.array([255, 15], np.float32), [wide, r - wide]),
        metric=metric_of(r, 2 * r, seed),
        inward=rng.standard_normal((rank, d + 1)).astype(np.float32),
        outward=(np.sqrt(weight) * rng.standard_normal((r, rank)) / np.sqrt(r)).astype(np.float32),
        missed=rng.standard_normal((rank, d + 1)).astype(np.float32) / 10 if missed else None,
        passes=passes,
    )


def facts_of(rounding, rows):
    """Targets and expected captions (n, r), and what those miss (n,), in float64."""
    rows = rows.astype(np.float64)
    ones = np.hstack([rows, np.ones((len(rows), 1))])
    targets = (rows[:, rounding.order] if rounding.base is None else rows @ rounding.base.T) - rounding.first
    asked = ones @ rounding.inward.T
    asked /= np.maximum(np.linalg.norm(asked, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    missed = np.zeros(len(rows)) if rounding.missed is None else (asked * (ones @ rounding.missed.T)).sum(1)
    return targets / rounding.step, asked @ rounding.outward.T, missed


def plain_levels(rounding, rows):
    """Dimension by dimension in float64: the recurrence as in GPTQ and LDLQ, then descent by the gradient as it is written."""
    targets, expected, missed = facts_of(rounding, rows)
    metric, r = rounding.metric, targets.shape[1]
    left, levels = targets.copy(), np.zeros_like(targets)
    for p in range(r):
        levels[:, p] = np.clip(np.rint(left[:, p]), 0, rounding.tops[p])
        rest = np.linalg.inv(metric[p:, p:])
        left[:, p + 1 :] -= (left[:, p] - levels[:, p])[:, None] * rest[1:, 0] / rest[0, 0]
    for _ in range(rounding.passes):
        for p in range(r):
            errors = levels - targets
            slope = errors @ metric[p] + expected[:, p] * ((expected * errors).sum(1) + missed)
            levels[:, p] = np.clip(np.rint(levels[:, p] - slope / (metric[p, p] + expected[:, p] ** 2)), 0, rounding.tops[p])
    return levels


def loss_of(rounding, rows, levels):
    targets, expected, missed = facts_of(rounding, rows)
    errors = levels - targets
    return np.einsum("ki,ij,kj->k", errors, rounding.metric, errors) + ((expected * errors).sum(1) + missed) ** 2


def rows_of(n, d, seed):
    return np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)


def rounded(rounding, rows):
    """Levels in the order in which axes are visited."""
    return rounding.prepared()(rows)[:, rounding.order].astype(np.float64)


@pytest.mark.parametrize("r", [1, 5, 8, 31, 33, 65, 130])
@pytest.mark.parametrize("passes", [0, 1, 3])
def test_compiled_levels_are_those_of_the_plain_recurrence(r, passes):
    rounding, rows = made(r, r + 3, seed=r, passes=passes, wide=r // 4), rows_of(70, r + 3, seed=1)
    found, plain = rounded(rounding, rows), plain_levels(rounding, rows)
    assert (found != plain).any(1).mean() < 0.03  # float32 and float64 round a near tie apart, and what follows it
    np.testing.assert_allclose(loss_of(rounding, rows, found), loss_of(rounding, rows, plain), rtol=0.1)
    assert loss_of(rounding, rows, found).sum() == pytest.approx(loss_of(rounding, rows, plain).sum(), rel=1e-3)


@settings(max_examples=40, deadline=None)
@given(
    r=st.integers(1, 90),
    more=st.integers(0, 9),
    rank=st.integers(1, 20),
    seed=st.integers(0, 10**6),
    weight=st.floats(0, 2),
    base=st.booleans(),
    missed=st.booleans(),
    wide=st.floats(0, 1),
    n=st.integers(1, 70),
)
def test_no_pass_of_descent_raises_the_loss(r, more, rank, seed, weight, base, missed, wide, n):
    d = r + more if base else r
    rounding = made(r, d, seed, rank=rank, weight=weight, base=base, missed=missed, wide=int(wide * r))
    rows = rows_of(n, d, seed)
    found = [rounded(replace(rounding, passes=passes), rows) for passes in range(4)]
    losses = [loss_of(rounding, rows, levels) for levels in found]
    for before, after in pairwise(losses):
        assert (after <= before * (1 + 1e-4) + 1e-4).all()
    assert all((levels <= rounding.tops).all() for levels in found)


@pytest.mark.parametrize("rows", ["huge", "beyond float32 on the axes", "zero", "tiny"])
def test_rows_far_from_the_grid_get_levels_on_it_and_change_no_other_row(rows):
    rounding, plain = made(40, 40, seed=3, wide=10), rows_of(40, 40, seed=4)
    levels_of = rounding.prepared()
    odd = {"huge": 1e6, "beyond float32 on the axes": 3e38, "zero": 0.0, "tiny": 1e-30}[rows] * np.sign(plain[7])
    mixed = plain.copy()
    mixed[7] = odd
    found, alone = levels_of(mixed), levels_of(plain)
    assert np.array_equal(np.delete(found, 7, 0), np.delete(alone, 7, 0))
    assert (found[7, rounding.order] <= rounding.tops).all()
    if rows == "huge":
        targets = facts_of(rounding, mixed)[0][7]
        assert np.isin(found[7, rounding.order], [0, 15, 255]).mean() > 0.9
        assert np.abs(targets).max() > 1e5


def test_a_metric_that_is_not_positive_definite_is_refused():
    broken = made(4, 4, seed=0)
    with pytest.raises(np.linalg.LinAlgError):
        replace(broken, metric=-broken.metric).prepared()


@pytest.mark.parametrize("d", [1, 7, 60])
def test_feedback_and_pivots_make_up_the_metric(d):
    metric = metric_of(d, 2 * d, seed=d)
    feedback, pivots = feedback_matrix(metric)
    unit = np.eye(d) + feedback
    np.testing.assert_allclose(unit.T * pivots @ unit, metric, atol=1e-5)


def test_the_order_visits_all_and_beats_ascending_diagonals():
    metric = metric_of(60, 90, seed=2)
    order = visiting_order(metric)
    assert sorted(order) == list(range(60))
    rows = rows_of(4000, 60, seed=3)

    def loss(order):
        same = replace(made(60, 60, seed=1, base=False, weight=0, passes=0), step=np.full(60, 0.3, np.float32))
        ordered = replace(same, order=order, metric=metric[np.ix_(order, order)])
        return loss_of(ordered, rows, rounded(ordered, rows)).sum()

    assert loss(order) < loss(np.argsort(np.diag(metric)))


def test_a_code_does_not_hang_on_batches(clouds):
    images, captions = clouds
    codec = train_codec("QT_4bit", "query", images[:4000], captions[:4000])
    rows = np.random.default_rng(0).permutation(images)[: 2 * TILE + 500]
    whole = codec.encode(rows)
    for size in (1, 7, 33, 500, TILE - 1, TILE, TILE + 1):
        starts = range(0, len(rows), size) if size >= 500 else range(0, 20 * size, size)
        for start in starts:
            assert np.array_equal(codec.encode(rows[start : start + size]), whole[start : start + size]), (size, start)
    shuffled = np.random.default_rng(1).permutation(len(rows))
    assert np.array_equal(codec.encode(rows[shuffled]), whole[shuffled])
    assert np.array_equal(codec.encode(rows.astype(np.float16)), codec.encode(rows.astype(np.float16).astype(np.float32)))
    assert codec.encode(rows[:0]).shape == (0, codec.code_size)


ELSEWHERE = """
import hashlib, numpy as np
from test_codes_rounding import made, rows_of
from paired_index_assets.codes import products
levels = made(70, 90, seed=5, rank=9, wide=20, passes=2).prepared()(rows_of(3000, 90, seed=6))
print(products.WIDE, hashlib.sha256(levels.tobytes()).hexdigest())
"""


def test_a_processor_with_narrow_registers_makes_the_same_codes():
    here = made(70, 90, seed=5, rank=9, wide=20, passes=2).prepared()(rows_of(3000, 90, seed=6))
    narrow = os.environ | {"NUMBA_CPU_NAME": "haswell", "PYTHONPATH": os.pathsep.join([os.path.dirname(__file__), *sys.path])}
    done = subprocess.run([sys.executable, "-c", ELSEWHERE], env=narrow, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", hashlib.sha256(here.tobytes()).hexdigest()]


def test_codes_are_read_and_decoded_without_a_compiler():
    code = "import sys, paired_index_assets.codes.codec, paired_index_assets.codes.transformed; print('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"


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
