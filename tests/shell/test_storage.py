"""A file gets its name only when it is complete: exceptions, kills and full disks leave the old one, and nothing else."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from paired_index_assets.errors import Busy, DamagedArtifact, MissingInput, OutOfDisk
from paired_index_assets.files.locks import one_of_writers, only_writer
from paired_index_assets.files.storage import atomic_file, digest_of_parts, read_json, write_bytes, write_json


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    write_bytes(tmp_path / "a", b"old")
    with pytest.raises(RuntimeError), atomic_file(tmp_path / "a") as temporary:
        temporary.write_bytes(b"half")
        raise RuntimeError
    assert (tmp_path / "a").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_a_killed_writer_leaves_the_old_file_and_the_next_one_sweeps(tmp_path):
    write_bytes(tmp_path / "a", b"old")
    script = (
        "import sys, time; from pathlib import Path; from paired_index_assets.files.storage import atomic_file\n"
        f"with atomic_file(Path({str(tmp_path / 'a')!r})) as t:\n    t.write_bytes(b'half'); print('half', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (tmp_path / "a").read_bytes() == b"old"
    assert len(os.listdir(tmp_path)) == 2
    write_bytes(tmp_path / "a", b"new")
    assert os.listdir(tmp_path) == ["a"]


def test_a_full_disk_is_said_with_the_file_and_what_to_do(tmp_path):
    full = Path("/dev/full")
    with pytest.raises(OutOfDisk, match="a: no space left"), atomic_file(tmp_path / "a") as temporary:
        temporary.write_bytes(b"")
        with full.open("wb", buffering=0) as stream:
            stream.write(b"x")
    assert os.listdir(tmp_path) == []


def test_one_writer_at_a_time_and_the_lock_of_a_dead_one_is_free(tmp_path):
    lock = tmp_path / "lock"
    script = (
        "import time; from pathlib import Path; from paired_index_assets.files.locks import only_writer\n"
        f"with only_writer(Path({str(lock)!r})):\n    print('held', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    for writer in (only_writer, one_of_writers):
        with pytest.raises(Busy, match=str(process.pid)), writer(lock):
            pass
    process.kill()
    process.wait()
    deadline = time.monotonic() + 10
    while True:
        try:
            with only_writer(lock):
                break
        except Busy:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_writers_that_share_the_work_run_together_and_keep_out_one_that_does_not(tmp_path):
    lock = tmp_path / "lock"
    with one_of_writers(lock), one_of_writers(lock), pytest.raises(Busy, match="held by runs that share the work"), only_writer(lock):
        pass
    with only_writer(lock):
        pass


def test_json_that_is_missing_or_damaged_is_said(tmp_path):
    write_json(tmp_path / "a.json", {"b": [1]})
    assert read_json(tmp_path / "a.json") == {"b": [1]}
    with pytest.raises(MissingInput, match="no such file"):
        read_json(tmp_path / "c.json")
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(DamagedArtifact, match="not JSON"):
        read_json(tmp_path / "a.json")


def test_a_digest_of_parts_knows_where_a_part_ends():
    assert digest_of_parts("ab", "c") != digest_of_parts("a", "bc")


def test_what_a_living_writer_of_a_file_with_a_longer_name_has_begun_is_left_alone(tmp_path):
    with atomic_file(tmp_path / "shard.json") as begun:
        begun.write_bytes(b"{}")
        write_bytes(tmp_path / "shard", b"codes")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shard", "shard.json"]


def test_what_a_dead_writer_left_behind_is_removed(tmp_path):
    left = tmp_path / ".shard.999999999.0a1b2c3d.tmp"
    left.write_bytes(b"half")
    write_bytes(tmp_path / "shard", b"codes")
    assert [path.name for path in tmp_path.iterdir()] == ["shard"]
