"""The paper's index by the options that its README would name: paired k-means, faiss's own codes, plain IVF files without transform."""

import json

import faiss
import numpy as np
import pytest

from paired_index_assets.clustering.clusters import Clustering
from paired_index_assets.codes.formats import ivf_of
from paired_index_assets.embeddings.sets import EmbeddingSet
from paired_index_assets.layout import BuildRoot
from paired_index_assets.search.sharded import ShardedIndex
from paired_index_assets.trained.promotion import promoted_index

ROWS, D, NLIST = 1_500, 32, 24


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("features"), np.random.default_rng(4)
    images = rng.standard_normal((120, D))[rng.integers(0, 120, ROWS)] + 0.5 * rng.standard_normal((ROWS, D))
    captions = images + 0.5 * rng.standard_normal((ROWS, D)) + 2 * rng.standard_normal(D)
    for name, vectors in (("image", images), ("caption", captions)):
        np.save(folder / f"{name}.npy", np.float32(vectors / np.linalg.norm(vectors, axis=1, keepdims=True)))
    return folder


@pytest.mark.parametrize("rounding", ["nearest", "faiss"])
def test_the_papers_index_is_a_plain_ivf_around_centroids_of_captions(rounding, features, paired_index, tmp_path):
    root = tmp_path / "root"
    given = ["--image-features", features / "image.npy", "--caption-features", features / "caption.npy"]
    asked = ["--method", "paired_kmeans", "--codec", "QT_4bit", "--rounding", rounding, "--nlist", NLIST, "--allow-regression"]
    paired_index("build", "--root", root, *given, *asked, "--shards", 2, "--validation-captions", 100, "--test-captions", 100)
    promoted = json.loads((root / "trained/promoted.json").read_text())
    trained = promoted_index(BuildRoot.at(root))
    assert (trained.method, trained.codec.rounding, trained.learned, trained.levels, trained.nprobe) == (
        "paired_kmeans",
        rounding,
        False,
        1,
        8,
    )
    assert f"images.{NLIST}.QT_4bit.paired_kmeans.index" in promoted["candidates"]
    stock = faiss.read_index(str(root / f"trained/images.{NLIST}.QT_4bit.paired_kmeans.index"))
    assert type(stock) is faiss.IndexIVFScalarQuantizer
    assert type(faiss.downcast_index(stock.quantizer)) is faiss.IndexFlatIP
    assert (stock.by_residual, stock.metric_type, stock.ntotal, stock.code_size) == (False, faiss.METRIC_INNER_PRODUCT, 0, D // 2)
    centroids = Clustering.load(BuildRoot.at(root).clusters("paired_kmeans")).centroids
    assert np.array_equal(stock.quantizer.reconstruct_n(0, NLIST), centroids)

    images, queries = (EmbeddingSet.open(root / f"embeddings/{name}.json")[:].astype(np.float32) for name in ("images", "captions"))
    with ShardedIndex.open(root) as index:
        scores, ids = index.search(queries[:60], 10)  # at the build's own nprobe
    stock.add(images)
    expected, labels = stock.search(queries[:60], 10)
    if rounding == "faiss":  # our shards hold what faiss itself would have added
        np.testing.assert_allclose(scores, expected, atol=1e-6)
        assert np.mean(ids != labels) < 0.02  # ties
    shards = [ivf_of(faiss.read_index(str(root / f"shards/knn.paired_QT_4bit.index{number}"))) for number in range(2)]
    assert sum(shard.ntotal for shard in shards) == ROWS
    for number in range(NLIST):
        assert sum(shard.invlists.list_size(number) for shard in shards) == stock.invlists.list_size(number)
    report = json.loads((root / "report/recall.json").read_text())
    assert {(c["method"], c["codec"]) for c in report["candidates"]} >= {(m, "QT_4bit faiss") for m in ("kmeans", "paired_kmeans")}
