"""Lists that are asked of the disk are in memory soon, and what was not asked for is not."""

import ctypes
import mmap
import os
import time

import faiss
import numpy as np
import pytest
from search_builds import NLIST as NLISTS

from paired_index_assets.search.ahead import IN_FRONT, PAGE, ask, now
from paired_index_assets.search.mapped import at_address, map_lists
from paired_index_assets.search.plan import PLAN, Plan
from paired_index_assets.search.scanning import Scan
from paired_index_assets.search.sharded import ShardedIndex
from paired_index_assets.search.stored import probed_lists
from paired_index_assets.search.threads import Workers

NLIST, PIECES, CODE = 5, 3, 24
FAR = 16 << 20  # bytes from one piece to the next: further than systems read ahead
LIBC = ctypes.CDLL(None)


@pytest.fixture
def mapped(tmp_path):
    """A file of pieces far apart, put out of memory, and the plan of its lists; piece (list 2, shard 1) is empty, list 4 too."""
    path = tmp_path / "lists"
    with path.open("wb") as stream:
        stream.truncate(NLIST * PIECES * FAR)
        sizes = np.full((NLIST, PIECES), 700, np.int64)  # 22,400 bytes: not whole pages
        sizes[2, 1] = sizes[4] = 0
        at = np.arange(NLIST * PIECES).reshape(NLIST, PIECES) * FAR + 100
        for start, size in zip(at.ravel(), sizes.ravel(), strict=True):
            stream.seek(start)
            stream.write(os.urandom(size * (CODE + 8)))
        stream.flush()
        os.fsync(stream.fileno())
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    with path.open("rb") as stream:
        content = np.frombuffer(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    plan, asked = np.zeros(1, PLAN), np.zeros(NLIST, np.int32)
    starts = content.ctypes.data + at
    for name, value in {
        "pieces": PIECES, "code_size": CODE, "starts": starts.ctypes.data, "sizes": sizes.ctypes.data, "asked": asked.ctypes.data
    }.items():  # fmt: skip
        plan[name] = value
    yield plan[0], starts, sizes, asked
    del content


def in_memory(address: int, size: int) -> bool:
    first = address // PAGE * PAGE
    pages = -(-(address + size - first) // PAGE)
    found = (ctypes.c_ubyte * pages)()
    assert LIBC.mincore(ctypes.c_void_p(first), ctypes.c_size_t(address + size - first), found) == 0
    return all(page & 1 for page in found)


def lists_in_memory(starts, sizes) -> list[bool]:
    return [
        all(in_memory(int(at), int(size) * (CODE + 8)) for at, size in zip(row, many, strict=True) if size)
        for row, many in zip(starts, sizes, strict=True)
    ]


def test_all_pieces_of_a_list_are_read_and_no_other_list(mapped):
    plan, starts, sizes, _ = mapped
    kept = lists_in_memory(starts, sizes)[0]  # by a file system that is memory itself
    ask(plan, 2, now())
    deadline = time.monotonic() + 30
    while not lists_in_memory(starts, sizes)[2] and time.monotonic() < deadline:
        time.sleep(0.01)
    assert lists_in_memory(starts, sizes) == [kept, kept, True, kept, True]  # list 4 is empty


def test_a_list_is_asked_for_again_only_at_another_moment(mapped):
    plan, _, _, asked = mapped
    ask(plan, 1, 7)
    assert asked.tolist() == [0, 7, 0, 0, 0]
    ask(plan, 1, 8)
    ask(plan, 4, 8)
    assert asked.tolist() == [0, 8, 0, 0, 8]


def test_the_moment_is_never_that_of_a_list_that_was_not_asked_for():
    assert now() > 0


def test_every_list_that_a_query_looks_in_is_asked_for_once_and_no_other(finished):
    with ShardedIndex.open(finished.root.root) as index:
        plan = index._scan.plan
        asked = at_address(int(plan.record["asked"][0]), 4 * NLISTS).view(np.int32)
        query = finished.captions[:1]
        index.search(query, 5, nprobe=7)
        assert np.flatnonzero(asked).tolist() == sorted(probed_lists(plan, query, 7).tolist())
        index.search(finished.captions[:200], 5, nprobe=9)  # a batch
        everywhere = {number for caption in finished.captions[:200] for number in probed_lists(plan, caption[None], 9).tolist()}
        assert set(np.flatnonzero(asked).tolist()) == everywhere | set(probed_lists(plan, query, 7).tolist())


def test_more_lists_than_are_asked_for_at_a_time_are_all_asked_for(tmp_path):
    lists, looked, d = 4 * IN_FRONT, 3 * IN_FRONT, 16
    rows = np.random.default_rng(0).standard_normal((3000, d)).astype(np.float32)
    quantizer = faiss.IndexFlatIP(d)
    quantizer.add(rows[:lists])
    ivf = faiss.IndexIVFScalarQuantizer(quantizer, d, lists, faiss.ScalarQuantizer.QT_4bit, faiss.METRIC_INNER_PRODUCT, False)
    ivf.train(rows)
    ivf.add(rows)
    faiss.write_index(ivf, str(tmp_path / "all.index"))
    plan = Plan(ivf, [map_lists(tmp_path / "all.index", lists, ivf.code_size)])
    Scan(plan, Workers()).search(rows[:1], 5, looked)
    asked = at_address(int(plan.record["asked"][0]), 4 * lists).view(np.int32)
    assert np.flatnonzero(asked).tolist() == sorted(probed_lists(plan, rows[:1], looked).tolist())
