"""What counts as landed, what changes its version, and how bad files and rows are named."""

from __future__ import annotations

import os
from dataclasses import replace

import fsspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from upath import UPath

from paired_index_assets.embeddings.sets import part_of, write_set
from paired_index_assets.errors import BadInput, MissingInput
from paired_index_assets.files.listing import list_files
from paired_index_assets.files.stamp import stamp_of, stamp_of_remote
from paired_index_assets.landing.catalog import Catalog
from paired_index_assets.landing.landed import (
    check_file,
    complete_shards,
    first_complete,
    inspect_rows,
    landed_by_shard,
    landed_file,
    list_folder,
    read_block,
    read_blocks,
    version_of,
)
from paired_index_assets.pairing.split import _hash_rows
from paired_index_assets.progress import silent
from paired_index_assets.rows import usable_rows


@pytest.fixture
def published(landing_folder):
    return landing_folder([20, 30, 40, 50, 60, 70])


@pytest.fixture
def catalog(published):
    return Catalog.scan(published, shards=3)


def test_only_complete_catalogued_files_have_landed(catalog, published, tmp_path):
    landing = tmp_path / "landing"
    assert list_folder(landing) == {}
    landing.mkdir()
    for number in (0, 1, 2):
        (landing / f"img_emb_{number}.npy").write_bytes((published / f"img_emb_{number}.npy").read_bytes())
    (landing / "img_emb_3.npy").write_bytes((published / "img_emb_3.npy").read_bytes()[:-1])
    (landing / ".img_emb_4.npy.part").write_bytes(b"x")
    (landing / "stranger.npy").write_bytes(b"x")
    (landing / "img_emb_5.npy").mkdir()
    listing = list_folder(landing)
    assert {shard: [file.name for file in files] for shard, files in landed_by_shard(listing, catalog).items()} == {
        0: ["img_emb_0.npy", "img_emb_1.npy"],
        1: ["img_emb_2.npy"],
    }
    assert complete_shards(listing, catalog) == [0]
    assert [file.name for file in landed_by_shard(list_folder(landing), catalog)[1]] == ["img_emb_2.npy"]


def test_links_are_followed_and_broken_ones_ignored(catalog, published, tmp_path):
    landing = tmp_path / "links"
    landing.mkdir()
    for file in catalog:
        (landing / file.name).symlink_to(published / file.name)
    (landing / "broken.npy").symlink_to(tmp_path / "nowhere")
    (landing / "folder.npy").symlink_to(published)
    listing = list_folder(landing)
    assert complete_shards(listing, catalog) == [0, 1, 2]
    assert set(listing) == {file.name for file in catalog}
    before = version_of(landed_by_shard(list_folder(landing), catalog)[0])
    os.utime(published / "img_emb_0.npy", ns=(0, 12345))
    assert version_of(landed_by_shard(list_folder(landing), catalog)[0]) != before
    (landing / "broken.npy").unlink()
    assert Catalog.scan(landing, shards=3, names="img_*.npy").table.equals(catalog.table)


def test_a_sliced_file_has_landed_in_each_of_its_shards(landing_folder):
    folder = landing_folder([100])
    catalog = Catalog.scan(folder, shards=7)
    assert complete_shards(list_folder(folder), catalog) == list(range(7))
    whole = np.load(folder / "img_emb_0.npy")
    parts = [read_block(file, folder / file.name) for file in catalog]
    assert (np.concatenate([part.vectors for part in parts]) == whole).all()
    assert [part.start_row for part in parts] == [file.start_row for file in catalog]


def test_a_complete_file_is_taken_from_the_first_folder_that_has_it(catalog, published, tmp_path):
    first = tmp_path / "first"
    first.mkdir()
    (first / "img_emb_0.npy").write_bytes(b"incomplete")
    (first / "img_emb_1.npy").write_bytes((published / "img_emb_1.npy").read_bytes())
    listing = first_complete([list_folder(first), list_folder(published)], catalog)
    assert listing["img_emb_0.npy"].path == UPath(published / "img_emb_0.npy")
    assert listing["img_emb_1.npy"].path == UPath(first / "img_emb_1.npy")
    assert complete_shards(listing, catalog) == [0, 1, 2]


def test_the_version_follows_content_and_not_order(catalog, published):
    files = landed_by_shard(list_folder(published), catalog)[1]
    version = version_of(files)
    assert version == version_of(reversed(files)) == version_of(landed_by_shard(list_folder(published), catalog)[1])
    changed = published / files[0].name
    changed.write_bytes(changed.read_bytes())
    os.utime(changed, ns=(0, changed.stat().st_mtime_ns + 1))
    assert version_of(landed_by_shard(list_folder(published), catalog)[1]) != version
    assert version_of(files[:1]) != version


def test_a_remote_folder_is_listed_with_one_call(catalog, published, monkeypatch):
    remote = UPath("memory://bucket/landing")
    for path in published.glob("*.npy"):
        (remote / path.name).write_bytes(path.read_bytes())
    calls = []
    memory = type(fsspec.filesystem("memory"))
    for verb in ("ls", "info", "find", "glob", "exists"):
        original = getattr(memory, verb)

        def counted(self, *args, _verb=verb, _original=original, **options):
            calls.append(_verb)
            return _original(self, *args, **options)

        monkeypatch.setattr(memory, verb, counted)
    listing = list_folder(remote)
    assert calls == ["ls"]
    assert complete_shards(listing, catalog) == [0, 1, 2]
    monkeypatch.undo()
    file = catalog.all_files[4]
    assert (read_block(file, listing[file.name].path).vectors == np.load(published / file.name)).all()


def test_a_folder_behind_http_is_listed_with_sizes_and_etags(catalog, published):
    from misbehaving import MisbehavingServer

    with MisbehavingServer(published) as server:
        listing = list_folder(server.url)
        assert complete_shards(listing, catalog) == [0, 1, 2]
        assert len({landed.stamp for landed in listing.values()}) == len(catalog)
        file = catalog.all_files[2]
        assert (read_block(file, listing[file.name].path).vectors == np.load(published / file.name)).all()


def test_the_whole_of_laion_is_looked_over_in_one_listing(tmp_path):
    """2314 files of their true sizes (sparse), three of them still incomplete."""
    catalog = Catalog.laion2b()
    for file in catalog:
        with (tmp_path / file.name).open("wb") as stream:
            stream.truncate(file.bytes - (file.file_id in (0, 41, 2313)))
    listing = list_folder(tmp_path)
    assert complete_shards(listing, catalog) == [shard for shard in range(58) if shard not in (0, 1, 57)]
    assert sum(len(files) for files in landed_by_shard(listing, catalog).values()) == 2311


def test_rows_are_read_in_blocks_in_order(catalog, published):
    file = catalog.all_files[5]
    blocks = list(read_blocks(file, published / file.name, block_rows=16))
    assert [len(block.vectors) for block in blocks] == [16, 16, 16, 16, 6]
    assert [block.start_row - file.start_row for block in blocks] == [0, 16, 32, 48, 64]
    assert all(block.valid.all() and block.off_norm == 0 for block in blocks)
    assert (np.concatenate([block.vectors for block in blocks]) == np.load(published / file.name)).all()


@pytest.mark.parametrize("dtype", ["<f2", "<f4"])
def test_rows_that_cannot_be_searched_are_marked_and_counted(unit_rows, dtype):
    rows = unit_rows(12).astype(dtype)
    rows[1, 3] = np.nan
    rows[2, 0] = np.inf
    rows[3] = 0
    rows[4] *= 3
    rows[5, 0], rows[5, 1] = np.inf, -np.inf
    block = inspect_rows(rows, start_row=100)
    assert np.flatnonzero(~block.valid).tolist() == [1, 2, 3, 5]
    assert (block.not_finite, block.zero, block.off_norm, block.start_row) == (3, 1, 1, 100)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.integers(1, 9), st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_row_checks_agree_with_numpy_on_any_float16_bits(rows, d, seed, share):
    """Any 16 bits: subnormals, infinities, NaNs of every kind, minus zero."""
    rng = np.random.default_rng(seed)
    bits = rng.integers(0, 1 << 16, size=(rows, d), dtype=np.uint16)
    bits[rng.random(rows) < share] &= 0x83FF  # subnormal rows
    bits[rng.random(rows) < share / 2] &= 0x8000  # zero rows
    vectors = bits.view(np.float16)
    block = inspect_rows(vectors)
    finite, nonzero = np.isfinite(vectors).all(axis=1), vectors.any(axis=1)
    assert (block.valid == (finite & nonzero)).all()
    assert (block.not_finite, block.zero) == ((~finite).sum(), (finite & ~nonzero).sum())
    norms = np.linalg.norm(vectors[block.valid].astype(np.float64), axis=1)
    assert abs(block.off_norm - (np.abs(norms - 1) > 0.01).sum()) <= (np.abs(np.abs(norms - 1) - 0.01) < 1e-5).sum()


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_every_room_decides_alike_which_rows_can_be_used(tmp_path, dtype, unit_rows):
    """A length whose square float32 cannot hold is unusable everywhere; as are zero, NaN and infinity."""
    rows = unit_rows(40, 16, seed=3).astype(dtype)
    rows[1], rows[2], rows[3, 5], rows[4, 0] = 0, -0.0, np.nan, np.inf
    bad = [1, 2, 3, 4]
    if dtype == np.float32:
        rows[5] *= 1e-25
        rows[6] *= 1e25
        rows[7], rows[8] = 1e-38, 3e38
        bad += [5, 6, 7, 8]
    else:
        rows[9] = 6e4  # finite, and of a length that float16 cannot hold
    expected = np.ones(40, bool)
    expected[bad] = False
    np.save(tmp_path / "x.npy", rows)
    found = {
        "rows": usable_rows(rows),
        "landing": inspect_rows(rows).valid,
        "embeddings": write_set(tmp_path / "set.json", [part_of(tmp_path / "x.npy")], model="m", modality="images").valid(),
        "pairing": _hash_rows(rows, "hashing", silent)[1],
    }
    for room, usable in found.items():
        assert np.array_equal(usable, expected), room
    block = inspect_rows(rows)
    zero = [row for row in bad if row in (1, 2, 5, 7)]
    assert (block.zero, block.not_finite) == (len(zero), len(bad) - len(zero))


def _object(path):
    np.save(path, np.array([[1, None]], dtype=object))


def _fortran(path):
    np.save(path, np.asfortranarray(np.load(path)))


def _double(path):
    np.save(path, np.load(path).astype("<f4"))


def _wide(path):
    np.save(path, np.ones((20, 17), dtype="<f2"))


def _longer(path):
    np.save(path, np.concatenate([np.load(path), np.load(path)]))


def _truncated(path):
    path.write_bytes(path.read_bytes()[:-1])


def _short_header(path):
    path.write_bytes(path.read_bytes()[:100])


def _padded(path):
    path.write_bytes(path.read_bytes() + b"\0")


def _empty(path):
    path.write_bytes(b"")


def _html(path):
    path.write_bytes(b"<html>".ljust(path.stat().st_size))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_object, "object array"),
        (_fortran, "Fortran order"),
        (_double, "16 x <f4; the catalog expects 16 x <f2"),
        (_wide, "17 x <f2; the catalog expects 16 x <f2"),
        (_longer, "1408 bytes.*the catalog expects 768"),
        (_truncated, "767 bytes.*the catalog expects 768"),
        (_padded, "769 bytes.*the catalog expects 768"),
        (_short_header, "a damaged header"),
        (_empty, "an empty file"),
        (_html, "HTML"),
    ],
)
def test_a_bad_file_is_named_with_what_was_expected_and_found(catalog, published, spoil, said):
    file = catalog.all_files[0]
    spoil(published / file.name)
    for read in (read_block, check_file):
        with pytest.raises(BadInput, match=said) as refused:
            read(file, published / file.name)
        assert str(published / file.name) in str(refused.value)


def test_a_missing_file_says_which_rows_are_missing(catalog, tmp_path):
    with pytest.raises(MissingInput, match=r"img_emb_1.npy.*rows 20 to 49"):
        read_block(catalog.all_files[1], tmp_path / "img_emb_1.npy")


def test_a_slice_beyond_the_file_is_refused(catalog, published):
    file = replace(catalog.all_files[0], offset=5)
    with pytest.raises(BadInput, match=r"20 rows; the catalog expects 25"):
        read_block(file, published / file.name)


def test_a_file_that_shrinks_while_it_is_read_is_an_error(landing_folder):
    folder = landing_folder([200_000], name="large")  # larger than any read buffer
    file = Catalog.scan(folder, shards=1).all_files[0]
    blocks = read_blocks(file, folder / file.name, block_rows=1000)
    next(blocks)
    os.truncate(folder / file.name, 3_000_000)
    with pytest.raises(BadInput, match=r"img_emb_0.npy: ended inside row"):
        list(blocks)


def test_python_objects_are_never_unpickled(catalog, published, tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    np.save(published / "img_emb_0.npy", np.array([[Trap()]], dtype=object))
    with pytest.raises(BadInput, match="object array"):
        read_block(catalog.all_files[0], published / "img_emb_0.npy")
    with pytest.raises(BadInput, match="object array"):
        Catalog.scan(published, shards=1)
    assert not (tmp_path / "sprung").exists()


def test_a_stamp_changes_with_a_copy_that_keeps_the_time_and_with_a_rename_over_the_name(tmp_path):
    """rsync -t, cp -p and an editor's rename leave size and time of change as they were."""
    first, second = tmp_path / "a.npy", tmp_path / "b.npy"
    for path, content in ((first, b"one"), (second, b"two")):
        path.write_bytes(content)
        os.utime(path, ns=(10**18, 10**18))
    before = stamp_of(first)
    assert before == stamp_of(first)
    assert before == landed_file(first).stamp == list_files(str(first))[0].stamp
    os.replace(second, first)
    assert stamp_of(first) != before
    renamed = stamp_of(first)
    first.write_bytes(b"six")
    os.utime(first, ns=(10**18, 10**18))
    assert stamp_of(first) != renamed
    assert stamp_of(tmp_path / "nothing") == ""


def test_a_version_is_believed_before_a_date_and_a_date_before_a_size():
    assert stamp_of_remote({"size": 4, "LastModified": "today", "ETag": '"abc"'}) == '"abc"'
    assert stamp_of_remote({"size": 4, "LastModified": "today", "ETag": None}) == "today"
    assert stamp_of_remote({"size": 4}) == "4"
