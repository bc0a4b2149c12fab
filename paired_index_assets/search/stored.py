"""The stored vectors of what was found: codes read again from the lists that were probed."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from paired_index_assets.rows import Float32, Int64, UInt8
from paired_index_assets.search import kernel
from paired_index_assets.search.blocks import PLANES, weights_stride
from paired_index_assets.search.mapped import ID_BYTES, at_address
from paired_index_assets.search.plan import Plan


def probed_lists(plan: Plan, query: Float32, nprobe: int) -> Int64:
    """The lists that `query` (1, d) looks in, as a search of it does."""
    record = plan.record
    width = int(record["width"][0])
    seen, facts = np.empty((1, width), np.float32), np.empty((1, width))
    lists, weights = np.empty((1, nprobe), np.int64), np.zeros((1, PLANES, weights_stride(width)), np.int8)
    kernel.prepare(record, query, nprobe, seen, lists, weights, facts, np.empty(1, np.int64))
    found: Int64 = lists[0][lists[0] >= 0]
    return found


def codes_of(plan: Plan, lists: Int64, ids: Int64) -> tuple[UInt8, npt.NDArray[np.bool_]]:
    """(n, code_size) codes of `ids` in `lists`, and which of them are there; zeros for the others."""
    size = int(plan.record["code_size"][0])
    pieces = int(plan.record["pieces"][0])
    order = np.argsort(ids, kind="stable")
    ascending = ids[order]
    codes, there = np.zeros((len(ids), size), np.uint8), np.zeros(len(ids), np.bool_)
    starts, sizes = (_table(int(plan.record[name][0]), lists, pieces) for name in ("starts", "sizes"))
    for start, count in zip(starts.ravel().tolist(), sizes.ravel().tolist(), strict=True):
        if not count:
            continue
        content = at_address(start, count * (size + ID_BYTES))
        mine = content[count * size :].view(np.int64)
        at = np.minimum(np.searchsorted(ascending, mine), len(ids) - 1)
        inside = np.flatnonzero(ascending[at] == mine)
        codes[order[at[inside]]] = content[: count * size].reshape(count, size)[inside]
        there[order[at[inside]]] = True
    return codes, there


def _table(address: int, lists: Int64, pieces: int) -> Int64:
    """(lists, pieces) of a table (nlist, pieces) of int64 at `address`."""
    last = int(lists.max(initial=-1)) + 1
    whole = at_address(address, last * pieces * ID_BYTES).view(np.int64)
    rows: Int64 = whole.reshape(last, pieces)[lists]
    return rows
