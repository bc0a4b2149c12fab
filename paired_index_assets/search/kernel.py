"""The search itself, compiled (numba): which lists a query looks in, what is in them, the best k of it. All functions release the GIL.

Codes are first scored by whole numbers (`dots`): ``W_i`` is rounded to ``unit * w_i``, and ``|W.c - unit * w.c| <= unit * top * sum |W_i / unit
- w_i|``, which is known a query and less than a thousandth of the spread of scores. So what is below the k-th best whole score by twice that
cannot be among the best k, and the few that remain are scored in float64 and ordered by score (rounded to float32, descending) and id
(ascending). The result is exact for the codes, and does not depend on batch, threads or the order of lists.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from paired_index_assets.files.compiling import compiled
from paired_index_assets.search.ahead import IN_FRONT, ask
from paired_index_assets.search.blocks import MOST_BLOCKS, QUAD, VECTORS, aligned, block_bytes, dot_blocks, lay_out, level, lowest, within
from paired_index_assets.search.choosing import SPARE, choose, transform, weigh
from paired_index_assets.search.dots import CODE_PLANES, bytes_at, dot_bytes, dot_nibbles, float64_at, int64_at
from paired_index_assets.search.ranking import NOTHING, in_order, promising

LAID_OUT = 1 << 17  # bytes of a list's levels that are held against one query after the other


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
            total += facts[i] * np.float64(level(code, i, plan.bits))
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
                    levels[j] = level(code, j, plan.bits)
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
def search_each(plan: Any, queries: Any, k: int, nprobe: int, removed: Any, allowed: Any, moment: int, found: Any, labels: Any) -> Any:
    """The best k of each of `queries` (n, d), one after the other; returns the first row that is not finite, or -1. `moment`: `ahead.now`."""
    room, plan = 2 * k + SPARE, plan[0]
    marks, places, ids = np.empty(room, np.int32), np.empty(room, np.int64), np.empty(room, np.int64)
    seen, facts, lists = np.empty(plan.width, np.float32), np.empty(plan.width), np.empty(nprobe, np.int64)
    quick, sums = np.zeros((2, QUAD * plan.quick_quads), np.int8), np.empty(VECTORS * MOST_BLOCKS, np.int32)
    weights = np.zeros((CODE_PLANES, plan.stride), np.int8)
    levels, top = np.zeros(plan.width, np.uint8), (1 << plan.bits) - 1
    for row in range(len(queries)):
        if not transform(plan, queries[row], seen):
            return row
        choose(plan, seen, nprobe, quick, sums, facts, lists)
        for number in lists[:IN_FRONT]:
            if number >= 0:
                ask(plan, number, moment)
        slack = weigh(seen, plan.step, top, _planes(plan.bits), 0.0, weights, facts)
        count, threshold = 0, np.int64(NOTHING)
        for place in range(nprobe):
            number = lists[place]
            if place + IN_FRONT < nprobe and lists[place + IN_FRONT] >= 0:
                ask(plan, lists[place + IN_FRONT], moment)
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
    quick, sums = np.zeros((2, QUAD * plan.quick_quads), np.int8), np.empty(VECTORS * MOST_BLOCKS, np.int32)
    top = (1 << plan.bits) - 1
    for row in range(len(queries)):
        if not transform(plan, queries[row], seen[row]):
            return row
        choose(plan, seen[row], nprobe, quick, sums, facts[row], lists[row])
        slacks[row] = weigh(seen[row], plan.step, top, 1, 0.0, weights[row], facts[row])
    return -1


@compiled
def by_list(lists: Any, first: int, stop: int, nlist: int) -> Any:
    """(nlist + 1,) bounds and the queries between them that look in each list, by the columns from `first` to `stop` of
    `lists` (n, nprobe)."""
    bounds = np.zeros(nlist + 1, np.int64)
    for row in range(lists.shape[0]):
        for number in lists[row, first:stop]:
            if number >= 0:
                bounds[number + 1] += 1
    bounds = np.cumsum(bounds)
    at, queries = bounds[:-1].copy(), np.empty(bounds[-1], np.int32)
    for row in range(lists.shape[0]):
        for number in lists[row, first:stop]:
            if number >= 0:
                queries[at[number]] = row
                at[number] += 1
    return bounds, queries


@compiled
def raise_thresholds(plan: Any, asked: Any, found: Any, k: int) -> None:
    """Let all threads know what any of them found: as `scan_lists`, but what is `found` by each thread (threads, n, ..)."""
    plan = plan[0]
    seen, facts, _, slacks = asked
    marks, places, ids, counts, thresholds = found
    for row in range(len(seen)):
        least = np.int64(NOTHING)
        for thread in range(len(counts)):
            if counts[thread, row] >= k:
                mine = marks[thread, row], places[thread, row], ids[thread, row]
                counts[thread, row], threshold = _shrink(plan, seen[row], facts[row], slacks[row], *mine, counts[thread, row], k)
                least = max(least, threshold)
        thresholds[:, row] = np.maximum(thresholds[:, row], least)


@compiled
def scan_lists(
    plan: Any, first: int, stop: int, bounds: Any, queries: Any, asked: Any, found: Any, k: int, removed: Any, allowed: Any, moment: int
) -> None:
    """Each of the lists from `first` to `stop`, for all queries that look in it. `asked`: seen, facts, weights and slack of each query;
    `found`: marks, places and ids of its candidates, how many it has, and its threshold; `moment`: `ahead.now`."""
    plan = plan[0]
    starts, sizes, size, span = int64_at(plan.starts), int64_at(plan.sizes), plan.code_size, block_bytes(plan.width)
    room = max(1, LAID_OUT // (span * MOST_BLOCKS)) * MOST_BLOCKS * VECTORS  # vectors
    here, rows, levels = np.empty(room, np.int64), np.empty(room, np.int64), aligned(room // VECTORS * span)
    levels[:] = 0
    coming, in_front = first, 0
    for number in range(first, stop):
        while coming < stop and in_front < IN_FRONT:
            if bounds[coming] < bounds[coming + 1]:
                ask(plan, coming, moment)
                in_front += 1
            coming += 1
        looking, filled = queries[bounds[number] : bounds[number + 1]], 0
        if len(looking) == 0:
            continue
        in_front -= 1
        for piece in range(number * plan.pieces, (number + 1) * plan.pieces):
            start, vectors = starts[piece], sizes[piece]
            rows_at = int64_at(start + vectors * size)
            for i in range(vectors):
                here[filled], rows[filled] = start + i * size, rows_at[i]
                filled += 1
                if filled == room:
                    _hold(plan, looking, filled, levels, here, rows, asked, found, k, removed, allowed)
                    filled = 0
        if filled:
            _hold(plan, looking, filled, levels, here, rows, asked, found, k, removed, allowed)


@compiled
def _hold(
    plan: Any, looking: Any, vectors: int, levels: Any, here: Any, rows: Any, asked: Any, found: Any, k: int, removed: Any, allowed: Any
) -> None:
    """Hold the first `vectors` codes, at the addresses `here`, against each query that is `looking`."""
    seen, facts, weights, slacks = asked
    marks, places, ids, counts, thresholds = found
    at, span, step = levels.ctypes.data, block_bytes(plan.width), VECTORS * MOST_BLOCKS
    quads, sums = (plan.width + QUAD - 1) // QUAD, np.empty(step, np.int32)
    lay_out(here, vectors, plan.code_size, plan.bits, plan.width, at)
    for q in looking:
        count, threshold = counts[q], thresholds[q]
        for first in range(0, vectors, step):
            blocks, its = min(MOST_BLOCKS, (vectors - first + VECTORS - 1) // VECTORS), weights[q]
            near = dot_blocks(at + first // VECTORS * span, span, its.ctypes.data, its.shape[1], quads, blocks, threshold, sums.ctypes.data)
            near = within(near, vectors - first)
            while near:
                i = lowest(near)
                near &= near - np.uint64(1)
                if sums[i] < threshold or not _wanted(rows[first + i], removed, allowed):
                    continue
                marks[q, count], places[q, count], ids[q, count] = sums[i], here[first + i], rows[first + i]
                count += 1
                if count == marks.shape[1]:
                    count, threshold = _shrink(plan, seen[q], facts[q], slacks[q], marks[q], places[q], ids[q], count, k)
        counts[q], thresholds[q] = count, threshold


@compiled
def settle_all(plan: Any, asked: Any, found: Any, k: int, scores: Any, labels: Any) -> None:
    """The best k of each query's candidates, of every thread's; as `raise_thresholds`."""
    plan = plan[0]
    seen, facts, _, slacks = asked
    marks, places, ids, counts, _ = found
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
        settle(plan, seen[row], facts[row], slacks[row], m, p, i, count, k, scores[row], labels[row])
