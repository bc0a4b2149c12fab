"""An unmodified faiss reads, decodes and scores our bytes."""

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paired_index_assets.codes.codec import CODECS, ROUNDINGS, train_codec


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(sorted(CODECS)), st.integers(1, 9), st.integers(1, 40), st.integers(0, 2**31))
def test_levels_packed_are_levels_faiss_decodes(name, n, d, seed):
    rng = np.random.default_rng(seed)
    form = CODECS[name]
    levels = rng.integers(0, form.top + 1, (n, d), dtype=np.uint8)
    vmin, vdiff = rng.standard_normal(d).astype(np.float32), (0.1 + rng.random(d)).astype(np.float32)
    decoded = form.quantizer(vmin, vdiff).decode(form.pack(levels))
    expected = vmin + (levels + 0.5) / form.top * vdiff
    np.testing.assert_allclose(decoded, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("name", sorted(CODECS))
def test_a_stock_index_of_our_ranges_decodes_and_scores_our_codes(name, rounding, clouds):
    images, captions = clouds
    codec = train_codec(name, rounding, images[:3000], captions[:3000])
    codes = codec.encode(images[:500])
    assert codes.shape == (500, codec.code_size)
    index = faiss.IndexScalarQuantizer(72, codec.format.qtype, faiss.METRIC_INNER_PRODUCT)
    assert index.sa_code_size() == codec.code_size
    faiss.copy_array_to_vector(np.concatenate([codec.vmin, codec.vdiff]), index.sq.trained)
    index.is_trained = True
    index.add_sa_codes(codes)
    decoded = index.sa_decode(codes)
    assert np.array_equal(decoded, codec.decode(codes))
    scores, ids = index.search(captions[:20], 10)
    exact = captions[:20] @ decoded.T
    np.testing.assert_allclose(scores, -np.sort(-exact, axis=1)[:, :10], atol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(exact, ids, 1), scores, atol=1e-5)


@pytest.mark.parametrize("name", sorted(CODECS))
def test_rounding_faiss_is_faiss_to_the_byte(name, clouds):
    images, captions = clouds
    codec = train_codec(name, "faiss", images, captions)
    stock = faiss.IndexScalarQuantizer(72, codec.format.qtype, faiss.METRIC_INNER_PRODUCT)
    stock.train(images)
    assert np.array_equal(stock.sa_encode(images[:700]), codec.encode(images[:700]))
