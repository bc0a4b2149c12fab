"""The catalog: LAION's numbers, any folder, row slices, appended files."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paired_index_assets.errors import BadInput, DamagedArtifact, MissingInput
from paired_index_assets.files.listing import natural_order
from paired_index_assets.files.npy import NpyHeader
from paired_index_assets.landing.catalog import CATALOG_SCHEMA, Catalog
from paired_index_assets.landing.scan import cut, deal


def test_laion2b_has_the_published_numbers():
    catalog = Catalog.laion2b()
    assert (len(catalog), catalog.shards, catalog.dimensions) == (2314, 58, 768)
    assert catalog.total_rows == 2_170_337_258 > np.iinfo(np.int32).max
    assert sum(file.bytes for file in catalog) == 3_333_638_324_480
    assert len(catalog.missing) == 16
    assert sum(file.rows for file in catalog.missing) == 15_019_107
    assert sorted({file.shard for file in catalog.missing}) == [16, 22, 26, 33, 35, 38, 40, 41, 42, 44, 46, 51, 53, 56]
    for shard in range(58):
        assert [file.file_id for file in catalog.files(shard)] == list(range(40 * shard, min(40 * shard + 40, 2314)))
    first, last = catalog.all_files[0], catalog.all_files[-1]
    assert (first.name, first.rows, first.bytes) == ("img_emb_0000.npy", 938_763, 128 + 938_763 * 768 * 2)
    assert (last.name, last.start_row + last.rows) == ("img_emb_2313.npy", catalog.total_rows)


def test_laion_row_ids_map_to_files_beyond_int32():
    catalog = Catalog.laion2b()
    ids = np.array([0, 938_762, 938_763, 2**31, catalog.total_rows - 1], dtype=np.int64)
    files, rows = catalog.file_of(ids)
    assert files.dtype == rows.dtype == np.int64
    assert (catalog.start_rows[files] + rows == ids).all()
    assert (rows < catalog.rows[files]).all()
    assert files[[0, 1, 2, 4]].tolist() == [0, 0, 1, 2313]
    with pytest.raises(BadInput, match="2170337258"):
        catalog.file_of(np.array([catalog.total_rows]))
    with pytest.raises(BadInput, match="-1"):
        catalog.file_of(np.array([5, -1]))


def test_a_catalog_survives_its_file(tmp_path):
    catalog = Catalog.laion2b()
    catalog.save(tmp_path / "catalog.parquet")
    assert Catalog.load(tmp_path / "catalog.parquet").table.equals(catalog.table)
    assert catalog.table.schema == CATALOG_SCHEMA
    with pytest.raises(MissingInput, match="nowhere"):
        Catalog.load(tmp_path / "nowhere.parquet")
    (tmp_path / "text.parquet").write_text("file_id,rows\n")
    with pytest.raises(DamagedArtifact, match=r"text\.parquet"):
        Catalog.load(tmp_path / "text.parquet")


@pytest.mark.parametrize(
    ("column", "row", "value", "said"),
    [
        ("start_row", 3, 7, "start rows"),
        ("shard", 5, 9, "shards"),
        ("file_id", 2, 5, "file ids"),
        ("rows", 1, 0, "no rows"),
        ("dimensions", 4, 9, "dimensions"),
    ],
)
def test_an_altered_catalog_is_refused(tmp_path, landing_folder, column, row, value, said):
    catalog = Catalog.scan(landing_folder([5] * 8), shards=4)
    values = catalog.table[column].to_pylist()
    values[row] = value
    at = catalog.table.schema.get_field_index(column)
    altered = catalog.table.set_column(at, CATALOG_SCHEMA.field(column), pa.array(values, CATALOG_SCHEMA.field(column).type))
    pq.write_table(altered, tmp_path / "altered.parquet")
    with pytest.raises(DamagedArtifact, match=said):
        Catalog.load(tmp_path / "altered.parquet")


def test_a_scan_of_laion_s_file_count_gives_laion_s_shards():
    headers = [(f"img_emb_{number:04d}.npy", NpyHeader(1, 768, np.dtype("<f2"), 128)) for number in range(2314)]
    assert [piece.shard for piece in deal(headers, 58)] == [file.shard for file in Catalog.laion2b()]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=30), st.integers(1, 60))
def test_shards_are_contiguous_and_none_is_empty(counts, shards):
    headers = [(f"{number}.npy", NpyHeader(rows, 4, np.dtype("<f2"), 128)) for number, rows in enumerate(counts)]
    total = sum(counts)
    shards = min(shards, total)
    pieces = deal(headers, shards) if len(headers) >= shards else cut(headers, shards, total)
    assert sorted({piece.shard for piece in pieces}) == list(range(shards))
    assert [piece.shard for piece in pieces] == sorted(piece.shard for piece in pieces)
    rows = [(piece.name, piece.offset + row) for piece in pieces for row in range(piece.rows)]
    assert rows == [(name, row) for name, header in headers for row in range(header.rows)]
    assert len({(piece.name, piece.shard) for piece in pieces}) == len(pieces)
    if len(headers) < shards:
        sizes = np.bincount([piece.shard for piece in pieces], weights=[piece.rows for piece in pieces])
        assert sizes.max() - sizes.min() <= 1


def test_files_are_taken_in_natural_order(landing_folder):
    catalog = Catalog.scan(landing_folder([3] * 12), shards=5)
    assert [file.name for file in catalog] == [f"img_emb_{number}.npy" for number in range(12)]
    assert sorted(["b", "a10", "a2", "a", "10", "9"], key=natural_order) == ["9", "10", "a", "a2", "a10", "b"]


def test_one_file_is_cut_into_row_slices_that_keep_ids(landing_folder):
    catalog = Catalog.scan(landing_folder([100]) / "img_emb_0.npy")
    assert catalog.shards == 58
    assert catalog.total_rows == 100
    files, rows = catalog.file_of(np.arange(100))
    assert rows.tolist() == list(range(100))
    assert {catalog.all_files[file].name for file in files} == {"img_emb_0.npy"}


def test_more_shards_than_rows_is_refused(landing_folder):
    with pytest.raises(BadInput, match=r"5 rows for 6 shards.*fewer shards"):
        Catalog.scan(landing_folder([3, 2]), shards=6)


def test_any_fsspec_folder_can_be_scanned(landing_folder):
    from upath import UPath

    folder = landing_folder([4, 5, 6])
    remote = UPath("memory://scan/embeddings")
    for path in folder.iterdir():
        (remote / path.name).write_bytes(path.read_bytes())
    assert Catalog.scan(str(remote), shards=2).table.equals(Catalog.scan(folder, shards=2).table)


def test_a_folder_behind_http_can_be_scanned(landing_folder):
    from misbehaving import MisbehavingServer

    folder = landing_folder([4, 5, 6])
    with MisbehavingServer(folder) as server:
        assert Catalog.scan(server.url, shards=2).table.equals(Catalog.scan(folder, shards=2).table)


def test_every_bad_file_of_a_folder_is_named(landing_folder):
    folder = landing_folder([4])
    bad = {
        "html.npy": "HTML",
        "object.npy": "object array",
        "empty.npy": "an empty file",
        "double.npy": "expected dtype .*found <f8",
        "big_endian.npy": "expected dtype .*found >f2",
        "fortran.npy": "Fortran order",
        "flat.npy": r"shape \(4,\)",
        "truncated.npy": "the 256 bytes that its header promises",
        "longer.npy": "the 256 bytes that its header promises",
        "no_rows.npy": "expected at least one row",
        "wide.npy": "17 dimensions",
        "damaged.npy": "a damaged header",
    }
    np.save(folder / "object.npy", np.array([[1, None]], dtype=object))
    (folder / "html.npy").write_text("<!DOCTYPE html><html></html>")
    (folder / "empty.npy").touch()
    np.save(folder / "double.npy", np.ones((4, 16)))
    np.save(folder / "big_endian.npy", np.ones((4, 16), dtype=">f2"))
    np.save(folder / "fortran.npy", np.asfortranarray(np.ones((4, 16), dtype="<f2")))
    np.save(folder / "flat.npy", np.ones(4, dtype="<f2"))
    np.save(folder / "no_rows.npy", np.ones((0, 16), dtype="<f2"))
    np.save(folder / "wide.npy", np.ones((4, 17), dtype="<f2"))
    good = (folder / "img_emb_0.npy").read_bytes()
    (folder / "truncated.npy").write_bytes(good[:-5])
    (folder / "longer.npy").write_bytes(good + b"12")
    (folder / "damaged.npy").write_bytes(good.replace(b"'shape'", b"'shopa'"))
    (folder / ".hidden.npy").write_bytes(b"ignored")
    (folder / "notes.txt").write_text("ignored")
    with pytest.raises(BadInput) as refused:
        Catalog.scan(folder, shards=1)
    lines = str(refused.value).splitlines()
    assert len(lines) == len(bad)
    for name, said in bad.items():
        (line,) = [line for line in lines if f"{name}:" in line]
        assert re.search(said, line), line
    assert not any("img_emb_0.npy:" in line for line in lines)


def test_folders_without_files_are_refused(tmp_path):
    with pytest.raises(MissingInput, match="nowhere"):
        Catalog.scan(tmp_path / "nowhere")
    with pytest.raises(BadInput, match=r"no file matches"):
        Catalog.scan(tmp_path)


def test_a_folder_name_with_glob_characters_is_just_a_name(landing_folder):
    assert Catalog.scan(landing_folder([4, 4], name="a[1]*"), shards=2).total_rows == 8


def test_appended_files_extend_the_last_shard_and_move_no_id(landing_folder, unit_rows):
    folder = landing_folder([5, 6, 7])
    before = Catalog.scan(folder, shards=2)
    np.save(folder / "aaa_first_by_name.npy", unit_rows(4))
    np.save(folder / "img_emb_10.npy", unit_rows(3))
    after = before.extend(folder)
    assert after.all_files[: len(before)] == before.all_files
    assert [file.name for file in after.all_files[3:]] == ["aaa_first_by_name.npy", "img_emb_10.npy"]
    assert {file.shard for file in after.all_files[3:]} == {before.shards - 1}
    assert after.files(0) == before.files(0)
    assert after.total_rows == before.total_rows + 7
    assert after.extend(folder) is after


def test_a_known_file_with_other_rows_cannot_be_appended(landing_folder, unit_rows):
    folder = landing_folder([5, 6, 7])
    catalog = Catalog.scan(folder, shards=2)
    np.save(folder / "img_emb_1.npy", unit_rows(60))
    with pytest.raises(BadInput, match=r"img_emb_1.npy.*would move later ids"):
        catalog.extend(folder)


def test_appended_files_of_another_width_are_refused(landing_folder, unit_rows, tmp_path):
    catalog = Catalog.scan(landing_folder([5, 6, 7]), shards=2)
    more = tmp_path / "more"
    more.mkdir()
    np.save(more / "wide.npy", unit_rows(3, 24))
    with pytest.raises(BadInput, match=r"wide.npy: 24 dimensions; the catalog has 16"):
        catalog.extend(more)


def test_a_shard_that_is_not_there_is_named(landing_folder):
    with pytest.raises(BadInput, match=r"shard 2.*0 to 1"):
        Catalog.scan(landing_folder([5, 6, 7]), shards=2).files(2)


def test_row_ids_of_any_folder_are_exactly_the_rows_in_order(landing_folder):
    folder: Path = landing_folder([5, 1, 9, 30])
    whole = np.concatenate([np.load(folder / f"img_emb_{number}.npy") for number in range(4)])
    for shards in (1, 2, 4, 7, 45):
        catalog = Catalog.scan(folder, shards=shards)
        files, rows = catalog.file_of(np.arange(45))
        again = np.stack([np.load(folder / catalog.all_files[file].name)[row] for file, row in zip(files, rows, strict=True)])
        assert (again == whole).all()
