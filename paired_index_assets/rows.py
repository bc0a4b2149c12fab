"""Matrices that need not fit in memory."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]
Int32 = npt.NDArray[np.int32]
UInt8 = npt.NDArray[np.uint8]
Bool = npt.NDArray[np.bool_]


@runtime_checkable
class Rows(Protocol):
    """A (rows, dimensions) matrix of float16 or float32, read by slices: an array, a memory map, or parts on disk.

    ``rows[a:b]`` returns those rows as an array, ``rows[ids]`` the rows of an int64 array in that order.
    """

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, key: Any, /) -> Any: ...


LEAST_NORM, MOST_NORM = 1e-18, 1e18  # float32 holds the squares of all lengths between them
NORM_TOLERANCE = 1e-2  # half precision moves a norm by about 1e-3 (as in LAION's embeddings); ten times that is another kind of vector
CACHED_ROWS = 128
HALF_INFINITY = 65536.0  # what the bits of a float16 infinity would mean if they were a number


def usable_rows(rows: npt.NDArray[Any]) -> Bool:
    """(n,) which rows of an (n, d) float16/32 block may be paired, listed and searched: finite, and of a length in LEAST_NORM..MOST_NORM.

    The one answer of this project: zero rows and those that only float64 could tell from zero or infinity are unusable everywhere.
    """
    return usable_squares(squared_norms(rows))


def usable_squares(squares: Float32) -> Bool:
    """`usable_rows`, by their `squared_norms`."""
    usable: Bool = (squares >= LEAST_NORM**2) & (squares <= MOST_NORM**2)  # NaN compares false
    return usable


def squared_norms(rows: npt.NDArray[Any]) -> Float32:
    """(n,) float32: NaN or infinity where a value is not finite or the length is above MOST_NORM.

    float16 is widened by shifting its bits, block by block in the cache: 830 MB/s on one core, numpy's own conversion 190.
    """
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        if rows.dtype != np.float16:
            found: Float32 = np.einsum("ij,ij->i", rows, rows).astype(np.float32, copy=False)
            return found
        squares = np.empty(len(rows), dtype=np.float32)
        bits = np.ascontiguousarray(rows).view(np.uint16)
        for at in range(0, len(bits), CACHED_ROWS):
            magnitudes = np.bitwise_and(bits[at : at + CACHED_ROWS], 0x7FFF).astype(np.uint32)
            np.left_shift(magnitudes, 13, out=magnitudes)  # 10 bits of mantissa to 23
            wide = magnitudes.view(np.float32)
            np.multiply(wide, np.float32(2.0**112), out=wide)  # exponent bias 15 to 127
            np.einsum("ij,ij->i", wide, wide, out=squares[at : at + CACHED_ROWS])
        long = np.flatnonzero(~(squares < HALF_INFINITY**2))  # among them those with an infinity or a NaN
        exact = rows[long].astype(np.float32)
        squares[long] = np.einsum("ij,ij->i", exact, exact)
        return squares


class Selected:
    """Some rows of a matrix, in a given order, read only when asked for: `ids` may repeat."""

    def __init__(self, rows: Rows, ids: Int64) -> None:
        self._rows = rows
        self._ids = ids
        self.shape = (len(ids), rows.shape[1])
        self.dtype = rows.dtype

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, key: slice | Int64) -> npt.NDArray[Any]:
        chosen: npt.NDArray[Any] = self._rows[self._ids[key]]
        return chosen
