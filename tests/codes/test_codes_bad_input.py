"""Data nobody wished for: a warning where something is lost, a safe codec always, never NaN."""

import warnings

import numpy as np
import pytest

from paired_index_assets.codes.codec import ROUNDINGS, CodecWarning, train_codec
from paired_index_assets.errors import BadInput


def sound(codec, images):
    codes = codec.encode(images)
    decoded = codec.decode(codes)
    assert np.isfinite(decoded).all()
    return decoded


def error(codec, images):
    return np.square(sound(codec, images) - images).sum(1).mean() / np.square(images - images.mean(0)).sum(1).mean()


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_constant_dimensions(rounding, clouds):
    images, captions = (rows.copy() for rows in clouds)
    images[:, [3, 40, 71]] = [0.0, 0.25, -1.0]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        codec = train_codec("QT_4bit", rounding, images[:4000], captions[:4000])
    decoded = sound(codec, images[:500])
    np.testing.assert_allclose(decoded[:, [3, 40, 71]], np.broadcast_to([0.0, 0.25, -1.0], (500, 3)), atol=1e-3)
    if rounding != "faiss":
        assert any("3 of 72 dimensions are constant" in str(w.message) for w in caught)


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("value", [0.3, 1e-8, 1e8])
def test_all_vectors_equal(rounding, value):
    images, captions = np.full((50, 12), value, np.float32), np.random.default_rng(0).standard_normal((60, 12)).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CodecWarning)
        codec = train_codec("QT_4bit", rounding, images, captions)
    np.testing.assert_allclose(sound(codec, images), images, rtol=3e-3)


@pytest.mark.parametrize("count", [1, 5, 30])
def test_few_captions_give_a_singular_metric_and_a_warning(count, clouds):
    images, captions = clouds
    with pytest.warns(CodecWarning, match="singular"):
        codec = train_codec("QT_4bit", "query", images[:4000], captions[:count])
    assert codec.rounding == "query"
    assert error(codec, images[:500]) < 0.2


def test_no_caption_at_all_rounds_to_the_nearest(clouds):
    images, _ = clouds
    with pytest.warns(CodecWarning, match="no caption"):
        codec = train_codec("QT_4bit", "query", images[:4000], np.zeros((0, 72), np.float32))
    assert codec.rounding == "nearest"
    assert error(codec, images[:500]) < 0.05


def test_one_image(clouds):
    images, captions = clouds
    with pytest.warns(CodecWarning):
        codec = train_codec("QT_4bit", "query", images[:1], captions)
    np.testing.assert_allclose(sound(codec, images[:1]), images[:1], atol=1e-3)


def test_rows_that_are_zero_or_not_finite_train_nothing(clouds):
    images, captions = (rows[:3000].copy() for rows in clouds)
    clean = train_codec("QT_4bit", "query", np.delete(images, [5, 6], 0), np.delete(captions, [9], 0))
    images[5], images[6], captions[9] = np.nan, 0, np.inf
    with pytest.warns(CodecWarning, match="left out"):
        codec = train_codec("QT_4bit", "query", images, captions)
    assert all(np.array_equal(a, clean.arrays()[key]) for key, a in codec.arrays().items())


@pytest.mark.parametrize("change", ["rotated", "shifted", "unnormalised", "tiny", "stretched"])
def test_the_gain_survives_what_is_done_to_the_data(change, clouds):
    images, captions = (rows[:6000].astype(np.float64) for rows in clouds)
    rng = np.random.default_rng(1)
    if change == "rotated":
        turn = np.linalg.qr(rng.standard_normal((72, 72)))[0]
        images, captions = images @ turn, captions @ turn
    elif change == "shifted":
        images = images + 3 * rng.standard_normal(72)
    elif change == "unnormalised":
        images, captions = images * rng.lognormal(0, 0.3, (6000, 1)), captions * rng.lognormal(0, 2, (6000, 1))
    elif change == "tiny":
        images, captions = images * 1e-6, captions * 1e6
    else:
        images = images * np.where(np.arange(72) == 7, 100, 1)
        captions = captions / np.where(np.arange(72) == 7, 100, 1)
    images, captions = images.astype(np.float32), captions.astype(np.float32)
    unit = captions[5000:] / np.linalg.norm(captions[5000:], axis=1, keepdims=True)

    def lost(rounding):
        codec = train_codec("QT_4bit", rounding, images, captions[:5000])
        return np.square(unit.astype(np.float64) @ (sound(codec, images) - images).T).mean()

    assert lost("query") < 0.5 * lost("nearest")


def test_what_cannot_be_coded_is_said(clouds):
    images, captions = clouds
    with pytest.raises(BadInput, match="QT_5bit"):
        train_codec("QT_5bit", "query", images, captions)
    with pytest.raises(BadInput, match="at least one"), pytest.warns(CodecWarning):
        train_codec("QT_4bit", "query", np.zeros((4, 72), np.float32), captions)
    codec = train_codec("QT_4bit", "nearest", images[:2000], captions[:2000])
    with pytest.raises(BadInput, match=r"\(n, 72\)"):
        codec.encode(images[:, :70])
    broken = images[:10].copy()
    broken[7, 3] = np.nan
    with pytest.raises(BadInput, match="row 7"):
        codec.encode(broken)
    assert codec.encode(images[:0]).shape == (0, codec.code_size)
