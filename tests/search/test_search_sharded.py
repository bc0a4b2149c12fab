"""`ShardedIndex` against stock faiss: the loop that readers of these shards write themselves."""

import dataclasses
import datetime
import os
import shutil
from itertools import pairwise
from pathlib import Path

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from search_builds import MODEL, NLIST, Build, D, promote, rebuild, train

from paired_index_assets.errors import BadInput, DamagedArtifact, MissingInput
from paired_index_assets.landing.catalog import Catalog
from paired_index_assets.layout import BuildRoot
from paired_index_assets.search import kernel
from paired_index_assets.search.sharded import ShardedIndex
from paired_index_assets.shards.build import build_shard
from paired_index_assets.shards.removals import add_removed


def shard_by_shard(build: Build, queries, k, nprobe, without=()):
    """Read each shard with stock faiss, search it, merge: scores descending, equal scores by ascending id."""
    found = []
    for file in build.shard_files():
        index = faiss.read_index(str(file))
        faiss.extract_index_ivf(index).nprobe = nprobe
        found.append(index.search(queries, min(index.ntotal, 5 * k + 1000)))
    scores, ids = (np.concatenate(part, axis=1) for part in zip(*found, strict=True))
    scores[(ids < 0) | np.isin(ids, without)] = -np.inf
    ids = np.where(np.isneginf(scores), -1, ids)
    order = np.lexsort((ids, ids < 0, -scores), axis=1)[:, :k]
    scores, ids = np.take_along_axis(scores, order, 1), np.take_along_axis(ids, order, 1)
    rest = ((0, 0), (0, k - ids.shape[1]))
    return np.pad(scores, rest, constant_values=-np.inf), np.pad(ids, rest, constant_values=-1)


ROUNDING = 3e-6  # of faiss's float32 sums: ours are float64


def assert_alike(found, expected):
    """The same scores up to faiss's rounding, and the same ids, except where scores are as near as that."""
    (scores, ids), (their_scores, their_ids) = found, expected
    np.testing.assert_allclose(scores, their_scores, atol=ROUNDING)
    for mine, theirs, score in zip(ids, their_ids, their_scores, strict=True):
        last = score[-1] + ROUNDING if len(score) else 0
        assert set(mine[score > last]) <= set(theirs), "an id that stock faiss does not find"
        assert set(theirs[score > last]) <= set(mine), "an id that is missing"
        shared = {i: s for i, s in zip(theirs, score, strict=True) if i >= 0}
        both = [(s, shared[i]) for i, s in zip(mine, score, strict=True) if i in shared]
        np.testing.assert_allclose([a for a, _ in both], [b for _, b in both], atol=ROUNDING)


@pytest.mark.parametrize("nprobe", [1, 3, 8, NLIST, 10 * NLIST])
@pytest.mark.parametrize("k", [1, 10, 150])
@pytest.mark.parametrize("n", [7, 80])
def test_results_are_those_of_stock_faiss_shard_by_shard(finished, n, k, nprobe):
    index = ShardedIndex.open(finished.root.root)
    queries = finished.captions[:n]
    scores, ids = index.search(queries, k, nprobe=nprobe)
    assert_alike((scores, ids), shard_by_shard(finished, queries, k, min(nprobe, NLIST)))
    assert scores.dtype == np.float32
    assert ids.dtype == np.int64


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 9) | st.just(70), k=st.integers(1, 5000), nprobe=st.integers(1, 60))
def test_any_query_agrees_with_stock_faiss(finished, seed, n, k, nprobe):
    queries = np.random.default_rng(seed).normal(size=(n, D)).astype(np.float32)
    found = ShardedIndex.open(finished.root.root).search(queries, k, nprobe=nprobe)
    assert_alike(found, shard_by_shard(finished, queries, k, min(nprobe, NLIST)))


def test_equal_scores_come_by_ascending_id_also_where_k_cuts_them(finished):
    copies = np.flatnonzero((finished.images == finished.images[0]).all(axis=1))
    assert len(copies) > 20  # in every shard
    index = ShardedIndex.open(finished.root.root)
    for k in (1, 3, 7, 20):
        scores, ids = index.search(finished.images[0], k, nprobe=NLIST)
        assert (scores == scores[0, 0]).all()
        np.testing.assert_array_equal(ids[0], copies[:k])


def test_batch_threads_and_blocks_do_not_change_a_bit(finished, monkeypatch):
    index = ShardedIndex.open(finished.root.root)
    queries = finished.captions[:150]
    whole = index.search(queries, 20, nprobe=9)
    monkeypatch.setattr("paired_index_assets.search.scanning.cores", lambda: 5)
    monkeypatch.setattr("paired_index_assets.search.scanning.BLOCK_BYTES", 300_000)
    for batch in (1, 1000):  # list by list, and query by query
        monkeypatch.setattr("paired_index_assets.search.scanning.BATCH", batch)
        for part in (queries, queries[:1], queries[:3]):
            for mine, alone in zip(index.search(part, 20, nprobe=9), whole, strict=True):
                np.testing.assert_array_equal(mine, alone[: len(part)])


def test_a_batch_scans_every_probed_list_once_for_each_query(finished, monkeypatch):
    monkeypatch.setattr("paired_index_assets.search.scanning.cores", lambda: 3)
    spans, looked = [], []
    scan_lists = kernel.scan_lists

    def watched(plan, first, stop, bounds, queries, *rest):
        spans.append((first, stop))
        looked.extend((number, query) for number in range(first, stop) for query in queries[bounds[number] : bounds[number + 1]].tolist())
        scan_lists(plan, first, stop, bounds, queries, *rest)

    monkeypatch.setattr(kernel, "scan_lists", watched)
    ShardedIndex.open(finished.root.root).search(finished.captions[:200], 5, nprobe=9)
    assert len(looked) == len(set(looked)) == 200 * 9
    for pass_over in (spans[:3], spans[3:]):  # the best list of each query, then the others
        ordered = sorted(pass_over)
        assert (ordered[0][0], ordered[-1][1]) == (0, NLIST)
        assert all(before[1] == after[0] for before, after in pairwise(ordered))


def test_what_the_index_says_of_itself(finished):
    index = ShardedIndex.open(str(finished.root.root))
    assert (index.d, index.nlist, index.model, index.ntotal) == (D, NLIST, MODEL, len(finished.images))
    assert index.shards == tuple(range(finished.catalog.shards))
    assert index.missing == {}


def test_one_vector_half_precision_and_no_vectors_are_queries(finished):
    index = ShardedIndex.open(finished.root.root)
    scores, ids = index.search(finished.captions[0], 5)
    np.testing.assert_array_equal(ids, index.search(finished.captions[:1], 5)[1])
    assert index.search(finished.captions[:2].astype(np.float16), 5)[0].shape == (2, 5)
    assert [part.shape for part in index.search(finished.captions[:0], 5)] == [(0, 5), (0, 5)]
    assert np.isfinite(scores).all()


@pytest.mark.parametrize(
    ("queries", "k", "nprobe", "says"),
    [
        (np.zeros((2, D + 1), np.float32), 5, 8, f"expected shape (n, {D}), found (2, {D + 1})"),
        (np.zeros((2, 2, D), np.float32), 5, 8, "expected shape"),
        (np.zeros((2, D), np.int64), 5, 8, "found int64"),
        (np.full((2, D), np.nan, np.float32), 5, 8, "row 0"),
        (np.full((2, D), 3e38, np.float32), 5, 8, "infinite length"),
        ([["a"] * D], 5, 8, "expected float32"),
        ([[1.0], [1.0, 2.0]], 5, 8, "queries"),
        (np.zeros((2, D), np.float32), 0, 8, "k: expected a whole number from 1"),
        (np.zeros((2, D), np.float32), 10**9, 8, "found 1000000000"),
        (np.zeros((2, D), np.float32), 2.5, 8, "found 2.5"),
        (np.zeros((2, D), np.float32), 5, 0, "nprobe: expected"),
        (np.zeros((2, D), np.float32), True, 8, "k: expected"),
    ],
)
def test_bad_queries_are_refused_in_one_line(finished, queries, k, nprobe, says):
    with pytest.raises(BadInput) as refused:
        ShardedIndex.open(finished.root.root).search(queries, k, nprobe=nprobe)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


def test_excluded_and_removed_ids_are_not_found(fresh):
    index = ShardedIndex.open(fresh.root.root)
    queries = fresh.captions[:20]
    before = index.search(queries, 10, nprobe=NLIST)[1]
    gone = np.unique(before[:, 0])
    assert_alike(index.search(queries, 10, nprobe=5, exclude=gone), shard_by_shard(fresh, queries, 10, 5, gone))
    np.testing.assert_array_equal(index.search(queries, 10, nprobe=NLIST)[1], before)  # an exclusion is of one call
    add_removed(fresh.root, gone, "asked for", when=datetime.datetime.now(datetime.UTC))
    assert_alike(index.search(queries, 10, nprobe=5), shard_by_shard(fresh, queries, 10, 5, gone))  # the same open index
    also = np.unique(before[:, 1])
    assert not np.isin(index.search(queries, 10, nprobe=NLIST, exclude=list(also))[1], np.union1d(gone, also)).any()
    for bad in ([0.5], [[1]], "x"):
        with pytest.raises(BadInput, match="exclude"):
            index.search(queries, 10, exclude=bad)


def test_everything_excluded_leaves_nothing(finished):
    scores, ids = ShardedIndex.open(finished.root.root).search(finished.captions[0], 5, exclude=np.arange(len(finished.images)))
    assert (ids == -1).all()
    assert np.isneginf(scores).all()


def _cut(file: Path) -> None:
    with file.open("rb+") as stream:
        stream.truncate(file.stat().st_size - 9)


def _flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-200] ^= 0xFF
    file.write_bytes(content)


DAMAGE = {
    "missing": (lambda file: file.unlink(), MissingInput, "no such shard"),
    "without its record": (lambda file: (file.parents[1] / "records/index3.json").unlink(), DamagedArtifact, "not what"),
    "cut": (_cut, DamagedArtifact, "cut"),
    "empty": (lambda file: file.write_bytes(b""), DamagedArtifact, "cut"),
    "altered": (_flip, DamagedArtifact, "altered"),
    "another shard's": (lambda file: shutil.copy(file.with_name(file.name[:-1] + "1"), file), DamagedArtifact, "index3"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_bad_shard_is_named_and_left_out_only_if_asked(fresh, damage):
    spoil, kind, says = DAMAGE[damage]
    spoil(fresh.shard_files()[3])
    with pytest.raises(kind) as refused:
        ShardedIndex.open(fresh.root.root)
    assert "index3" in str(refused.value)
    assert says in str(refused.value)
    index = ShardedIndex.open(fresh.root.root, partial=True)
    assert list(index.missing) == [3]
    assert says in index.missing[3]
    rows = [f for f in fresh.catalog if f.shard == 3]
    ids = index.search(fresh.captions[:100], 50, nprobe=NLIST)[1]
    assert not ((ids >= rows[0].start_row) & (ids < rows[-1].stop_row)).any()
    assert index.ntotal == len(fresh.images) - sum(f.rows for f in rows)


def test_a_flipped_byte_under_an_old_date_is_seen_by_verify(fresh):
    file = fresh.shard_files()[2]
    facts = file.stat()
    _flip(file)
    os.utime(file, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    ShardedIndex.open(fresh.root.root)
    with pytest.raises(DamagedArtifact, match="index2: sha256"):
        ShardedIndex.open(fresh.root.root, verify=True)


def test_a_new_trained_index_is_searched_once_all_its_shards_are_there(fresh):
    newer = dataclasses.replace(fresh, trained=train(fresh.images, fresh.captions, seed=99))
    promote(fresh.root, newer.trained)
    for shard in range(fresh.catalog.shards):
        index = ShardedIndex.open(fresh.root.root)
        assert index.fingerprint == fresh.trained.fingerprint
        assert index.ntotal == len(fresh.images)
        build_shard(newer.root, newer.trained, newer.catalog, shard, newer.landing)
    index = ShardedIndex.open(fresh.root.root)
    assert index.fingerprint == newer.trained.fingerprint
    assert_alike(index.search(fresh.captions[:9], 5), shard_by_shard(newer, fresh.captions[:9], 5, 8))


def test_stock_faiss_finds_one_generation_in_the_folder_of_shards_and_nothing_else(fresh):
    folder = Path(fresh.root.shards.path)
    assert [path.name for path in sorted(folder.iterdir())] == [f"knn.paired_QT_4bit.index{n}" for n in range(fresh.catalog.shards)]
    assert sum(faiss.read_index(str(path)).ntotal for path in folder.glob("knn.paired_QT_4bit.index*")) == len(fresh.images)


def test_a_shard_is_searched_as_soon_as_it_is_finished(fresh):
    before = ShardedIndex.open(fresh.root.root).search(fresh.images[1:2], 1, nprobe=NLIST)[1]
    assert before.tolist() == [[1]]
    np.save(fresh.landing / "img_emb_0000.npy", fresh.images[1:701].astype(np.float16))
    rebuild(fresh, manifest=False)
    assert ShardedIndex.open(fresh.root.root).search(fresh.images[1:2], 1, nprobe=NLIST)[1].tolist() == [[0]]


def test_of_a_first_generation_in_the_making_the_finished_shards_are_found(fresh, tmp_path):
    root = BuildRoot.at(tmp_path / "young")
    fresh.catalog.save(root.catalog)
    build_shard(root, fresh.trained, fresh.catalog, 2, fresh.landing)
    index = ShardedIndex.open(root, partial=True)
    assert index.shards == (2,)
    assert sorted(index.missing) == [0, 1, 3, 4, 5, 6]


def test_shards_whose_ids_are_of_another_catalog_are_not_searched(fresh):
    for number, file in enumerate(sorted(fresh.landing.glob("*.npy"), reverse=True)):
        file.rename(file.with_name(f"other_{number}.npy"))
    Catalog.scan(fresh.landing, shards=fresh.catalog.shards).save(fresh.root.catalog)
    assert ShardedIndex.open(fresh.root.root).ntotal == len(fresh.images)  # with ids of the catalog they were made of
    build_shard(fresh.root, fresh.trained, Catalog.load(fresh.root.catalog), 0, fresh.landing)
    with pytest.raises(DamagedArtifact, match=r"6 shards cannot be searched.*not those of the catalog"):
        ShardedIndex.open(fresh.root.root)


def test_without_a_build_the_error_names_the_file(tmp_path):
    with pytest.raises(MissingInput, match=r"shards: no shards yet; build them first"):
        ShardedIndex.open(tmp_path)
    with pytest.raises(MissingInput, match=r"memory://.*shards: no shards yet"):
        ShardedIndex.open("memory://somewhere")


def test_a_mapped_shard_outlives_its_file(fresh):
    index = ShardedIndex.open(fresh.root.root)
    before = index.search(fresh.captions[:20], 10)
    shutil.rmtree(fresh.root.root.path)
    for mine, earlier in zip(index.search(fresh.captions[:20], 10), before, strict=True):
        np.testing.assert_array_equal(mine, earlier)


def test_queries_look_where_captions_taught_and_vectors_lie_by_the_centroids(fresh):
    routing = np.random.default_rng(3).normal(size=(NLIST, D)).astype(np.float32)
    routed = dataclasses.replace(fresh.trained, routing=routing)
    promote(fresh.root, routed)
    build = dataclasses.replace(fresh, trained=routed)
    rebuild(build)
    queries = fresh.captions[:30]
    with ShardedIndex.open(fresh.root.root) as index:
        found = index.search(queries, 10, nprobe=3)
    assert_alike(found, shard_by_shard(build, queries, 10, 3))
    lists, codes = fresh.trained.encode(fresh.images.astype(np.float16))
    decoded = fresh.trained.codec.decode(codes)
    for query, scores in zip(queries, found[0], strict=True):
        inside = np.isin(lists, np.argsort(-(routing @ query))[:3])
        np.testing.assert_allclose(scores, -np.sort(-(decoded[inside] @ query))[:10], rtol=1e-5)
