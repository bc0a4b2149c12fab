"""The trained index: faiss fills and searches it, its files prove themselves, rows that cannot be searched stay out."""

import dataclasses
import functools
import json
import subprocess
import sys

import faiss
import numpy as np
import pytest
from unit_vectors import unit

from paired_index_assets.codes.codec import CODECS, ROUNDINGS, train_codec
from paired_index_assets.codes.formats import ivf_of
from paired_index_assets.codes.transformed import train_transformed
from paired_index_assets.errors import BadInput, DamagedArtifact, MissingInput
from paired_index_assets.trained.artifact import FORMAT, TrainedIndex
from paired_index_assets.trained.coarse import group_lists

D, NLIST = 34, 20


@functools.cache
def clouds():
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((5000, D)) @ np.diag(np.exp(-np.arange(D) / 10)) + 0.2
    queries = rows[rng.permutation(5000)] + 0.3 * rng.standard_normal((5000, D)) - 0.4
    return unit(rows), unit(queries)


@pytest.fixture(scope="module")
def vectors():
    return clouds()


@functools.cache
def codec_of(name, rounding):
    images, captions = clouds()
    if rounding == "transformed":
        return train_transformed(images[:3000], captions[:3000])
    return train_codec(name, rounding, images[:3000], captions[:3000])


def made(vectors, name="QT_4bit", rounding="query", levels=1, learned=False):
    centroids = vectors[0][:NLIST]
    groups = group_lists(centroids, seed=1) if levels == 2 else None
    routing = (3 * vectors[1][:NLIST]).copy() if learned else None
    return TrainedIndex("kmeans", NLIST, D, centroids, codec_of(name, rounding), "a model", {"recall": 0.5}, groups, 5, routing)


KINDS = [(name, rounding, 1, False) for name in sorted(CODECS) for rounding in ROUNDINGS]
KINDS += [
    ("QT_4bit", rounding, levels, learned) for rounding in ("query", "transformed") for levels in (1, 2) for learned in (False, True)
][1:]


@pytest.mark.parametrize(("name", "rounding", "levels", "learned"), KINDS)
def test_an_unmodified_faiss_probes_and_scores_what_is_put_in_lists(name, rounding, levels, learned, vectors, tmp_path):
    trained = made(vectors, name, rounding, levels, learned)
    trained.save(tmp_path / "x.index")
    images, captions = vectors[0][3000:], vectors[1][:40]
    lists, codes = trained.encode(images)
    index = faiss.read_index(str(tmp_path / "x.index"))
    ivf = ivf_of(index)
    assert isinstance(ivf, faiss.IndexIVFScalarQuantizer)
    assert isinstance(index, faiss.IndexPreTransform) == (rounding == "transformed")
    assert isinstance(faiss.downcast_index(ivf.quantizer), faiss.IndexIVFFlat if levels == 2 else faiss.IndexFlatIP)
    assert (index.d, index.is_trained, index.ntotal, ivf.nprobe) == (D, True, 0, 5)
    number = lists.astype("<i8")[:, None].view(np.uint8)[:, : ivf.coarse_code_size()]
    ivf.add_sa_codes(np.hstack([number, codes]), np.arange(len(lists)) + 7)
    index.ntotal = ivf.ntotal
    scores, ids = index.search(captions, 10)  # at the nprobe that the file says
    decoded = trained.codec.decode(codes)
    probed = trained.probe(captions, 5)[1]
    for query, chosen, found, theirs in zip(captions, probed, scores, ids, strict=True):
        rows = np.flatnonzero(np.isin(lists, chosen))
        exact = decoded[rows] @ query
        np.testing.assert_allclose(found, -np.sort(-exact)[:10], atol=2e-6)
        np.testing.assert_allclose(decoded[theirs - 7] @ query, found, atol=2e-6)


def test_encode_is_what_faiss_itself_would_add_for_its_own_rounding(vectors):
    trained = made(vectors, "QT_4bit", "faiss")
    ours, stock = trained.empty_index(), trained.empty_index()
    images = vectors[0][:1000]
    lists, codes = trained.encode(images)
    ours.add_sa_codes(np.hstack([lists.astype(np.uint8)[:, None], codes]), np.arange(1000))
    stock.add(images)
    for left, right in zip(ours.search(vectors[1][:50], 10), stock.search(vectors[1][:50], 10), strict=True):
        assert np.array_equal(left, right)


def test_rows_that_are_zero_or_not_finite_are_left_out_and_change_nothing_else(vectors):
    trained = made(vectors)
    rows = vectors[0][:300].copy()
    lists, codes = trained.encode(rows)
    assert lists.dtype == np.int64
    assert lists.min() >= 0
    rows[3], rows[4, 2], rows[5] = 0, np.nan, np.inf
    again, recoded = trained.encode(rows.astype(np.float32))
    assert again[[3, 4, 5]].tolist() == [-1, -1, -1]
    kept = np.delete(np.arange(300), [3, 4, 5])
    assert np.array_equal(again[kept], lists[kept])
    assert np.array_equal(recoded[kept], codes[kept])
    nothing, _ = trained.encode(np.zeros((4, D), np.float16))
    assert nothing.tolist() == [-1] * 4


@pytest.mark.parametrize("levels", [1, 2])
def test_every_list_is_probed_when_every_list_is_asked_for(levels, vectors):
    trained, queries = made(vectors, levels=levels), vectors[1][:25]
    lists = trained.probe(queries, 999)[1]
    assert np.array_equal(lists, np.argsort(-(queries @ trained.centroids.T), axis=1))


@pytest.mark.parametrize("levels", [1, 2])
def test_vectors_go_to_the_nearest_centroid_and_queries_where_captions_taught(levels, vectors):
    plain, taught = made(vectors, levels=levels), made(vectors, levels=levels, learned=True)
    for left, right in zip(plain.encode(vectors[0][:500]), taught.encode(vectors[0][:500]), strict=True):
        assert np.array_equal(left, right)
    queries = vectors[1][:25]
    assert np.array_equal(taught.probe(queries, 999)[1], np.argsort(-(queries @ taught.routing.T), axis=1))
    assert (taught.learned, plain.learned, taught.coarse_dots) == (True, False, plain.coarse_dots)


def test_two_levels_look_in_the_nearest_groups_and_nowhere_else(vectors):
    trained = made(vectors, levels=2)
    queries = vectors[1][:25]
    groups = trained.groups
    assert len(groups.centroids) == 4
    assert groups.nprobe == 2
    chosen = np.argsort(-(queries @ groups.centroids.T), axis=1)[:, :2]
    inside = (groups.of_list[None, :, None] == chosen[:, None, :]).any(2)
    scores = np.where(inside, queries @ trained.centroids.T, -np.inf)
    assert np.array_equal(trained.probe(queries, 4)[1], np.argsort(-scores, axis=1)[:, :4])


@pytest.mark.parametrize(
    ("rounding", "levels", "learned"), [*((r, 1, False) for r in ROUNDINGS), ("query", 1, True), ("transformed", 2, True)]
)
def test_what_is_saved_is_what_is_loaded(rounding, levels, learned, vectors, tmp_path):
    trained = made(vectors, "QT_4bit" if rounding == "transformed" else "QT_6bit", rounding, levels, learned)
    trained.save(tmp_path / "x.index")
    loaded = TrainedIndex.load(tmp_path / "x.index")
    assert loaded.fingerprint == trained.fingerprint
    assert (loaded.method, loaded.model, loaded.evidence) == ("kmeans", "a model", {"recall": 0.5})
    for left, right in zip(loaded.encode(vectors[0][:500]), trained.encode(vectors[0][:500]), strict=True):
        assert np.array_equal(left, right)
    assert np.array_equal(loaded.probe(vectors[1][:9], 4)[1], trained.probe(vectors[1][:9], 4)[1])


def test_the_fingerprint_tells_all_that_codes_or_routes_apart(vectors):
    base = made(vectors)
    nudged = base.centroids.copy()
    nudged[0, 0] = np.nextafter(nudged[0, 0], 2)
    others = [
        made(vectors, rounding="nearest"),
        made(vectors, "QT_6bit"),
        made(vectors, levels=2),
        made(vectors, learned=True),
        made(vectors, rounding="transformed"),
        dataclasses.replace(base, nprobe=6),
        dataclasses.replace(base, centroids=nudged),
        dataclasses.replace(base, model="another"),
        dataclasses.replace(base, codec=dataclasses.replace(base.codec, metric=base.codec.metric.tuned(0.01, 0.0))),
    ]
    prints = {trained.fingerprint for trained in (base, *others)}
    assert len(prints) == 1 + len(others)
    assert made(vectors).fingerprint == base.fingerprint
    assert dataclasses.replace(base, evidence={}).fingerprint == base.fingerprint


@pytest.mark.parametrize("suffix", ["", ".npz"])
def test_a_flipped_byte_is_found(suffix, vectors, tmp_path):
    made(vectors).save(tmp_path / "x.index")
    file = tmp_path / f"x.index{suffix}"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(DamagedArtifact, match="sha256"):
        TrainedIndex.load(tmp_path / "x.index")


def test_missing_and_foreign_files_are_named(vectors, tmp_path):
    with pytest.raises(MissingInput, match=r"x\.index\.json"):
        TrainedIndex.load(tmp_path / "x.index")
    made(vectors).save(tmp_path / "x.index")
    (tmp_path / "x.index.npz").unlink()
    with pytest.raises(MissingInput, match=r"x\.index\.npz"):
        TrainedIndex.load(tmp_path / "x.index")
    made(vectors).save(tmp_path / "x.index")
    card = tmp_path / "x.index.json"
    card.write_text(card.read_text().replace('"kmeans"', '"paired_kmeans"'))
    with pytest.raises(DamagedArtifact, match="altered"):
        TrainedIndex.load(tmp_path / "x.index")
    card.write_text(f'{{"format": {FORMAT}}}')
    with pytest.raises(DamagedArtifact, match="delete it"):
        TrainedIndex.load(tmp_path / "x.index")


def test_a_trained_index_of_an_earlier_release_is_refused_in_one_line(vectors, tmp_path):
    made(vectors).save(tmp_path / "x.index")
    card = tmp_path / "x.index.json"
    card.write_text(json.dumps(json.loads(card.read_text()) | {"format": FORMAT - 1, "content_sha256": None}))
    with pytest.raises(DamagedArtifact, match=rf"x\.index\.json: .*(format {FORMAT - 1}, expected {FORMAT}|altered)[^\n]*again") as said:
        TrainedIndex.load(tmp_path / "x.index")
    assert len(str(said.value).splitlines()) == 1


def test_parts_that_do_not_fit_are_refused(vectors):
    trained = made(vectors)
    with pytest.raises(BadInput, match="centroids"):
        dataclasses.replace(trained, nlist=NLIST + 1)
    with pytest.raises(BadInput, match="groups"):
        dataclasses.replace(trained, groups=group_lists(trained.centroids[:10], seed=1))
    with pytest.raises(BadInput, match="routing"):
        dataclasses.replace(trained, routing=np.zeros((3, D), np.float32))


KILLED = """
import os, signal, sys
import paired_index_assets.files.storage as storage
from paired_index_assets.trained.artifact import FORMAT, TrainedIndex
trained = TrainedIndex.load(sys.argv[1])
left, real = int(sys.argv[3]), os.replace
def replace(*names):
    global left
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    left -= 1
    real(*names)
os.replace = replace
trained.save(sys.argv[2])
"""


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_a_killed_save_leaves_nothing_that_loads(renames, vectors, tmp_path):
    trained = made(vectors)
    trained.save(tmp_path / "x.index")
    target = tmp_path / "y.index"
    made(vectors, rounding="nearest").save(target)  # an older artifact of that name
    killed = subprocess.run([sys.executable, "-c", KILLED, tmp_path / "x.index", target, str(renames)], check=False)
    assert killed.returncode == -9
    with pytest.raises((MissingInput, DamagedArtifact)):
        TrainedIndex.load(target)
    TrainedIndex.load(tmp_path / "x.index").save(target)
    assert TrainedIndex.load(target).fingerprint == trained.fingerprint
