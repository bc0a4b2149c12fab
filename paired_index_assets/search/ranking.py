"""The best of many, compiled: quickselect, an order, and what may still be among the best when whole scores mislead a little."""

from __future__ import annotations

from typing import Any

import numpy as np

from paired_index_assets.files.compiling import compiled

NOTHING = np.iinfo(np.int32).min


@compiled
def lead(scores: Any, first: Any, second: Any, count: int, k: int) -> None:
    """Move the k largest of the first `count` scores to the front (quickselect), and what belongs to them."""
    low, high = 0, count - 1
    while low < high:
        pivot = scores[(low + high) // 2]
        i, j = low, high
        while i <= j:
            while scores[i] > pivot:
                i += 1
            while scores[j] < pivot:
                j -= 1
            if i <= j:
                scores[i], scores[j] = scores[j], scores[i]
                first[i], first[j] = first[j], first[i]
                second[i], second[j] = second[j], second[i]
                i += 1
                j -= 1
        if k - 1 <= j:
            high = j
        elif k - 1 >= i:
            low = i
        else:
            return


@compiled
def _after(scores: Any, ids: Any, a: int, b: int) -> Any:
    """Whether a comes after b: by descending score, then ascending id."""
    return scores[a] < scores[b] or (scores[a] == scores[b] and ids[a] > ids[b])


@compiled
def in_order(scores: Any, ids: Any, count: int) -> Any:
    """Which of the first `count` come first: by descending score, equal ones by ascending id (heapsort)."""
    order = np.arange(count)
    first, last = count // 2, count - 1
    while last > 0:
        if first > 0:
            first -= 1
            root = first
        else:
            order[0], order[last] = order[last], order[0]
            last -= 1
            root = 0
        while 2 * root + 1 <= last:
            child = 2 * root + 1
            if child < last and _after(scores, ids, order[child + 1], order[child]):
                child += 1
            if not _after(scores, ids, order[child], order[root]):
                break
            order[root], order[child] = order[child], order[root]
            root = child
    return order


@compiled
def promising(marks: Any, places: Any, ids: Any, count: int, k: int, slack: int) -> Any:
    """Move to the front what may be among the best k (all of it, where there are no more than k); how many, and the least mark of any
    interest."""
    if count < k:
        return count, np.int64(NOTHING)
    lead(marks, places, ids, count, k)
    threshold = max(np.int64(marks[:k].min()) - slack, np.int64(NOTHING))
    kept = k
    for i in range(k, count):
        if marks[i] >= threshold:
            marks[kept], places[kept], ids[kept] = marks[i], places[i], ids[i]
            kept += 1
    return kept, threshold
