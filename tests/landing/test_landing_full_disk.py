"""A disk that fills up in the middle of a download: a clear error, and nothing of what is there is lost."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from misbehaving import MisbehavingServer

from paired_index_assets.errors import OutOfDisk
from paired_index_assets.fetching.fetch import fetch
from paired_index_assets.landing.catalog import Catalog

NAME = "img_emb_0.npy"
DISK = 2 << 20


@pytest.fixture
def small_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, Callable[[], None], Callable[[], None]]]:
    """(folder, fill it up, make room): a 2 MiB tmpfs, or, where mounting is not allowed, writes that fail as on a full disk."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(folder)], capture_output=True, check=False)
    if mounted.returncode == 0:
        filler = folder / "filler"

        def fill() -> None:
            with filler.open("wb", buffering=0) as stream, suppress(OSError):
                while True:
                    stream.write(bytes(4096))

        try:
            yield folder, fill, lambda: filler.unlink()
        finally:
            subprocess.run(["umount", str(folder)], check=True)
    else:
        full = []
        real = os.write

        def write(handle: int, data: bytes) -> int:
            if full:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(handle, data)

        monkeypatch.setattr("paired_index_assets.fetching.partial.os.write", write)
        yield folder, lambda: full.append(True), full.clear


def test_a_disk_that_fills_up_stops_clearly_and_the_download_goes_on_later(small_disk, landing_folder, quick):
    folder, fill, make_room = small_disk
    published = landing_folder([30_000, 5_000])
    first, second = Catalog.scan(published, shards=1).all_files
    with MisbehavingServer(published) as server:
        fetch(second, [server.url], folder, rules=quick)

        def fill_half_way(step, done, total, /, **facts):
            if done > total // 2:
                fill()

        with pytest.raises(OutOfDisk, match=r"disk/img_emb_0.npy: no space left on the disk"):
            fetch(first, [server.url], folder, rules=quick, progress=fill_half_way)
        assert not (folder / NAME).exists()
        assert (folder / second.name).read_bytes() == (published / second.name).read_bytes()
        make_room()
        fetch(first, [server.url], folder, rules=quick)
        assert server.requests[-1].range is not None
    assert (folder / NAME).read_bytes() == (published / NAME).read_bytes()


def test_a_file_that_cannot_fit_is_refused_before_its_first_byte(landing_folder, tmp_path, quick, monkeypatch):
    published = landing_folder([30_000])
    file = Catalog.scan(published, shards=1).all_files[0]
    monkeypatch.setattr("paired_index_assets.fetching.fetch.shutil.disk_usage", lambda _: _Usage(file.bytes - 1))
    with MisbehavingServer(published) as server:
        with pytest.raises(OutOfDisk, match=rf"{file.bytes} more bytes to come, the disk has {file.bytes - 1}"):
            fetch(file, [server.url], tmp_path / "cache", rules=quick)
        assert server.requests == []


class _Usage:
    def __init__(self, free: int) -> None:
        self.free = free
