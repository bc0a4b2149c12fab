"""The takedown log only grows, refuses what it cannot mean, and finds rows by what their metadata says."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from paired_index_assets.errors import BadInput, Busy, DamagedArtifact
from paired_index_assets.files.locks import only_writer
from paired_index_assets.layout import BuildRoot
from paired_index_assets.shards.matching import ids_of
from paired_index_assets.shards.removals import REMOVED_SCHEMA, add_removed, read_log, read_removed, removed_version

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)


@pytest.fixture
def root(tmp_path: Path) -> BuildRoot:
    return BuildRoot.at(tmp_path / "build")


def test_nothing_is_removed_before_anybody_asks(root: BuildRoot) -> None:
    assert read_removed(root, "").tolist() == []
    assert read_removed(root, "").dtype == np.int64


def test_removals_add_up_and_the_log_says_who_asked_first(root: BuildRoot) -> None:
    assert add_removed(root, np.array([7, 3, 7, 2**40]), "owner asked", when=NOON, source="list-1.txt") == 3
    assert add_removed(root, np.array([3, 5]), "unlawful", when=NOON) == 1
    assert add_removed(root, np.array([3, 5]), "again", when=NOON) == 0
    assert read_removed(root, "").tolist() == [3, 5, 7, 2**40]
    log = read_log(root)
    assert log.schema.equals(REMOVED_SCHEMA)
    assert log["id"].to_pylist() == [3, 7, 2**40, 5]
    assert log["why"].to_pylist() == ["owner asked"] * 3 + ["unlawful"]
    assert log["source"].to_pylist()[0] == "list-1.txt"
    assert log["when"].to_pylist()[0] == NOON


@pytest.mark.parametrize(("ids", "total"), [([-1], None), ([5, 10], 10)])
def test_ids_that_no_row_has_are_refused_and_nothing_is_written(root: BuildRoot, ids: list[int], total: int | None) -> None:
    with pytest.raises(BadInput, match=f"row id {ids[-1]}"):
        add_removed(root, np.array(ids), "typo", when=NOON, total_rows=total)
    assert not root.removed.exists()


def test_a_time_without_a_zone_is_refused(root: BuildRoot) -> None:
    with pytest.raises(BadInput, match="time zone"):
        add_removed(root, np.array([1]), "asked", when=NOON.replace(tzinfo=None))


def test_one_process_writes_the_log_at_a_time(root: BuildRoot) -> None:
    with only_writer(Path(root.removed.path).with_name(".removed.lock")), pytest.raises(Busy):
        add_removed(root, np.array([1]), "asked", when=NOON)


def test_a_damaged_log_is_an_error_and_never_an_empty_one(root: BuildRoot) -> None:
    add_removed(root, np.array([1]), "asked", when=NOON)
    path = Path(root.removed.path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DamagedArtifact, match=r"removed\.parquet"):
        read_removed(root, "")


@given(st.sets(st.integers(0, 99)), st.integers(0, 100), st.integers(0, 100))
def test_the_version_of_a_range_changes_with_its_own_removals_only(ids: set[int], low: int, high: int) -> None:
    first, stop = sorted((low, high))
    removed = np.array(sorted(ids), dtype=np.int64)
    inside = removed[(removed >= first) & (removed < stop)]
    assert removed_version(removed, first, stop) == removed_version(inside, 0, 100)
    outside = np.union1d(inside, np.array([first - 1, stop]))
    assert removed_version(outside, first, stop) == removed_version(removed, first, stop)
    if len(inside):
        assert removed_version(inside[1:], first, stop) != removed_version(inside, first, stop)


def test_rows_are_found_by_the_text_of_a_metadata_column(tmp_path: Path) -> None:
    first = pa.table({"url": ["a", "b", None, "c", "a"], "md5": list("12345"), "key": [1, 2, 3, 4, 5]})
    pq.write_table(first, tmp_path / "0.parquet", row_group_size=2)
    pq.write_table(pa.table({"url": pa.array(["x", "b"]).dictionary_encode()}), tmp_path / "1.parquet")
    files = [(tmp_path / "0.parquet", 3_000_000_000), (tmp_path / "1.parquet", 3_000_000_005)]
    ids, unknown = ids_of(files, "url", ["a", "b", "nowhere"])
    assert (ids - 3_000_000_000).tolist() == [0, 1, 4, 6]
    assert unknown == ["nowhere"]
    assert ids_of(files[:1], "key", ["3"])[0].tolist() == [3_000_000_002]
    assert ids_of(files[:1], "md5", [])[0].tolist() == []
    with pytest.raises(BadInput, match=r"1\.parquet: no column 'md5'"):
        ids_of(files, "md5", ["1"])


def test_a_metadata_file_that_is_no_parquet_is_named(tmp_path: Path) -> None:
    (tmp_path / "m.parquet").write_text("<html>")
    with pytest.raises(BadInput, match=r"m\.parquet: not a Parquet file"):
        ids_of([(tmp_path / "m.parquet", 0)], "url", ["a"])


def test_many_rows_are_matched_in_pieces(tmp_path: Path) -> None:
    rows = 200_003
    pq.write_table(pa.table({"url": [f"u{i}" for i in range(rows)]}), tmp_path / "m.parquet")
    wanted = [0, 65_535, 65_536, 131_072, rows - 1]
    assert ids_of([(tmp_path / "m.parquet", 10)], "url", [f"u{i}" for i in wanted])[0].tolist() == [10 + i for i in wanted]
