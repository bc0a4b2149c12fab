"""By bounds or not, block after block or at once: the scores and ids of the exact search, and its errors."""

import numpy as np
import pytest
from neighbor_cases import towers

from paired_index_assets.errors import BadInput
from paired_index_assets.neighbors import assigning, bounded
from paired_index_assets.neighbors.assigning import Assigner
from paired_index_assets.neighbors.bounded import BoundedNeighbors
from paired_index_assets.neighbors.bounds import int8_levels
from paired_index_assets.neighbors.exact import nearest
from paired_index_assets.neighbors.ways import DENSE, Way


@pytest.fixture(params=[Way(16, int8_levels()), Way(24), DENSE], ids=str)
def way(request, monkeypatch):
    monkeypatch.setattr(assigning, "WORTH_PROBING", 1.0)
    monkeypatch.setattr(assigning, "ROWS_WORTH_PROBING", 1)
    monkeypatch.setattr(Assigner, "_fastest", lambda *_: request.param)
    return request.param


@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_scores_and_ids_are_those_of_the_exact_search(monkeypatch, way, blocks, dtype):
    images, captions = towers(7_001, 9_000, 64, dtype=dtype)
    images[4_000:4_500] = images[:500]  # in another block: the lower id wins
    monkeypatch.setattr(bounded, "BLOCK_BYTES", 4 * 64 * (len(images) // blocks + 1))
    search, told = BoundedNeighbors(images, calls=2), []
    for part in (captions[:4_500], captions[4_500:]):
        scores, ids = search.nearest(part, device="cpu", progress=lambda step, done, total, **_: told.append((done, total)))
        expected = nearest(part, images, device="cpu")
        np.testing.assert_array_equal(ids, expected[1])
        np.testing.assert_array_equal(scores, expected[0])
        assert [done for done, _ in told] == sorted(done for done, _ in told)
        assert told[-1] == (4_500, 4_500)
        told.clear()


def test_groups_and_bounds_of_a_base_in_one_block_are_made_once(monkeypatch, way):
    made = []
    prepared = assigning.grouped_by_heads
    monkeypatch.setattr(assigning, "grouped_by_heads", lambda rows: made.append(len(rows)) or prepared(rows))
    images, captions = towers(5_000, 9_000, 64)
    search = BoundedNeighbors(images)
    for part in np.split(captions, 3):
        search.nearest(part, device="cpu")
    assert len(made) == (0 if way.dense else 1)


@pytest.mark.parametrize("side", ["vectors", "base"])
def test_a_row_that_is_not_finite_is_named_by_its_own_number(monkeypatch, side):
    monkeypatch.setattr(assigning, "WORTH_PROBING", 1.0)
    monkeypatch.setattr(assigning, "ROWS_WORTH_PROBING", 1)
    monkeypatch.setattr(bounded, "BLOCK_BYTES", 4 * 64 * 2_000)
    images, captions = towers(5_000, 5_000, 64)
    {"vectors": captions, "base": images}[side][4_400, 3] = np.nan
    with pytest.raises(BadInput, match=f"{side}: row 4400 holds NaN"):
        BoundedNeighbors(images).nearest(captions, device="cpu")


def test_little_work_is_the_exact_search_s_and_is_not_measured(monkeypatch):
    monkeypatch.setattr(Assigner, "_fastest", lambda *_: pytest.fail("measured"))
    images, captions = towers(3_000, 3_000, 64)
    np.testing.assert_array_equal(BoundedNeighbors(images).nearest(captions)[1], nearest(captions, images)[1])
