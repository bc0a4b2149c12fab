"""Reading blocks of rows: checked as they are read, so that a matrix larger than memory is checked too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import torch

from paired_index_assets.errors import BadInput
from paired_index_assets.neighbors.arithmetic import FLOAT32, NORM_SLACK, Arithmetic
from paired_index_assets.neighbors.workers import Workspace
from paired_index_assets.rows import MOST_NORM, Rows

FLOAT32_BYTES = 4
# Norms up to this keep every product and sum of products far inside float32 (3.4e38).
PIECE_BYTES = 1 << 21  # read, converted, rounded and measured at a time, in cache
CUDA_PIECE_BYTES = 1 << 26


@dataclass(frozen=True)
class Block:
    """Rows `start` .. `start + len(block)` of a matrix, made ready to multiply."""

    start: int
    vectors: torch.Tensor  # (n, d) float32, C order
    fast: torch.Tensor  # (n, d) as rounded to the arithmetic's type; `vectors` itself where that is float32
    norms: torch.Tensor  # (n,) float32, Euclidean
    errors: torch.Tensor  # (n,) float32, how far rounding moved each row: |x - x'|
    borrowed: bool  # `vectors` are the caller's own: nobody may write to them

    def __len__(self) -> int:
        return len(self.vectors)

    @classmethod
    def unread(
        cls, rows: Rows, start: int, stop: int, arithmetic: Arithmetic, space: Workspace, device: str | torch.device = "cpu"
    ) -> Block:
        """Rows start..stop, to be `read`, in memory of `space`."""
        shape = (stop - start, rows.shape[1])
        borrowed = _borrowed(rows, start, stop) if torch.device(device).type == "cpu" else None
        vectors = space.tensor("rows", shape, torch.float32, device) if borrowed is None else borrowed
        same = arithmetic.dtype == torch.float32
        fast = vectors if same else space.tensor("rounded", shape, arithmetic.dtype, device)
        norms = space.tensor("norms", shape[:1], torch.float32, device)
        return cls(start, vectors, fast, norms, torch.zeros_like(norms), borrowed is not None)

    def read(self, rows: Rows, name: str, arithmetic: Arithmetic, space: Workspace, first: int = 0, last: int | None = None) -> None:
        """Read rows first..last of the block, round and measure them. Raises BadInput naming the first that cannot be multiplied."""
        last, d = len(self) if last is None else last, self.vectors.shape[1]
        step = max(1, (PIECE_BYTES if self.vectors.device.type == "cpu" else CUDA_PIECE_BYTES) // (d * FLOAT32_BYTES))
        for begin in range(first, last, step):
            piece = slice(begin, min(begin + step, last))
            vectors, norms = self.vectors[piece], self.norms[piece]
            if not self.borrowed:
                copy_rows(rows[self.start + piece.start : self.start + piece.stop], vectors)
            torch.linalg.vector_norm(vectors, dim=1, out=norms)
            if not bool((norms < MOST_NORM).all()):  # NaN compares false
                _refuse(vectors, norms, name, self.start + begin)
            if self.fast is not self.vectors:
                self.fast[piece].copy_(arithmetic.within_range(vectors))
            if arithmetic.rounds:
                back = space.tensor("back", (len(vectors), d), torch.float32, vectors.device).copy_(self.fast[piece])
                self.errors[piece] = torch.linalg.vector_norm(back.sub_(vectors), dim=1).mul_(NORM_SLACK)


def margin_of(queries: Block, base: Block, arithmetic: Arithmetic) -> torch.Tensor:
    """(len(queries),) float32: how far below the best computed score a pair's may be and the pair still be the best."""
    return arithmetic.margin(queries.norms, queries.errors, float(base.norms.max()), float(base.errors.max()), base.vectors.shape[1])


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


def read_block(
    rows: Rows, start: int, stop: int, arithmetic: Arithmetic, name: str, space: Workspace | None = None, device: str = "cpu"
) -> Block:
    """Rows start..stop on `device`, in memory of `space` if given. Raises BadInput as `Block.read`."""
    space = space or Workspace()
    block = Block.unread(rows, start, stop, arithmetic, space, device)
    block.read(rows, name, arithmetic, space)
    return block


def check_rows(rows: Rows, name: str) -> None:
    """Raises BadInput naming the first row that cannot be multiplied: NaN, infinity, a norm above MOST_NORM."""
    space, step = Workspace(), max(1, PIECE_BYTES // (rows.shape[1] * FLOAT32_BYTES))
    for start in range(0, len(rows), step):
        read_block(rows, start, min(start + step, len(rows)), FLOAT32, name, space)


def float32_rows(rows: Rows, start: int, stop: int, space: Workspace) -> torch.Tensor:
    """Rows start..stop to look at: the caller's own memory where it is float32, else a copy in `space`."""
    borrowed = _borrowed(rows, start, stop)
    if borrowed is not None:
        return borrowed
    vectors = space.tensor("rows", (stop - start, rows.shape[1]), torch.float32)
    copy_rows(rows[start:stop], vectors)
    return vectors


def copy_rows(piece: np.ndarray[Any, Any], vectors: torch.Tensor) -> None:
    """Float16 or float32 rows into a float32 tensor of that shape, on its device."""
    if vectors.device.type == "cpu" and piece.dtype == np.float32:
        np.copyto(vectors.numpy(), piece)
    else:  # torch widens float16 several times faster than numpy; the copy is because maps are read only
        vectors.copy_(torch.from_numpy(np.array(piece, order="C")))


def _borrowed(rows: Rows, start: int, stop: int) -> torch.Tensor | None:
    """Rows of an array as they lie in memory; None for what torch cannot look at: other types, strides, read-only maps."""
    if isinstance(rows, np.ndarray) and rows.dtype == np.float32 and rows.flags.c_contiguous and rows.flags.writeable:
        return torch.from_numpy(rows[start:stop])
    return None


def _refuse(vectors: torch.Tensor, norms: torch.Tensor, name: str, first: int) -> NoReturn:
    row = int((~(norms < MOST_NORM)).nonzero()[0, 0])
    finite = bool(torch.isfinite(vectors[row]).all())
    found = f"a norm above {MOST_NORM:g}" if finite else "NaN or infinity"
    raise BadInput(f"{name}: row {first + row} holds {found}; expected finite vectors; leave such rows out before searching")
