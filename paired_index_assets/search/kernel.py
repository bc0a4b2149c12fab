"""The search itself, compiled (numba): which lists a query looks in, what is in them, the best k of it. All functions release the GIL.

Codes are first scored by whole numbers (`dots`): ``W_i`` is rounded to ``unit * w_i``, and ``|W.c - unit * w.c| <= unit * top * sum |W_i / unit
- w_i|``, which is known a query and less than a thousandth of the spread of scores. So what is below the k-th best whole score by twice that
cannot be among the best k, and the few that remain are scored in float64 and ordered by score (rounded to float32, descending) and id
(ascending). The result is exact for the codes, and does not hang on batch, threads or the order of lists.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from paired_index_assets.search.choosing import SPARE, choose, transform, weigh
from paired_index_assets.search.compiling import compiled
from paired_index_assets.search.dots import bytes_at, dot_bytes, dot_nibbles, float64_at, int64_at
from paired_index_assets.search.ranking import NOTHING, in_order, promising


@compiled
def _level(code: Any, i: int, bits: int) -> Any:
    """Level i of a little-endian stream of `bits`."""
    at = i * bits
    byte, shift = at >> 3, at & 7
    value = np.int64(code[byte]) >> shift
    if shift + bits > 8:
        value |= np.int64(code[byte + 1]) << (8 - shift)
    return value & ((1 << bits) - 1)


@compiled
def _exact(plan: Any, place: int, seen: Any, facts: Any) -> Any:
    """The inner product with the decoded code at `place`."""
    code, total, first = bytes_at(place), 0.0, float64_at(plan.first)
    for i in range(plan.width):
        total += seen[i] * first[i]
    if plan.bits == 4:
        for i in range(plan.width // 2):
            total += facts[2 * i] * np.float64(code[i] & 15) + facts[2 * i + 1] * np.float64(code[i] >> 4)
        if plan.width % 2:
            total += facts[plan.width - 1] * np.float64(code[plan.width // 2] & 15)
    else:
        for i in range(plan.width):
            total += facts[i] * np.float64(_level(code, i, plan.bits))
    return np.float32(total)


@compiled
def _wanted(row: int, removed: Any, allowed: Any) -> Any:
    """Not among `removed` (ascending), and marked in the bitmap `allowed` (no bytes: all are)."""
    if len(allowed) and (row >= 8 * len(allowed) or not allowed[row >> 3] >> (row & 7) & 1):
        return False
    if len(removed) == 0:
        return True
    at = np.searchsorted(removed, row)
    return at == len(removed) or removed[at] != row


@compiled
def settle(
    plan: Any, seen: Any, facts: Any, slack: int, marks: Any, places: Any, ids: Any, count: int, k: int, found: Any, labels: Any
) -> None:
    """The best k of `count` candidates in order; -inf and -1 where there are fewer."""
    count, _ = promising(marks, places, ids, count, k, slack)
    scores = np.empty(count, np.float32)
    for i in range(count):
        scores[i] = _exact(plan, places[i], seen, facts)
    order = in_order(scores, ids, count)
    for i in range(k):
        found[i], labels[i] = (scores[order[i]], ids[order[i]]) if i < count else (np.float32(-np.inf), -1)


@compiled
def _shrink(plan: Any, seen: Any, facts: Any, slack: int, marks: Any, places: Any, ids: Any, count: int, k: int) -> Any:
    """Throw out what cannot be among the best k; returns how many are left and the least mark of any interest from here on."""
    kept, threshold = promising(marks, places, ids, count, k, slack)
    if kept > (count + k) // 2:  # many alike: the best k of them exactly
        scores, least = np.empty(kept, np.float32), marks[:k].min()
        for i in range(kept):
            scores[i] = _exact(plan, places[i], seen, facts)
        best = in_order(scores, ids, kept)[:k]
        # One whose mark was below the k-th is at least as good as the k-th's score: its mark may say so.
        marks[:k], places[:k], ids[:k] = np.maximum(marks[best], least), places[best], ids[best]
        kept = k
    return kept, threshold


@compiled
def scan(
    plan: Any,
    number: int,
    seen: Any,
    facts: Any,
    weights: Any,
    slack: int,
    k: int,
    marks: Any,
    places: Any,
    ids: Any,
    count: int,
    threshold: int,
    removed: Any,
    allowed: Any,
    levels: Any,
) -> Any:
    """Look through list `number`: candidates are added to `marks`, `places`, `ids`, of which `count` are there."""
    starts, sizes, size, stride = int64_at(plan.starts), int64_at(plan.sizes), plan.code_size, plan.stride
    at, levels_at = weights.ctypes.data, levels.ctypes.data
    for piece in range(number * plan.pieces, (number + 1) * plan.pieces):
        start, vectors = starts[piece], sizes[piece]
        rows = int64_at(start + vectors * size)
        for i in range(vectors):
            place = start + i * size
            if plan.bits == 4:
                mark = dot_nibbles(place, at, stride, size)
            elif plan.bits == 8:
                mark = dot_bytes(place, at, stride, size)
            else:
                code = bytes_at(place)
                for j in range(plan.width):
                    levels[j] = _level(code, j, plan.bits)
                mark = dot_bytes(levels_at, at, stride, plan.width)
            if mark >= threshold and _wanted(rows[i], removed, allowed):
                marks[count], places[count], ids[count] = mark, place, rows[i]
                count += 1
                if count == len(marks):
                    count, threshold = _shrink(plan, seen, facts, slack, marks, places, ids, count, k)
    return count, threshold


@compiled
def _planes(bits: int) -> Any:
    """Levels a byte of a code holds, as `dots` takes them."""
    return 2 if bits == 4 else 1


@compiled
def search_each(plan: Any, queries: Any, k: int, nprobe: int, removed: Any, allowed: Any, found: Any, labels: Any) -> Any:
    """The best k of each of `queries` (n, d), one after the other; returns the first row that is not finite, or -1."""
    room, plan = 2 * k + SPARE, plan[0]
    marks, places, ids = np.empty(room, np.int32), np.empty(room, np.int64), np.empty(room, np.int64)
    seen, facts, lists = np.empty(plan.width, np.float32), np.empty(plan.width), np.empty(nprobe, np.int64)
    quick, weights = np.zeros((2, plan.quick_stride), np.int8), np.zeros((4, plan.stride), np.int8)
    levels, top = np.zeros(plan.width, np.uint8), (1 << plan.bits) - 1
    for row in range(len(queries)):
        if not transform(plan, queries[row], seen):
            return row
        choose(plan, seen, nprobe, quick, facts, lists)
        slack = weigh(seen, plan.step, top, _planes(plan.bits), 0.0, weights, facts)
        count, threshold = 0, np.int64(NOTHING)
        for number in lists:
            if number >= 0:
                count, threshold = scan(
                    plan, number, seen, facts, weights, slack, k, marks, places, ids, count, threshold, removed, allowed, levels
                )
        settle(plan, seen, facts, slack, marks, places, ids, count, k, found[row], labels[row])
    return -1


@compiled
def prepare(plan: Any, queries: Any, nprobe: int, seen: Any, lists: Any, weights: Any, facts: Any, slacks: Any) -> Any:
    """The first half of the work for a batch: what the kernel knows of each query, and its lists. Returns as `search_each`."""
    plan = plan[0]
    quick, planes, top = np.zeros((2, plan.quick_stride), np.int8), _planes(plan.bits), (1 << plan.bits) - 1
    for row in range(len(queries)):
        if not transform(plan, queries[row], seen[row]):
            return row
        choose(plan, seen[row], nprobe, quick, facts[row], lists[row])
        slacks[row] = weigh(seen[row], plan.step, top, planes, 0.0, weights[row], facts[row])
    return -1


@compiled
def by_list(lists: Any, nlist: int) -> Any:
    """(nlist + 1,) bounds and the queries between them that look in each list."""
    bounds = np.zeros(nlist + 1, np.int64)
    for row in range(lists.shape[0]):
        for number in lists[row]:
            if number >= 0:
                bounds[number + 1] += 1
    bounds = np.cumsum(bounds)
    at, queries = bounds[:-1].copy(), np.empty(bounds[-1], np.int32)
    for row in range(lists.shape[0]):
        for number in lists[row]:
            if number >= 0:
                queries[at[number]] = row
                at[number] += 1
    return bounds, queries


@compiled
def scan_lists(
    plan: Any,
    first: int,
    stop: int,
    bounds: Any,
    queries: Any,
    seen: Any,
    facts: Any,
    weights: Any,
    slacks: Any,
    k: int,
    marks: Any,
    places: Any,
    ids: Any,
    counts: Any,
    thresholds: Any,
    removed: Any,
    allowed: Any,
) -> None:
    """Each of the lists from `first` to `stop`, for all queries that look in it; candidates of query i go into row i."""
    plan = plan[0]
    levels = np.zeros(plan.width, np.uint8)
    for number in range(first, stop):
        for i in range(bounds[number], bounds[number + 1]):
            q = queries[i]
            counts[q], thresholds[q] = scan(
                plan,
                number,
                seen[q],
                facts[q],
                weights[q],
                slacks[q],
                k,
                marks[q],
                places[q],
                ids[q],
                counts[q],
                thresholds[q],
                removed,
                allowed,
                levels,
            )


@compiled
def settle_all(
    plan: Any, seen: Any, facts: Any, slacks: Any, marks: Any, places: Any, ids: Any, counts: Any, k: int, found: Any, labels: Any
) -> None:
    """The best k of each query's candidates, of every thread's (threads, n, room)."""
    plan = plan[0]
    threads, room = marks.shape[0], marks.shape[2]
    m, p, i = np.empty(threads * room, np.int32), np.empty(threads * room, np.int64), np.empty(threads * room, np.int64)
    for row in range(len(seen)):
        count = 0
        for thread in range(threads):
            mine = counts[thread, row]
            m[count : count + mine] = marks[thread, row, :mine]
            p[count : count + mine] = places[thread, row, :mine]
            i[count : count + mine] = ids[thread, row, :mine]
            count += mine
        settle(plan, seen[row], facts[row], slacks[row], m, p, i, count, k, found[row], labels[row])
