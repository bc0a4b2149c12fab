"""Matrices in formats other than a plain .npy, opened without being read: torch, safetensors, Parquet, and .npy of other number types.

What a file promises is checked against the bytes it has before a row is read: a tensor of one number that says it is 10**9 x 128 is refused.
Numbers become float16 where they were, else float32.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from paired_index_assets.errors import BadInput
from paired_index_assets.files.npy import described
from paired_index_assets.readers.parquet import damage_named
from paired_index_assets.readers.sample import ModalityName

BLOCK_BYTES = 64 << 20  # held in memory while converting
KNOWN_COLUMNS: dict[ModalityName, tuple[str, ...]] = {
    "images": ("image_embedding", "img_emb", "image_features", "embedding", "embeddings", "vector", "features"),
    "captions": ("text_embedding", "text_emb", "caption_embedding", "caption_features", "embedding", "embeddings", "vector", "features"),
}
TORCH_TYPES = {torch.float16: np.float16, torch.float32: np.float32, torch.bfloat16: np.float32, torch.float64: np.float32}
ARROW_TYPES = {pa.float16(): np.float16, pa.float32(): np.float32, pa.float64(): np.float32}
NUMPY_TYPES = {"<f8": np.float32, ">f8": np.float32, ">f4": np.float32, ">f2": np.float16, "<f4": np.float32, "<f2": np.float16}
BFLOAT16 = "|V2"  # as numpy saves the bfloat16 of ml_dtypes: two bytes that it has no name for
NUMBERED = re.compile(r"(.*?)(\d+)")

Blocks = Callable[[int], Iterator[npt.NDArray[Any]]]


@dataclass(frozen=True)
class Matrix:
    """``blocks(start)`` yields its rows from `start` on, as `dtype`."""

    rows: int
    dimensions: int
    dtype: npt.DTypeLike
    blocks: Blocks


def open_matrix(path: Path, name: str, modality: ModalityName, member: str | None) -> Matrix:
    """The matrix in a local file; `name` is for messages, `member` the tensor or column to take where there are several.

    Raises BadInput naming the file, what was expected and what was found.
    """
    return OPENERS[path.suffix.lower()](path, name, modality, member)


def _npy(path: Path, name: str, modality: ModalityName, member: str | None) -> Matrix:
    with path.open("rb") as stream:
        shape, fortran, dtype, offset = described(stream, name)
    if len(shape) != 2 or (dtype.str not in NUMPY_TYPES and dtype.str != BFLOAT16):
        raise BadInput(f"{name}: expected a matrix (rows, dimensions) of float16, float32 or float64, found shape {shape} of {dtype.str}")
    size, promised = path.stat().st_size, offset + shape[0] * shape[1] * dtype.itemsize
    if size != promised:
        raise BadInput(f"{name}: expected the {promised} bytes that its header promises, found {size}; copy it again")
    if not shape[0]:
        return Matrix(0, shape[1], np.float32, lambda start: iter(()))
    stored: Any = np.memmap(path, "<u2" if dtype.str == BFLOAT16 else dtype, "r", offset, shape, "F" if fortran else "C")
    made = np.dtype(np.float32 if dtype.str == BFLOAT16 else NUMPY_TYPES[dtype.str])
    step = _block_rows(shape[1], made.itemsize)

    def blocks(start: int) -> Iterator[npt.NDArray[Any]]:
        for a in range(start, shape[0], step):
            block = stored[a : a + step]
            yield (block.astype(np.uint32) << 16).view(np.float32) if dtype.str == BFLOAT16 else _narrowed(block, made)

    return Matrix(shape[0], shape[1], made, blocks)


def _tensor(name: str, tensor: torch.Tensor) -> Matrix:
    if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized or tensor.is_nested:
        kind = "without content (of the meta device)" if tensor.is_meta else str(tensor.layout).removeprefix("torch.")
        kind = "quantized" if tensor.is_quantized else "nested" if tensor.is_nested else kind
        raise BadInput(f"{name}: expected a plain (dense) tensor, found one that is {kind}; save tensor.to_dense(), or what it stands for")
    if tensor.ndim != 2 or tensor.dtype not in TORCH_TYPES:
        raise BadInput(
            f"{name}: expected a matrix (rows, dimensions) of float16, bfloat16, float32 or float64, "
            f"found shape {tuple(tensor.shape)} of {tensor.dtype}"
        )
    held, promised = tensor.untyped_storage().nbytes(), tensor.numel() * tensor.element_size()
    if held < promised:
        raise BadInput(
            f"{name}: expected the {promised} bytes that its shape {tuple(tensor.shape)} promises, found {held}: a view that repeats "
            "numbers; save tensor.contiguous()"
        )
    made = np.dtype(TORCH_TYPES[tensor.dtype])
    step = _block_rows(tensor.shape[1], made.itemsize)

    def blocks(start: int) -> Iterator[npt.NDArray[Any]]:
        for a in range(start, len(tensor), step):
            block = tensor[a : a + step]
            yield _narrowed((block.float() if tensor.dtype == torch.bfloat16 else block).numpy(), made)

    return Matrix(int(tensor.shape[0]), int(tensor.shape[1]), made, blocks)


def _torch(path: Path, name: str, modality: ModalityName, member: str | None) -> Matrix:
    try:
        content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:  # torch raises RuntimeError, UnpicklingError, EOFError, ... by what is wrong
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise BadInput(
            f"{name}: expected one tensor saved by torch.save (torch 1.6 or newer), found a file that cannot be mapped as plain data "
            f"({reason}); save the tensor again, or as .npy"
        ) from error
    if isinstance(content, dict):
        tensors = {str(key): value for key, value in content.items() if isinstance(value, torch.Tensor)}
        chosen = _chosen(name, list(tensors), member, [key for key, value in tensors.items() if value.ndim == 2])
        return _tensor(f"{name}::{chosen}", tensors[chosen].detach())
    if not isinstance(content, torch.Tensor):
        raise BadInput(f"{name}: expected one tensor saved by torch.save, found {type(content).__name__}; save the tensor alone")
    if member is not None:
        raise BadInput(f"{name}: expected tensors with names, of which {member!r} is one, found a single tensor; leave out ::{member}")
    return _tensor(name, content.detach())


def _safetensors(path: Path, name: str, modality: ModalityName, member: str | None) -> Matrix:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as content:
            names = sorted(content.keys())
            chosen = _chosen(name, names, member, [one for one in names if len(content.get_slice(one).get_shape()) == 2])
            return _tensor(f"{name}::{chosen}", content.get_tensor(chosen))
    except (SafetensorError, TypeError) as error:  # TypeError: a number type that torch has not
        reason = " ".join(str(error).split())[:160]
        raise BadInput(f"{name}: expected a safetensors file, found one that cannot be read ({reason})") from error


def _chosen(name: str, names: Sequence[str], member: str | None, matrices: Sequence[str]) -> str:
    """The tensor asked for, or the only one that is a matrix."""
    if member is not None and member in names:
        return member
    if member is None and len(matrices) == 1:
        return matrices[0]
    wanted = "one tensor" if member is None else f"a tensor {member!r}"
    example = f"; name the one to take, as {name}::{matrices[0]}" if matrices else ""
    raise BadInput(f"{name}: expected {wanted}, found {', '.join(names) or 'none'}{example}")


def _parquet(path: Path, name: str, modality: ModalityName, member: str | None) -> Matrix:
    with damage_named(name), pq.ParquetFile(path) as parquet:
        schema, rows = parquet.schema_arrow, parquet.metadata.num_rows
        groups = [parquet.metadata.row_group(g).num_rows for g in range(parquet.num_row_groups)]
        columns, kind = _vector_columns(name, schema, rows, modality, member)
        if rows == 0 or kind is None:
            return Matrix(0, max(len(columns), 1), np.float32, lambda start: iter(()))
        dimensions = len(columns) if pa.types.is_floating(kind) else _width(parquet, columns[0], kind)
    if dimensions == 0:
        raise BadInput(f"{name}: column {columns[0]!r}: expected embeddings, found {rows} rows that are all null or empty")
    made = np.dtype(ARROW_TYPES[kind if pa.types.is_floating(kind) else kind.value_type])
    step = _block_rows(dimensions, max(made.itemsize, 8))

    def blocks(start: int) -> Iterator[npt.NDArray[Any]]:
        before = 0
        with damage_named(name), pq.ParquetFile(path) as parquet:
            for group, count in enumerate(groups):
                at = before
                before += count
                if before <= start:
                    continue
                for batch in parquet.iter_batches(step, row_groups=[group], columns=columns):
                    if pa.types.is_floating(kind):
                        block = np.column_stack([batch.column(one).to_numpy(zero_copy_only=False) for one in columns])
                    else:
                        block = _of_lists(f"{name}: column {columns[0]!r}", _inner(batch.column(0)), dimensions, at)
                    yield _narrowed(block, made)[max(start - at, 0) :]
                    at += batch.num_rows

    return Matrix(rows, dimensions, made, blocks)


def _vector_columns(
    name: str, schema: pa.Schema, rows: int, modality: ModalityName, member: str | None
) -> tuple[list[str], pa.DataType | None]:
    """The column of vectors, or those of one dimension each, and its type (theirs). No type: a part without rows and without vectors."""
    lists = {field.name: kind for field in schema if (kind := _list_type(field.type)) is not None}
    known = [member] if member is not None else [one for one in KNOWN_COLUMNS[modality] if one in lists]
    chosen = next((one for one in known if one in lists), next(iter(lists)) if member is None and len(lists) == 1 else None)
    if chosen is not None:
        return [chosen], lists[chosen]
    numbered = _numbered(schema)
    fitting = [prefix for prefix in numbered if member in (None, prefix, _plain(prefix))]
    best = fitting if len(fitting) == 1 else [p for one in KNOWN_COLUMNS[modality] for p in fitting if _plain(p) == one]
    if best:
        columns = numbered[best[0]]
        return columns, schema.field(columns[0]).type
    if not rows and member is None:
        return [], None
    found = ", ".join(f"{field.name}: {field.type}" for field in schema)
    wanted = f"a column {member!r}" if member is not None else f"a column of {modality} embeddings"
    which = f"; name the one to take, as {name}::{[*lists, *numbered][0]}" if member is None and len([*lists, *numbered]) > 1 else ""
    raise BadInput(
        f"{name}: expected {wanted} as a list of float16, float32 or float64, or one column a dimension, found {found[:400]}{which}"
    )


def _numbered(schema: pa.Schema) -> dict[str, list[str]]:
    """By their prefix: columns of numbers ``emb_0``, ``emb_1``, ... that leave none out, in the order of their numbers."""
    groups: dict[str, dict[int, str]] = {}
    for field in schema:
        match = NUMBERED.fullmatch(field.name)
        if match and field.type in ARROW_TYPES:
            groups.setdefault(match[1], {})[int(match[2])] = field.name
    complete = {p: g for p, g in groups.items() if len(g) > 1 and sorted(g) == list(range(min(g), min(g) + len(g))) and min(g) <= 1}
    kept = {p: [g[number] for number in sorted(g)] for p, g in complete.items()}
    return {p: columns for p, columns in kept.items() if len({schema.field(one).type for one in columns}) == 1}


def _plain(prefix: str) -> str:
    return prefix.rstrip("_-. ")


def _list_type(kind: pa.DataType) -> Any:
    """The list type of a column of vectors, taken out of structs of one field; None for any other column."""
    while pa.types.is_struct(kind) and kind.num_fields == 1:
        kind = kind.field(0).type
    lists = pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return kind if lists and kind.value_type in ARROW_TYPES else None


def _inner(column: pa.Array) -> pa.Array:
    while pa.types.is_struct(column.type):
        (column,) = column.flatten()  # a null struct makes its field null
    return column


def _width(parquet: pq.ParquetFile, column: str, kind: Any) -> int:
    """The length of the first vector that is not null or empty; 0 if all are."""
    if pa.types.is_fixed_size_list(kind):
        return int(kind.list_size)
    for batch in parquet.iter_batches(1024, columns=[column]):
        lengths = _inner(batch.column(0)).value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
        if lengths.any():
            return int(lengths[np.flatnonzero(lengths)[0]])
    return 0


def _of_lists(name: str, column: pa.Array, dimensions: int, first: int) -> npt.NDArray[Any]:
    """(rows, dimensions) of a list column; a null or empty row becomes zeros, which is left out of pairing and lists."""
    values = column.flatten()  # of the rows that are not null
    lengths = column.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    wrong = np.flatnonzero((lengths != dimensions) & (lengths != 0))
    if wrong.size:
        raise BadInput(f"{name}: expected {dimensions} values in every row, found {int(lengths[wrong[0]])} in row {first + int(wrong[0])}")
    block = np.zeros((len(column), dimensions), values.type.to_pandas_dtype())
    block[lengths != 0] = values.to_numpy(zero_copy_only=False).reshape(-1, dimensions)
    return block


def _narrowed(block: npt.NDArray[Any], made: np.dtype[Any]) -> npt.NDArray[Any]:
    with np.errstate(over="ignore"):  # becomes infinite: the row is refused as such
        return block.astype(made, copy=False)


def _block_rows(dimensions: int, itemsize: int) -> int:
    return max(1, BLOCK_BYTES // max(1, dimensions * itemsize))


OPENERS: dict[str, Callable[[Path, str, ModalityName, str | None], Matrix]] = {
    ".npy": _npy,
    ".tensor": _torch,
    ".pt": _torch,
    ".pth": _torch,
    ".safetensors": _safetensors,
    ".parquet": _parquet,
}
