"""Answers to many queries, block by block: to a Parquet or an .npz file that never is whole in memory.

A block is searched list by list, each read once for all queries of the block that look in it, so blocks are as large as their memory
allows.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from paired_index_assets.errors import BadInput
from paired_index_assets.files.storage import atomic_file
from paired_index_assets.progress import Progress, silent
from paired_index_assets.rows import Float32, Int64, Rows

BLOCK_BYTES = 1 << 26  # of queries and results of a block
MOST_QUERIES = 1 << 16  # of a block

Answers = tuple[Float32, Int64]
SCHEMA = pa.schema([("query", pa.int64()), ("ids", pa.list_(pa.int64())), ("scores", pa.list_(pa.float32()))])


def blocks(
    queries: Rows, k: int, search: Callable[[npt.NDArray[Any]], Answers], *, progress: Progress = silent
) -> Iterator[tuple[int, Float32, Int64]]:
    """(first query, scores (n, k), ids (n, k)) of one block of `queries` (nq, d) after the other; they may be mapped."""
    rows = max(1, min(MOST_QUERIES, BLOCK_BYTES // (12 * k + 4 * queries.shape[1])))
    for first in range(0, len(queries), rows):
        try:
            scores, ids = search(np.asarray(queries[first : first + rows]))
        except BadInput as error:
            raise BadInput(f"{error} of the block from query {first} on") from error
        yield first, scores, ids
        progress("search", min(first + rows, len(queries)), len(queries))


def stream_parquet(target: Path, answers: Iterator[tuple[int, Float32, Int64]]) -> None:
    """One row a query: its number, its ids best first, their scores; only as many as were found."""
    with atomic_file(target) as draft, pq.ParquetWriter(draft, SCHEMA, compression="zstd") as writer:
        for first, scores, ids in answers:
            found = ids >= 0
            ends = np.concatenate([[0], np.cumsum(found.sum(axis=1))]).astype(np.int32)
            lists = (pa.ListArray.from_arrays(ends, pa.array(values[found])) for values in (ids, scores))
            writer.write_table(pa.Table.from_arrays([pa.array(np.arange(first, first + len(ids))), *lists], schema=SCHEMA))


def stream_npz(target: Path, queries: int, k: int, answers: Iterator[tuple[int, Float32, Int64]]) -> None:
    """`scores` float32 (queries, k) and `ids` int64 (queries, k), as `numpy.savez` writes them."""
    with atomic_file(target) as draft:
        columns: dict[str, np.dtype[Any]] = {"scores": np.dtype("<f4"), "ids": np.dtype("<i8")}
        parts = {name: draft.with_name(f"{draft.name}.{name}") for name in columns}
        try:
            mapped: dict[str, npt.NDArray[Any]] = {}
            for name, kind in columns.items():  # an empty file cannot be mapped
                shape = (queries, k)
                mapped[name] = np.lib.format.open_memmap(parts[name], "w+", kind, shape) if queries else np.empty(shape, dtype=kind)
            for first, scores, ids in answers:
                mapped["scores"][first : first + len(scores)], mapped["ids"][first : first + len(ids)] = scores, ids
            with zipfile.ZipFile(draft, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
                for name, array in mapped.items():
                    with archive.open(f"{name}.npy", "w", force_zip64=True) as stream:
                        _write_npy(stream, array)
        finally:
            for part in parts.values():
                part.unlink(missing_ok=True)


def _write_npy(stream: Any, array: npt.NDArray[Any]) -> None:
    np.lib.format.write_array_header_1_0(stream, np.lib.format.header_data_from_array_1_0(array))
    step = max(1, BLOCK_BYTES // max(1, array[:1].nbytes))
    for first in range(0, len(array), step):
        stream.write(np.ascontiguousarray(array[first : first + step]).data)
