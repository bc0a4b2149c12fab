"""Codes of 8 and 4 bits on the axes that captions care about: what they keep, that faiss reads them, and where today's code stays."""

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paired_index_assets.codes.axes import query_axes
from paired_index_assets.codes.codec import CodecWarning, TrainedCodec, train_codec
from paired_index_assets.codes.transformed import allocations, train_transformed
from paired_index_assets.errors import BadInput


@pytest.fixture(scope="module")
def codec(clouds) -> TrainedCodec:
    images, captions = clouds
    return train_transformed(images[:6000], captions[:6000])


def test_scores_are_kept_better_than_by_todays_code_of_equal_bytes(codec, clouds):
    images, captions = clouds
    today = train_codec("QT_4bit", "query", images[:6000], captions[:6000])
    assert codec.code_size == today.code_size == 36
    queries, rows = captions[8000:8500], images[8000:]
    truth = np.argsort(-(queries @ rows.T), axis=1)[:, :10]

    def recall(code):
        found = np.argsort(-(queries @ code.decode(code.encode(rows)).T), axis=1)[:, :10]
        return np.mean([len(set(a) & set(b)) for a, b in zip(truth, found, strict=True)]) / 10

    assert recall(codec) > recall(today) + 0.01


def test_the_axes_keep_every_score_before_they_are_cut_and_come_in_order_of_what_captions_lose(clouds):
    images, captions = clouds
    axes = query_axes(images, captions)
    np.testing.assert_allclose(axes.query.T @ axes.base, np.eye(72), atol=1e-6)
    coordinates, asked = images @ axes.base.T, captions @ axes.query.T
    assert (np.diff(axes.gamma) <= 0).all()
    np.testing.assert_allclose(coordinates.var(0, ddof=1), axes.gamma, rtol=0.02, atol=1e-5 * axes.gamma[0])
    assert np.linalg.eigvalsh(asked.T @ asked / len(asked)).max() < 1.001  # the ridge takes from weak directions


def test_a_code_decodes_to_what_faiss_scores_with_the_transformed_query(codec, clouds):
    images, captions = clouds
    codes = codec.encode(images[:300])
    columns = codec.format.quantizer(codec.vmin, codec.vdiff).decode(codes)
    scores = codec.transform_queries(captions[:40]) @ columns.T
    np.testing.assert_allclose(scores, captions[:40] @ codec.decode(codes).T, atol=1e-5)
    assert np.abs(scores - captions[:40] @ images[:300].T).max() < 0.1
    assert columns.shape[1] == codec.columns == 72
    assert isinstance(codec.transform.linear, faiss.LinearTransform)


def test_an_8_bit_level_is_two_of_4_bits_and_both_meet_one_coordinate_of_the_query(codec):
    transform = codec.transform
    levels = np.random.default_rng(0).integers(0, transform.tops.astype(int) + 1, (50, transform.r)).astype(np.uint8)
    step, first = codec.steps
    columns = codec.format.quantizer(codec.vmin, codec.vdiff).decode(codec.format.pack(transform.split(levels)))
    axes = np.hstack([columns[:, : transform.wide] + columns[:, transform.wide : 2 * transform.wide], columns[:, 2 * transform.wide :]])
    np.testing.assert_allclose(axes, first + levels * step, rtol=1e-4, atol=1e-5)
    assert np.array_equal(transform.matrix[: transform.wide], transform.matrix[transform.wide : 2 * transform.wide])


def test_a_row_has_its_code_whatever_is_coded_beside_it(codec, clouds):
    images = clouds[0][:4200]
    whole = codec.encode(images)
    assert np.array_equal(codec.encode(images[4190:]), whole[4190:])
    shuffled = np.random.default_rng(1).permutation(len(images))
    assert np.array_equal(codec.encode(images[shuffled]), whole[shuffled])
    again = TrainedCodec.from_arrays(codec.name, codec.rounding, codec.arrays())
    assert np.array_equal(again.encode(images[:99]), whole[:99])


@settings(max_examples=60, deadline=None)
@given(d=st.integers(8, 400).map(lambda n: 2 * n), share=st.floats(0.1, 1))
def test_every_allocation_fills_the_bytes_and_no_more_axes_than_there_are(d, share):
    columns = 2 * max(1, int(share * d))
    for wide, narrow in allocations(columns, d):
        assert 2 * wide + narrow == columns
        assert wide + narrow <= d
        assert wide > 0
        assert narrow >= 0


@pytest.mark.parametrize("size", [20, 36, 45])
def test_bytes_are_those_that_were_asked_for(size, clouds):
    images, captions = clouds
    made = train_transformed(images[:3000], captions[:3000], bytes_per_vector=size)
    assert made.encode(images[:5]).shape == (5, size)


def test_bytes_beyond_8_bits_a_dimension_are_refused(clouds):
    with pytest.raises(BadInput, match="bytes_per_vector"):
        train_transformed(clouds[0][:500], clouds[1][:500], bytes_per_vector=73)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda i, c: (i[:, :71], c[:, :71]), "71 dimensions"),
        (lambda i, c: (i[:, :8], c[:, :8]), "8 dimensions"),
        (lambda i, c: (i, c[:40]), "40 captions for 72"),
        (lambda i, c: (i, c[:0]), "0 captions for 72"),
        (lambda i, c: (i[:30], c), "30 images for 72"),
        (lambda i, c: (i, np.repeat(c[:1], 200, axis=0)), "all captions are equal"),
        (lambda i, c: (np.repeat(i[:1], 200, axis=0), c), "all images are equal"),
    ],
)
def test_what_cannot_carry_a_transform_says_why_and_has_todays_code(spoil, says, clouds):
    images, captions = spoil(clouds[0][:400], clouds[1][:400])
    with pytest.warns(CodecWarning, match=says):
        assert train_transformed(images, captions) is None


@pytest.mark.parametrize("change", ["constant dimensions", "captions in a few dimensions", "tiny", "huge"])
def test_odd_data_gives_finite_codes_that_keep_its_scores(change, clouds):
    images, captions = (rows[:1500].copy() for rows in clouds)
    if change == "constant dimensions":
        images[:, [3, 40, 71]] = [0.0, 0.25, -1.0]
    elif change == "captions in a few dimensions":
        captions[:, 5:] = 0
    else:
        images = images * np.float32(1e-6 if change == "tiny" else 1e6)
    made = train_transformed(images, captions)
    decoded = made.decode(made.encode(images))
    assert np.isfinite(decoded).all()
    unit = captions[:200] / np.linalg.norm(captions[:200], axis=1, keepdims=True)
    exact = unit.astype(np.float64) @ images.T
    left = exact - unit.astype(np.float64) @ decoded.T
    assert (left - left.mean(1, keepdims=True)).std() < 0.1 * (exact - exact.mean(1, keepdims=True)).std()
