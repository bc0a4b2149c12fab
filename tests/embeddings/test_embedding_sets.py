"""Parts on disk read as one matrix: like the array they were cut from, and honest about what is wrong with them."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paired_index_assets.embeddings.sets import EmbeddingSet, part_of, write_set
from paired_index_assets.errors import BadInput, DamagedArtifact, MissingInput
from paired_index_assets.files.npy import StreamedNpy, read_header
from paired_index_assets.rows import Rows


def cut_set(folder, matrix, cuts):
    parts = []
    for number, piece in enumerate(np.split(matrix, cuts)):
        path = folder / f"part_{number:04d}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, piece)
        parts.append(part_of(path))
    return write_set(folder / "images.json", parts, model="m", modality="images")


@pytest.fixture(scope="module")
def matrix():
    return np.random.default_rng(0).standard_normal((200, 6)).astype(np.float16)


@pytest.fixture(scope="module")
def whole(matrix, tmp_path_factory):
    """Parts of 50, 0, 70, 1 and 79 rows."""
    return cut_set(tmp_path_factory.mktemp("set"), matrix, [50, 50, 120, 121])


bounds = st.one_of(st.none(), st.integers(-220, 220))


@settings(max_examples=200, deadline=None)
@given(start=bounds, stop=bounds, step=st.one_of(st.none(), st.integers(-7, 7).filter(bool)))
def test_any_slice_is_the_slice_of_the_whole(whole, matrix, start, stop, step):
    np.testing.assert_array_equal(whole[start:stop:step], matrix[start:stop:step])


@settings(max_examples=100, deadline=None)
@given(ids=st.lists(st.integers(0, 199), max_size=60))
def test_any_selection_keeps_its_order_and_repeats(whole, matrix, ids):
    ids = np.array(ids, np.int64)
    np.testing.assert_array_equal(whole[ids], matrix[ids])


def test_a_set_is_rows_and_a_slice_inside_a_part_is_not_copied(whole, matrix):
    assert isinstance(whole, Rows)
    assert (len(whole), whole.shape, whole.dtype, whole.model) == (200, (200, 6), np.float16, "m")
    assert isinstance(whole[60:90].base, np.memmap) or isinstance(whole[60:90], np.memmap)
    np.testing.assert_array_equal(np.asarray(whole), matrix)
    mask = matrix[:, 0] > 0
    np.testing.assert_array_equal(whole[mask], matrix[mask])


def test_a_set_pickles_as_its_path(whole, matrix):
    content = pickle.dumps(whole)
    assert len(content) < 1000
    np.testing.assert_array_equal(pickle.loads(content)[:], matrix)


@pytest.mark.parametrize("ids", [[-1], [0, 200], [[1]], [0.5]])
def test_rows_outside_the_set_are_an_error_never_another_row(whole, ids):
    with pytest.raises(IndexError, match=r"expected"):
        whole[np.array(ids)]


def test_valid_rows_are_finite_and_not_zero(tmp_path, matrix):
    bad = matrix.copy()
    bad[3] = 0
    bad[51, 2] = np.nan
    bad[199, 0] = np.inf
    found = cut_set(tmp_path, bad, [50, 120])
    assert np.flatnonzero(~found.valid()).tolist() == [3, 51, 199]
    facts = found.facts()
    assert (facts.rows, facts.invalid, facts.first_invalid) == (200, 3, 3)
    norms = np.linalg.norm(np.delete(bad, [3, 51, 199], 0).astype("f4"), axis=1)
    np.testing.assert_allclose([facts.norm_min, facts.norm_max], [norms.min(), norms.max()], rtol=1e-4)


def test_valid_is_kept_by_part_and_follows_a_changed_file(tmp_path, matrix):
    found = cut_set(tmp_path, matrix, [50, 120])
    assert found.valid().all()
    assert len(list((tmp_path / "valid").iterdir())) == 3
    changed = matrix[50:120].copy()
    changed[5] = 0
    np.save(tmp_path / "part_0001.npy", changed)
    assert np.flatnonzero(~EmbeddingSet.open(tmp_path / "images.json").valid()).tolist() == [55]


@pytest.mark.parametrize("cut", [0, 30, -5])
def test_a_damaged_cache_of_valid_rows_is_made_again(tmp_path, matrix, cut):
    expected = cut_set(tmp_path, matrix, [100]).valid()
    caches = sorted((tmp_path / "valid").iterdir())
    whole = [cache.read_bytes() for cache in caches]
    for cache, content in zip(caches, whole, strict=True):
        cache.write_bytes(content[:cut])
    np.testing.assert_array_equal(EmbeddingSet.open(tmp_path / "images.json").valid(), expected)
    assert [cache.read_bytes() for cache in caches] == whole


def test_paths_are_relative_under_the_folder_and_absolute_elsewhere(tmp_path, matrix):
    found = cut_set(tmp_path / "a", matrix, [50])
    (tmp_path / "a").rename(tmp_path / "b")
    moved = EmbeddingSet.open(tmp_path / "b/images.json")
    np.testing.assert_array_equal(moved[:], matrix)
    assert moved.fingerprint == found.fingerprint
    elsewhere = write_set(tmp_path / "c/images.json", [part_of(p.path) for p in moved.parts], model="m", modality="images")
    (tmp_path / "c").rename(tmp_path / "d")
    np.testing.assert_array_equal(EmbeddingSet.open(tmp_path / "d/images.json")[:], matrix)
    assert len(elsewhere) == 200


def test_a_missing_a_replaced_and_a_foreign_file_are_named(tmp_path, matrix):
    found = cut_set(tmp_path, matrix, [50])
    np.save(tmp_path / "part_0001.npy", matrix[:3])
    with pytest.raises(DamagedArtifact, match=r"part_0001\.npy: expected 150 rows of 6 float16"):
        EmbeddingSet.open(found.source)[:]
    (tmp_path / "part_0001.npy").unlink()
    with pytest.raises(MissingInput, match=r"part_0001\.npy: no such file"):
        EmbeddingSet.open(found.source)[:]
    with pytest.raises(MissingInput, match=r"nowhere\.json: no such file"):
        EmbeddingSet.open(tmp_path / "nowhere.json")
    (tmp_path / "other.json").write_text('{"parts": []}')
    with pytest.raises(DamagedArtifact, match=r"other\.json: not the description of an embedding set"):
        EmbeddingSet.open(tmp_path / "other.json")


def test_parts_must_agree(tmp_path, matrix):
    np.save(tmp_path / "a.npy", matrix)
    np.save(tmp_path / "wide.npy", np.ones((3, 7), np.float16))
    np.save(tmp_path / "double.npy", np.ones((3, 6), np.float32))
    for other, found in (("wide.npy", "7 of float16"), ("double.npy", "6 of float32")):
        parts = [part_of(tmp_path / "a.npy"), part_of(tmp_path / other)]
        with pytest.raises(BadInput, match=rf"{other}: expected 6 dimensions of float16 as in .*a\.npy, found {found}"):
            write_set(tmp_path / "images.json", parts, model="m", modality="images")
    assert not (tmp_path / "images.json").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.zeros((3, 4), np.float64), "expected dtype float16 or float32 .*found <f8"),
        (np.zeros((3, 4), ">f2"), "expected dtype float16 or float32 .*found >f2"),
        (np.zeros((3, 4), np.int8), "expected dtype float16 or float32 .*found .i1"),
        (np.zeros(4, np.float16), r"expected a matrix of shape \(rows, dimensions\), found shape \(4,\)"),
        (np.zeros((2, 3, 4), np.float16), r"expected a matrix .*found shape \(2, 3, 4\)"),
        (np.asfortranarray(np.zeros((3, 4), np.float16)), "expected rows in C order, found Fortran order"),
        (np.array([["a", None]], object), "expected float16 or float32, found an object array"),
    ],
)
def test_a_wrong_npy_is_refused_by_its_header(tmp_path, content, message):
    np.save(tmp_path / "x.npy", content, allow_pickle=True)
    with pytest.raises(BadInput, match=rf"x\.npy: {message}"):
        read_header(tmp_path / "x.npy")


@pytest.mark.parametrize("change", [lambda b: b[:-1], lambda b: b + b"x", lambda b: b[:50], lambda b: b"", lambda b: b"<html>" + b])
def test_a_cut_a_long_an_empty_and_a_foreign_file_are_refused(tmp_path, change):
    np.save(tmp_path / "x.npy", np.zeros((30, 4), np.float16))
    (tmp_path / "x.npy").write_bytes(change((tmp_path / "x.npy").read_bytes()))
    with pytest.raises(BadInput, match=r"x\.npy: expected .*found "):
        read_header(tmp_path / "x.npy")


@settings(max_examples=50, deadline=None)
@given(rows=st.lists(st.integers(0, 9), max_size=6), dimensions=st.integers(1, 2000))
def test_a_streamed_file_is_the_file_numpy_writes(tmp_path_factory, rows, dimensions):
    folder = tmp_path_factory.mktemp("npy")
    blocks = [np.full((n, dimensions), i, np.float32) for i, n in enumerate(rows)]
    with StreamedNpy(folder / "streamed.npy", dimensions) as npy:
        for block in blocks:
            npy.append(block)
    np.save(folder / "whole.npy", np.concatenate([np.empty((0, dimensions)), *blocks]).astype(np.float16))
    assert (folder / "streamed.npy").read_bytes() == (folder / "whole.npy").read_bytes()
