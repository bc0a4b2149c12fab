"""Searching while the shards are being replaced: every answer is of the old set or of the new set, and none is an error."""

import dataclasses
import http.client
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from http_server import served
from search_builds import promote, rebuild, train

from paired_index_assets.errors import DamagedArtifact
from paired_index_assets.files.storage import atomic_file
from paired_index_assets.search.sharded import ShardedIndex
from paired_index_assets.serving import reloading
from paired_index_assets.serving.reloading import Reloading, watched
from paired_index_assets.serving.service import SearchService
from paired_index_assets.shards.sweeping import sweep

CLIENTS, QUERIES, K = 32, 12, 30


class Alternating:
    """Two sets of landed files and a trained index for each; every shard changes between them, and so does the answer to every query."""

    def __init__(self, build):
        other = dataclasses.replace(build, trained=train(build.images, build.captions, seed=99))
        self.build, self.builds = build, [build, other]
        rows = [np.load(file) for file in sorted(build.landing.glob("*.npy"))]
        self._files = [rows, [part[:, ::-1].copy() for part in rows]]
        self.queries = build.captions[:QUERIES]
        self.expected = [self._answers(0), self._answers(1)]
        assert all(one != other for one, other in zip(*self.expected, strict=True))
        assert all(len({row // 500 for row in ids}) > 2 for ids in self.expected[0])  # hits come from many shards: a mixed set would show

    def _answers(self, which):
        self.land(which)
        return [tuple(ids) for ids in ShardedIndex.open(self.build.root.root).search(self.queries, K)[1].tolist()]

    def land(self, which):
        for number, rows in enumerate(self._files[which]):
            with atomic_file(self.build.landing / f"img_emb_{number:04d}.npy") as temporary, temporary.open("wb") as stream:
                np.save(stream, rows)
        build = self.builds[which]
        promote(build.root, build.trained)
        rebuild(build)
        sweep(build.root, build.trained.fingerprint, build.catalog)


def alternate_until(done, sets):
    count = 0
    while not done.is_set():
        count += 1
        sets.land(count % 2)
    return count


@pytest.fixture
def quick_retry(monkeypatch):
    monkeypatch.setattr(reloading, "RETRY_SECONDS", 0.01)


def hammer(ask, sets, requests):
    """`requests` questions from CLIENTS threads while the build alternates; how often each set answered."""
    done = threading.Event()

    def client(number):
        seen = [0, 0]
        for turn in range(requests // CLIENTS + 1):
            query = (number + turn) % QUERIES
            answer = ask(query)
            assert answer in (sets.expected[0][query], sets.expected[1][query])
            seen[answer == sets.expected[1][query]] += 1
        return seen

    with ThreadPoolExecutor(CLIENTS + 1) as pool:
        rebuilding = pool.submit(alternate_until, done, sets)
        try:
            seen = np.sum(list(pool.map(client, range(CLIENTS))), axis=0)
        finally:
            done.set()
        return seen, rebuilding.result()


def followed(fresh):
    return Reloading(lambda _: ShardedIndex.open(fresh.root), watched(fresh.root))


def test_threads_see_the_old_or_the_new_set_and_nothing_else(fresh, quick_retry):
    sets = Alternating(fresh)
    index = followed(fresh)

    def ask(query):
        time.sleep(0.1)  # so that some rebuilds happen meanwhile
        return tuple(index.current().search(sets.queries[query], K)[1][0].tolist())

    seen, rebuilds = hammer(ask, sets, 2000)
    assert seen.sum() >= 2000
    assert rebuilds >= 2
    assert seen.all()


def over_http(fresh, requests):
    sets = Alternating(fresh)
    local = threading.local()
    with served(SearchService.of_build(fresh.root.root, None)) as port:

        def ask(query):
            if not hasattr(local, "connection"):
                local.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            local.connection.request("POST", "/knn-service", json.dumps({"embedding_input": sets.queries[query].tolist(), "num_images": K}))
            answer = local.connection.getresponse()
            content = json.loads(answer.read())
            assert answer.status == 200, content
            return tuple(hit["id"] for hit in content)

        return hammer(ask, sets, requests)


def test_clients_of_the_server_see_whole_sets(fresh, quick_retry):
    seen, _ = over_http(fresh, 1000)
    assert seen.sum() >= 1000


@pytest.mark.heavy
def test_ten_thousand_requests_from_32_clients_during_rebuilds(fresh, quick_retry):
    seen, rebuilds = over_http(fresh, 10_000)
    assert seen.sum() >= 10_000
    assert rebuilds >= 3
    assert seen.all()


def test_while_landed_files_are_replaced_each_shard_is_the_old_or_the_new_one(fresh, quick_retry):
    index = followed(fresh)
    queries, rows = fresh.captions[:QUERIES], len(fresh.images)
    landed = [np.load(file) for file in sorted(fresh.landing.glob("*.npy"))]
    scores = []
    for step in (1, -1):  # as they were, and with their columns reversed: what each id scores in each set
        for number, part in enumerate(landed):
            np.save(fresh.landing / f"img_emb_{number:04d}.npy", part[:, ::step])
        rebuild(fresh)
        found, ids = ShardedIndex.open(fresh.root.root).search(queries, rows, nprobe=fresh.trained.nlist)
        scores.append(np.take_along_axis(found, np.argsort(ids, axis=1), axis=1))
    index.refresh()
    for number, part in enumerate(landed):
        np.save(fresh.landing / f"img_emb_{number:04d}.npy", part)
        rebuild(fresh, manifest=False)
        index.refresh()
        found, ids = index.current().search(queries, rows, nprobe=fresh.trained.nlist)
        found = np.take_along_axis(found, np.argsort(ids, axis=1), axis=1)
        edges = [(file.name, slice(file.start_row, file.stop_row)) for file in fresh.catalog]
        assert all(np.array_equal(found[:, rows_of], scores[int(name[8:12]) > number][:, rows_of]) for name, rows_of in edges)


def test_a_set_that_cannot_be_opened_leaves_the_old_one_answering(fresh, quick_retry):
    index = followed(fresh)
    queries = fresh.captions[:20]
    old = index.current().search(queries, 10)
    promote(fresh.root, train(fresh.images, fresh.captions, seed=99))  # no shard of it is there yet
    index.refresh()
    assert index.current().fingerprint == fresh.trained.fingerprint
    record = Path(fresh.place(3).record.path)
    content = record.read_bytes()
    record.unlink()
    with pytest.raises(DamagedArtifact, match=r"not what index3\.json says"):
        index.refresh()
    assert "index3.json" in index.problem
    for mine, before in zip(index.current().search(queries, 10), old, strict=True):
        np.testing.assert_array_equal(mine, before)
    record.write_bytes(content)
    index.refresh()
    assert index.problem is None
