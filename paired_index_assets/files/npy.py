"""One .npy file of embedding rows: checked by its header, written as a stream."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from upath import UPath

from paired_index_assets.errors import BadInput, MissingInput
from paired_index_assets.files.storage import as_path, head_of

EMBEDDING_DTYPES = (np.dtype("<f2"), np.dtype("<f4"))
HEAD_BYTES = 4096  # looked at; other writers may pad more
HEADER_BYTES = 128  # numpy pads the header of any 2-D array of these dtypes to 128 bytes; StreamedNpy checks it


@dataclass(frozen=True)
class NpyHeader:
    rows: int
    dimensions: int
    dtype: np.dtype[Any]
    offset: int  # bytes before the first row


def read_header(url: str | Path | UPath) -> NpyHeader:
    """The header of a (rows, dimensions) .npy file, local or remote.

    Raises MissingInput if there is no file, BadInput unless it is a complete C-ordered 2-D matrix of float16 or float32.
    """
    try:
        head, size = head_of(as_path(url), HEAD_BYTES)
        stream = io.BytesIO(head)
        shape, fortran, dtype = _read_header(stream)
        offset = stream.tell()
    except FileNotFoundError as error:
        raise MissingInput(f"{url}: no such file; expected a .npy file of embeddings") from error
    except (ValueError, EOFError) as error:
        raise BadInput(f"{url}: expected a .npy file, found {size} bytes that are not one ({error}); save it with numpy.save") from error
    if dtype.hasobject:
        raise BadInput(f"{url}: expected float16 or float32, found an object array (a pickle, never loaded); save it as float16")
    if dtype not in EMBEDDING_DTYPES:
        raise BadInput(f"{url}: expected dtype float16 or float32 (little-endian), found {dtype.str}; save it with .astype('float16')")
    if len(shape) != 2 or shape[1] == 0:
        raise BadInput(f"{url}: expected a matrix of shape (rows, dimensions), found shape {shape}")
    if fortran and min(shape) > 1:
        raise BadInput(f"{url}: expected rows in C order, found Fortran order; save it with numpy.ascontiguousarray")
    expected = offset + shape[0] * shape[1] * dtype.itemsize
    if size != expected:
        raise BadInput(f"{url}: expected {expected} bytes for shape {shape} of {dtype}, found {size}; copy the file again")
    return NpyHeader(shape[0], shape[1], dtype, offset)


def map_rows(path: Path) -> npt.NDArray[Any]:
    """The matrix of a local .npy file, memory-mapped read-only. Raises as `read_header`."""
    header = read_header(path)
    if header.rows == 0:  # an empty mapping is refused by the kernel
        return np.empty((0, header.dimensions), header.dtype)
    rows: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    return rows


def _read_header(stream: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(stream)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(stream)
    raise ValueError(f"format version {version}")


class StreamedNpy:
    """Write a .npy matrix whose number of rows is known only at the end: blocks are appended, the header goes in last.

    The caller gives a temporary path (`storage.atomic_file`), so a file without its header is never seen.
    """

    def __init__(self, path: Path, dimensions: int, dtype: npt.DTypeLike = np.float16) -> None:
        self.dimensions = dimensions
        self.dtype = np.dtype(dtype)
        self.rows = 0
        self._stream = path.open("wb")
        self._stream.write(bytes(HEADER_BYTES))

    def append(self, block: npt.NDArray[Any]) -> None:
        """Append (n, dimensions) rows, cast to the file's dtype."""
        if block.ndim != 2 or block.shape[1] != self.dimensions:
            raise BadInput(f"expected rows of {self.dimensions} dimensions, found a block of shape {block.shape}")
        self._stream.write(np.ascontiguousarray(block, self.dtype).data)
        self.rows += len(block)

    def __enter__(self) -> StreamedNpy:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            header = io.BytesIO()
            shape = (self.rows, self.dimensions)
            np.lib.format.write_array_header_1_0(header, {"descr": self.dtype.str, "fortran_order": False, "shape": shape})
            if header.tell() != HEADER_BYTES:
                raise RuntimeError(f"numpy wrote a header of {header.tell()} bytes for shape {shape}, expected {HEADER_BYTES}")
            self._stream.seek(0)
            self._stream.write(header.getvalue())
        self._stream.close()
