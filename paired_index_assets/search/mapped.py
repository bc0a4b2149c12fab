"""The inverted lists of a shard file, mapped: 16 bytes of memory a list, whatever the lists hold.

faiss's own flags fall short at 58 shards of 131,072 lists: IO_FLAG_MMAP reads each shard's quantizer into memory (23 GB), and
IO_FLAG_MMAP_IFC keeps two vector objects a list (more than 1 GB). So the table of list sizes is found from the end of the file, where
faiss writes it (`write_InvertedLists`, unchanged since 2018), and the rest of the file is mapped:

    "IwSq" | d int32 | ntotal int64 | ... | "ilar" | nlist | code size | "full" or "sprs" | sizes | codes and ids, list after list

A file with a transform before the lists begins with "IxPT", and goes on alike.
"""

from __future__ import annotations

import ctypes
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from paired_index_assets.errors import DamagedArtifact, MissingInput
from paired_index_assets.files.cache import LocalFile
from paired_index_assets.rows import Int64, UInt8

ID_BYTES = 8
HEADER = struct.Struct("<4siq")  # kind, d of the embeddings, ntotal
SCALAR_IVF = (b"IwSq", b"IxPT")  # plain, or behind a transform: the IVF, and so its lists, come last
WORD = np.dtype("<u8")


@dataclass(frozen=True, eq=False)
class MappedLists:
    """`starts` (nlist,) int64: the address of the codes of each list, its ids (int64, not aligned) behind them; `sizes` (nlist,) int64.

    `content` is the mapped file, which outlives one that is replaced or deleted; addresses hold while this object is there.
    """

    path: Path
    d: int  # of the file: the width of what queries are before a transform
    ntotal: int
    starts: Int64
    sizes: Int64
    content: UInt8
    held: LocalFile | None = None  # so that a copy stays while it is searched


def map_lists(path: Path, nlist: int, code_size: int) -> MappedLists:
    """Map the lists of an IndexIVFScalarQuantizer file without reading them.

    Raises MissingInput, or DamagedArtifact for a file that is truncated, padded, or made of other lists or codes.
    """
    try:
        with path.open("rb") as stream:
            length = stream.seek(0, 2)
            stream.seek(0)
            kind, d, ntotal = HEADER.unpack(stream.read(HEADER.size))
            body = length - ntotal * (code_size + ID_BYTES)
            if kind not in SCALAR_IVF or ntotal < 0 or body < HEADER.size:
                raise ValueError(f"{ntotal} vectors of kind {kind!r} in {length} bytes")
            tail = len(_mark(nlist, code_size, b"full")) + WORD.itemsize * (nlist + 1)
            stream.seek(max(0, body - tail))
            sizes = _sizes(stream.read(min(tail, body)), nlist, code_size)
            content = np.frombuffer(mmap.mmap(stream.fileno(), length, access=mmap.ACCESS_READ), np.uint8)
    except FileNotFoundError as error:
        raise MissingInput(f"{path}: no such shard; build it, or open the index with partial=True") from error
    except (struct.error, ValueError) as error:
        expected = f"an IVF of {nlist} lists of {code_size}-byte codes"
        raise DamagedArtifact(f"{path}: expected {expected}, found {error}; delete the file and build the shard again") from error
    if sizes.sum() != ntotal:
        found = f"{int(sizes.sum())} vectors in its lists, {ntotal} in its header"
        raise DamagedArtifact(f"{path}: {found}; delete the file and build the shard again")
    bytes_of = sizes * (code_size + ID_BYTES)
    starts = content.ctypes.data + body + np.cumsum(bytes_of) - bytes_of
    return MappedLists(path, d, ntotal, starts, sizes, content)


def at_address(address: int, size: int) -> UInt8:
    """(size,) the bytes that lie at an address, not copied; nothing where there are none."""
    return np.frombuffer(memoryview((ctypes.c_char * size).from_address(address)), np.uint8) if size else np.empty(0, np.uint8)


def _mark(nlist: int, code_size: int, kind: bytes) -> bytes:
    return b"ilar" + struct.pack("<QQ", nlist, code_size) + kind


def _sizes(tail: bytes, nlist: int, code_size: int) -> Int64:
    """(nlist,) vectors in each list, from the table that `tail` ends with."""
    sizes = np.zeros(nlist, np.int64)
    for kind in (b"full", b"sprs"):
        mark = _mark(nlist, code_size, kind)
        at = tail.rfind(mark)
        if at < 0:
            continue
        table = np.frombuffer(tail[at + len(mark) :], WORD).astype(np.int64)  # ValueError if cut in the middle of a number
        if len(table) == 0 or table[0] != len(table) - 1:
            break
        if kind == b"full" and table[0] == nlist:
            return table[1:]
        lists, counts = table[1::2], table[2::2]
        if kind == b"sprs" and len(lists) == len(counts) and ((lists >= 0) & (lists < nlist)).all():
            sizes[lists] = counts
            return sizes
    raise ValueError("no table of these list sizes before the lists")
