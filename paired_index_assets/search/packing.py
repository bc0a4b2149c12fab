"""Many mapped shards written as one file: each list whole, in one place.

The file is what `shards/assemble.py` writes for a shard, with the lists of all shards: a plain faiss index, its codes as they are, ids
ascending in each list. Which is also what the kernel reads fastest, so nothing is stored twice, and at LAION's size a query reads 32 pieces
of a disk where 58 shards have 1,856.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from paired_index_assets.codes.formats import ivf_of
from paired_index_assets.errors import DamagedArtifact
from paired_index_assets.files.compiling import compiled
from paired_index_assets.progress import Progress, silent
from paired_index_assets.rows import Float32, Int64
from paired_index_assets.search.dots import bytes_at, int64_at
from paired_index_assets.search.mapped import ID_BYTES, MappedLists, map_lists
from paired_index_assets.search.plan import Plan
from paired_index_assets.search.scanning import Scan
from paired_index_assets.search.threads import Workers
from paired_index_assets.shards.assemble import Written, write_lists

SAMPLED = 64  # queries whose answers from the pack are held against those from the shards
SAMPLE_K, SAMPLE_NPROBE = 20, 8


def write_pack(path: Path, empty: Any, shards: Sequence[MappedLists], removed: Int64, *, progress: Progress = silent) -> Written:
    """Write all lists of `shards`, without the ids `removed` (ascending), behind the head of the trained index `empty`.

    The bytes are a function of these. Memory: three times the quantizer and 16 MiB, or the largest list.
    """
    ivf = ivf_of(empty)
    starts, sizes = (np.ascontiguousarray(np.stack([getattr(s, name) for s in shards], axis=1)) for name in ("starts", "sizes"))
    kept = sizes.sum(axis=1)
    if len(removed):
        _count_kept(starts, sizes, ivf.code_size, removed, kept)

    def block_of(first: int, stop: int) -> memoryview:
        block = np.empty(int(kept[first:stop].sum()) * (ivf.code_size + ID_BYTES), np.uint8)
        _gather(starts, sizes, ivf.code_size, removed, kept, first, stop, block)
        return block.data

    return write_lists(path, empty, kept, block_of, "pack", progress)


def check_pack(
    path: Path, index: Any, shards: Sequence[MappedLists], removed: Int64, written: Written, total_rows: int | None, *, still: bool = False
) -> None:
    """Hold a written file against its shards: its sum as read back, every id once, and the scores of a sample of queries, to the bit.

    The ids `removed` are not in it; with `still` they may be, as they were removed since. Raises DamagedArtifact. Memory: two bits for each
    of `total_rows` ids.
    """
    ivf = ivf_of(index)
    mapped = map_lists(path, ivf.nlist, ivf.code_size)
    if (found := hashlib.sha256(mapped.content.data).hexdigest()) != written.sha256 or mapped.ntotal != written.indexed:
        raise DamagedArtifact(
            f"{path}: sha256 {found} of {mapped.ntotal} rows read back, {written.sha256} of {written.indexed} written; pack again"
        )
    if total_rows is None:
        total_rows = 1 + max(_largest(lists.starts, lists.sizes, ivf.code_size) for lists in [mapped, *shards])
    expected, got = (np.zeros(-(-total_rows // 8), np.uint8) for _ in range(2))
    for shard in shards:
        _mark(shard.starts, shard.sizes, ivf.code_size, removed, expected)
    twice = _mark(mapped.starts, mapped.sizes, ivf.code_size, removed if still else removed[:0], got)
    if twice or not np.array_equal(expected, got):
        raise DamagedArtifact(f"{path}: its ids are not those of the shards, each once ({twice} twice); pack again")
    queries = _sample(index.d)
    workers = Workers()
    for mine, theirs in zip(
        *(Scan(Plan(index, lists), workers).search(queries, SAMPLE_K, SAMPLE_NPROBE, removed) for lists in ([mapped], shards)), strict=True
    ):
        if not np.array_equal(mine, theirs):
            raise DamagedArtifact(f"{path}: other answers than the shards'; pack again")
    workers.close()


def _sample(d: int) -> Float32:
    return np.random.default_rng(0).standard_normal((SAMPLED, d), np.float32)


@compiled
def _is_removed(removed: Any, row: int) -> Any:
    at = np.searchsorted(removed, row)
    return at < len(removed) and removed[at] == row


@compiled
def _count_kept(starts: Any, sizes: Any, code_size: int, removed: Any, kept: Any) -> None:
    for number in range(starts.shape[0]):
        for piece in range(starts.shape[1]):
            ids = int64_at(starts[number, piece] + sizes[number, piece] * code_size)
            for i in range(sizes[number, piece]):
                if _is_removed(removed, ids[i]):
                    kept[number] -= 1


@compiled
def _gather(starts: Any, sizes: Any, code_size: int, removed: Any, kept: Any, first: int, stop: int, block: Any) -> None:
    """The lists from `first` to `stop`, each its codes and then its ids, into `block`."""
    codes_to, out = block.ctypes.data, 0
    for number in range(first, stop):
        out = codes_to
        ids_to = int64_at(codes_to + kept[number] * code_size)
        at = 0
        for piece in range(starts.shape[1]):
            vectors = sizes[number, piece]
            ids = int64_at(starts[number, piece] + vectors * code_size)
            for i in range(vectors):
                if len(removed) and _is_removed(removed, ids[i]):
                    continue
                source, target = bytes_at(starts[number, piece] + i * code_size), bytes_at(out)
                for byte in range(code_size):
                    target[byte] = source[byte]
                out += code_size
                ids_to[at] = ids[i]
                at += 1
        codes_to += kept[number] * (code_size + ID_BYTES)


@compiled
def _largest(starts: Any, sizes: Any, code_size: int) -> Any:
    """The largest id, -1 where there are none."""
    largest = -1
    for number in range(len(starts)):
        ids = int64_at(starts[number] + sizes[number] * code_size)
        for i in range(sizes[number]):
            largest = max(largest, ids[i])
    return largest


@compiled
def _mark(starts: Any, sizes: Any, code_size: int, removed: Any, bits: Any) -> Any:
    """Set the bit of every id that is not `removed`; how many were set already, or are outside."""
    wrong = 0
    for number in range(len(starts)):
        ids = int64_at(starts[number] + sizes[number] * code_size)
        for i in range(sizes[number]):
            row = ids[i]
            if len(removed) and _is_removed(removed, row):
                continue
            if row < 0 or row >= 8 * len(bits) or bits[row >> 3] >> (row & 7) & 1:
                wrong += 1
            else:
                bits[row >> 3] |= np.uint8(1 << (row & 7))
    return wrong
