"""What is written for people and programs to read."""

import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import given
from hypothesis import strategies as st

from paired_index_assets.builds.metadata import Metadata
from paired_index_assets.serving.results import Answer, Hit, answers, as_html, as_json, table_rows, write_html, write_json


def test_hits_are_joined_with_their_rows_and_places_without_one_are_left_out(tmp_path):
    pq.write_table(pa.table({"caption": ["a", "b", None], "when": pa.array([0, 1, 2], pa.timestamp("s"))}), tmp_path / "m.parquet")
    scores = np.array([[0.5, 0.25, -np.inf], [0.75, 0.5, 0.25]], np.float32)
    ids = np.array([[1, 0, -1], [2, 9, 1]])
    first, second = answers(["x", "y"], scores, ids, metadata=Metadata.in_order([tmp_path / "m.parquet"]))
    assert table_rows(first) == [(1, 0.5, 1, "b"), (2, 0.25, 0, "a")]
    assert table_rows(second) == [(1, 0.75, 2, ""), (2, 0.5, 9, ""), (3, 0.25, 1, "b")]
    content = json.loads(as_json([first, second]))
    assert content[0]["hits"][0] == {"rank": 1, "id": 1, "score": 0.5, "caption": "b", "when": "1970-01-01 00:00:01"}
    assert content[1]["hits"][1] == {"rank": 2, "id": 9, "score": 0.5}


def test_files_hold_what_was_found(tmp_path):
    scores, ids = np.array([[0.5, -np.inf]], np.float32), np.array([[2**40, -1]])
    found = answers(["q"], scores, ids)
    write_json(tmp_path / "r.json", found)
    write_html(tmp_path / "r.html", found)
    assert json.loads((tmp_path / "r.json").read_text())[0]["hits"] == [{"rank": 1, "id": 2**40, "score": 0.5}]
    assert "id 1099511627776" in (tmp_path / "r.html").read_text()


@given(st.text(), st.text(), st.text())
def test_no_text_becomes_markup(query, caption, url):
    plain = as_html([Answer("q", [Hit(1, 5, 0.1, {"caption": "c", "url": "u"})])])
    page = as_html([Answer(query, [Hit(1, 5, 0.1, {"caption": caption or "c", "url": url or "u"})])])

    def tags(text):
        return [tag for tag in re.findall(r"<[^>]*>", text) if not tag.startswith(("<a ", "</a"))]

    assert tags(page) == tags(plain)


def test_scripts_are_text_and_only_web_addresses_are_links():
    row = {"url": "javascript:alert(1)", "caption": '"><img src=x onerror=y>'}
    page = as_html([Answer("<script>alert(1)</script>", [Hit(1, 5, 0.1, row)])])
    assert "<script" not in page
    assert "<img" not in page
    assert "<a " not in page
    linked = as_html([Answer("q", [Hit(1, 5, 0.1, {"url": "https://e.org/?a=1&b=%22"})])])
    assert '<a href="https://e.org/?a=1&amp;b=%22" rel="noreferrer' in linked
