"""Programs that were not written for this project: clip-retrieval's client, mudg's reader, a browser."""

import base64
import importlib.util
import io
import shutil
import subprocess
import sys

import faiss
import numpy as np
import pytest
import torch
from http_server import served
from PIL import Image
from search_builds import WordEncoder

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


@pytest.mark.heavy
def test_the_published_client_of_clip_retrieval_is_answered(finished, searchable_pairs, tmp_path):
    """The package as published; loading its one module spares the 2 GB its server side imports."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(tmp_path), CLIP_RETRIEVAL]
    subprocess.run(pip, check=True)
    spec = importlib.util.spec_from_file_location("clip_client", tmp_path / "clip_retrieval" / "clip_client.py")
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
        assert "fetches nothing" in client.query(image="http://127.0.0.1/x.png")["error"]


@pytest.mark.heavy
@pytest.mark.parametrize("width", [1280, 375])
def test_the_page_in_a_browser(finished, searchable_pairs, tmp_path, width):
    browser = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
    if browser is None:
        pytest.skip("no chromium on this machine: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    service = SearchService.of_build(finished.root.root, WordEncoder(), texts=searchable_pairs, images=searchable_pairs)
    with served(service) as port, sync_playwright() as tools:
        chromium = tools.chromium.launch(executable_path=browser, args=["--no-sandbox", "--disable-gpu"])
        page = chromium.new_context(viewport={"width": width, "height": 800}, color_scheme="dark").new_page()
        faults, asked = [], []
        page.on("console", lambda message: faults.append(message.text))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"http://127.0.0.1:{port}/")
        page.wait_for_selector("input[type=search]:focus")  # by itself
        page.keyboard.type("red <b>ball</b>")
        page.keyboard.press("Enter")
        page.wait_for_selector("li img")
        assert page.input_value("input[type=search]") == "red <b>ball</b>"
        ids = ShardedIndex.open(finished.root.root).search(WordEncoder().encode_texts(["red <b>ball</b>"]), 40)[1][0]
        assert page.locator("li .score span").all_inner_texts() == [f"id {row_id}" for row_id in ids]
        assert page.evaluate("[...document.images].every((image) => image.complete && image.naturalWidth === 8)")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        page.locator("li").first.focus()
        page.keyboard.press("ArrowRight")
        assert page.evaluate("document.activeElement === document.querySelectorAll('li')[1]")
        page.keyboard.press("/")
        assert page.evaluate("document.activeElement.name") == "text"
        picture = io.BytesIO()
        Image.new("RGB", (9, 9), "blue").save(picture, "PNG")
        before = page.locator("li").first.inner_text()
        page.set_input_files("input[type=file]", {"name": "q.png", "mimeType": "image/png", "buffer": picture.getvalue()})
        page.wait_for_function("(before) => document.querySelector('li').innerText !== before", arg=before)
        page.reload()
        page.wait_for_selector("li img")  # the query is in the address
        assert page.input_value("input[type=search]") == "red <b>ball</b>"
        page.screenshot(path=tmp_path / "page.png")
        chromium.close()
    assert not faults
    assert {url.split("/")[2] for url in asked if url.startswith("http")} == {f"127.0.0.1:{port}"}
