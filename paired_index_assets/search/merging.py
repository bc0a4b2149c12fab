"""All shards of a build as one faiss index, for programs that take one.

faiss's `merge_ondisk(shift_ids=True)` numbers the rows anew, wrongly where shards are of unequal size. The shards' ids are global
already: lists are put behind each other as they are, and each is then compared with its sources.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path

import faiss
import numpy as np
from upath import UPath

from paired_index_assets.codes.formats import ivf_of
from paired_index_assets.errors import DamagedArtifact, OutOfDisk
from paired_index_assets.files.storage import atomic_file
from paired_index_assets.layout import BuildRoot
from paired_index_assets.progress import Progress, silent
from paired_index_assets.rows import Int64, UInt8
from paired_index_assets.search.mapped import ID_BYTES
from paired_index_assets.search.sharded import ShardedIndex
from paired_index_assets.search.shardset import served_index

LISTS_A_REPORT = 1024


def merge_shards(root: str | Path | UPath, out: str | Path, *, progress: Progress = silent) -> int:
    """Write `out` (centroids and codec) and ``out.ivfdata`` (the lists, as large as all shards); returns the vectors in them.

    ``faiss.read_index(out, faiss.IO_FLAG_ONDISK_SAME_DIR)`` reads it and loads nothing but the centroids. `out` gets its name last, when
    every list has been compared with the shards'. Raises as `ShardedIndex.open`; OutOfDisk; DamagedArtifact if a list came out otherwise.
    """
    out = Path(out).absolute()
    out.parent.mkdir(parents=True, exist_ok=True)
    data = out.with_name(f"{out.name}.ivfdata")
    temporary = out.with_name(f".{data.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    file = served_index(BuildRoot.at(root)).trained.empty_index()
    merged = ivf_of(file)
    with ShardedIndex.open(root) as index:
        needed, free = index.ntotal * (merged.code_size + ID_BYTES), shutil.disk_usage(out.parent).free
        if needed > free:  # faiss writes through a map: a full disk would kill the process
            raise OutOfDisk(f"{data}: expected {needed} bytes free, found {free}; free some or choose another disk")
        sources = [shard.lists for shard in index.mapped.values()]
        lists = faiss.OnDiskInvertedLists(merged.nlist, merged.code_size, str(temporary))
        try:
            pointers = faiss.InvertedListsPtrVector()
            for source in sources:
                pointers.push_back(source)
            file.ntotal = merged.ntotal = lists.merge_from_multiple(pointers.data(), pointers.size(), False)
            _check(lists, sources, out, progress)
            out.unlink(missing_ok=True)  # one that was here before has lost its lists from here on
            os.replace(temporary, data)
        finally:
            temporary.unlink(missing_ok=True)
        lists.filename = str(data)
        merged.replace_invlists(lists, False)
        with atomic_file(out) as draft:
            faiss.write_index(file, str(draft))
        return index.ntotal


def _check(merged: faiss.InvertedLists, sources: Sequence[faiss.InvertedLists], out: Path, progress: Progress) -> None:
    """Every list is its sources' lists, one behind the other, byte for byte."""
    for number in range(merged.nlist):
        codes, ids = zip(*(_content(source, number) for source in sources), strict=True)
        mine_codes, mine_ids = _content(merged, number)
        if not (np.array_equal(mine_codes, np.concatenate(codes)) and np.array_equal(mine_ids, np.concatenate(ids))):
            raise DamagedArtifact(f"{out}: list {number} is not the shards' lists put together; merge again")
        if number % LISTS_A_REPORT == 0:
            progress("check", number, merged.nlist)
    progress("check", merged.nlist, merged.nlist)


def _content(lists: faiss.InvertedLists, number: int) -> tuple[UInt8, Int64]:
    """Views of the codes and the ids of a list."""
    size = lists.list_size(number)
    if size == 0:
        return np.empty(0, np.uint8), np.empty(0, np.int64)
    return faiss.rev_swig_ptr(lists.get_codes(number), size * lists.code_size), faiss.rev_swig_ptr(lists.get_ids(number), size)
