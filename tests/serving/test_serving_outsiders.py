"""Programs that were not written for this project: clip-retrieval's client, mudg's reader, a browser."""

import base64
import importlib.util
import io
import json
import shutil
import subprocess
import sys
import threading
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import faiss
import numpy as np
import pytest
import torch
from http_server import served
from PIL import Image
from search_builds import WordEncoder, png

from paired_index_assets.search.sharded import ShardedIndex
from paired_index_assets.serving.service import SearchService

CLIP_RETRIEVAL = "clip-retrieval==2.45.0"


def test_a_reader_like_mudgs_finds_the_same_neighbours(finished):
    """scripts/retrieve.py of github Chris210634/mudg: its torch-saved list, its paths, its loop, its merge."""
    root, k, nprobe = finished.root.root.path + "/", 20, 8
    queries = finished.captions[:50]
    names, lengths, index_list = torch.load(root + "parquet_lengths_paired.list", weights_only=True)
    assert len(names) == len(lengths)
    assert sum(lengths) == len(finished.images)
    found = []
    for index_fn in index_list:
        index = faiss.read_index(root + index_fn)
        faiss.extract_index_ivf(index).nprobe = nprobe
        found.append(index.search(queries, k))
    distances = torch.cat([torch.tensor(scores) for scores, _ in found], dim=1)
    indices = torch.cat([torch.tensor(ids) for _, ids in found], dim=1)
    values, order = distances.sort(dim=1, descending=True)
    scores, ids = ShardedIndex.open(root).search(queries, k, nprobe=nprobe)
    np.testing.assert_allclose(scores, values[:, :k].numpy(), atol=1e-6)
    theirs = torch.gather(indices, 1, order)[:, :k].numpy()
    near = 2e-6  # faiss adds in float32, the product in float64
    distinct = (-np.diff(scores, axis=1, prepend=np.inf) > near) & (-np.diff(scores, axis=1, append=scores[:, -1:]) > near)
    np.testing.assert_array_equal(ids[distinct], theirs[distinct])  # which of equal scores it takes is up to torch
    assert distinct.mean() > 0.5


@pytest.fixture(scope="module")
def clip_retrieval(tmp_path_factory):
    """The package as published, without the 2 GB its server side imports: its client is one module, its front is built."""
    folder = tmp_path_factory.mktemp("clip_retrieval")
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), CLIP_RETRIEVAL], check=True)
    return folder


@pytest.mark.heavy
def test_the_published_client_of_clip_retrieval_is_answered(finished, searchable_pairs, clip_retrieval, tmp_path):
    spec = importlib.util.spec_from_file_location("clip_client", clip_retrieval / "clip_retrieval" / "clip_client.py")
    clip_client = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(clip_client)
    service = SearchService.of_build(finished.root.root, WordEncoder(), texts=searchable_pairs, images=searchable_pairs)
    with served(service) as port:
        client = clip_client.ClipClient(url=f"http://127.0.0.1:{port}/knn-service", indice_name="images", num_images=12)
        found = client.query(text="red ball")
        assert found
        assert all(hit["caption"] == f"caption {hit['id']}" and hit["url"].startswith("https://") for hit in found)
        assert [hit["similarity"] for hit in found] == sorted((hit["similarity"] for hit in found), reverse=True)
        picture = tmp_path / "q.png"
        picture.write_bytes(base64.b64decode(found[0]["image"]))
        assert client.query(image=str(picture))
        index = ShardedIndex.open(finished.root.root)
        vector = finished.images[5]
        ids = index.search(vector, 12)[1][0].tolist()
        assert {hit["id"] for hit in client.query(embedding_input=vector.tolist())} <= set(ids)
        many = clip_client.ClipClient(
            url=f"http://127.0.0.1:{port}/knn-service", indice_name="images", num_images=500, deduplicate=False, use_safety_model=False
        ).query(embedding_input=vector.tolist())
        assert len(many) > 100
        assert all(hit["caption"] == f"caption {hit['id']}" and hit["image"] for hit in many)
        assert "fetches nothing" in client.query(image="http://127.0.0.1/x.png")["error"]


BROWSER = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine: apt-get install chromium")


@contextmanager
def browsed(width: int = 1280, scheme: str = "dark"):
    """A page of a real browser; what it complains of, and what it asks for."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as tools:
        chromium = tools.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"])
        page = chromium.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme).new_page()
        faults, asked = [], []
        page.on("console", lambda message: faults.append(message.text))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        yield page, faults, asked
        chromium.close()


def answer_with(status, asked, _):
    asked.abort() if status is None else asked.fulfill(status=status, body="[]")


def says(page, where, text):
    page.wait_for_function("([where, text]) => document.getElementById(where).textContent.includes(text)", arg=[where, text])


def shown_ids(page):
    return [int(text.removeprefix("id ")) for text in page.locator("li .score span").all_inner_texts()]


@pytest.mark.heavy
@needs_browser
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (1280, "dark"), (375, "dark")])
def test_the_page_in_a_browser(finished, searchable_pairs, tmp_path, width, scheme):
    service = SearchService.of_build(finished.root.root, WordEncoder(), texts=searchable_pairs, images=searchable_pairs)
    index = ShardedIndex.open(finished.root.root)
    with served(service) as port, browsed(width, scheme) as (page, faults, asked):
        page.goto(f"http://127.0.0.1:{port}/")
        page.wait_for_selector("input[type=search]:focus")  # by itself
        says(page, "about", "pictures")
        page.screenshot(path=tmp_path / "empty.png")
        page.locator("input[name=alike]").uncheck()
        page.locator("input[type=search]").focus()
        page.keyboard.type("red <b>ball</b>")
        page.keyboard.press("Enter")
        page.wait_for_selector("li img")
        ids = index.search(WordEncoder().encode_texts(["red <b>ball</b>"]), 80)[1][0].tolist()
        assert shown_ids(page) == ids[:40]
        assert page.evaluate("[...document.images].every((image) => image.complete && image.naturalWidth === 8)")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        page.screenshot(path=tmp_path / "page.png")
        page.locator("li").first.focus()
        page.keyboard.press("ArrowRight")
        assert page.evaluate("document.activeElement === document.querySelectorAll('li')[1]")
        page.keyboard.press("n")
        says(page, "page", "41 to 80")
        assert shown_ids(page) == ids[40:]
        page.keyboard.press("p")
        says(page, "page", "1 to 40")
        page.keyboard.press("/")
        assert page.evaluate("document.activeElement.name") == "text"
        page.locator("li .picture").nth(3).click()
        says(page, "said", "pictures like")
        assert ids[3] in shown_ids(page)[:5]
        picture = io.BytesIO()
        Image.new("RGB", (9, 9), "blue").save(picture, "PNG")
        page.set_input_files("input[type=file]", {"name": "q.png", "mimeType": "image/png", "buffer": picture.getvalue()})
        says(page, "said", "q.png")
        page.locator("input[type=search]").fill("green")
        page.keyboard.press("Enter")
        says(page, "said", "green")
        page.reload()
        page.wait_for_selector("li img")  # the query is in the address
        assert page.input_value("input[type=search]") == "green"
        page.goto(f"http://127.0.0.1:{port}/docs")
        page.screenshot(path=tmp_path / "docs.png")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert not faults
    assert {url.split("/")[2] for url in asked if url.startswith("http")} == {f"127.0.0.1:{port}"}


@pytest.mark.heavy
@needs_browser
def test_the_page_says_what_is_wrong(finished, tmp_path):
    with served(SearchService.of_build(finished.root.root, None)) as port, browsed() as (page, faults, _):
        page.goto(f"http://127.0.0.1:{port}/")
        page.wait_for_selector("#said.wrong")
        assert "without a model" in page.inner_text("#said")
        page.keyboard.type("a")
        page.keyboard.press("Enter")
        says(page, "said", "this server has no model")
        page.screenshot(path=tmp_path / "wrong.png")
        answers = {"does not answer": None, "Try again in a moment": 503, "Nothing found": 200}
        for said, status in answers.items():
            page.unroute("**/knn-service")
            page.route("**/knn-service", partial(answer_with, status))
            page.locator("input[type=search]").press("Enter")
            says(page, "said", said)
            assert page.locator("li").count() == 0
    assert all("Failed to load resource" in fault for fault in faults)  # the browser's own, of a 4xx


@pytest.mark.heavy
@needs_browser
def test_clip_retrievals_own_front_is_answered(finished, searchable_pairs, clip_retrieval, tmp_path):
    """Its built pages, unmodified, served from another origin and pointed at `serve`."""
    front = tmp_path / "front"
    shutil.copytree(clip_retrieval / "front" / "build", front)
    service = SearchService.of_build(finished.root.root, WordEncoder(), texts=searchable_pairs, images=searchable_pairs)
    with pages_of(front) as elsewhere, served(service, cors=[f"http://127.0.0.1:{elsewhere}"]) as port, browsed() as (page, faults, _):
        config = {"defaultBackend": f"http://127.0.0.1:{port}/", "defaultIndex": "images", "urlColumn": "url"}
        (front / "config.json").write_text(json.dumps(config))
        page.route("https://e.org/**", lambda asked: asked.fulfill(body=png((9, 9, 9)), content_type="image/png"))
        answers = []
        page.on("response", lambda answer: answers.append((answer.url, answer.status)) if f":{port}/" in answer.url else None)
        page.goto(f"http://127.0.0.1:{elsewhere}/?query=red%20ball")
        page.wait_for_timeout(4000)
        page.screenshot(path=tmp_path / "front.png")
    statuses = {(url.rpartition("/")[2], status) for url, status in answers}
    assert ("knn-service", 200) in statuses
    assert ("indices-list", 200) in statuses
    assert {status for _, status in statuses} == {200}
    assert not [fault for fault in faults if "CORS" in fault or f":{port}" in fault]


@contextmanager
def pages_of(folder: Path):
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1]
    server.shutdown()
