"""The header of an `.npy` file, read by numpy's own reader and held against what this project can use."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from numpy.lib import format as npy

from paired_index_assets.errors import BadInput

HEAD_BYTES = 4096  # a header of numbers is 128 bytes; this leaves room for padding by other writers
DTYPES = ("<f2", "<f4")
_HTML = (b"<!doctype", b"<html", b"<?xml", b"<head")


@dataclass(frozen=True)
class NpyHeader:
    """Shape (rows, dimensions), dtype string ('<f2' or '<f4') and the bytes before the first row."""

    rows: int
    dimensions: int
    dtype: str
    header_bytes: int

    @property
    def row_bytes(self) -> int:
        return self.dimensions * np.dtype(self.dtype).itemsize

    @property
    def file_bytes(self) -> int:
        return self.header_bytes + self.rows * self.row_bytes


def read_header(stream: BinaryIO, name: str) -> NpyHeader:
    """Read the header and leave `stream` at the first row. Raises BadInput naming `name`, what was expected and found."""
    head = stream.read(HEAD_BYTES)
    header = header_of(head, name)
    stream.seek(header.header_bytes)
    return header


def header_of(head: bytes, name: str) -> NpyHeader:
    """The header in the first bytes of a file (HEAD_BYTES of them, or the whole file if it is shorter).

    Raises BadInput for anything but a C-ordered matrix of little-endian float16 or float32.
    """
    if not head:
        raise BadInput(f"{name}: empty file; expected an .npy matrix. Copy or download it again")
    if head[: len(npy.MAGIC_PREFIX)] != npy.MAGIC_PREFIX:
        found = "an HTML or XML page" if head.lstrip().lower().startswith(_HTML) else f"it starts with {head[:8]!r}"
        raise BadInput(f"{name}: not an .npy file; {found}. Copy or download it again")
    stream = io.BytesIO(head)
    try:
        version = npy.read_magic(stream)
        if version == (1, 0):
            shape, fortran, dtype = npy.read_array_header_1_0(stream)
        elif version == (2, 0):
            shape, fortran, dtype = npy.read_array_header_2_0(stream)
        else:
            raise BadInput(f"{name}: .npy format version {version}; expected 1.0 or 2.0. Save it again with numpy.save")
    except BadInput:
        raise
    except ValueError as error:
        raise BadInput(f"{name}: damaged .npy header ({error}). Copy or download it again") from error
    if dtype.hasobject:
        raise BadInput(f"{name}: an array of Python objects; expected float16 or float32. Objects are pickles and are never loaded")
    if dtype.str not in DTYPES:
        raise BadInput(f"{name}: dtype {dtype.str}; expected one of {', '.join(DTYPES)}. Convert it with array.astype('<f2')")
    if len(shape) != 2:
        raise BadInput(f"{name}: shape {shape}; expected a matrix (rows, dimensions)")
    if fortran and min(shape) > 1:
        raise BadInput(f"{name}: Fortran order; expected C order (row after row). Save it with numpy.ascontiguousarray")
    if shape[0] < 1 or shape[1] < 1:
        raise BadInput(f"{name}: shape {shape}; expected at least one row and one dimension. Leave the file out")
    return NpyHeader(int(shape[0]), int(shape[1]), dtype.str, stream.tell())
