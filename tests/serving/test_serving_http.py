"""The server, spoken to over ASGI: clip-retrieval's fields, limits, refusals, and no way to make it fail."""

import base64
import io
import json
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from search_builds import MODEL, D, WordEncoder, picture_of, png
from starlette.testclient import TestClient

from paired_index_assets.errors import BadInput
from paired_index_assets.search.sharded import ShardedIndex
from paired_index_assets.serving.sent import smaller
from paired_index_assets.serving.server import make_app
from paired_index_assets.serving.service import Limits, SearchService

# as ClipClient of clip-retrieval 2.45 sends them
CLIENT_FIELDS = {
    "text": None, "image": None, "image_url": None, "embedding_input": None, "deduplicate": True, "use_safety_model": True,
    "use_violence_detector": True, "indice_name": "images", "use_mclip": False, "aesthetic_score": 9, "aesthetic_weight": 0.5,
    "modality": "image", "num_images": 40, "num_result_ids": 40,
}  # fmt: skip
LIMITS = Limits(results=200, text=100, json=100_000, body=100_000)


@pytest.fixture(scope="module")
def client(finished, searchable_pairs):
    pairs = searchable_pairs
    service = SearchService.of_build(finished.root.root, WordEncoder(), texts=pairs, images=pairs, limits=LIMITS)
    with TestClient(make_app(service), base_url="http://localhost", raise_server_exceptions=False) as client:
        yield client


def knn(client, **fields):
    return client.post("/knn-service", content=json.dumps({**CLIENT_FIELDS, "deduplicate": False, "use_safety_model": False, **fields}))


def test_a_text_finds_what_the_index_finds_with_rows_and_pictures(client, finished):
    found = knn(client, text="red ball", num_images=5, num_result_ids=8).json()
    scores, ids = ShardedIndex.open(finished.root.root).search(WordEncoder().encode_texts(["red ball"]), 8)
    assert [(hit["id"], np.float32(hit["similarity"])) for hit in found] == list(zip(ids[0].tolist(), scores[0], strict=True))
    for hit in found:
        assert hit["caption"] == f"caption {hit['id']}"
        assert hit["url"] == f"https://e.org/{hit['id']}"
        assert hit["score"] is None  # NaN is not JSON
    assert all(base64.b64decode(hit["image"]) == picture_of(hit["id"]) for hit in found[:5])
    assert not any("image" in hit for hit in found[5:])  # of those that num_images asks for only


@pytest.mark.parametrize("fields", [{"use_safety_model": None, "deduplicate": None}, {"num_images": "40"}, {"num_images": 40.0}])
def test_values_are_taken_as_clip_retrievals_server_takes_them(client, fields):
    assert knn(client, text="red ball", **fields).json() == knn(client, text="red ball").json()


def test_pictures_and_vectors_are_queries_too(client, finished):
    index = ShardedIndex.open(finished.root.root)
    picture = png((200, 10, 10))
    vector = WordEncoder().encode_images(WordEncoder().prepare_image(Image.open(io.BytesIO(picture)))[None])
    expected = index.search(vector, 40)[1][0].tolist()
    for text in (base64.b64encode(picture).decode(), "data:image/png;base64," + base64.b64encode(picture).decode()):
        assert [hit["id"] for hit in knn(client, image=text).json()] == expected
    assert [hit["id"] for hit in knn(client, embedding_input=vector[0].tolist()).json()] == expected


def test_duplicates_and_unsafe_rows_are_dropped_if_asked(client, finished):
    vector = finished.images[0].tolist()
    found = knn(client, embedding_input=vector, num_images=20).json()
    assert len({hit["similarity"] for hit in found}) < len(found)
    once = knn(client, embedding_input=vector, num_images=20, deduplicate=True).json()
    assert len({hit["similarity"] for hit in once}) == len(once)
    index = ShardedIndex.open(finished.root.root)
    vectors = index.stored(vector, [hit["id"] for hit in found])
    assert np.allclose([hit["similarity"] for hit in found], vectors @ np.asarray(vector, np.float32), atol=1e-5)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    alike = unit @ unit.T >= 0.94
    for _ in found:
        alike |= (alike.astype(int) @ alike) > 0  # connected, however far apart
    assert [hit["id"] for hit in once] == [found[at]["id"] for at in np.flatnonzero(alike.argmax(axis=1) == np.arange(len(found)))]
    safe = knn(client, embedding_input=vector, num_images=20, use_safety_model=True).json()
    assert [hit["id"] for hit in safe] == [hit["id"] for hit in found if hit["id"] % 7]  # those without metadata too


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({}, "none"),
        ({"text": " "}, "text: expected 1 to 100 characters"),
        ({"text": "x" * 101}, "found 101"),
        ({"text": "\ud800"}, "surrogate"),
        ({"text": 5}, "text"),
        ({"text": "a", "num_images": 0}, "num_images"),
        ({"text": "a", "num_images": 10**30, "num_result_ids": None}, "at most 200"),
        ({"text": "a", "num_result_ids": 201}, "num_result_ids: expected at most 200, found 201"),
        ({"text": "a", "num_images": "five"}, "num_images"),
        ({"text": "a", "num_images": 5.5}, "num_images"),
        ({"text": "a", "num_images": None}, "num_images"),
        ({"text": "a", "modality": "text"}, "images only"),
        ({"text": "a", "modality": "sound"}, "modality"),
        ({"text": "a", "indice_name": "laion"}, "indice_name: expected images, found laion"),
        ({"text": "a", "use_mclip": True}, "use_mclip"),
        ({"image": "%%%"}, "base64"),
        ({"image": base64.b64encode(b"no picture").decode()}, "not an image"),
        ({"image_url": "http://127.0.0.1/metadata"}, "fetches nothing"),
        ({"embedding_input": [1.0] * (D + 1)}, f"expected {D} numbers, found {D + 1}"),
        ({"embedding_input": [1e300] * D}, "finite"),
        ({"embedding_input": [3e38] * D}, "infinite"),
        ({"embedding_input": ["a"] * D}, "embedding_input.0"),
        ({"embedding_input": [0.0] * D}, "zeros only"),
        ({"embedding_input": [1e-60] * D}, "zeros only"),
    ],
)
def test_what_cannot_be_answered_is_refused_with_the_reason(client, fields, says):
    answer = knn(client, **fields)
    assert answer.status_code == 400
    assert says in answer.json()["error"]


NOT_REQUESTS = (b"", b"[]", b"{", b"null", b'{"text": NaN}', b'{"embedding_input": [NaN]}', b"\xff\xfe", b"[" * 90_000)


@pytest.mark.parametrize("body", [*NOT_REQUESTS, b'{"num_images": ' + b"9" * 9000 + b"}"])
def test_bodies_that_are_not_requests_are_refused(client, body):
    for path in ("/knn-service", "/metadata"):
        answer = client.post(path, content=body)
        assert answer.status_code == 400
        assert answer.json()["error"]


def test_large_bodies_are_refused_whether_they_say_their_size_or_not(client):
    assert client.post("/knn-service", content=b"x" * 100_001).status_code == 413
    assert client.post("/knn-service", content=(b"x" * 1000 for _ in range(200))).status_code == 413


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "text": st.none() | st.text(max_size=120) | JSON,
        "image": st.none() | st.text(max_size=50) | st.binary(max_size=200).map(lambda b: base64.b64encode(b).decode()),
        "image_url": st.none() | st.text(max_size=30),
        "embedding_input": st.none() | st.lists(st.floats(), min_size=D, max_size=D) | JSON,
        "modality": st.sampled_from(["image", "text"]) | JSON,
        "num_images": st.integers(-5, 300) | JSON,
        "num_result_ids": st.integers(-5, 300) | JSON,
        "indice_name": st.sampled_from(["images", "", None]) | JSON,
        "aesthetic_score": JSON,
        "deduplicate": st.booleans() | JSON,
        "use_safety_model": st.booleans() | JSON,
        "ids": st.lists(st.integers(-10, 4000) | st.integers()) | JSON,
    },
)
PATHS = st.sampled_from(["/knn-service", "/metadata"])
BYTES = st.binary(max_size=300) | st.text(max_size=100).map(lambda text: text.encode("utf-8", "surrogatepass"))
ADDRESSES = st.text(alphabet=st.characters(min_codepoint=33, max_codepoint=126), max_size=20)
METHODS = st.sampled_from(["GET", "POST", "PUT", "DELETE"])
fuzz = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@fuzz
@given(fields=FIELDS, path=PATHS)
def test_no_fields_make_it_fail(client, fields, path):
    check(client.post(path, content=json.dumps(fields)))


@fuzz
@given(body=BYTES, path=PATHS)
def test_no_bytes_make_it_fail(client, body, path):
    check(client.post(path, content=body))


@fuzz
@given(path=ADDRESSES, method=METHODS)
def test_no_address_makes_it_fail(client, path, method):
    assert client.request(method, "/" + path.replace("#", "").lstrip("/")).status_code < 500


def check(answer):
    assert answer.status_code in (200, 400), answer.text
    if answer.status_code == 400:
        assert set(answer.json()) == {"error"}
        assert "Traceback" not in answer.text
    else:
        assert isinstance(answer.json(), list)


def test_metadata_of_ids(client, finished):
    found = client.post("/metadata", content=json.dumps({"ids": [3, 10**12, 1], "indice_name": "images"})).json()
    assert [(hit["id"], hit["metadata"]["caption"]) for hit in found] == [(3, "caption 3"), (1, "caption 1")]
    assert client.post("/metadata", json={"ids": []}).json() == []
    assert client.post("/metadata", json={"ids": [-1]}).status_code == 400
    assert client.post("/metadata", json={"ids": list(range(201))}).status_code == 400


def test_health_indices_and_metrics(client, finished):
    assert client.get("/indices-list").json() == ["images"]
    health = client.get("/healthz").json()
    assert (health["status"], health["vectors"], health["shards"], health["model"]) == ("ok", len(finished.images), 7, MODEL)
    assert "/" not in json.dumps({**health, "model": ""})  # no path of this machine
    knn(client, text="a")
    lines = client.get("/metrics").text.splitlines()
    assert f"paired_index_vectors {float(len(finished.images))}" in lines
    assert any(line.startswith('paired_index_requests_total{path="/knn-service",status="200"}') for line in lines)
    assert any(line.startswith('paired_index_stage_seconds_count{stage="search"}') for line in lines)


def test_other_methods_paths_and_host_names_are_refused(client):
    assert client.get("/knn-service").status_code == 405
    assert client.get("/nowhere").json() == {"error": "Not Found"}
    assert client.get("/healthz", headers={"host": "evil.example"}).status_code == 400


def test_the_page_loads_nothing_and_runs_only_its_own_script(client):
    answer = client.get("/")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe-inline" not in policy
    assert policy.count("'sha256-") == 2
    assert "http://" not in answer.text
    assert "src=" not in answer.text.replace("image.src =", "")


def test_a_failure_inside_is_500_without_detail(finished, caplog):
    class Broken(WordEncoder):
        def encode_texts(self, texts):
            raise RuntimeError("secret /etc/path")

    service = SearchService.of_build(finished.root.root, Broken())
    with TestClient(make_app(service), base_url="http://localhost", raise_server_exceptions=False) as client:
        answer = knn(client, text="a")
        assert answer.status_code == 500
        assert "secret" not in answer.text
        assert "secret" in caplog.text
        assert knn(client, embedding_input=[0.1] * D).status_code == 200


def test_too_many_at_once_are_told_to_come_back_and_pictures_keep_nobody_else_waiting(finished):
    decoding, go_on = threading.Event(), threading.Event()

    class Slow(WordEncoder):
        def prepare_image(self, image):
            decoding.set()
            assert go_on.wait(30)
            return super().prepare_image(image)

    service = SearchService.of_build(finished.root.root, Slow(), limits=Limits(at_once=3, pictures_at_once=2))
    picture = base64.b64encode(png((255, 0, 0))).decode()
    with TestClient(make_app(service), base_url="http://localhost") as client, ThreadPoolExecutor(2) as pool:
        answers = [pool.submit(knn, client, image=picture) for _ in range(2)]
        assert decoding.wait(30)
        while "paired_index_in_flight 2.0" not in client.get("/metrics").text:
            time.sleep(0.01)
        refused = knn(client, image=picture)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        for fields in ({"text": "a"}, {"embedding_input": [0.1] * D}):
            assert knn(client, **fields).status_code == 200
        go_on.set()
        assert [answer.result().status_code for answer in answers] == [200, 200]
        assert knn(client, image=picture).status_code == 200


def test_another_model_than_the_builds_is_refused(finished):
    class Other(WordEncoder):
        identity = "another/2"

    with pytest.raises(BadInput, match="another/2: this index was built with test-encoder/1"):
        SearchService.of_build(finished.root.root, Other())
    service = SearchService.of_build(finished.root.root, None)
    with TestClient(make_app(service), base_url="http://localhost") as client:
        assert "has no model" in knn(client, text="a").json()["error"]
        assert client.get("/healthz").json()["takes_text"] is False


def test_a_fault_of_the_servers_own_files_is_5xx_without_their_names(fresh, tmp_path):
    texts = tmp_path / "texts.parquet"
    pq.write_table(pa.table({"caption": [f"caption {i}" for i in range(len(fresh.images))]}), texts, row_group_size=100)
    service = SearchService.of_build(fresh.root, None, texts=str(texts))
    with TestClient(make_app(service), base_url="http://localhost", raise_server_exceptions=False) as client:
        assert knn(client, embedding_input=[0.1] * D).status_code == 200
        with texts.open("rb+") as stream:  # cut short in place, under the server
            stream.truncate(9)
        answer = knn(client, embedding_input=[-0.1] * D)
        assert answer.status_code == 500
        assert "parquet" not in answer.text
        assert str(tmp_path) not in answer.text


def test_pages_go_on_where_the_last_ended_and_vectors_find_what_is_similar(client, finished):
    whole = knn(client, text="red ball", num_images=30, num_result_ids=30).json()
    assert [
        hit for start in (0, 10, 20) for hit in knn(client, text="red ball", num_images=10, num_result_ids=None, offset=start).json()
    ] == whole
    assert knn(client, text="red ball", num_images=10, num_result_ids=None, offset=195).status_code == 400
    first = knn(client, text="red ball", num_images=3, with_vectors=True).json()[0]
    near = knn(client, embedding_input=first["vector"], num_images=3).json()
    assert first["similarity"] < near[0]["similarity"]
    assert first["id"] in [hit["id"] for hit in near]


def test_large_pictures_are_made_small_if_asked():
    noise = io.BytesIO()
    Image.effect_noise((900, 600), 90).save(noise, "PNG")
    made = smaller(noise.getvalue(), Limits())
    with Image.open(io.BytesIO(made)) as image:
        assert (image.format, image.size) == ("JPEG", (512, 341))
    for kept in (png((1, 2, 3)), b"no picture" * 100_000):
        assert smaller(kept, Limits()) is kept


def test_a_set_without_vectors_is_not_ready(fresh):
    for record in Path(fresh.root.generation(fresh.trained.fingerprint).records.path).glob("index*.json"):
        record.unlink()
    service = SearchService.of_build(fresh.root, None, partial=True)
    with TestClient(make_app(service), base_url="http://localhost") as client:
        health = client.get("/healthz")
        assert (health.status_code, health.json()["ready"], health.json()["status"]) == (503, False, "degraded")
        answer = knn(client, embedding_input=[0.1] * D)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")


def test_other_origins_are_let_in_by_name_only(finished):
    def allowed(origin, **given):
        service = SearchService.of_build(finished.root, None)
        with TestClient(make_app(service, **given), base_url="http://localhost") as client:
            asked = {"Origin": origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
            before = client.options("/knn-service", headers=asked)
            after = client.post("/knn-service", content=json.dumps({"embedding_input": [0.1] * D}), headers={"Origin": origin})
            assert after.status_code == 200
            return [answer.headers.get("access-control-allow-origin") for answer in (before, after)]

    assert allowed("https://front.example") == [None, None]
    assert allowed("https://front.example", cors=["https://front.example"]) == ["https://front.example"] * 2
    assert allowed("https://other.example", cors=["https://front.example"]) == [None, None]
    assert allowed("https://other.example", cors=["*"]) == ["*", "*"]


def test_the_api_describes_itself(client):
    described = client.get("/openapi.json").json()
    assert described["openapi"].startswith("3.1")
    answered = {route.path for route in client.app.routes} - {"/", "/docs", "/openapi.json"}
    assert set(described["paths"]) == answered
    schemas = described["components"]["schemas"]
    assert set(schemas["KnnRequest"]["properties"]) >= set(CLIENT_FIELDS)
    for name in re.findall(r"#/components/schemas/(\w+)", json.dumps(described)):
        assert name in schemas
    example = described["paths"]["/knn-service"]["post"]["requestBody"]["content"]["application/json"]["example"]
    hit = client.post("/knn-service", json=example).json()[0]
    assert set(schemas["Hit"]["required"]) <= set(hit)
    page = client.get("/docs")
    assert "unsafe" not in page.headers["content-security-policy"]
    for name in schemas["KnnRequest"]["properties"]:
        assert f"<code>{name}</code>" in page.text
