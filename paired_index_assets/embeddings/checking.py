"""Which rows of a part can be used, and their norms: one pass over it, whose answer is kept in a small file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from upath import UPath

from paired_index_assets.errors import DamagedArtifact
from paired_index_assets.files.tables import read_arrays, write_arrays
from paired_index_assets.rows import NORM_TOLERANCE, Bool, squared_norms, usable_squares

CHECK = "2"  # change it when a check of the same rows says something else
CHECK_ROWS = 1 << 14  # rows looked at together: 50 MB at d=768 in float32

Checked = tuple[
    Bool, npt.NDArray[np.float64]
]  # whether each row is finite and not zero; least and greatest norm of those, how many are not 1


def checked_rows(kept: UPath, rows: int, part: Callable[[], npt.NDArray[Any]]) -> Checked:
    """What `kept` says of a `part` of so many rows, or a pass over them, kept."""
    found = _kept(kept, rows)
    if found is None:
        found = _check(part())
        write_arrays(kept, {"bits": np.packbits(found[0]), "norms": found[1]})
    return found


def _kept(cached: UPath, rows: int) -> Checked | None:
    """What a cache says of a part of so many rows; None where there is none, or one that is damaged: it is made again."""
    try:
        content = read_arrays(cached, "delete it")
        bits, norms = content["bits"], content["norms"]
    except (FileNotFoundError, DamagedArtifact, KeyError):
        return None
    if bits.dtype != np.uint8 or bits.shape != (-(-rows // 8),) or norms.shape != (3,):
        return None
    return np.unpackbits(bits, count=rows).astype(np.bool_), norms


def _check(rows: npt.NDArray[Any]) -> Checked:
    bits = np.zeros(len(rows), np.bool_)
    low, high, off = np.inf, 0.0, 0
    for start in range(0, len(rows), CHECK_ROWS):
        block = rows[start : start + CHECK_ROWS]
        squares = squared_norms(block)
        good = usable_squares(squares)
        bits[start : start + len(block)] = good
        if good.any():
            low, high = min(low, float(squares[good].min())), max(high, float(squares[good].max()))
            off += int((np.abs(np.sqrt(squares[good]) - 1) > NORM_TOLERANCE).sum())
    return bits, np.array([np.sqrt(low), np.sqrt(high), off])
