"""Segments -> one plain faiss file, streamed: no list is ever whole in memory beside its neighbours.

faiss writes an IVF index as everything but the lists, then the lists: a table of their sizes, and for each list its codes followed by
its ids (`write_InvertedLists` in faiss/impl/index_write.cpp, unchanged since 2018 because memory-mapped reading relies on it). Here
faiss itself writes the first part from the empty index, and the lists are merged from the segments, which are already in list order.
tests/shards compares the result byte for byte with `faiss.write_index` of an index filled by `add_with_ids`.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

import faiss
import numpy as np

from paired_index_assets.codes.formats import ivf_of
from paired_index_assets.errors import DamagedArtifact
from paired_index_assets.progress import Progress, silent
from paired_index_assets.rows import Bool, Int32, Int64, UInt8
from paired_index_assets.shards.segment import Segment

FaissIvf = Any  # faiss.IndexIVF, whose stubs do not declare what is in it
FaissFile = Any  # a faiss.IndexIVF, or one behind a faiss.IndexPreTransform

MERGE_BYTES = 1 << 24  # lists merged at once; larger blocks leave the cache (16 MiB: 5.5 s of CPU, 64 MiB: 7.7 s for 4M rows of 384 bytes)
ID_BYTES = 8
EMPTY_LISTS = struct.Struct("<4sQQ4sQ")  # "ilar", nlist, code size, "sprs", number of sizes (0)


@dataclass(frozen=True)
class SegmentRows:
    """The rows of one segment that go into the lists, in list order; `places` are theirs in the segment (None: all of them)."""

    segment: Segment
    start_row: int  # global id of the file's first row
    lists: Int32
    rows: Int32
    places: Int64 | None

    def ids(self, rows: slice) -> Int64:
        return self.rows[rows].astype(np.int64) + self.start_row

    def codes(self, rows: slice) -> UInt8:
        if self.places is None or rows.start == rows.stop:
            return self.segment.codes(rows.start, rows.stop)
        places = self.places[rows]
        codes: UInt8 = self.segment.codes(int(places[0]), int(places[-1]) + 1)[places - places[0]]
        return codes


Buffer: TypeAlias = bytes | memoryview


@dataclass(frozen=True)
class Written:
    """A finished file: the vectors in its lists, its bytes and their sha256."""

    indexed: int
    bytes: int
    sha256: str


def rows_of_segment(segment: Segment, start_row: int, removed: Int64) -> SegmentRows:
    """The rows of a segment whose global ids are not in `removed` (sorted int64)."""
    first, stop = np.searchsorted(removed, [start_row, start_row + segment.header.rows])
    if first == stop:
        return SegmentRows(segment, start_row, segment.lists, segment.rows, None)
    gone: Bool = np.zeros(segment.header.rows, dtype=np.bool_)
    gone[removed[first:stop] - start_row] = True
    places = np.flatnonzero(~gone[segment.rows])
    return SegmentRows(segment, start_row, segment.lists[places], segment.rows[places], places)


def write_shard(path: Path, empty: FaissFile, parts: Sequence[SegmentRows], *, progress: Progress = silent) -> Written:
    """Write the index that `empty` would be after `add_with_ids` of all parts, in order.

    Memory: the quantizer three times, and three times `MERGE_BYTES` or the largest list; of the segments only lists and rows.
    """
    ivf = ivf_of(empty)
    sizes = np.zeros(ivf.nlist, dtype=np.int64)
    for part in parts:
        sizes += np.bincount(part.lists, minlength=ivf.nlist)

    def block_of(first: int, stop: int) -> bytes:
        ids, codes = _merged(parts, first, stop)
        cuts = np.concatenate([[0], np.cumsum(sizes[first:stop])])
        return b"".join(piece for a, b in pairwise(cuts) for piece in (codes[a:b].data, ids[a:b].data))

    return write_lists(path, empty, sizes, block_of, "assemble", progress)


def write_lists(
    path: Path, empty: FaissFile, sizes: Int64, block_of: Callable[[int, int], Buffer], step: str, progress: Progress = silent
) -> Written:
    """Write the file of the trained index `empty` with lists of `sizes` (nlist,) int64.

    `block_of(first, stop)`: the bytes of those lists, of each its codes and then its ids (faiss's ArrayInvertedLists). `step` names the
    progress. Memory: the head, which is three times the quantizer, and a block.
    """
    code_size, total = ivf_of(empty).code_size, int(sizes.sum())
    sha, written, done = hashlib.sha256(), 0, 0
    with path.open("wb") as stream:

        def put(data: Buffer) -> None:
            nonlocal written
            sha.update(data)
            stream.write(data)
            written += memoryview(data).nbytes

        put(file_head(empty, total).data)
        put(size_table(sizes, code_size))
        for first, stop in runs_of_lists(sizes, code_size + ID_BYTES):
            put(block_of(first, stop))
            done += int(sizes[first:stop].sum())
            progress(step, done, total)
    return Written(total, written, sha.hexdigest())


def check_shard(path: Path, empty: FaissFile, parts: Sequence[SegmentRows], name: str) -> FaissFile:
    """Read a written shard with stock faiss (mapped) and hold it against its parts; returns the mapped index.

    Raises DamagedArtifact unless the list sizes sum to the indexed rows and the ids are exactly those of the parts, each once.
    """
    file = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
    index, wanted_ivf = ivf_of(file), ivf_of(empty)
    expected = sum(len(part.rows) for part in parts)
    shape = (file.d, index.nlist, index.code_size, index.ntotal)
    if shape != (empty.d, wanted_ivf.nlist, wanted_ivf.code_size, expected):
        raise DamagedArtifact(f"{name}: faiss reads d, nlist, code size, rows = {shape}; {expected} rows were written. Build it again")
    first = parts[0].start_row
    wanted = np.concatenate([_marks(part) for part in parts])
    ids = np.concatenate([list_ids(index, number) for number in range(index.nlist)]) - first
    if len(ids) != expected or (len(ids) and not 0 <= ids.min() <= ids.max() < len(wanted)):
        raise DamagedArtifact(f"{name}: {len(ids)} ids in its lists, or ids of other shards; {expected} rows were written. Build it again")
    found = np.zeros_like(wanted)
    found[ids] = True
    if not np.array_equal(found, wanted):
        raise DamagedArtifact(f"{name}: {int((found != wanted).sum())} rows are not once in its lists; build it again")
    return file


def list_ids(index: FaissIvf, number: int) -> Int64:
    """(n,) the ids in one list, a view that lives as long as the index."""
    size = index.invlists.list_size(number)
    if size == 0:
        return np.empty(0, dtype=np.int64)
    view: Int64 = faiss.rev_swig_ptr(index.invlists.get_ids(number), size)
    return view


def _marks(part: SegmentRows) -> Bool:
    """(rows,) whether a row of the file is in the lists."""
    marks = np.zeros(part.segment.header.rows, dtype=np.bool_)
    marks[part.rows] = True
    return marks


def file_head(empty: FaissFile, total: int) -> UInt8:
    """What faiss writes before the lists of an index with `total` rows: a transform comes before its IVF, so lists are last in any case."""
    ivf = ivf_of(empty)
    if ivf.invlists.compute_ntotal():
        raise DamagedArtifact(f"the trained index is not empty: {ivf.invlists.compute_ntotal()} rows in its lists")
    empty.ntotal = ivf.ntotal = total
    head: UInt8 = faiss.serialize_index(empty)
    empty.ntotal = ivf.ntotal = 0
    tail = EMPTY_LISTS.pack(b"ilar", ivf.nlist, ivf.code_size, b"sprs", 0)
    if head[-EMPTY_LISTS.size :].tobytes() != tail:
        raise DamagedArtifact(f"faiss {faiss.__version__} writes inverted lists in another way than this release knows; use faiss 1.15")
    return head[: -EMPTY_LISTS.size]


def size_table(sizes: Int64, code_size: int) -> bytes:
    """The size table: of all lists where more than half have rows, else (list, size) of those that have."""
    filled = np.flatnonzero(sizes)
    full = len(filled) > len(sizes) // 2
    table = sizes if full else np.stack([filled, sizes[filled]], axis=1).ravel()
    head = EMPTY_LISTS.pack(b"ilar", len(sizes), code_size, b"full" if full else b"sprs", len(table))
    return head + table.astype("<u8").tobytes()


def runs_of_lists(sizes: Int64, row_bytes: int) -> Iterator[tuple[int, int]]:
    """Ranges of lists of about `MERGE_BYTES` each."""
    ends = np.cumsum(sizes) * row_bytes
    first = 0
    while first < len(sizes):
        before = ends[first - 1] if first else 0
        stop = max(first + 1, int(np.searchsorted(ends, before + MERGE_BYTES, side="right")))
        yield first, stop
        first = stop


def _merged(parts: Sequence[SegmentRows], first: int, stop: int) -> tuple[Int64, UInt8]:
    """ids (n,) and codes (n, code_size) of lists [first, stop), by list, then part, then row."""
    spans = [slice(*np.searchsorted(part.lists, [first, stop])) for part in parts]
    lists = np.concatenate([part.lists[span] for part, span in zip(parts, spans, strict=True)])
    order = np.argsort(lists, kind="stable")
    places = np.empty_like(order)
    places[order] = np.arange(len(order))
    ids = np.empty(len(lists), dtype=np.int64)
    codes = np.empty((len(lists), parts[0].segment.header.code_size), dtype=np.uint8)
    at = 0
    for part, span in zip(parts, spans, strict=True):
        here = places[at : at + span.stop - span.start]
        ids[here] = part.ids(span)
        codes[here] = part.codes(span)
        at += len(here)
    return ids, codes
