"""The segment: what one landed file became under one trained index. This module alone knows its bytes.

A framed file (files.framed) of magic b"PIXSEG01" whose header is a `SegmentHeader` and whose body is

    lists      int32 (kept,)            list number of each kept row, ascending
    rows       int32 (kept,)            its row in the file; ascending inside a list
    codes      uint8 (kept, code_size)  its faiss code
    left_rows  int32 (left,)            rows that cannot be searched, ascending; they keep their id and are in no list
    left_why   uint8 (left,)            `NOT_FINITE` or `ZERO`

Rows lie in list order, so that assembling a shard reads every segment once from front to back. What was taken down is not marked
here: a removal changes the shards and encodes nothing again.
"""

from __future__ import annotations

import hashlib
import io
import re
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from upath import UPath

from paired_index_assets.errors import DamagedArtifact, MissingInput
from paired_index_assets.files.cache import Cache, LocalFile
from paired_index_assets.files.framed import DIGEST_BYTES, HEAD_BYTES, pack_head, unpack_head
from paired_index_assets.files.storage import CHUNK_BYTES, atomic_file, head_of
from paired_index_assets.rows import Int32, Int64, UInt8

MAGIC = b"PIXSEG01"
CURE = "delete it and build its shard again"
LEFT_OUT = -1  # the list number of a row that is in no list

NOT_FINITE, ZERO = 1, 2
REASONS = {NOT_FINITE: "not_finite", ZERO: "zero"}


@dataclass(frozen=True)
class SegmentHeader:
    """What a segment was made from: enough to decide, without its source, whether it is still the right one."""

    trained: str  # fingerprint of the trained index
    name: str  # of the landed file
    offset: int  # first row of the slice inside the file
    rows: int  # rows of the slice, kept and left out
    size: int  # bytes of the whole landed file
    stamp: str  # its stamp when it was read (time of modification, or the store's tag)
    content: str  # sha256 of the slice's rows as they lie in the file
    lossy: bool  # the rows were rebuilt from another index, not read from the original
    code_size: int  # bytes
    kept: int
    left: int

    @property
    def body_bytes(self) -> int:
        return self.kept * (8 + self.code_size) + self.left * 5


@dataclass(frozen=True)
class Segment:
    """A segment whose bytes were checked; lists and rows in memory (8 bytes a row), codes read by slices.

    Read and not mapped: a shard's worth of mapped codes would count as memory of the process, and a file cut short would end it.
    """

    file: LocalFile
    header: SegmentHeader
    lists: Int32  # (kept,) ascending
    rows: Int32  # (kept,)
    left_rows: Int32  # (left,)
    left_why: UInt8  # (left,)

    @property
    def path(self) -> Path:
        return self.file.path

    def codes(self, start: int, stop: int) -> UInt8:
        """(stop - start, code_size) the codes of `lists[start:stop]`. Raises DamagedArtifact if the file was cut meanwhile."""
        size, header = self.header.code_size, self.header
        with self.path.open("rb") as stream:
            stream.seek(_packed_bytes(header) + 8 * header.kept + start * size)
            data = np.fromfile(stream, np.uint8, (stop - start) * size)
        if len(data) != (stop - start) * size:
            raise DamagedArtifact(f"{self.path}: ended inside its codes; build its shard again")
        return data.reshape(stop - start, size)

    def left_out(self) -> dict[str, int]:
        """How many rows were left out, by reason."""
        return {name: int(np.count_nonzero(self.left_why == code)) for code, name in REASONS.items()}


def write_segment(path: UPath | Path, header: SegmentHeader, lists: Int64, codes: UInt8, why: UInt8) -> SegmentHeader:
    """Write rows 0..n-1 of a file: `lists` int64 (n,), `codes` uint8 (n, code_size), `why` uint8 (n,), 0 where the row is kept.

    `header.kept` and `header.left` are set here. Lists and codes of left-out rows are ignored. Returns the header as written.
    """
    kept = np.flatnonzero(why == 0)
    order = kept[np.argsort(lists[kept], kind="stable")]
    left = np.flatnonzero(why)
    header = SegmentHeader(**{**asdict(header), "kept": len(kept), "left": len(left)})
    with atomic_file(path) as temporary, temporary.open("wb") as stream:
        sha = hashlib.sha256()
        for part in (_packed(header), lists[order].astype("<i4").tobytes(), order.astype("<i4").tobytes()):
            sha.update(part)
            stream.write(part)
        step = max(1, CHUNK_BYTES // max(1, header.code_size))
        for start in range(0, len(order), step):
            part = codes[order[start : start + step]].tobytes()
            sha.update(part)
            stream.write(part)
        for part in (left.astype("<i4").tobytes(), why[left].astype(np.uint8).tobytes()):
            sha.update(part)
            stream.write(part)
        stream.write(sha.digest())
    return header


def read_header(path: UPath | Path) -> SegmentHeader:
    """The header alone, the file's length checked and its bytes not. Raises MissingInput, DamagedArtifact."""
    try:
        head, length = head_of(path, HEAD_BYTES)
    except FileNotFoundError as error:
        raise MissingInput(f"{path}: no such segment; build its shard") from error
    header, start = _unpacked(path, head)
    expected = start + header.body_bytes + DIGEST_BYTES
    if length != expected:
        raise DamagedArtifact(f"{path}: {length} bytes where its header promises {expected}; build its shard again")
    return header


def open_segment(path: UPath | Path, cache: Cache | None = None) -> Segment:
    """Check every byte of a segment, or of its local copy, against its checksum and read all but its codes.

    Raises MissingInput, DamagedArtifact.
    """
    file = (cache or Cache()).local(path)
    header = read_header(file.path)
    sha, left = hashlib.sha256(), _packed_bytes(header) + header.body_bytes
    with file.path.open("rb") as stream:
        while left and (chunk := stream.read(min(left, CHUNK_BYTES))):
            sha.update(chunk)
            left -= len(chunk)
        if stream.read() != sha.digest():
            raise DamagedArtifact(f"{path}: its bytes do not match its checksum; build its shard again")
        stream.seek(_packed_bytes(header))
        lists = np.fromfile(stream, "<i4", header.kept)
        rows = np.fromfile(stream, "<i4", header.kept)
        stream.seek(header.kept * header.code_size, io.SEEK_CUR)
        left_rows = np.fromfile(stream, "<i4", header.left)
        left_why = np.fromfile(stream, np.uint8, header.left)
    return Segment(file, header, lists, rows, left_rows, left_why)


def segment_name(file_id: int) -> str:
    return f"{file_id:06d}.segment"


def _packed(header: SegmentHeader) -> bytes:
    return pack_head(MAGIC, asdict(header))


def _packed_bytes(header: SegmentHeader) -> int:
    return len(_packed(header))


def _unpacked(path: UPath | Path, head: bytes) -> tuple[SegmentHeader, int]:
    fields, start = unpack_head(path, MAGIC, head, CURE)
    try:
        return SegmentHeader(**fields), start
    except TypeError as error:
        raise DamagedArtifact(f"{path}: not a segment ({error}); {CURE}") from error


def file_id_of(name: str) -> int | None:
    """The file that a segment of this name is of; None for what is not the name of a segment."""
    found = re.fullmatch(r"(\d{6,})\.segment", name)
    return int(found[1]) if found else None
