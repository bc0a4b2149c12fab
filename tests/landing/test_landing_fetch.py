"""Fetching from a real server that misbehaves: whatever it does, the file is the published one or the error says why."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from misbehaving import (
    Change,
    Html,
    IgnoreIfRange,
    IgnoreRange,
    MisbehavingServer,
    NoVersion,
    Reset,
    Stall,
    Status,
    Trickle,
    Truncate,
    WrongRange,
)
from upath import UPath

from paired_index_assets.errors import BadInput, OutOfDisk, SourceUnavailable
from paired_index_assets.fetching.fetch import fetch, release, used_bytes
from paired_index_assets.fetching.sources import Politeness, parse_sources, shown
from paired_index_assets.landing.catalog import Catalog
from paired_index_assets.landing.landed import complete_shards, list_folder
from paired_index_assets.landing.origin import read_origin

NAME = "img_emb_0.npy"


@pytest.fixture
def published(landing_folder):
    return landing_folder([9000, 8000, 7000])


@pytest.fixture
def catalog(published):
    return Catalog.scan(published, shards=1)


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def visible(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def parts(folder):
    return sorted(path.name for path in folder.iterdir() if ".part" in path.name)


@pytest.mark.parametrize(
    ("faults", "resumed"),
    [
        ([], False),
        ([Truncate(1000), Truncate(50_000), Truncate(3)], True),
        ([Stall(70_000)], True),
        ([Reset(90_000)], True),
        ([Reset(0), Truncate(0)], False),
        ([Status(500), Status(503), Status(429, retry_after=0)], False),
        ([Html()], False),
        ([Html(padded=True, content_type="application/octet-stream")], False),
        ([Truncate(99_999), IgnoreRange()], True),
        ([Truncate(99_999), IgnoreRange(after=1000), Truncate(5)], True),
        ([Truncate(99_999), IgnoreIfRange()], True),
        ([Truncate(99_999), WrongRange()], True),
        ([Truncate(99_999), Html(padded=True, content_type="")], True),
        ([NoVersion(after=99_999)], False),
        ([Trickle()], True),
    ],
    ids=lambda value: "+".join(type(fault).__name__ for fault in value) if isinstance(value, list) else None,
)
def test_the_file_is_had_whatever_the_server_does(catalog, published, cache, quick, faults, resumed):
    with MisbehavingServer(published) as server:
        server.misbehave(NAME, *faults)
        landed = fetch(catalog.all_files[0], [server.url], cache, rules=quick)
        assert any(request.range for request in server.requests) == resumed
        assert len(server.requests) >= max(1, len(faults))
    assert (cache / NAME).read_bytes() == (published / NAME).read_bytes()
    assert landed == list_folder(cache)[NAME]
    assert (visible(cache), parts(cache)) == ([NAME], [])
    assert read_origin(cache / NAME).source == server.url


@pytest.mark.parametrize("seed", range(12))
def test_random_misbehaviour_changes_no_byte(catalog, published, cache, quick, seed):
    with MisbehavingServer(published) as server:
        server.misbehave_by_chance(seed, share=0.6)
        with ThreadPoolExecutor(3) as pool:
            rules = replace(quick, attempts=40, backoff_s=0.001, longest_backoff_s=0.01)
            list(pool.map(lambda file: fetch(file, [server.url], cache, rules=rules), catalog))
    for file in catalog:
        assert (cache / file.name).read_bytes() == (published / file.name).read_bytes()
    assert parts(cache) == []


def test_a_file_that_changes_between_attempts_is_not_mixed(catalog, published, cache, quick, unit_rows):
    """Old bytes, then a server with new content: the result is the new content and nothing of the old."""
    np.save(published / "new.npy", unit_rows(9000, 16, seed=99))
    new = (published / "new.npy").read_bytes()
    change = Change(new, after=80_000)
    for faults in ([change], [change, Truncate(90_000)], [change, IgnoreIfRange()]):
        with MisbehavingServer(published) as server:
            server.misbehave(NAME, *faults)
            fetch(catalog.all_files[0], [server.url], cache, rules=quick)
            assert server.requests[1].if_range
        assert (cache / NAME).read_bytes() == new
        assert release(cache / NAME)


@pytest.mark.parametrize(
    ("fault", "said", "requests"),
    [
        (Status(404), "HTTP 404", 1),
        (Status(403), "HTTP 403", 1),
        (Status(500), r"HTTP 500.*4 attempts, 0 of 288128 bytes", 4),
        (Html(), "HTML page", 4),
        (Html(padded=True, content_type=""), "HTML or XML page", 4),
        (Stall(0), "timed out", 4),
        (Stall(500), r"timed out.*4 attempts, 2000 of 288128", 4),
        (Truncate(0), "IncompleteRead", 4),
    ],
)
def test_when_no_source_gives_the_file_each_reason_is_told(catalog, published, cache, quick, fault, said, requests):
    with MisbehavingServer(published) as server, MisbehavingServer({}) as other:
        server.misbehave(NAME, *[fault] * 20)
        with pytest.raises(SourceUnavailable, match=said) as refused:
            fetch(catalog.all_files[0], [server.url, other.url], cache, rules=quick)
        assert len(server.requests) == requests
    assert NAME in str(refused.value)
    assert f"{other.url}: HTTP 404" in str(refused.value)
    assert visible(cache) == []


def test_content_of_another_size_or_shape_is_refused(catalog, published, cache, quick, unit_rows):
    files = {}
    for wrong, matrix in {"longer": unit_rows(9001), "float32": unit_rows(4500).astype("<f4"), "wide": unit_rows(4500, 32)}.items():
        np.save(published / f"{wrong}.npy", matrix)
        files[wrong] = (published / f"{wrong}.npy").read_bytes()
    reasons = {"longer": "288160 bytes there; the catalog expects 288128", "float32": "4500 x 16 <f4", "wide": "4500 x 32"}
    for wrong, said in reasons.items():
        with MisbehavingServer({NAME: files[wrong]}) as server, pytest.raises(SourceUnavailable, match=said):
            fetch(catalog.all_files[0], [server.url], cache, rules=quick)
        assert (visible(cache), parts(cache)) == ([], [])


def test_the_next_source_serves_what_the_first_does_not_have(catalog, published, cache, quick):
    with MisbehavingServer({}) as empty, MisbehavingServer(published) as full:
        landed = fetch(catalog.all_files[0], [empty.url, full.url], cache, rules=quick)
        assert len(empty.requests) == 1
    assert landed.size == catalog.all_files[0].bytes


def test_a_part_is_not_continued_from_another_source(catalog, published, cache, quick, unit_rows):
    np.save(published / "other.npy", unit_rows(9000, 16, seed=7))
    mirror = {NAME: (published / "other.npy").read_bytes()}
    with MisbehavingServer(published) as first, MisbehavingServer(mirror) as second:
        first.misbehave(NAME, Truncate(100_000), *[Status(500)] * 10)
        fetch(catalog.all_files[0], [first.url, second.url], cache, rules=quick)
        assert second.requests[0].range is None
    assert (cache / NAME).read_bytes() == mirror[NAME]


def test_a_failed_fetch_keeps_its_part_for_the_next_run(catalog, published, cache, quick):
    with MisbehavingServer(published) as server:
        server.misbehave(NAME, Truncate(100_000), *[Status(500)] * 3, Status(404), None)
        for _ in range(2):
            with pytest.raises(SourceUnavailable):
                fetch(catalog.all_files[0], [server.url], cache, rules=quick)
        fetch(catalog.all_files[0], [server.url], cache, rules=quick)
        assert [request.range for request in server.requests][-1] == "bytes=100000-"
    assert (cache / NAME).read_bytes() == (published / NAME).read_bytes()


def test_a_local_source_is_used_in_place(catalog, published, cache, quick):
    landed = fetch(catalog.all_files[0], [str(published)], cache, rules=quick)
    assert landed.path == UPath(published / NAME)
    assert visible(cache) == []
    (published / NAME).write_bytes(b"short")
    with pytest.raises(SourceUnavailable, match=r"img_emb_0.npy: expected a .npy file"):
        fetch(catalog.all_files[0], [str(published), str(published / "nowhere")], cache, rules=quick)
    assert (published / NAME).read_bytes() == b"short"


def test_an_object_store_is_resumed_by_range(catalog, published, cache, quick, monkeypatch):
    remote = UPath("memory://bucket/img_emb")
    (remote / NAME).write_bytes((published / NAME).read_bytes())
    monkeypatch.setattr("paired_index_assets.fetching.sources.RANGE_BYTES", 100_000)
    asked, original = [], type(remote.fs).cat_file

    def flaky(self, path, start=None, end=None, **options):
        asked.append((start, end))
        if len(asked) == 2:
            raise ConnectionError("reset by peer")
        return original(self, path, start=start, end=end, **options)

    monkeypatch.setattr(type(remote.fs), "cat_file", flaky)
    fetch(catalog.all_files[0], ["memory://bucket/nothing", "memory://bucket/img_emb"], cache, rules=quick)
    assert asked == [(0, 100_000), (100_000, 200_000), (100_000, 200_000), (200_000, 288_128)]
    assert (cache / NAME).read_bytes() == (published / NAME).read_bytes()


def test_what_the_user_put_in_the_folder_is_never_overwritten_or_deleted(catalog, published, cache, quick):
    cache.mkdir()
    (cache / NAME).write_bytes(b"the user's own")
    with MisbehavingServer(published) as server:
        with pytest.raises(BadInput, match=r"not downloaded by this project.*move it away"):
            fetch(catalog.all_files[0], [server.url], cache, rules=quick)
        assert not release(cache / NAME)
        assert (cache / NAME).read_bytes() == b"the user's own"
        shutil.copyfile(published / NAME, cache / NAME)
        fetch(catalog.all_files[0], [server.url], cache, rules=quick)
        assert server.requests == []
    assert not release(cache / NAME)


def test_a_file_the_user_puts_there_during_the_download_stays(catalog, published, cache, quick):
    def meanwhile(step, done, total, /, **facts):
        shutil.copyfile(published / NAME, cache / NAME)

    with MisbehavingServer(published) as server:
        fetch(catalog.all_files[0], [server.url], cache, rules=quick, progress=meanwhile)
    assert not release(cache / NAME)
    assert (visible(cache), parts(cache)) == ([NAME], [])


def test_a_file_the_user_puts_in_place_of_ours_is_theirs(catalog, published, cache, quick, unit_rows):
    with MisbehavingServer(published) as server:
        fetch(catalog.all_files[0], [server.url], cache, rules=quick)
    np.save(cache / NAME, unit_rows(9000, 16, seed=5))
    assert not release(cache / NAME)
    assert used_bytes(cache) == 0


def test_a_file_of_ours_is_fetched_again_for_another_catalog(catalog, published, cache, quick, unit_rows):
    with MisbehavingServer(published) as server:
        fetch(catalog.all_files[0], [server.url], cache, rules=quick)
        np.save(published / NAME, unit_rows(9100))
        fetch(Catalog.scan(published, shards=1).all_files[0], [server.url], cache, rules=quick)
    assert (cache / NAME).read_bytes() == (published / NAME).read_bytes()


def test_the_disk_budget_stops_clearly_and_loses_nothing(catalog, published, cache, quick):
    first, second, third = catalog.all_files
    rules = replace(quick, budget_bytes=first.bytes + second.bytes)
    with MisbehavingServer(published) as server:
        fetch(first, [server.url], cache, rules=rules)
        fetch(second, [server.url], cache, rules=rules)
        assert used_bytes(cache) == first.bytes + second.bytes
        with pytest.raises(OutOfDisk, match=rf"img_emb_2.npy: {third.bytes} bytes do not fit the download budget"):
            fetch(third, [server.url], cache, rules=rules)
        assert visible(cache) == [first.name, second.name]
        assert release(cache / second.name)
        fetch(third, [server.url], cache, rules=rules)
    assert visible(cache) == [first.name, third.name]


def test_downloads_on_their_way_count_against_the_budget(catalog, published, cache, quick):
    first, second, _ = catalog.all_files
    rules = replace(quick, budget_bytes=first.bytes + second.bytes - 1)
    refusals = []

    def meanwhile(step, done, total, /, **facts):
        with pytest.raises(OutOfDisk) as refused:
            fetch(second, [server.url], cache, rules=rules)
        refusals.append(refused)

    with MisbehavingServer(published) as server:
        server.misbehave(NAME, Truncate(1000), *[Status(404)])
        with pytest.raises(SourceUnavailable):
            fetch(first, [server.url], cache, rules=rules, progress=meanwhile)
        assert refusals
        fetch(second, [server.url], cache, rules=rules)  # a part that rests holds only its own bytes


def test_two_fetchers_of_one_file_ask_once(catalog, published, cache, quick):
    with MisbehavingServer(published, pace=0.01) as server, ThreadPoolExecutor(4) as pool:
        landed = list(pool.map(lambda _: fetch(catalog.all_files[0], [server.url], cache, rules=quick), range(4)))
        assert len(server.requests) == 1
    assert len(set(landed)) == 1


def test_a_host_is_asked_politely(catalog, published, cache, quick):
    polite = Politeness(max_parallel=2, min_interval_s=0.02)
    with MisbehavingServer(published, pace=0.005) as server, ThreadPoolExecutor(8) as pool:
        server.misbehave(NAME, Status(503), Status(503))
        list(pool.map(lambda file: fetch(file, [server.url], cache, rules=quick, politeness=polite), catalog))
        assert server.most_at_once <= 2
        times = sorted(request.at for request in server.requests)
        assert len(times) == 5
        assert times[-1] - times[0] >= 4 * 0.02 - 0.015  # a lower bound: the machine may be slow, the client may not be fast


def test_retry_after_is_honoured(catalog, published, cache, quick):
    with MisbehavingServer(published) as server:
        server.misbehave(NAME, Status(503, retry_after=1))
        fetch(catalog.all_files[0], [server.url], cache, rules=quick)
        first, second = server.requests
        assert second.at - first.at >= 0.95


def test_a_remote_cache_folder_is_refused(catalog, quick):
    with pytest.raises(BadInput, match="expected a local folder"):
        fetch(catalog.all_files[0], ["http://localhost:1/"], "memory://cache", rules=quick)


def test_messages_show_no_secrets():
    assert shown("https://user:password@host:8080/a/b?token=secret#x") == "https://host:8080/a/b"
    assert parse_sources(" https://a/b , s3://c ,") == ["https://a/b", "s3://c"]
    assert parse_sources(None) == []


def fetch_all_from_a_bad_server(folder, published, shards, per_shard, seed, rules):
    catalog = Catalog.scan(published, shards=shards)
    assert [len(catalog.files(shard)) for shard in range(shards)] == [per_shard] * shards
    with MisbehavingServer(published) as server:
        server.misbehave_by_chance(seed, share=0.4)
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda file: fetch(file, [server.url], folder, rules=rules, politeness=Politeness(8)), catalog))
    assert complete_shards(list_folder(folder), catalog) == list(range(shards))
    for file in catalog:
        assert (folder / file.name).read_bytes() == (published / file.name).read_bytes()
    assert parts(folder) == []


def test_a_catalog_is_landed_from_a_bad_server(landing_folder, cache, quick):
    rules = replace(quick, attempts=60, backoff_s=0.001, longest_backoff_s=0.01)
    fetch_all_from_a_bad_server(cache, landing_folder([200] * 60, name="many"), 6, 10, 3, rules)


@pytest.mark.heavy
def test_a_catalog_of_58_shards_of_40_files_is_landed_from_a_bad_server(landing_folder, cache, quick):
    rules = replace(quick, attempts=60, backoff_s=0.001, longest_backoff_s=0.01)
    fetch_all_from_a_bad_server(cache, landing_folder([200] * 58 * 40, name="many"), 58, 40, 4, rules)
