"""Conditions and scores by the embeddings, over HTTP."""

import json

import numpy as np
import pytest
from starlette.testclient import TestClient

from paired_index_assets.search.sharded import ShardedIndex
from paired_index_assets.serving.server import make_app
from paired_index_assets.serving.service import Limits, SearchService
from paired_index_assets.settings import load_settings


@pytest.fixture
def ask(fresh, searchable_pairs, tmp_path, monkeypatch):
    monkeypatch.setenv("PAIRED_INDEX_CACHE", str(tmp_path / "cache"))
    load_settings(root=str(fresh.root.root), landing=str(fresh.landing)).save()
    service = SearchService.of_build(fresh.root, None, texts=searchable_pairs, limits=Limits(conditions=3))
    with TestClient(make_app(service), base_url="http://localhost", raise_server_exceptions=False) as client:
        vector = fresh.captions[3].tolist()
        yield lambda **fields: client.post("/knn-service", content=json.dumps({"embedding_input": vector, "num_images": 10, **fields}))


def test_only_rows_that_meet_the_condition_are_answered(ask):
    hits = ask(where="NSFW = 'NSFW' AND url LIKE '%7'").json()
    assert len(hits) == 10
    assert all(hit["NSFW"] == "NSFW" and hit["url"].endswith("7") for hit in hits)


def test_a_reranked_answer_has_the_scores_of_the_embeddings(ask, fresh):
    hits = ask(rerank=20).json()
    images = np.concatenate([np.load(file) for file in sorted(fresh.landing.glob("*.npy"))]).astype(np.float32)
    for hit in hits:
        assert hit["similarity"] == pytest.approx(float(images[hit["id"]] @ fresh.captions[3]), abs=1e-5)
    plain = ShardedIndex.open(fresh.root).search(fresh.captions[3], 10)[0]
    assert [hit["similarity"] for hit in ask().json()] == pytest.approx(plain[0].tolist())


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"where": "nothing = 1"}, "no column 'nothing'; there are caption"),
        ({"where": "url = (SELECT 1)"}, "found a subquery"),
        ({"where": "read_text('/etc/passwd') = url"}, "the function 'read_text'"),
        ({"where": "x" * 5000}, "where"),
        ({"rerank": 1000}, "rerank"),
    ],
)
def test_what_cannot_be_met_is_the_clients_mistake(ask, fields, says):
    refused = ask(**fields)
    assert refused.status_code == 400
    assert says in refused.json()["error"]


def test_of_many_conditions_the_last_are_kept_and_none_is_refused(ask):
    for number in (0, 1, 2, 9, 0, 1):
        hits = ask(where=f"url LIKE '%{number}'").json()
        assert len(hits) == 10
        assert all(hit["url"].endswith(str(number)) for hit in hits)


def test_without_the_embeddings_a_rerank_is_refused_in_one_line(ask, fresh):
    (fresh.landing / "img_emb_0001.npy").unlink()
    refused = ask(rerank=2)
    assert refused.status_code == 400
    assert "ask without it" in refused.json()["error"]
    assert ask().status_code == 200
