"""Missing files rebuilt from published kNN indices: global ids, across files, unit norm, marked lossy."""

from __future__ import annotations

import itertools
from dataclasses import replace

import faiss
import numpy as np
import pytest
from misbehaving import MisbehavingServer, Status, Truncate

from paired_index_assets.errors import BadInput, MissingInput, OutOfDisk
from paired_index_assets.fetching.fetch import FetchRules, release
from paired_index_assets.fetching.obtain import obtain
from paired_index_assets.fetching.reconstruct import index_files, rebuild_file, reconstruct_rows
from paired_index_assets.fetching.sources import Politeness
from paired_index_assets.landing.catalog import Catalog, CatalogFile
from paired_index_assets.landing.landed import complete_shards, list_folder, read_block
from paired_index_assets.landing.origin import read_origin

pytestmark = pytest.mark.usefixtures("one_thread")
D = 16
FIRST = 5_000_000_000  # beyond int32
CUTS = (0, 1300, 2100, 3000)  # which rows lie in which of the three index files


@pytest.fixture(scope="module")
def vectors():
    rng = np.random.default_rng(11)
    centers = rng.normal(size=(24, D))
    found = (centers[rng.integers(0, 24, CUTS[-1])] + 0.4 * rng.normal(size=(CUTS[-1], D))).astype(np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def trained_index(spec, vectors):
    index = faiss.index_factory(D, spec, faiss.METRIC_INNER_PRODUCT)
    ivf = faiss.downcast_index(faiss.extract_index_ivf(index))
    ivf.cp.niter = 4
    if "PQ" in spec:
        ivf.pq.cp.niter = 4
    if spec.startswith("OPQ"):
        opq = faiss.downcast_VectorTransform(index.chain.at(0))
        opq.niter = 2
        opq.pq = faiss.ProductQuantizer(opq.d_out, opq.M, ivf.pq.nbits)
    index.train(vectors)
    return index


def write_shards(folder, index, vectors, ids):
    folder.mkdir()
    for number, (start, stop) in enumerate(itertools.pairwise(CUTS)):
        index.reset()
        index.add_with_ids(vectors[start:stop], ids[start:stop])
        faiss.write_index(index, str(folder / f"knn.index{number:02d}"))
        (folder / f"infos.json{number:02d}").write_text("{}")
    return folder


@pytest.fixture(scope="module")
def published(tmp_path_factory, vectors):
    """As LAION's: OPQ + IVF + PQ under inner product, global ids, a folder of three files."""
    index = trained_index("OPQ8_16,IVF16,PQ8x4", vectors)
    return write_shards(tmp_path_factory.mktemp("laion") / "indices", index, vectors, np.arange(CUTS[-1], dtype=np.int64) + FIRST)


def test_rows_across_index_files_are_what_faiss_reconstructs(published, vectors):
    start, rows = 1000, 1500  # spans all three files
    found = reconstruct_rows(index_files(published), FIRST + start, rows)
    expected = np.zeros((rows, D), dtype=np.float32)
    for number, path in enumerate(index_files(published)):
        index = faiss.read_index(str(path))
        faiss.extract_index_ivf(index).set_direct_map_type(faiss.DirectMap.Hashtable)
        for row in range(max(start, CUTS[number]), min(start + rows, CUTS[number + 1])):
            expected[row - start] = index.reconstruct(FIRST + row)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert found.dtype == np.float16
    np.testing.assert_allclose(found, expected, atol=5e-4)
    np.testing.assert_allclose(np.linalg.norm(found.astype(np.float32), axis=1), 1, atol=2e-3)
    near = (found.astype(np.float32) * vectors[start : start + rows]).sum(axis=1)
    assert near.mean() > 0.9


@pytest.mark.parametrize("spec", ["IVF16,SQ4", "IVF16,Flat", "PCA8,IVF16,Flat", "OPQ4_8,IVF16,PQ4x4"])
def test_other_kinds_of_ivf_index_serve_too(spec, vectors, tmp_path):
    ids = np.arange(CUTS[-1], dtype=np.int64)
    folder = write_shards(tmp_path / "indices", trained_index(spec, vectors), vectors, ids)
    found = reconstruct_rows(index_files(folder), 1290, 20).astype(np.float32)
    index = faiss.read_index(str(folder / "knn.index00"))
    faiss.extract_index_ivf(index).set_direct_map_type(faiss.DirectMap.Hashtable)
    expected = np.stack([index.reconstruct(row) for row in range(1290, 1300)])
    np.testing.assert_allclose(found[:10], expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=5e-4)


def test_ids_in_any_order_in_the_lists_are_found(vectors, tmp_path):
    ids = np.random.default_rng(3).permutation(CUTS[-1]).astype(np.int64)
    folder = write_shards(tmp_path / "indices", trained_index("IVF16,Flat", vectors), vectors, ids)
    found = reconstruct_rows(index_files(folder), 0, CUTS[-1])
    np.testing.assert_allclose(found[ids], vectors, atol=5e-4)


def test_rows_that_no_index_has_are_named(published):
    with pytest.raises(BadInput, match=rf"100 of 300 rows \({FIRST + 3000} .. {FIRST + 3099}\) are in none of the 3"):
        reconstruct_rows(index_files(published), FIRST + 2800, 300)
    with pytest.raises(BadInput, match=rf"1300 of 1400 rows \({FIRST} .. {FIRST + 1299}\)"):
        reconstruct_rows(index_files(published)[1:], FIRST, 1400)


def test_ids_that_are_positions_in_each_file_are_refused(vectors, tmp_path):
    index = trained_index("IVF16,SQ4", vectors)
    local = np.concatenate([np.arange(stop - start) for start, stop in itertools.pairwise(CUTS)]).astype(np.int64)
    folder = write_shards(tmp_path / "indices", index, vectors, local)
    with pytest.raises(BadInput, match=r"knn.index01: id \d+ occurs twice; ids must be global rows"):
        reconstruct_rows(index_files(folder), 0, 1400)
    with pytest.raises(BadInput, match=r"knn.index01: id \d+ occurs twice; ids must be global rows"):
        reconstruct_rows(index_files(folder), 100, 300)  # the first file alone would seem to have them all


def test_files_that_are_no_ivf_index_are_named(tmp_path, published):
    (tmp_path / "knn.index0").write_bytes(b"not an index")
    with pytest.raises(BadInput, match=r"knn.index0: not a faiss index"):
        reconstruct_rows(index_files(tmp_path), 0, 1)
    faiss.write_index(faiss.IndexFlatIP(D), str(tmp_path / "knn.index0"))
    with pytest.raises(BadInput, match=r"knn.index0: \w+ is not an IVF index"):
        reconstruct_rows(index_files(tmp_path), 0, 1)
    with pytest.raises(MissingInput, match="no faiss index files"):
        index_files(tmp_path / "nowhere")
    assert [path.name for path in index_files(published)] == ["knn.index00", "knn.index01", "knn.index02"]


@pytest.fixture
def catalog(tmp_path, vectors):
    """Four catalogued files of 700 rows whose global ids begin at 0; the last two are not published any more."""
    folder = tmp_path / "published"
    folder.mkdir()
    for number in range(4):
        np.save(folder / f"img_emb_{number}.npy", vectors[number * 700 : number * 700 + 700].astype(np.float16))
    return Catalog.scan(folder, shards=2)


@pytest.fixture
def global_indices(tmp_path_factory, vectors):
    index = trained_index("IVF16,SQ8", vectors)
    return write_shards(tmp_path_factory.mktemp("global") / "indices", index, vectors, np.arange(CUTS[-1], dtype=np.int64))


def test_a_rebuilt_file_is_the_catalogued_one_and_marked_lossy(catalog, global_indices, tmp_path, vectors):
    file = catalog.all_files[1]
    landed = rebuild_file(file, global_indices, tmp_path / "cache")
    assert (landed.name, landed.size, landed.lossy) == (file.name, file.bytes, True)
    assert list_folder(tmp_path / "cache")[file.name] == landed
    assert not list_folder(tmp_path / "published")[file.name].lossy
    block = read_block(file, landed.path)
    assert (block.vectors.astype(np.float32) * vectors[700:1400]).sum(axis=1).min() > 0.99
    assert read_origin(tmp_path / "cache" / file.name).lossy
    with pytest.raises(BadInput, match="exists already"):
        rebuild_file(file, global_indices, tmp_path / "cache")


def test_the_true_file_put_in_place_of_a_rebuilt_one_is_not_lossy(catalog, global_indices, tmp_path):
    file = catalog.all_files[1]
    rebuilt = rebuild_file(file, global_indices, tmp_path / "cache")
    (tmp_path / "cache" / file.name).write_bytes((tmp_path / "published" / file.name).read_bytes())
    true = list_folder(tmp_path / "cache")[file.name]
    assert not true.lossy
    assert true.stamp != rebuilt.stamp
    assert not release(true.path)


def test_a_slice_of_a_file_is_not_rebuilt_as_the_file(global_indices, tmp_path):
    file = CatalogFile(0, "big.npy", 0, 0, 100, 0, D, "<f2", 128 + 200 * D * 2)
    with pytest.raises(BadInput, match=r"big.npy.*3328 bytes.*the catalog expects 6528"):
        rebuild_file(file, global_indices, tmp_path / "cache")
    assert [path.name for path in (tmp_path / "cache").iterdir() if path.is_file()] == []


@pytest.fixture
def rules(quick):
    return FetchRules(attempts=2, backoff_s=0.005, sync_bytes=1 << 12, patience=quick.patience)


def test_each_file_is_landed_fetched_rebuilt_or_waited_for(catalog, global_indices, tmp_path, rules):
    landing = tmp_path / "landing"
    landing.mkdir()
    (landing / "img_emb_0.npy").write_bytes((tmp_path / "published" / "img_emb_0.npy").read_bytes())
    with MisbehavingServer(tmp_path / "published") as server:
        server.misbehave("img_emb_1.npy", Truncate(3000), None)
        for lost in ("img_emb_2.npy", "img_emb_3.npy"):
            server.misbehave(lost, *[Status(404)] * 9)
        only_two = tmp_path / "two"
        only_two.mkdir()
        for name in ("knn.index00", "knn.index01"):
            (only_two / name).write_bytes((global_indices / name).read_bytes())
        had = list(obtain(list(catalog), list_folder(landing), [server.url], tmp_path / "cache", rebuild_from=only_two, rules=rules))
    assert [one.file for one in had] == list(catalog)
    assert [one.landed is not None for one in had] == [True, True, True, False]
    assert [one.landed.lossy for one in had[:3]] == [False, False, True]
    assert str(had[0].landed.path).startswith(str(landing))
    assert "img_emb_3.npy: no source gives it" in had[3].reason
    assert "HTTP 404" in had[3].reason
    assert "not rebuilt: 700 of 700 rows (2100 .. 2799)" in had[3].reason
    assert complete_shards(list_folder(landing) | list_folder(tmp_path / "cache"), catalog) == [0]


def test_a_budget_of_one_file_serves_a_shard_when_files_are_released(catalog, tmp_path, rules):
    budget = replace(rules, budget_bytes=catalog.all_files[0].bytes)
    seen = []
    with MisbehavingServer(tmp_path / "published") as server:
        for one in obtain(list(catalog), {}, [server.url], tmp_path / "cache", ahead=2, rules=budget, politeness=Politeness(4)):
            seen.append(read_block(one.file, one.landed.path).vectors)
            assert release(one.landed.path)
        whole = np.concatenate([np.load(tmp_path / "published" / file.name) for file in catalog])
        assert (np.concatenate(seen) == whole).all()
        kept = obtain(list(catalog), {}, [server.url], tmp_path / "cache", rules=budget)
        assert next(kept).landed is not None
        with pytest.raises(OutOfDisk, match="do not fit the download budget"):
            next(kept)


def test_a_consumer_that_leaves_stops_the_downloads_and_keeps_their_parts(catalog, tmp_path, rules):
    with MisbehavingServer(tmp_path / "published", pace=0.05) as server:
        files = obtain(list(catalog), {}, [server.url], tmp_path / "cache", ahead=3, rules=rules)
        next(files)
        files.close()
        asked = len(server.requests)
        assert asked <= len(catalog)
        again = [one.landed.size for one in obtain(list(catalog), {}, [server.url], tmp_path / "cache", rules=rules)]
    assert again == [file.bytes for file in catalog]
