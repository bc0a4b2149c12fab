"""Matrices that need not fit in memory."""

from __future__ import annotations

from typing import Any, Protocol, overload, runtime_checkable

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

    @overload
    def __getitem__(self, key: slice) -> npt.NDArray[Any]: ...

    @overload
    def __getitem__(self, key: Int64) -> npt.NDArray[Any]: ...
