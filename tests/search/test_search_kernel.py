"""The compiled search on any file of scalar codes, against faiss and against plain float64 sums."""

import ctypes
import mmap
from pathlib import Path

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit
from search_builds import unit

from paired_index_assets.errors import DamagedArtifact
from paired_index_assets.search import blocks, dots, plan
from paired_index_assets.search.mapped import map_lists
from paired_index_assets.search.plan import Plan
from paired_index_assets.search.scanning import Scan, bitmap
from paired_index_assets.search.threads import Workers
from paired_index_assets.trained.coarse import probe

NLIST, GROUPS, ROWS = 40, 6, 1500


def written(folder: Path, *, d=20, width=20, qtype="QT_4bit", levels=1, copies=False, seed=0) -> Path:
    """A faiss file: perhaps a transform to another width, perhaps a two-level quantizer."""
    draw = np.random.default_rng(seed)
    images = unit(draw.normal(size=(ROWS, d)).astype(np.float32))
    if copies:
        images[100:] = images[draw.integers(0, 3, ROWS - 100)]
    matrix = np.eye(width, d) if width == d else draw.normal(size=(width, d)) / np.sqrt(d)
    seen = np.ascontiguousarray(images @ matrix.T.astype(np.float32))
    centroids = np.ascontiguousarray(seen[draw.permutation(100)[:NLIST]])
    if levels == 1:
        quantizer = faiss.IndexFlatIP(width)
    else:
        flat = faiss.IndexFlatIP(width)
        quantizer = faiss.IndexIVFFlat(flat, width, GROUPS, faiss.METRIC_INNER_PRODUCT)
        quantizer.train(centroids)
        quantizer.nprobe = 3
    quantizer.add(centroids)
    kind = getattr(faiss.ScalarQuantizer, qtype)
    ivf = faiss.IndexIVFScalarQuantizer(quantizer, width, NLIST, kind, faiss.METRIC_INNER_PRODUCT, False)
    ivf.train(seen)
    ivf.add(seen)
    index = ivf
    if width != d or levels == 2:
        linear = faiss.LinearTransform(d, width, False)
        faiss.copy_array_to_vector(matrix.astype(np.float32).ravel(), linear.A)
        linear.is_trained = True
        index = faiss.IndexPreTransform(linear, ivf)
    index.ntotal = ROWS
    faiss.write_index(index, str(folder / "all.index"))
    return folder / "all.index"


def opened(path: Path) -> tuple[Scan, faiss.Index, faiss.IndexIVF]:
    index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
    ivf = faiss.downcast_index(faiss.extract_index_ivf(index))
    return Scan(Plan(index, [map_lists(path, ivf.nlist, ivf.code_size)]), Workers()), index, ivf


def by_float64(index, ivf, queries, k, nprobe, without=(), only=None):
    """Every code of the probed lists decoded and multiplied in float64; equal scores by id."""
    seen = index.chain.at(0).apply(queries) if isinstance(index, faiss.IndexPreTransform) else queries
    scores, ids = np.full((len(queries), k), -np.inf, np.float32), np.full((len(queries), k), -1)
    for row, lists in enumerate(probe(ivf.quantizer, seen, nprobe)[1]):
        found = []
        for number in lists[lists >= 0]:
            size = ivf.invlists.list_size(int(number))
            if size:
                codes = faiss.rev_swig_ptr(ivf.invlists.get_codes(int(number)), size * ivf.code_size).reshape(size, -1).copy()
                labels = faiss.rev_swig_ptr(ivf.invlists.get_ids(int(number)), size).copy()
                found.append((ivf.sq.decode(codes).astype(np.float64) @ seen[row].astype(np.float64), labels))
        values, labels = (np.concatenate(part) for part in zip(*found, strict=True))
        wanted = ~np.isin(labels, without) & (np.isin(labels, only) if only is not None else True)
        values, labels = values[wanted], labels[wanted]
        order = np.lexsort((labels, -values.astype(np.float32)))[:k]
        scores[row, : len(order)], ids[row, : len(order)] = values[order], labels[order]
    return scores, ids


def assert_same(found, expected):
    """Scores to a part in a million; ids wherever scores are further apart than that."""
    np.testing.assert_allclose(found[0], expected[0], atol=1e-6)
    steps = np.abs(np.diff(np.nan_to_num(expected[0], neginf=-9), axis=1, prepend=9, append=-9)) > 2e-6
    distinct = steps[:, :-1] & steps[:, 1:]
    distinct[:, -1] = False  # what follows the last is not known
    np.testing.assert_array_equal(found[1][distinct], expected[1][distinct])


@pytest.mark.parametrize(
    "made",
    [
        {},
        {"levels": 2},
        {"levels": 2, "d": 20, "width": 33},  # half a byte at the end of each code
        {"d": 150, "width": 150},  # more than one register, and not a whole number of them
        {"qtype": "QT_8bit", "d": 70, "width": 70},
        {"qtype": "QT_6bit", "d": 21, "width": 21},
        {"copies": True, "levels": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize("n", [5, 90])
def test_the_best_codes_are_found_exactly(tmp_path, made, n):
    scan, index, ivf = opened(written(tmp_path, **made))
    queries = unit(np.random.default_rng(9).normal(size=(n, index.d)).astype(np.float32))
    for k, nprobe in ((1, 1), (7, 5), (60, NLIST)):
        assert_same(scan.search(queries, k, nprobe), by_float64(index, ivf, queries, k, nprobe))


@pytest.mark.parametrize("levels", [1, 2])
def test_centroids_too_many_for_bytes_are_read_where_they_lie_with_the_same_answers(tmp_path, levels, monkeypatch):
    path = written(tmp_path, levels=levels)
    in_bytes = opened(path)[0]
    monkeypatch.setattr(plan, "QUICK_BYTES", 0)
    as_they_lie, index, _ = opened(path)
    queries = unit(np.random.default_rng(9).normal(size=(90, index.d)).astype(np.float32))
    for n, nprobe in ((1, 4), (90, 4), (90, NLIST)):
        for one, other in zip(in_bytes.search(queries[:n], 10, nprobe), as_they_lie.search(queries[:n], 10, nprobe), strict=True):
            np.testing.assert_array_equal(one, other)


def test_hundreds_of_equal_codes_come_by_ascending_id(tmp_path):
    scan, index, ivf = opened(written(tmp_path, copies=True))
    query = unit(np.random.default_rng(9).normal(size=(1, index.d)).astype(np.float32))
    for k in (3, 50, 400):
        for mine, exact in zip(scan.search(query, k, NLIST), by_float64(index, ivf, query, k, NLIST), strict=True):
            np.testing.assert_allclose(mine, exact, atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(share=st.floats(0, 1), seed=st.integers(0, 1000), n=st.sampled_from([3, 70]))
def test_only_what_a_bitmap_allows_and_nothing_removed_is_found(tmp_path_factory, share, seed, n):
    scan, index, ivf = opened(written(tmp_path_factory.mktemp("made"), levels=2, seed=seed % 3))
    draw = np.random.default_rng(seed)
    queries = unit(draw.normal(size=(n, index.d)).astype(np.float32))
    allowed, removed = np.flatnonzero(draw.random(ROWS) < share), np.sort(draw.choice(ROWS, 40, replace=False))
    found = scan.search(queries, 10, 9, removed, bitmap(allowed, ROWS))
    assert_same(found, by_float64(index, ivf, queries, 10, 9, without=removed, only=allowed))


@pytest.mark.parametrize("size", [1, 12, 63, 64, 65, 200])
def test_sums_of_products_are_those_of_whole_numbers_on_any_processor(size):
    draw = np.random.default_rng(size)
    stride = -(-size // dots.LANES) * dots.LANES
    code = draw.integers(0, 256, size, dtype=np.uint8)
    weights = np.zeros((4, stride), np.int8)
    weights[:, :size] = draw.integers(-128, 128, (4, size))
    low, high, w = (code & 15).astype(int), (code >> 4).astype(int), weights[:, :size].astype(int)
    nibbles = ((low @ w[0] + high @ w[1]) << 8) + low @ w[2] + high @ w[3]
    whole = ((code.astype(int) @ w[0]) << 8) + code.astype(int) @ w[1]
    for expected, ways in ((nibbles, (dots.dot_nibbles, dots._nibbles_in_loops)), (whole, (dots.dot_bytes, dots._bytes_in_loops))):
        for way in ways:
            run = njit(lambda a, b, c, d, way=way: way(a, b, c, d))
            assert run(code.ctypes.data, weights.ctypes.data, stride, size) == expected


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_blocks_of_sixteen_vectors_give_the_same_sums_on_any_processor(count):
    in_loops = blocks._in_loops(count)
    for width in (1, 24, 64, 130):
        draw = np.random.default_rng(width)
        levels = draw.integers(0, 256, (16 * count, width), dtype=np.uint8)
        weights = np.zeros((blocks.PLANES, blocks.weights_stride(width)), np.int8)
        weights[:, :width] = draw.integers(-128, 128, (2, width))
        coarse, fine = weights[:, :width].astype(int) @ levels.T.astype(int)
        expected, laid = (coarse << 8) + fine, blocks.in_blocks(levels)
        threshold, stride = np.int32(np.median(expected)), weights.shape[1]
        for way, many in ((blocks.dot_blocks, (count,)), (in_loops, ())):
            sums = np.zeros(16 * count, np.int32)
            at = laid.ctypes.data, blocks.block_bytes(width), weights.ctypes.data, stride, stride // blocks.QUAD
            bits = way(*at, *many, threshold, sums.ctypes.data)
            np.testing.assert_array_equal(sums, expected)
            np.testing.assert_array_equal([int(bits) >> i & 1 for i in range(16 * count)], expected >= threshold)


@pytest.mark.parametrize(("bits", "width"), [(4, 1), (4, 24), (4, 33), (4, 130), (6, 21), (8, 5), (8, 66)])
def test_codes_are_laid_out_in_blocks_without_reading_past_them(bits, width):
    draw = np.random.default_rng(width)
    levels = draw.integers(0, 1 << bits, (37, width), dtype=np.uint8)
    stream = np.unpackbits(levels[:, :, None], axis=2, bitorder="little")[:, :, :bits].reshape(37, -1)
    codes = np.packbits(stream, axis=1, bitorder="little")
    size = codes.shape[1]
    page = mmap.PAGESIZE
    room = mmap.mmap(-1, 2 * page)  # the last code ends where the page does
    content = np.frombuffer(room, np.uint8)
    content[page - codes.size : page] = codes.ravel()
    at = content.ctypes.data
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(at + page), page, 0) == 0
    addresses = np.zeros(48, np.int64)
    addresses[:37] = at + page - codes.size + size * np.arange(37)
    span = blocks.block_bytes(width)
    for registers in (True, False):
        laid = np.zeros(3 * span, np.uint8)
        if registers:
            blocks.lay_out(addresses, 37, size, bits, width, laid.ctypes.data)
        else:
            for i in range(37):
                blocks.spread(addresses[i], size, bits, width, laid.ctypes.data + i // 16 * span + i % 16 * blocks.QUAD)
        back = laid.reshape(3, -1, 16, blocks.QUAD).transpose(0, 2, 1, 3).reshape(48, -1)
        np.testing.assert_array_equal(back[:37, :width], levels)
        assert not back[:37, width:].any()


def test_a_file_of_other_codes_is_refused_in_one_line(tmp_path):
    index = faiss.index_factory(16, "IVF4,PQ4", faiss.METRIC_INNER_PRODUCT)
    with pytest.raises(DamagedArtifact, match="IndexIVFPQ, expected scalar codes"):
        Plan(index, [])
