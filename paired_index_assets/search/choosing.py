"""What the kernel knows of a query, compiled: the query after the transform, its weights in whole numbers, the lists it looks in."""

from __future__ import annotations

from typing import Any

import numpy as np

from paired_index_assets.files.compiling import compiled
from paired_index_assets.search.blocks import MOST_BLOCKS, VECTORS, block_bytes, dot_blocks, lowest, within
from paired_index_assets.search.dots import float32_at, float64_at, int64_at
from paired_index_assets.search.ranking import NOTHING, lead, promising

LARGEST_WEIGHT = 127 * 256 + 127
LARGEST_SUM = 2**31 - 2**16
BEST_FIRST = 4  # groups and lists that are looked in before the others: what is found there bounds what is of interest in the others
SPARE = 16  # candidates beyond 2 k before the worse ones are thrown out


@compiled
def _inner(a: int, b: int, n: int) -> Any:
    """The inner product of two float32 vectors at these addresses."""
    x, y, total = float32_at(a), float32_at(b), np.float32(0)
    for i in range(n):
        total += x[i] * y[i]
    return total


@compiled
def transform(plan: Any, query: Any, seen: Any) -> Any:
    """What the codes' inner products see of a query (d,): `seen` (width,). False for a query that is not finite."""
    d, width, at = plan.d, plan.width, query.ctypes.data
    length = np.float32(0)
    for i in range(d):
        length += query[i] * query[i]
    if not np.isfinite(length):
        return False
    if plan.transform == 0:
        seen[:] = query
        return True
    for j in range(width):
        seen[j] = _inner(plan.transform + 4 * d * j, at, d)
    if plan.offset != 0:
        offset = float32_at(plan.offset)
        for j in range(width):
            seen[j] += offset[j]
    return True


@compiled
def weigh(seen: Any, step: int, top: int, planes: int, blur: float, weights: Any, facts: Any) -> Any:
    """Fill `weights` (2 planes, stride) int8 and `facts` (width,) float64 = ``W``, for levels of up to `top`; returns by how many units two
    whole scores may mislead, `blur` being how far, in steps, a level may be from what it stands for."""
    steps, largest, total = float64_at(step), 0.0, 0.0
    for i in range(len(seen)):
        facts[i] = seen[i] * steps[i]
        largest = max(largest, abs(facts[i]))
        total += abs(facts[i])
    unit = max(largest / LARGEST_WEIGHT, total * top / LARGEST_SUM)
    if unit == 0:
        unit = 1.0
    lost = 0.0
    for i in range(len(seen)):
        exact = facts[i] / unit
        whole = np.int64(np.rint(exact))
        lost += abs(exact - whole)
        coarse = (whole + 128) >> 8
        at, half = i // planes, i % planes
        weights[half, at] = coarse
        weights[planes + half, at] = whole - 256 * coarse
    return np.int64(np.ceil(2 * (top * lost + blur * total / unit))) + 2


@compiled
def choose(plan: Any, seen: Any, nprobe: int, weights: Any, sums: Any, facts: Any, lists: Any) -> None:
    """The `nprobe` lists whose centroids have the largest inner product with `seen`, the best one
    first, the others in no order; -1 where there are fewer.

    Where the plan has centroids in whole numbers (`quick_rows`), these say which few are worth the exact product.
    """
    width, at, groups = plan.width, seen.ctypes.data, plan.group_probe
    if 2 * nprobe * plan.groups > groups * plan.nlist:  # as trained/coarse.py `probe`
        groups = plan.groups
    sizes, rows, numbers = int64_at(plan.member_sizes), int64_at(plan.member_rows), int64_at(plan.member_lists)
    chosen = np.zeros(plan.groups, np.int64)
    if plan.group_rows != 0:
        scores, unused = np.empty(plan.groups, np.float32), np.zeros(plan.groups, np.int64)
        for group in range(plan.groups):
            chosen[group] = group
            scores[group] = _inner(plan.group_rows + 4 * width * group, at, width)
        lead(scores, chosen, unused, plan.groups, groups)
        lead(scores, chosen, unused, groups, min(groups, BEST_FIRST))
    members = 0
    for group in chosen[:groups]:
        members += sizes[group]
    places, ids, count = np.empty(members, np.int64), np.empty(members, np.int64), 0
    if plan.quick_rows == 0:
        for group in chosen[:groups]:
            number = int64_at(numbers[group])
            for member in range(sizes[group]):
                places[count], ids[count] = rows[group] + 4 * width * member, member if numbers[group] == 0 else number[member]
                count += 1
    else:
        marks, threshold, full = np.empty(members, np.int32), np.int64(NOTHING), 2 * nprobe + SPARE
        slack = weigh(seen, plan.quick_step, 255, 1, 0.5, weights, facts)
        quick, weights_at, stride, sums_at = int64_at(plan.quick_rows), weights.ctypes.data, weights.shape[1], sums.ctypes.data
        quads, size = plan.quick_quads, block_bytes(width)
        for group in chosen[:groups]:
            number = int64_at(numbers[group])
            for first in range(0, sizes[group], len(sums)):
                left = sizes[group] - first
                blocks = min(MOST_BLOCKS, (left + VECTORS - 1) // VECTORS)
                near = dot_blocks(quick[group] + first // VECTORS * size, size, weights_at, stride, quads, blocks, threshold, sums_at)
                near = within(near, left)
                while near:
                    member = lowest(near)
                    near &= near - np.uint64(1)
                    mark, member = sums[member], first + member
                    if mark < threshold:  # which rose since
                        continue
                    marks[count], places[count] = mark, rows[group] + 4 * width * member
                    ids[count] = member if numbers[group] == 0 else number[member]
                    count += 1
                    if count == full:
                        count, threshold = promising(marks, places, ids, count, nprobe, slack)
                        full = max(full, 2 * count)
        count, threshold = promising(marks, places, ids, count, nprobe, slack)
    found = np.empty(count, np.float32)
    for i in range(count):
        found[i] = _inner(places[i], at, width)
    if count > nprobe:
        lead(found, ids, places, count, nprobe)  # equal ones at the edge: any of them, the same at each time
        count = nprobe
    best = min(count, BEST_FIRST)
    lead(found, ids, places, count, best)
    lead(found, ids, places, best, 1)
    for i in range(nprobe):
        lists[i] = ids[i] if i < count else -1
