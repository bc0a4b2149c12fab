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
