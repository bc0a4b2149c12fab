"""The passes over products that torch has no single call for, compiled (numba). All functions release the GIL.

Products are (rows, centroids), so a row's lie together, and a row's bound, best and candidates are at hand while they are looked at. Most are
looked at once, 64 at a time, and are below the row's cut.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from paired_index_assets.files.compiling import compiled

STRIDE = 64  # products looked at together
BEYOND = 2e9  # no product of int8 is so large


@compiled
def dot(a: Any, b: Any) -> Any:
    """In float32, in any order: arithmetic.gamma says how far off."""
    total = np.float32(0)
    for i in range(len(a)):
        total += a[i] * b[i]
    return total


@compiled
def cut_of(low: Any, mean: Any, margin: Any, unit: Any, whole: Any) -> Any:
    """float64: the least product of a centroid whose score may reach `low`; `whole`: products are whole numbers."""
    cut = (np.float64(low) - mean - margin) / unit
    if whole:
        return min(max(np.floor(cut) - 1, -BEYOND), BEYOND)
    return cut


@compiled
def next_reaching(products: Any, start: Any, gate: Any) -> Any:
    """Where, from `start` on, the next STRIDE products begin of which one is at least `gate`; len(products): nowhere."""
    while start + STRIDE <= len(products):
        part, found = products[start : start + STRIDE], np.int32(0)
        for i in range(STRIDE):
            found |= np.int32(part[i] >= gate)
        if found != 0:
            return start
        start += STRIDE
    for i in range(start, len(products)):
        if products[i] >= gate:
            return start
    return len(products)


@compiled
def highest(products: Any, first: Any, which: Any, best: Any, place: Any) -> Any:
    """The highest product so far of each row, and where: row which[j] has products[j] (c, m) with the centroids that stand from `first` on."""
    count, m = products.shape
    for j in range(count):
        row, mine = which[j], products[j]
        start = next_reaching(mine, 0, best[row])
        while start < m:
            stop = min(start + STRIDE, m)
            for i in range(start, stop):
                if mine[i] > best[row]:
                    best[row], place[row] = mine[i], first + i
            start = next_reaching(mine, stop, best[row])


@compiled
def sift(
    products: Any, first: Any, rows: Any, centroids: Any, order: Any, mean: Any, margin: Any, unit: Any, slack: Any, whole: Any,
    low: Any, top: Any, held: Any, found: Any, value: Any,
) -> Any:  # fmt: skip
    """Note the centroids whose bound reaches a row's `low`, of those that stand at first .. first + m; products (n, m) int32 or float32.

    A centroid with a higher bound than all before (`top`) is scored at once, which raises `low` and shuts out most others. Of row j, the first
    held[j] of found[j] (places) and of value[j] (their products) count; held[j] > found.shape[1]: there are more than that, they are not noted,
    and only `low` is looked after.
    """
    n, m = products.shape
    room = found.shape[1]
    for j in range(n):
        mine, count, best = products[j], held[j], top[j]
        cut = products.dtype.type(cut_of(low[j], mean[j], margin[j], unit[j], whole))
        stop = 0
        while True:
            gate = cut if count <= room else max(cut, best)
            start = next_reaching(mine, stop, gate)
            if start >= m:
                break
            stop, leader = min(start + STRIDE, m), -1
            for i in range(start, stop):
                if mine[i] < gate:
                    continue
                if mine[i] > best:
                    best, leader = mine[i], i
                if count == room:  # perhaps the cut has been raised since the first of them came
                    count = 0
                    for g in range(room):
                        if value[j, g] >= cut:
                            found[j, count], value[j, count] = found[j, g], value[j, g]
                            count += 1
                    if count >= room - room // 4:
                        count = room + 1
                if count < room:
                    found[j, count], value[j, count] = first + i, mine[i]
                    count += 1
            if leader >= 0:
                score = dot(rows[j], centroids[order[first + leader]]) - slack[j]
                if score > low[j]:
                    low[j] = score
                    cut = products.dtype.type(cut_of(score, mean[j], margin[j], unit[j], whole))
        held[j], top[j] = count, best


@compiled
def narrow(
    rows: Any, centroids: Any, order: Any, mean: Any, margin: Any, unit: Any, slack: Any, whole: Any, low: Any, held: Any, found: Any, value: Any,
    ids: Any,
) -> Any:  # fmt: skip
    """Score what `sift` found, in float32: ids[j] gets the best, and found[j] the held[j] centroid numbers that may be the nearest within
    rounding. Rows that have more than they have room for stay as they are.
    """
    n, room = found.shape
    scores = np.empty(room, np.float32)
    for j in range(n):
        if held[j] > room:
            continue
        cut = value.dtype.type(cut_of(low[j], mean[j], margin[j], unit[j], whole))
        best, count = np.float32(-np.inf), 0
        for g in range(held[j]):
            if value[j, g] < cut:
                continue
            number = order[found[j, g]]
            score = dot(rows[j], centroids[number])
            if score > best:
                best, ids[j] = score, number
                if score - slack[j] > low[j]:
                    low[j] = score - slack[j]
                    cut = value.dtype.type(cut_of(low[j], mean[j], margin[j], unit[j], whole))
            found[j, count], scores[count] = number, score
            count += 1
        held[j] = 0
        for g in range(count):
            if scores[g] >= best - 2 * slack[j]:
                found[j, held[j]] = found[j, g]
                held[j] += 1
