"""One .npy file of embedding rows: checked by its header, written as a stream."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy
from upath import UPath

from paired_index_assets.errors import BadInput, MissingInput
from paired_index_assets.files.storage import as_path, head_of

EMBEDDING_DTYPES = (np.dtype("<f2"), np.dtype("<f4"))
HEAD_BYTES = 4096  # looked at; other writers may pad more than numpy's 128 bytes
HEADER_BYTES = 128  # numpy pads the header of any 2-D array of these dtypes to 128 bytes; StreamedNpy checks it
_HTML = (b"<!doctype", b"<html", b"<?xml", b"<head")


@dataclass(frozen=True)
class NpyHeader:
    """A matrix of `rows` x `dimensions`, and the bytes before its first row."""

    rows: int
    dimensions: int
    dtype: np.dtype[Any]
    header_bytes: int

    @property
    def row_bytes(self) -> int:
        return self.dimensions * self.dtype.itemsize

    @property
    def file_bytes(self) -> int:
        return self.header_bytes + self.rows * self.row_bytes


def described(stream: BinaryIO, name: str) -> tuple[tuple[int, ...], bool, np.dtype[Any], int]:
    """(shape, whether in Fortran order, dtype, bytes before the first value) of a .npy file of any kind but objects.

    Raises BadInput naming `name`.
    """
    head = stream.read(HEAD_BYTES)
    if not head:
        raise BadInput(f"{name}: expected a .npy file, found an empty file; copy or download it again")
    if head[: len(npy.MAGIC_PREFIX)] != npy.MAGIC_PREFIX:
        found = "an HTML or XML page" if head.lstrip().lower().startswith(_HTML) else f"one that begins with {head[:8]!r}"
        raise BadInput(f"{name}: expected a .npy file, found {found}; copy or download it again, or save it with numpy.save")
    start = io.BytesIO(head)
    try:
        version = npy.read_magic(start)
        if version not in ((1, 0), (2, 0)):
            raise BadInput(f"{name}: expected .npy format version 1.0 or 2.0, found {version}; save it again with numpy.save")
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, fortran, dtype = read(start)
    except BadInput:
        raise
    except Exception as error:  # numpy evaluates the header: ValueError, EOFError, TypeError, tokenize's and the parser's own
        reason = " ".join(str(error).split())[:160]
        raise BadInput(f"{name}: expected a .npy file, found a damaged header ({reason}); copy or download it again") from error
    if dtype.hasobject:
        raise BadInput(f"{name}: expected float16 or float32, found an object array (a pickle, never loaded); save it as float16")
    if any(length < 0 for length in shape):
        raise BadInput(f"{name}: expected a .npy file, found a damaged header (shape {shape}); copy or download it again")
    return shape, fortran, dtype, start.tell()


def header_of(head: bytes, name: str) -> NpyHeader:
    """The header in the first bytes of a file (HEAD_BYTES of them, or the whole file if it is shorter).

    Raises BadInput naming `name` for anything but a C-ordered matrix of little-endian float16 or float32, which may have no rows.
    """
    shape, fortran, dtype, offset = described(io.BytesIO(head), name)
    if dtype not in EMBEDDING_DTYPES:
        raise BadInput(f"{name}: expected dtype float16 or float32 (little-endian), found {dtype.str}; save it with .astype('float16')")
    if len(shape) != 2 or shape[1] == 0:
        raise BadInput(f"{name}: expected a matrix of shape (rows, dimensions), found shape {shape}")
    if fortran and min(shape) > 1:
        raise BadInput(f"{name}: expected rows in C order, found Fortran order; save it with numpy.ascontiguousarray")
    return NpyHeader(int(shape[0]), int(shape[1]), dtype, offset)


def whole_header(head: bytes, size: int, name: str) -> NpyHeader:
    """`header_of` a file of `size` bytes, which must be those that its header promises."""
    header = header_of(head, name)
    if size != header.file_bytes:
        shape = f"{header.rows} x {header.dimensions} of {header.dtype}"
        raise BadInput(f"{name}: expected the {header.file_bytes} bytes that its header promises ({shape}), found {size}; copy it again")
    return header


def read_header(url: str | Path | UPath) -> NpyHeader:
    """The header of a complete .npy file, local or remote. Raises MissingInput if there is no file, BadInput as `whole_header`."""
    try:
        head, size = head_of(as_path(url), HEAD_BYTES)
    except FileNotFoundError as error:
        raise MissingInput(f"{url}: no such file; expected a .npy file of embeddings") from error
    return whole_header(head, size, str(url))


def map_rows(path: Path) -> npt.NDArray[Any]:
    """The matrix of a local .npy file, memory-mapped read-only. Raises as `read_header`."""
    header = read_header(path)
    if header.rows == 0:  # an empty mapping is refused by the kernel
        return np.empty((0, header.dimensions), header.dtype)
    rows: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    return rows


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
