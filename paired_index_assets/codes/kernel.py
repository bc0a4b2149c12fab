"""Rounding, compiled: `COLUMNS` rows of data at a time, so that all that is known of them stays in the cache (see `rounding`).

A row's levels are the same whatever rows are beside it, however many there are, and on every processor that has fused multiply-add.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from paired_index_assets.codes.products import COLUMNS, ROWS, STEPS, descend, follow, fused, lowest, multiply, whole
from paired_index_assets.files.compiling import compiled_as_written
from paired_index_assets.rows import Float32, Int64


class Panels(NamedTuple):
    """The matrices of a `Rounding` as `multiply` reads them, in panels of ROWS (in: rows of the product) or of COLUMNS, zeros behind.

    order (r,). into (.., d + 1, ROWS): a row and a 1 to its coordinates; behind them to the expected caption and to
    what it misses, `rank` numbers each. `own`: the coordinates are the row's own, `into` has no panel for them. outward (.., rank, ROWS).
    feedback (.., r, ROWS); slopes (.., r, COLUMNS) the unit triangle that feedback is a part of, transposed; pivots (r,) between the two.
    metric (r, width), diagonal and tops (width,), first and step (r,).
    """

    order: Int64
    into: Float32
    own: bool
    rank: int
    misses: bool
    outward: Float32
    feedback: Float32
    slopes: Float32
    pivots: Float32
    metric: Float32
    diagonal: Float32
    tops: Float32
    first: Float32
    step: Float32


def panels_of(matrix: Float32, width: int) -> Float32:
    """(n, terms) to (n / width, terms, width), zeros behind the last."""
    n, terms = matrix.shape
    padded = np.zeros((-(-n // width) * width, terms), np.float32)
    padded[:n] = matrix
    return np.ascontiguousarray(padded.reshape(-1, width, terms).transpose(0, 2, 1))


@compiled_as_written
def _product(panels: Any, terms: int, right: Any, out: Any) -> None:
    """out (.. ROWS, COLUMNS) = the panels' rows times the first `terms` rows of right (.., COLUMNS)."""
    size, at, to = 4 * panels.shape[1] * ROWS, panels.ctypes.data, out.ctypes.data
    for panel in range(panels.shape[0]):
        multiply(at + panel * size, ROWS, right.ctypes.data, COLUMNS, terms, to + 4 * panel * ROWS * COLUMNS, COLUMNS)


@compiled_as_written
def _expect(asked: Any, missed: Any, misses: bool, along: Any) -> None:
    """`asked` (rank, COLUMNS) become unit vectors; `along` (COLUMNS,) what they miss."""
    lengths = np.zeros(COLUMNS, np.float32)
    for i in range(len(asked)):
        for j in range(COLUMNS):
            lengths[j] = fused(asked[i, j], asked[i, j], lengths[j])
    for j in range(COLUMNS):
        lengths[j] = max(np.sqrt(lengths[j]), np.float32(np.finfo(np.float32).tiny))
        along[j] = np.float32(0)
    for i in range(len(asked)):
        for j in range(COLUMNS):
            asked[i, j] /= lengths[j]
    if misses:
        for i in range(len(asked)):
            for j in range(COLUMNS):
                along[j] = fused(asked[i, j], missed[i, j], along[j])


@compiled_as_written
def _feed_back(panels: Any, coordinates: Any, expected: Any, levels: Any, errors: Any, residues: Any, along: Any) -> None:
    """The levels of error feedback, their errors, and what of each error feedback did not aim at, times the pivot."""
    r, size = len(panels.order), 4 * panels.feedback.shape[1] * ROWS
    made, at, past = np.empty((ROWS, COLUMNS), np.float32), panels.feedback.ctypes.data, errors.ctypes.data
    for start in range(0, r, ROWS):
        panel = start // ROWS
        factors = panels.feedback[panel]
        multiply(at + panel * size, ROWS, past, COLUMNS, start, made.ctypes.data, COLUMNS)
        for p in range(start, min(start + ROWS, r)):
            row, level, error, residue = made[p - start], levels[p], errors[p], residues[p]
            for q in range(start, p):
                factor, before = factors[q, p - start], errors[q]
                for j in range(COLUMNS):
                    row[j] = fused(factor, before[j], row[j])
            first, step, top, pivot, place, v = (
                panels.first[p],
                panels.step[p],
                panels.tops[p],
                panels.pivots[p],
                coordinates[p],
                expected[p],
            )
            for j in range(COLUMNS):
                target = (place[j] - first) / step
                nearest = whole(target - row[j])
                nearest = nearest if nearest < top else top
                nearest = nearest if nearest > np.float32(0) else np.float32(0)
                level[j] = nearest
                error[j] = nearest - target
                residue[j] = pivot * (error[j] + row[j])
                along[j] = fused(v[j], error[j], along[j])


@compiled_as_written
def _slope(panels: Any, residues: Any, slopes: Any) -> None:
    """slopes (COLUMNS, .. COLUMNS) = the transposed residues (r, COLUMNS) times the panels, each from its first row that is not zero on."""
    r, size, width = len(residues), 4 * panels.shape[1] * COLUMNS, slopes.shape[1]
    at, past, to = panels.ctypes.data, residues.ctypes.data, slopes.ctypes.data
    for first in range(0, r, COLUMNS):
        panel, row = at + first // COLUMNS * size + 4 * first * COLUMNS, past + 4 * first * COLUMNS
        for j in range(0, COLUMNS, ROWS):
            multiply(row + 4 * j, COLUMNS, panel, COLUMNS, r - first, to + 4 * (j * width + first), width)


@compiled_as_written
def _go_down(panels: Any, passes: int, level: Any, slope: Any, expected: Any, along: Any) -> None:
    """Coordinate descent of one row of data: few dimensions move, and the others are only looked at."""
    metric, moves = panels.metric, np.empty(STEPS, np.float32)
    width, moves_at, level_at, slope_at, expected_at = (
        metric.shape[1],
        moves.ctypes.data,
        level.ctypes.data,
        slope.ctypes.data,
        expected.ctypes.data,
    )
    metric_at, diagonal_at, tops_at = metric.ctypes.data, panels.diagonal.ctypes.data, panels.tops.ctypes.data
    for done in range(passes):
        for start in range(0, width, STEPS):
            left, skip = ~np.uint64(0), 4 * start
            while True:
                which = left & descend(
                    level_at + skip, slope_at + skip, expected_at + skip, diagonal_at + skip, tops_at + skip, moves_at, along
                )
                if not which:
                    break
                i = lowest(which)
                p, move = start + i, moves[i]
                level[p] += move
                along += expected[p] * move
                first = start if done == passes - 1 else 0
                follow(slope_at + 4 * first, metric_at + 4 * (p * width + first), move, width - first)
                left = ~np.uint64(0) << np.uint64(i + 1)


@compiled_as_written
def _turn(rows: Any, columns: Any) -> None:
    """columns (m, n) = rows (n, m) transposed, by squares that fit the cache."""
    n, m = rows.shape
    for start in range(0, m, STEPS):
        for j in range(n):
            for i in range(start, min(start + STEPS, m)):
                columns[i, j] = rows[j, i]


@compiled_as_written
def round_rows(rows: Any, panels: Any, passes: int, coded: Any) -> None:
    """coded (n, r) uint8: the levels of `rows` (n, d) float32, in the order of the code."""
    n, d = rows.shape
    r, rank, width = len(panels.order), panels.rank, panels.metric.shape[1]
    columns = np.ones((d + 1, COLUMNS), np.float32)
    placed = np.empty((len(panels.into) * ROWS, COLUMNS), np.float32)
    coordinates, after = np.empty((r, COLUMNS), np.float32), 0 if panels.own else r
    expected = np.empty((len(panels.outward) * ROWS, COLUMNS), np.float32)
    levels, errors, residues = np.empty((r, COLUMNS), np.float32), np.empty((r, COLUMNS), np.float32), np.empty((r, COLUMNS), np.float32)
    along, slopes = np.empty(COLUMNS, np.float32), np.empty((COLUMNS, len(panels.slopes) * COLUMNS), np.float32)
    level, v = np.zeros((COLUMNS, width), np.float32), np.zeros((COLUMNS, width), np.float32)
    for start in range(0, n, COLUMNS):
        here = min(COLUMNS, n - start)
        _turn(rows[start : start + here], columns)
        _product(panels.into, d + 1, columns, placed)
        if panels.own:
            for p in range(r):
                coordinates[p] = columns[panels.order[p]]
        else:
            coordinates = placed[:r]
        _expect(placed[after : after + rank], placed[after + rank :], panels.misses, along)
        _product(panels.outward, rank, placed[after:], expected)
        _feed_back(panels, coordinates, expected, levels, errors, residues, along)
        _turn(levels, level)
        if passes:
            _turn(expected[:r], v)
            _slope(panels.slopes, residues, slopes)
            for j in range(here):
                _go_down(panels, passes, level[j], slopes[j], v[j], along[j])
        for j in range(here):
            code, of_row = coded[start + j], level[j]
            for p in range(r):
                code[panels.order[p]] = np.uint8(of_row[p])
