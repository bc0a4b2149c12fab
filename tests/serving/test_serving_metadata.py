"""Ids to rows and pictures, reading no more than holds them."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from paired_index_assets.builds import metadata as module
from paired_index_assets.builds.metadata import Metadata
from paired_index_assets.errors import BadInput, MissingInput
from paired_index_assets.landing.catalog import Catalog
from paired_index_assets.serving.pictures import Pictures, data_uri


def table(first, rows):
    ids = range(first, first + rows)
    return pa.table({"url": [f"https://example.org/{i}" for i in ids], "caption": [f"caption {i}" for i in ids], "png": [b"x"] * rows})


@pytest.fixture
def files(tmp_path):
    sizes, first, paths = (50, 1, 333, 40), 0, []
    for number, rows in enumerate(sizes):
        paths.append(tmp_path / f"metadata_{number:04d}.parquet")
        pq.write_table(table(first, rows), paths[-1], row_group_size=37)
        first += rows
    return paths


def test_rows_are_those_of_the_ids_in_any_order(files):
    found = Metadata.in_order(files)
    ids = np.random.default_rng(0).permutation(424)[:100]
    assert [row["caption"] for row in found.rows(ids)] == [f"caption {i}" for i in ids]
    assert found.columns == ["url", "caption"]
    assert found.rows([3], ["caption", "no such column"]) == [{"caption": "caption 3"}]
    assert found.rows([3, 999], ["no such column"]) == [{}, None]
    assert [row and row["url"] for row in found.rows([423, 424, -1, 0, 0])] == [
        "https://example.org/423", None, None, "https://example.org/0", "https://example.org/0",
    ]  # fmt: skip


def test_only_the_needed_row_group_and_columns_are_read(files, monkeypatch):
    read = []
    load = Metadata._load
    monkeypatch.setattr(Metadata, "_load", lambda self, file, *args: read.append((file.url, *args[:2])) or load(self, file, *args))
    found = Metadata.in_order(files)
    found.rows([51 + 40, 51 + 41], ["caption"])
    assert read == [(str(files[2]), 1, ["caption"])]
    found.rows([51 + 45], ["caption"])
    assert len(read) == 1  # kept


def test_row_groups_too_large_to_keep_give_the_same_rows(files, monkeypatch):
    ids = [400, 7, 60, 61, 200, 383]
    kept = Metadata.in_order(files).rows(ids)
    monkeypatch.setattr(module, "KEPT_BYTES", 0)
    monkeypatch.setattr(module, "BATCH_ROWS", 5)
    assert Metadata.in_order(files).rows(ids) == kept


def test_laion_names_are_found_beside_and_missing_files_have_no_rows(files, tmp_path):
    landing = tmp_path / "landing"
    landing.mkdir()
    for number, rows in enumerate((50, 1, 333, 40)):
        np.save(landing / f"img_emb_{number:04d}.npy", np.zeros((rows, 4), np.float16))
    catalog = Catalog.scan(landing, shards=7)  # more shards than files: the files are cut in slices
    files[1].unlink()
    found = Metadata.beside(tmp_path, catalog)
    assert [row and row["caption"] for row in found.rows([49, 50, 51, 383, 384])] == [
        "caption 49", None, "caption 51", "caption 383", "caption 384",
    ]  # fmt: skip
    assert Metadata.beside(tmp_path / "nowhere", catalog).rows([1]) == [None]
    pq.write_table(table(0, 49), files[0])
    with pytest.raises(BadInput, match=r"metadata_0000\.parquet: expected 50 rows, found 49"):
        Metadata.beside(tmp_path, catalog).rows([3])


def test_what_is_not_parquet_is_named(files):
    found = Metadata.in_order(files)
    files[0].write_bytes(b"no")
    with pytest.raises(BadInput, match="metadata_0000"):
        found.rows([1])
    files[3].unlink()
    with pytest.raises(MissingInput, match="metadata_0003"):
        found.rows([423])


def png(colour):
    out = io.BytesIO()
    Image.new("RGB", (3, 3), colour).save(out, "PNG")
    return out.getvalue()


def test_pictures_come_from_parquet_and_from_folders(tmp_path):
    made = [png((i, 0, 0)) for i in range(200)]
    pq.write_table(pa.table({"png": made, "caption": ["x"] * 200}), tmp_path / "pairs.parquet", row_group_size=70)
    ids = [199, 0, 64, 63, 64, 200, -1]
    assert Pictures.of(str(tmp_path / "pairs.parquet")).read(ids) == [made[i] if 0 <= i < 200 else None for i in ids]
    nested = [{"bytes": content, "path": None} for content in made[:9]] + [None]
    pq.write_table(pa.table({"image": nested}), tmp_path / "nested.parquet")
    assert Pictures.of(str(tmp_path / "nested.parquet")).read([8, 9]) == [made[8], None]
    (tmp_path / "seven.png").write_bytes(made[7])
    pq.write_table(pa.table({"path": ["seven.png", "gone.png"]}), tmp_path / "paths.parquet")
    assert Pictures.of(str(tmp_path / "paths.parquet")).read([1, 0]) == [None, made[7]]
    folder = tmp_path / "folder"
    folder.mkdir()
    for i in range(70):
        (folder / f"{i:03d}.png").write_bytes(made[i])
    (folder / "005.png").unlink()
    (folder / "005.png").mkdir()
    found = Pictures.of(str(folder))
    assert found.read([0, 69 - 1]) == [made[0], made[69]]


def test_only_pictures_become_data_uris():
    assert data_uri(png("red")).startswith("data:image/png;base64,iVBOR")
    for other in (b"<svg onload=alert(1)>", b"", None, b"\x89PNG\r\n\x1a\n" + bytes(5 << 20)):
        assert data_uri(other) is None
