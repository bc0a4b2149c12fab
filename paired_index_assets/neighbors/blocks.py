"""Reading blocks of rows: checked as they are read, so that a matrix larger than memory is checked too."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from paired_index_assets.errors import BadInput
from paired_index_assets.neighbors.workers import Workspace
from paired_index_assets.rows import Rows

# Norms up to this keep every product and sum of products far inside float32 (3.4e38).
LARGEST_NORM = 1e18
PIECE_BYTES = 1 << 20  # read and converted at a time, in cache


@dataclass(frozen=True)
class Block:
    """Rows `start` .. `start + len(vectors)` of a matrix, float32, C order, with their Euclidean norms."""

    start: int
    vectors: torch.Tensor
    norms: torch.Tensor

    def __len__(self) -> int:
        return len(self.vectors)


def check_matrix(rows: Rows, name: str) -> None:
    """Raises BadInput unless `rows` is a (rows > 0, dimensions > 0) matrix of float16 or float32."""
    if len(rows.shape) != 2:
        raise BadInput(f"{name}: expected a matrix (rows, dimensions), found shape {tuple(rows.shape)}; reshape it")
    if rows.shape[0] == 0 or rows.shape[1] == 0:
        raise BadInput(f"{name}: expected at least one row and one dimension, found shape {tuple(rows.shape)}")
    if rows.dtype not in (np.float16, np.float32):
        raise BadInput(f"{name}: expected float16 or float32, found {rows.dtype}; convert it with .astype(np.float32)")


def check_same_width(a: Rows, a_name: str, b: Rows, b_name: str) -> None:
    if a.shape[1] != b.shape[1]:
        raise BadInput(f"{a_name} have {a.shape[1]} dimensions and {b_name} {b.shape[1]}; both must come from the same model")


def read_block(rows: Rows, start: int, stop: int, name: str, device: str = "cpu", space: Workspace | None = None) -> Block:
    """Rows start..stop as float32 on `device`, in `space` if given.

    Raises BadInput naming the first row that is not finite or too large to multiply.
    """
    vectors = (space or Workspace()).tensor("rows", (stop - start, rows.shape[1]), torch.float32, device)
    step = max(1, PIECE_BYTES // (rows.shape[1] * rows.dtype.itemsize))
    for first in range(start, stop, step):
        piece = rows[first : min(first + step, stop)]
        part = vectors[first - start : first - start + len(piece)]
        if device == "cpu" and piece.dtype == np.float32:
            np.copyto(part.numpy(), piece)
        else:  # torch widens float16 several times faster than numpy; the copy is because maps are read only
            part.copy_(torch.from_numpy(np.array(piece, order="C")))
    norms = torch.linalg.vector_norm(vectors, dim=1)
    unfit = ~(norms < LARGEST_NORM)  # NaN compares false
    if bool(unfit.any()):
        row = int(unfit.nonzero()[0, 0])
        finite = bool(torch.isfinite(vectors[row]).all())
        found = f"a norm above {LARGEST_NORM:g}" if finite else "NaN or infinity"
        raise BadInput(f"{name}: row {start + row} holds {found}; expected finite vectors; leave such rows out before searching")
    return Block(start, vectors, norms)


def blocks_of(rows: Rows, block_rows: int, name: str, device: str = "cpu") -> Iterator[Block]:
    for start in range(0, len(rows), block_rows):
        yield read_block(rows, start, min(start + block_rows, len(rows)), name, device)
