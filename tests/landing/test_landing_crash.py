"""kill -9 in the middle of a download, and a power cut: the next run resumes to the same bytes."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time

import numpy as np
import pytest
from misbehaving import MisbehavingServer, Truncate

from paired_index_assets.errors import SourceUnavailable
from paired_index_assets.fetching.fetch import fetch, release, used_bytes
from paired_index_assets.fetching.partial import PartialFile, give_name
from paired_index_assets.landing.catalog import Catalog
from paired_index_assets.landing.landed import complete_shards, list_folder

NAME = "img_emb_0.npy"


@pytest.fixture(scope="module")
def processes():
    """A fork server that has imported everything: a process to kill costs milliseconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["paired_index_assets.fetching.fetch"])
    return context


@pytest.fixture
def published(landing_folder):
    return landing_folder([40_000])


@pytest.fixture
def file(published):
    return Catalog.scan(published, shards=1).all_files[0]


def test_a_download_killed_many_times_resumes_to_the_same_bytes(published, file, tmp_path, quick, processes):
    cache = tmp_path / "cache"
    chance = random.Random(5)
    kills = 0
    with MisbehavingServer(published, pace=0.06) as server:
        while True:
            process = processes.Process(target=fetch, args=(file, [server.url], cache), kwargs={"rules": quick})
            process.start()
            if kills < 12:
                process.join(chance.uniform(0.05, 0.35))
                if process.is_alive():
                    os.kill(process.pid, signal.SIGKILL)
                    kills += 1
            process.join()
            assert process.exitcode in (0, -signal.SIGKILL)
            assert not (cache / NAME).exists() or (cache / NAME).read_bytes() == (published / NAME).read_bytes()
            if process.exitcode == 0:
                break
        starts = [int(request.range.removeprefix("bytes=").rstrip("-")) for request in server.requests if request.range]
    assert kills >= 3
    assert starts == sorted(starts)
    assert starts[-1] > starts[0] > 0
    assert (cache / NAME).read_bytes() == (published / NAME).read_bytes()
    assert used_bytes(cache) == file.bytes


def test_bytes_that_were_not_flushed_before_a_power_cut_are_not_trusted(published, file, tmp_path, quick):
    """After a power cut a file may have its length and not its content: only the recorded mark counts."""
    cache = tmp_path / "cache"
    with MisbehavingServer(published) as server:
        server.misbehave(NAME, *[Truncate(200_000), Truncate(0), Truncate(0), Truncate(0), Truncate(0)])
        with pytest.raises(SourceUnavailable):
            fetch(file, [server.url], cache, rules=quick)
        part = PartialFile.of(cache / NAME)
        assert part.size == 200_000
        with part.path.open("ab") as stream:
            stream.write(bytes(300_000))
        fetch(file, [server.url], cache, rules=quick)
        assert server.requests[-1].range == "bytes=200000-"
    assert (cache / NAME).read_bytes() == (published / NAME).read_bytes()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"durable": "many"}', "null"])
def test_a_damaged_record_of_a_part_starts_it_again(published, file, tmp_path, quick, content):
    cache = tmp_path / "cache"
    cache.mkdir()
    part = PartialFile.of(cache / NAME)
    part.path.write_bytes(b"garbage" * 1000)
    part.path.with_name(f"{part.path.name}.json").write_text(content)
    with MisbehavingServer(published) as server:
        fetch(file, [server.url], cache, rules=quick)
        assert server.requests[0].range is None
    assert (cache / NAME).read_bytes() == (published / NAME).read_bytes()


def test_a_kill_between_the_name_and_the_end_leaves_a_whole_file(published, file, tmp_path, quick, monkeypatch):
    """The narrowest windows: after the record, after the name, before the part is gone."""
    cache = tmp_path / "cache"

    class Killed(BaseException):
        pass

    def before(*_args):
        raise Killed

    def after(finished, target, link=os.link):
        link(finished, target)
        raise Killed

    for killed, named in ((before, False), (after, True)):
        with MisbehavingServer(published) as server:
            with monkeypatch.context() as patch:
                patch.setattr("paired_index_assets.fetching.partial.os.link", killed)
                patch.setattr(PartialFile, "rest", lambda self: None)  # a kill runs no finally
                with pytest.raises(Killed):
                    fetch(file, [server.url], cache, rules=quick)
            assert (cache / NAME).exists() == named
            asked = len(server.requests)
            fetch(file, [server.url], cache, rules=quick)
            assert len(server.requests) == asked  # nothing was downloaded twice
        assert (cache / NAME).read_bytes() == (published / NAME).read_bytes()
        assert used_bytes(cache) == file.bytes
        assert release(cache / NAME)
        assert [path.name for path in cache.iterdir() if path.is_file()] == []


def test_a_waiting_process_goes_on_when_the_other_is_killed(published, file, tmp_path, quick, processes):
    cache = tmp_path / "cache"
    with MisbehavingServer(published, pace=0.05) as server:
        first = processes.Process(target=fetch, args=(file, [server.url], cache), kwargs={"rules": quick})
        first.start()
        while not server.requests:
            time.sleep(0.01)
        second = processes.Process(target=fetch, args=(file, [server.url], cache), kwargs={"rules": quick})
        second.start()
        second.join(0.5)
        assert len(server.requests) == 1
        os.kill(first.pid, signal.SIGKILL)
        first.join()
        second.join()
        assert second.exitcode == 0
    assert (cache / NAME).read_bytes() == (published / NAME).read_bytes()


def test_nothing_unfinished_ever_counts_as_landed(published, file, tmp_path, quick):
    """At every chunk of a download the folder lists no complete file under the catalogued name."""
    catalog = Catalog.of([file])
    cache = tmp_path / "cache"
    seen = []

    def look(step, done, total, /, **facts):
        seen.append((done, complete_shards(list_folder(cache), catalog)))

    with MisbehavingServer(published) as server:
        fetch(file, [server.url], cache, rules=quick, progress=look)
    assert len(seen) > 3
    assert all(shards == [] for _, shards in seen)
    assert complete_shards(list_folder(cache), catalog) == [0]


def test_names_are_given_without_overwriting_where_there_are_no_hard_links(tmp_path, monkeypatch):
    def no_links(*_args, **_options):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("paired_index_assets.fetching.partial.os.link", no_links)
    np.save(tmp_path / "finished.npy", np.ones(3))
    give_name(tmp_path / "finished.npy", tmp_path / "a.npy", "here")
    assert json.loads((tmp_path / ".a.npy.origin.json").read_text())["source"] == "here"
    (tmp_path / "other").write_text("other")
    with pytest.raises(FileExistsError):
        give_name(tmp_path / "other", tmp_path / "a.npy", "there")
    assert np.load(tmp_path / "a.npy").tolist() == [1, 1, 1]
