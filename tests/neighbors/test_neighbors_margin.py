"""The margin is a proof obligation: no pair's computed score may be off by more than half of it."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paired_index_assets.neighbors.arithmetic import BFLOAT16, FLOAT16_FUSED, FLOAT32
from paired_index_assets.neighbors.blocks import margin_of, read_block


@pytest.mark.parametrize("arithmetic", [FLOAT32, BFLOAT16, FLOAT16_FUSED], ids=["float32", "bfloat16", "float16"])
@given(st.integers(0, 2**32), st.integers(1, 300), st.sampled_from([1e-6, 1.0, 1e5]), st.booleans())
@settings(max_examples=60, deadline=None)
def test_no_computed_score_is_further_from_the_true_one_than_the_margin_allows(arithmetic, seed, d, scale, cancelling):
    rng = np.random.default_rng(seed)
    queries, base = (rng.standard_normal((30, d)).astype(np.float32) for _ in range(2))
    if cancelling:  # large terms, small sum: where rounding shows most
        base[:, d // 2 :] = -base[:, : d - d // 2]
        queries[:, d // 2 :] = queries[:, : d - d // 2]
    base *= np.float32(scale)
    asked, searched = (read_block(rows, 0, 30, arithmetic, "rows") for rows in (queries, base))
    margin = margin_of(asked, searched, arithmetic)
    computed = asked.fast.float() @ searched.fast.float().T  # rounded inputs, float32 sums
    true = torch.from_numpy(queries.astype(np.float64) @ base.astype(np.float64).T)
    assert bool(((computed.double() - true).abs() <= margin.double()[:, None] / 2).all())


def test_a_bound_below_rounded_scores_is_below_the_scores_before_rounding():
    scores = torch.from_numpy(np.random.default_rng(0).standard_normal(100_000).astype(np.float32))
    assert bool((BFLOAT16.below(scores.bfloat16()).float() <= scores).all())
