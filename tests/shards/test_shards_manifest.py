"""The manifest says of every landed file what became of it, and readers written for the paper's shards find ours."""

from __future__ import annotations

import contextlib
import dataclasses
import io
from pathlib import Path

import faiss
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from shard_world import NLIST, World, unit_rows

from paired_index_assets.errors import BadInput, DamagedArtifact, MissingInput
from paired_index_assets.files.storage import digest_of
from paired_index_assets.landing.catalog import Catalog
from paired_index_assets.landing.landed import list_folder
from paired_index_assets.landing.origin import record_origin
from paired_index_assets.shards.build import build_shard
from paired_index_assets.shards.manifest import MANIFEST_SCHEMA, read_lengths, read_manifest, write_manifest


def build_what_can_be_built(world: World) -> None:
    for shard in range(world.catalog.shards):
        with contextlib.suppress(BadInput):
            build_shard(world.root, world.trained, world.catalog, shard, world.landing)


def test_every_file_has_a_row_that_says_where_its_rows_went(world: World) -> None:
    build_what_can_be_built(world)
    table = write_manifest(world.root, world.trained, world.catalog)
    assert table.schema.equals(MANIFEST_SCHEMA)
    assert read_manifest(world.root).equals(table)
    rows = table.to_pylist()
    assert [(row["name"], row["start_row"], row["rows"]) for row in rows] == [(f.name, f.start_row, f.rows) for f in world.catalog]
    assert all(row["indexed"] + row["left_out"] == row["rows"] for row in rows)
    assert {row["model"] for row in rows} == {"test-model"}
    for row in rows:
        shard_file = Path(world.root.root.path) / row["shard_file"]
        assert (row["shard_sha256"], row["shard_bytes"]) == (digest_of(shard_file), shard_file.stat().st_size)
        assert row["trained"] == world.trained.fingerprint
        assert row["problem"] is None


def test_the_same_shards_give_the_same_manifest_bytes(world: World) -> None:
    build_what_can_be_built(world)
    write_manifest(world.root, world.trained, world.catalog)
    before = [Path(p.path).read_bytes() for p in (world.root.manifest, world.root.parquet_lengths)]
    build_what_can_be_built(world)
    write_manifest(world.root, world.trained, world.catalog)
    assert [Path(p.path).read_bytes() for p in (world.root.manifest, world.root.parquet_lengths)] == before


def bad_files(good: np.ndarray) -> dict[str, bytes]:
    """Every way a landed file can be wrong, as its bytes."""

    def saved(array: np.ndarray, **options: bool) -> bytes:
        stream = io.BytesIO()
        np.save(stream, array, **options)
        return stream.getvalue()

    whole = saved(good)
    nan = good.copy()
    nan[: len(good) // 2] = np.nan
    return {
        "truncated": whole[: len(whole) // 2],
        "longer": whole + b"\0\0",
        "zero bytes": b"",
        "html": b"<!DOCTYPE html><html><body>404</body></html>",
        "wrong dtype": saved(good.astype(np.float64)),
        "float32 for float16": saved(good.astype(np.float32)),
        "integers": saved(np.ones(good.shape, np.int16)),
        "too narrow": saved(good[:, :-1]),
        "objects": saved(good.astype(object), allow_pickle=True),
        "Fortran order": saved(np.asfortranarray(good)),
        "one dimension": saved(good.ravel()),
        "fewer rows": saved(good[:-1]),
        "half of it NaN": saved(nan),
        "all zero": saved(np.zeros_like(good)),
        "not of unit norm": saved(good * 2),
        "cut header": whole[:60],
    }


@pytest.mark.parametrize("fault", sorted(bad_files(np.eye(4, dtype=np.float16))))
def test_a_bad_file_is_named_in_the_error_and_the_manifest_and_other_shards_go_on(world: World, fault: str) -> None:
    bad = world.catalog.files(1)[0]
    path = world.landing / bad.name
    content = path.read_bytes()
    path.write_bytes(bad_files(np.load(path))[fault])
    with pytest.raises(BadInput, match=bad.name):
        build_shard(world.root, world.trained, world.catalog, 1, world.landing)
    assert not world.shard_file(1).exists()
    build_what_can_be_built(world)
    rows = write_manifest(world.root, world.trained, world.catalog).to_pylist()
    assert [row["file_id"] for row in rows if row["problem"]] == [bad.file_id]
    assert [row["name"] for row in rows if row["indexed"] is None] == [bad.name]
    assert {row["shard"] for row in rows if row["indexed"] is not None} == {0, 2}
    path.write_bytes(content)
    summary = build_shard(world.root, world.trained, world.catalog, 1, world.landing)
    assert summary.encoded == (bad.name,)  # the good files' segments were saved
    assert write_manifest(world.root, world.trained, world.catalog)["problem"].null_count == len(world.catalog)


def test_all_bad_files_of_a_shard_are_named_in_one_error(world: World) -> None:
    first, _, third = world.catalog.files(0)
    (world.landing / first.name).write_bytes(b"")
    (world.landing / third.name).write_bytes(b"<html>")
    with pytest.raises(BadInput) as caught:
        build_shard(world.root, world.trained, world.catalog, 0, world.landing)
    assert first.name in str(caught.value)
    assert third.name in str(caught.value)


def test_a_file_that_went_bad_later_keeps_its_shard_and_is_named(world: World) -> None:
    build_what_can_be_built(world)
    bad = world.catalog.files(2)[1]
    (world.landing / bad.name).write_bytes(b"")
    before = digest_of(world.shard_file(2))
    with pytest.raises(BadInput, match=bad.name):
        build_shard(world.root, world.trained, world.catalog, 2, world.landing)
    row = write_manifest(world.root, world.trained, world.catalog).to_pylist()[bad.file_id]
    assert row["indexed"] == bad.rows
    assert bad.name in row["problem"]
    assert digest_of(world.shard_file(2)) == before


def test_rebuilt_files_are_marked_lossy(world: World) -> None:
    lossy = world.catalog.files(1)[2]
    record_origin(world.landing / lossy.name, world.landing / lossy.name, "laion2B-en-imagePQ128", lossy=True)
    assert list_folder(world.landing)[lossy.name].lossy
    summary = build_shard(world.root, world.trained, world.catalog, 1, world.landing)
    assert summary.lossy_files == (lossy.name,)
    rows = write_manifest(world.root, world.trained, world.catalog).to_pylist()
    assert [row["name"] for row in rows if row["lossy"]] == [lossy.name]


def test_a_reader_of_the_papers_shards_finds_ours(world: World, tmp_path: Path) -> None:
    """As mudg's scripts/retrieve.py does it: load the list, read and search each index file, merge, map ids to Parquet rows."""
    build_what_can_be_built(world)
    write_manifest(world.root, world.trained, world.catalog)
    names, lengths, index_list = torch.load(Path(world.root.parquet_lengths.path), weights_only=True)
    assert (names, lengths, index_list) == read_lengths(world.root.parquet_lengths)
    assert index_list == [f"shards/knn.paired_QT_4bit.index{shard}" for shard in range(3)]
    queries = np.load(world.landing / world.catalog.files(1)[0].name)[:20].astype(np.float32)
    scores, ids = [], []
    for name in index_list:
        index = faiss.read_index(str(Path(world.root.root.path) / name))
        faiss.extract_index_ivf(index).nprobe = NLIST
        found = index.search(queries, 5)
        scores.append(found[0])
        ids.append(found[1])
    order = np.argsort(-np.concatenate(scores, axis=1), axis=1)[:, :1]
    best = np.take_along_axis(np.concatenate(ids, axis=1), order, axis=1)[:, 0]
    files = np.searchsorted(np.cumsum(lengths), best, side="right")
    rows = best - (np.cumsum(lengths) - lengths)[files]
    hits = [(names[f], int(row)) == ("metadata_0003.parquet", i) for i, (f, row) in enumerate(zip(files, rows, strict=True))]
    assert names[3] == "metadata_0003.parquet"
    assert np.mean(hits) > 0.9


def test_slices_of_a_file_are_one_entry_of_the_list(world: World, tmp_path: Path) -> None:
    (tmp_path / "big").mkdir()
    np.save(tmp_path / "big" / "all.npy", unit_rows(503, 4).astype(np.float16))
    sliced = dataclasses.replace(world, landing=tmp_path / "big", catalog=Catalog.scan(tmp_path / "big", shards=4))
    build_what_can_be_built(sliced)
    assert write_manifest(sliced.root, sliced.trained, sliced.catalog).num_rows == 4
    assert read_lengths(sliced.root.parquet_lengths)[:2] == (["all.parquet"], [503])


def test_no_manifest_and_a_damaged_one_are_told_apart(world: World) -> None:
    with pytest.raises(MissingInput, match="no manifest yet"):
        read_manifest(world.root)
    write_manifest(world.root, world.trained, world.catalog)
    path = Path(world.root.manifest.path)
    assert pq.read_table(path).num_rows == 0
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(DamagedArtifact, match=r"manifest\.parquet"):
        read_manifest(world.root)
