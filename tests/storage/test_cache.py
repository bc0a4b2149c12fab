"""Local copies: whole or not there, one download for all who want it, never more than the budget, never one that is in use."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from s3_server import S3Server, Slow, Status, Truncate, every
from upath import UPath

from paired_index_assets.errors import DamagedArtifact, MissingInput, OutOfDisk, SourceUnavailable
from paired_index_assets.files import storage
from paired_index_assets.files.cache import Cache
from paired_index_assets.files.storage import as_path


def content(size: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).bytes(size)


def remote(name: str, data: bytes) -> UPath:
    path = as_path(f"memory://{name}")
    path.write_bytes(data)
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name.rpartition("-")[2] for path in folder.iterdir() if path.name != ".budget")


@pytest.fixture(autouse=True)
def _short_backoff(monkeypatch):
    monkeypatch.setattr(storage, "BACKOFF_S", 0.01)


def test_a_local_file_is_used_where_it_is(tmp_path):
    (tmp_path / "a").write_bytes(b"a")
    assert Cache(tmp_path / "cache").local(tmp_path / "a").path == tmp_path / "a"
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("size", [0, 1, (8 << 20) - 1, 8 << 20, (17 << 20) + 5])
def test_a_copy_has_the_bytes_of_the_file(size, tmp_path):
    data = content(size)
    assert Cache(tmp_path).local(remote(f"bytes/{size}", data)).path.read_bytes() == data


def test_a_copy_is_downloaded_once_and_again_when_the_file_is_replaced(bucket, s3, tmp_path):
    source, cache = as_path(f"{bucket}/a"), Cache(tmp_path)
    source.write_bytes(content(1000, 1))
    first = cache.local(source).path
    s3.requests.clear()
    assert cache.local(source).path == first
    assert [method for method, _ in s3.requests] == ["HEAD"]
    source.write_bytes(content(1000, 2))
    assert cache.local(source).path.read_bytes() == content(1000, 2)
    assert first.read_bytes() == content(1000, 1)


def test_what_is_missing_or_not_the_promised_content_leaves_nothing_behind(tmp_path):
    cache = Cache(tmp_path)
    with pytest.raises(MissingInput, match="nowhere: no such file"):
        cache.local("memory://nowhere")
    source = remote("damaged", b"damaged")
    with pytest.raises(DamagedArtifact, match=f"damaged: sha256 {hashlib.sha256(b'damaged').hexdigest()}, expected {'0' * 64}"):
        cache.local(source, sha256="0" * 64)
    assert names(tmp_path) == []


def test_the_least_recently_used_goes_first_and_the_budget_is_kept(tmp_path):
    cache = Cache(tmp_path, 300)
    sources = [remote(f"lru/{n}", content(100, n)) for n in range(4)]
    for number, source in enumerate(sources[:3]):
        os.utime(cache.local(source).path, (number, number))
    cache.local(sources[0])  # used again: 1 is now the oldest
    cache.local(sources[3])
    assert names(tmp_path) == ["0", "2", "3"]


def test_what_is_in_use_is_not_evicted_and_the_error_names_the_setting(tmp_path):
    cache = Cache(tmp_path, 250)
    held = [cache.local(remote(f"held/{n}", content(100, n))) for n in range(2)]
    with pytest.raises(
        OutOfDisk, match=r"held/2: 100 bytes do not fit cache_budget_gb of 2\.5e-07.*200 bytes are in use.*raise cache_budget_gb"
    ):
        cache.local(remote("held/2", content(100, 2)))
    assert names(tmp_path) == ["0", "1"]
    del held[0]
    cache.local(remote("held/2", content(100, 2)))
    assert names(tmp_path) == ["1", "2"]


def test_many_who_want_the_same_file_share_one_download(bucket, s3, tmp_path):
    source, data = as_path(f"{bucket}/shared"), content(100_000)
    source.write_bytes(data)
    s3.faults = every(1, Slow(0.02))
    s3.requests.clear()
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda _: Cache(tmp_path).local(source).path.read_bytes(), range(6)))
    assert found == [data] * 6
    assert [method for method, _ in s3.requests].count("GET") == 1


def test_errors_short_bodies_and_slow_ones_only_cost_time(bucket, s3, tmp_path, monkeypatch):
    monkeypatch.setattr("paired_index_assets.files.cache.PIECE_BYTES", 10_000)
    source, data = as_path(f"{bucket}/a"), content(205_000)
    source.write_bytes(data)
    s3.faults = every(3, Truncate(1234), Status(503), Status(500), Slow(0.05))
    assert Cache(tmp_path).local(source).path.read_bytes() == data


def test_a_server_that_stays_down_is_one_line(tmp_path, monkeypatch):
    source = remote("down", b"content")

    def down(*_, **__):
        raise OSError("Slow Down")

    monkeypatch.setattr(source.fs, "cat_file", down)
    with pytest.raises(SourceUnavailable, match=r"memory://.*down: OSError: Slow Down, 6 times; try again when it answers"):
        Cache(tmp_path).local(source)
    assert names(tmp_path) == []


def test_a_file_replaced_under_the_download_is_never_a_mixture(tmp_path, monkeypatch):
    monkeypatch.setattr("paired_index_assets.files.cache.PIECE_BYTES", 100)
    source = remote("replaced", content(1000, 1))
    read, left = source.fs.cat_file, [5]

    def replaced_after_five(*arguments, **options):
        left[0] -= 1
        if left[0] == 0:
            source.write_bytes(content(1000, 2))
        return read(*arguments, **options)

    monkeypatch.setattr(source.fs, "cat_file", replaced_after_five)
    assert Cache(tmp_path).local(source).path.read_bytes() == content(1000, 2)


def test_a_killed_download_leaves_nothing_under_a_name_and_its_room_is_free_again(bucket, s3: S3Server, tmp_path):
    source, data = as_path(f"{bucket}/big"), content(1 << 20)
    source.write_bytes(data)
    s3.faults = lambda method, path: Slow(1.0, piece=1 << 16) if method == "GET" else None
    script = f"""
        from pathlib import Path
        from paired_index_assets.files.cache import Cache
        Cache(Path({str(tmp_path)!r})).local({str(source)!r})
    """
    child = subprocess.Popen([sys.executable, "-c", textwrap.dedent(script)])
    while not any(path.suffix == ".part" and path.stat().st_size == len(data) for path in tmp_path.iterdir()):
        assert child.poll() is None
    child.send_signal(signal.SIGKILL)
    child.wait()
    s3.faults = None
    assert [path.suffix for path in tmp_path.iterdir() if path.name != ".budget"] == [".part"]
    budget = Cache(tmp_path, len(data) + 10)
    other = as_path(f"{bucket}/other")
    other.write_bytes(content(1000))
    budget.local(other)  # the dead download's room goes first
    assert names(tmp_path) == ["other"]
    assert budget.local(source).path.read_bytes() == data
