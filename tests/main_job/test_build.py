"""The main job from a terminal: what is there after `paired-index build`, and that anybody's faiss can read it."""

import json
import shutil

import faiss
import numpy as np
import pyarrow.parquet as pq
import pytest

from paired_index_assets.clustering.clusters import Clustering
from paired_index_assets.embeddings.sets import EmbeddingSet
from paired_index_assets.layout import BuildRoot
from paired_index_assets.pairing.pairs import read_pairs
from paired_index_assets.pairing.split import Split
from paired_index_assets.sample import sample_model


@pytest.fixture(scope="module")
def captions(small_build):
    return EmbeddingSet.open(small_build / "embeddings/captions.json")


@pytest.fixture(scope="module")
def manifest(small_build):
    return pq.read_table(small_build / "manifest.parquet")


def search_like_mudg(root, queries, k, nprobe):
    """Each shard by stock faiss, one after another, results merged: as github Chris210634/mudg scripts/retrieve.py does."""
    scores, ids = [], []
    for number in range(len(list(root.glob("shards/knn.paired_QT_4bit.index*[0-9]")))):
        index = faiss.read_index(str(root / f"shards/knn.paired_QT_4bit.index{number}"))
        faiss.extract_index_ivf(index).nprobe = nprobe
        found, labels = index.search(queries, k)
        scores.append(found)
        ids.append(labels)
    scores, ids = np.hstack(scores), np.hstack(ids)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, 1), np.take_along_axis(ids, order, 1)


def test_every_output_has_its_public_name(small_build):
    names = {str(path.relative_to(small_build)) for path in (*small_build.rglob("*"), *small_build.glob("shards/*")) if path.is_file()}
    wanted = {f"shards/knn.paired_QT_4bit.index{n}" for n in range(6)}
    wanted |= {f"trained/images.16.QT_4bit.{method}.index" for method in ("paired_kmeans", "kmeans")}
    wanted |= {"manifest.parquet", "parquet_lengths_paired.list", "report/recall.json", "report/recall.md", "report/recall.png"}
    assert wanted <= names
    assert any(name.startswith("pairs/") and name.endswith(".parquet") for name in names)
    assert not [name for name in names if name.endswith(".tmp")]


def test_the_pairs_table_has_the_schema_it_promises_and_only_training_captions(small_build):
    pairs = read_pairs(BuildRoot.at(small_build).pairs)
    assert [(f.name, str(f.type)) for f in pairs.schema] == [("caption_id", "int64"), ("image_id", "int64"), ("similarity", "float")]
    split = Split.load(BuildRoot.at(small_build).split)
    assert set(pairs["caption_id"].to_pylist()) == set(split.train.tolist())
    assert not set(split.train) & (set(split.validation) | set(split.test))


def test_stock_faiss_reads_every_index_file_and_every_row_is_in_exactly_one_shard(small_build, manifest, captions):
    ids = []
    for number in range(6):
        index = faiss.read_index(str(small_build / f"shards/knn.paired_QT_4bit.index{number}"))
        ivf = faiss.extract_index_ivf(index)
        for inverted_list in range(ivf.nlist):
            size = ivf.invlists.list_size(inverted_list)
            ids.append(faiss.rev_swig_ptr(ivf.invlists.get_ids(inverted_list), size).copy())
    assert np.array_equal(np.sort(np.concatenate(ids)), np.arange(len(captions)))
    assert sum(manifest["rows"].to_pylist()) == len(captions)
    for method in ("paired_kmeans", "kmeans"):
        trained = faiss.read_index(str(small_build / f"trained/images.16.QT_4bit.{method}.index"))
        assert (trained.ntotal, trained.is_trained, trained.by_residual) == (0, True, False)
        centroids = trained.quantizer.reconstruct_n(0, 16)
        assert np.allclose(np.linalg.norm(centroids, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("nprobe", [2, 16])  # of 16 lists: by the order that was learned, and all of them
def test_a_mudg_style_reader_finds_the_neighbours_that_search_finds(nprobe, small_build, paired_index, captions, tmp_path):
    queries = captions[:50].astype(np.float32)
    np.save(tmp_path / "q.npy", queries)
    paired_index(
        "search", "--root", small_build, "--queries", tmp_path / "q.npy", "-k", 10, "--nprobe", nprobe, "--out", tmp_path / "r.npz"
    )
    with np.load(tmp_path / "r.npz") as found:
        assert (found["scores"].dtype, found["ids"].dtype) == (np.float32, np.int64)
        scores, ids = search_like_mudg(small_build, queries, 10, nprobe)
        assert np.allclose(found["scores"], scores, atol=1e-5)
        differing = found["ids"] != ids
        assert np.allclose(found["scores"][differing], scores[differing], atol=1e-6)  # only ties may be ordered otherwise
        assert differing.mean() < 0.02


def test_text_search_shows_captions_and_finds_what_was_asked(small_build, paired_index):
    said = paired_index("search", "--root", small_build, "--text", "red heart", "-k", 5).stdout
    assert "red heart" in said
    assert "heart" in said.replace("red heart", "", 1)


def test_the_report_is_on_captions_that_training_never_saw(small_build, paired_index):
    report = json.loads((small_build / "report/recall.json").read_text())
    methods = {candidate["method"] for candidate in report["candidates"]}
    assert methods == {"paired_kmeans", "kmeans"}
    for candidate in report["candidates"]:
        assert {point["by"] for point in candidate["points"]} >= {"nprobe", "share"}
        assert {"1", "10", "100"} <= set(candidate["points"][0]["coverage"])
    promoted = json.loads((small_build / "trained/promoted.json").read_text())
    competed = [standing["name"] for standing in promoted["standings"]]
    assert {f"{method}, 16 lists, QT_4bit query" for method in methods} < set(competed)
    assert promoted["name"] in competed
    written = (small_build / "report/recall.md").read_text()
    assert f"All {len(competed)} candidates" in written
    assert all(f"| {name} |" in written for name in competed)
    said = paired_index("report", "--root", small_build).stdout
    assert "recall" in said.lower()
    assert "paired_kmeans" in said


def test_a_second_build_touches_nothing(small_build, paired_index, tmp_path):
    root = tmp_path / "root"
    shutil.copytree(small_build, root, copy_function=shutil.copy2)
    files = [*root.glob("shards/knn*"), *root.glob("trained/*.index"), *root.glob("pairs/*.parquet"), *root.glob("embeddings/*_emb/*.npy")]
    before = {path: path.stat().st_mtime_ns for path in files if not path.name.endswith(".json")}
    contents = {path: path.read_bytes() for path in before}
    paired_index("build", "--root", root)
    assert {path: path.read_bytes() for path in before} == contents
    assert {path: path.stat().st_mtime_ns for path in root.glob("shards/knn*[0-9]")} == {
        path: stamp for path, stamp in before.items() if path.parent.name == "shards"
    }


@pytest.mark.parametrize("method", ["kmeans", "paired_kmeans"])
def test_the_iteration_that_covers_most_of_the_validation_captions_is_kept(small_build, method):
    made = Clustering.load(BuildRoot.at(small_build).clusters(method))
    covered = [iteration.recall for iteration in made.history]
    assert np.isfinite(covered).all()
    assert 0 < max(covered) <= 1
    assert made.best_iteration == int(np.argmax(covered))


@pytest.mark.parametrize("captions_are", ["beside the pictures", pytest.param("lines of a file", marks=pytest.mark.heavy)])
def test_a_folder_of_pictures_with_captions_becomes_an_index_that_answers(captions_are, small_pairs, paired_index, tmp_path):
    pairs = pq.read_table(small_pairs).slice(0, 300)
    (tmp_path / "pictures").mkdir()
    for number, (picture, caption) in enumerate(zip(pairs["png"].to_pylist(), pairs["caption"].to_pylist(), strict=True)):
        (tmp_path / f"pictures/{number:04d}.png").write_bytes(picture)
        if captions_are == "beside the pictures":
            (tmp_path / f"pictures/{number:04d}.txt").write_text(caption)
    given = ["--images", tmp_path / "pictures"]
    if captions_are == "lines of a file":
        (tmp_path / "captions.txt").write_text("".join(f"{caption}\n" for caption in pairs["caption"].to_pylist()))
        given += ["--captions", tmp_path / "captions.txt"]
    root = tmp_path / "root"
    sizes = ["--nlist", 8, "--shards", 3, "--part-rows", 100, "--validation-captions", 40, "--test-captions", 40]
    paired_index("build", "--root", root, *given, "--model", sample_model(), *sizes)
    assert sum(pq.read_table(root / "manifest.parquet")["rows"].to_pylist()) == 300
    words = pairs["caption"][7].as_py()
    assert words in paired_index("search", "--root", root, "--text", words, "-k", 5).stdout
