import numpy as np
import pytest
from neighbor_cases import towers

from paired_index_assets.errors import BadInput
from paired_index_assets.neighbors.exact import exact_neighbors, nearest

GOOD = np.ones((20, 4), np.float32)


def holding(value, row, dtype=np.float32):
    bad = np.ones((3_000, 4), dtype)
    bad[row, 2] = value
    return bad


@pytest.mark.parametrize(
    ("queries", "base", "k", "message"),
    [
        (GOOD, np.ones((20, 5), np.float32), 1, "4 dimensions and base 5"),
        (GOOD, GOOD, 21, r"k: expected 1 .. 20 \(the rows of base\), found 21"),
        (GOOD, GOOD, 0, "found 0"),
        (GOOD, np.ones((0, 4), np.float32), 1, r"base: .*found shape \(0, 4\)"),
        (np.ones((0, 4), np.float32), GOOD, 1, r"queries: .*found shape \(0, 4\)"),
        (np.ones((4, 0), np.float32), GOOD, 1, "at least one row and one dimension"),
        (GOOD[0], GOOD, 1, r"queries: expected a matrix .*found shape \(4,\)"),
        (GOOD.astype(np.float64), GOOD, 1, "queries: expected float16 or float32, found float64"),
        (GOOD, GOOD.astype(np.int8), 1, "base: expected float16 or float32, found int8"),
        (holding(np.nan, 2_999), GOOD, 1, "queries: row 2999 holds NaN or infinity"),
        (GOOD, holding(np.inf, 1_234, np.float16), 2, "base: row 1234 holds NaN or infinity"),
        (GOOD, holding(-np.inf, 0), 2, "base: row 0 holds NaN or infinity"),
        (GOOD, holding(1e30, 7), 2, "base: row 7 holds a norm above 1e.18"),
    ],
)
def test_it_is_refused_with_what_was_expected_and_found(queries, base, k, message):
    with pytest.raises(BadInput, match=message):
        exact_neighbors(queries, base, k, memory_bytes=1 << 14)


def test_a_row_is_named_by_its_place_in_the_whole_matrix_not_in_the_block():
    base = towers(9_000, 1, 4)[0]
    base[8_765, 0] = np.nan
    with pytest.raises(BadInput, match="images: row 8765"):
        exact_neighbors(GOOD, base, 1, memory_bytes=1, names=("captions", "images"))


def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(BadInput, match="device: expected cpu"):
        nearest(GOOD, GOOD, device="tpu")
