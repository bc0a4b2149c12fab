"""Removal lists as people send them: spelt in many ways, with lines that match nothing, in odd encodings; and never a traceback."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner
from upath import UPath

from paired_index_assets.builds.opened import OpenBuild, write_catalog
from paired_index_assets.cli.main import app
from paired_index_assets.embeddings.sets import SetPart, write_set
from paired_index_assets.errors import PairedIndexError
from paired_index_assets.settings import load_settings
from paired_index_assets.shards.matching import ids_of, read_list, row_ids, same_url
from paired_index_assets.shards.removals import read_log, read_removed

MD5S = [f"{row:032x}".replace("0", "d") for row in range(1, 7)]
URLS = [
    "https://example.com/a%20b.png",
    "http://Bücher.example/ü.jpg",
    "https://example.com:443/c.png?x=1&y=a+b",
    "http://example.com/d",
    "http://example.com/%7Euser/e.png",
    "http://example.com/f.png",
]


@pytest.fixture
def root(tmp_path):
    """A build of six rows whose metadata have urls and md5s."""
    np.save(tmp_path / "img_emb.npy", np.random.default_rng(1).standard_normal((6, 8)).astype(np.float16))
    pq.write_table(pa.table({"key": list("abcdef"), "caption": list("abcdef"), "url": URLS, "md5": MD5S}), tmp_path / "metadata.parquet")
    settings = load_settings(root=str(tmp_path / "root"), shards=1)
    part = SetPart(UPath(tmp_path) / "img_emb.npy", 6, "s", UPath(tmp_path) / "metadata.parquet")
    write_set(settings.build_root.image_set, [part], model="m", modality="images")
    write_catalog(OpenBuild(settings), lambda catalog: None)
    return settings.build_root


def take_down(root, option, content):
    file = root.root / "list.txt"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return CliRunner().invoke(app, ["takedown", "--root", str(root.root), option, file.path])


@pytest.mark.parametrize(
    "line",
    [
        MD5S[2],
        MD5S[2].upper(),
        f"{MD5S[2]}  pictures/c.png",
        f"{MD5S[2]} *pictures/{MD5S[1]}.png",
        f"\\{MD5S[2]}  a\\nb.png",
        f"MD5 (pictures/c.png) = {MD5S[2]}",
        f"  {MD5S[2]}\t",
    ],
)
@pytest.mark.parametrize("encoded", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n", ""])
def test_an_md5_is_found_however_the_line_is_written(root, line, encoded, end):
    done = take_down(root, "--md5", f"{line}{end}".encode(encoded))
    assert done.exit_code == 0, done.output
    assert read_removed(root, "").tolist() == [2]


@pytest.mark.parametrize(
    ("line", "row"),
    [
        ("https://example.com/a b.png", 0),
        ("http://EXAMPLE.com/a%20b.png", 0),
        ("https://example.com/a%2520b.png", 0),
        ("http://xn--bcher-kva.example/%C3%BC.jpg", 1),
        ("http://b%C3%BCcher.example/ü.jpg", 1),
        ("https://example.com/c.png?x=1&amp;y=a%20b", 2),
        ("https://example.com/d/", 3),
        ("http://example.com:80/d#top", 3),
        ("http://example.com/~user/e.png", 4),
        ("<https://example.com/f.png>", 5),
    ],
)
def test_a_url_is_found_however_it_is_spelt(root, line, row):
    done = take_down(root, "--urls", line)
    assert done.exit_code == 0, done.output
    assert read_removed(root, "").tolist() == [row]


def test_what_is_written_exactly_is_not_also_matched_otherwise(root):
    pq.write_table(
        pa.table({"key": list("abcdef"), "caption": list("abcdef"), "url": [URLS[3], f"{URLS[3]}/", *URLS[2:]], "md5": MD5S}),
        root.root.parent / "metadata.parquet",
    )
    take_down(root, "--urls", URLS[3])
    assert read_removed(root, "").tolist() == [0, 3]


def test_lines_that_match_nothing_are_listed_and_the_exit_code_says_so(root):
    done = take_down(root, "--urls", f"{URLS[5]}\nhttp://nowhere.example/[/a]\nno url at all\n")
    assert done.exit_code == 1
    assert read_removed(root, "").tolist() == [5]
    said = done.output + str(done.exception)
    assert "http://nowhere.example/[/a]" in said
    assert "no url at all" in said
    assert "2 lines" in said


def test_the_log_keeps_what_identifies_the_row(root):
    take_down(root, "--ids", "4\n")
    (row,) = read_log(root).to_pylist()
    assert (row["id"], row["file"], row["file_row"], row["key"], row["url"], row["md5"]) == (4, "img_emb.npy", 4, "e", URLS[4], MD5S[4])
    assert row["vector"]
    assert row["caption"] not in (None, "e")


@pytest.mark.parametrize("line", ["²", "٣", "9" * 40, "-1", "1.0", "1,2", "6"])
def test_a_row_id_that_cannot_be_is_refused_and_nothing_is_removed(root, line):
    done = take_down(root, "--ids", f"1\n{line}\n")
    assert done.exit_code == 1
    assert isinstance(done.exception, PairedIndexError)
    assert line in str(done.exception)
    assert read_removed(root, "").tolist() == []


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    content=st.binary(max_size=60)
    | st.text(alphabet="htp:/[]@%0aAü\u2028\x85\ud800.?&#=+ \r\n", max_size=60).map(lambda t: t.encode("utf-8", "surrogatepass"))
)
def test_nothing_in_a_list_is_a_traceback(tmp_path_factory, content):
    folder = tmp_path_factory.getbasetemp()
    (folder / "list.txt").write_bytes(content)
    pq.write_table(pa.table({"url": URLS, "md5": MD5S}), folder / "m.parquet")
    try:
        lines = read_list(folder / "list.txt")
    except PairedIndexError:
        return
    for column in ("url", "md5"):
        ids, unknown = ids_of([(folder / "m.parquet", 0)], column, lines)
        assert len(unknown) <= len(lines)
        assert all(0 <= row < 6 for row in ids)
    with suppress(PairedIndexError):
        assert len(row_ids(folder / "list.txt", lines)) == len(lines)


@settings(deadline=None, derandomize=True)
@given(st.text(max_size=30))
def test_a_spelling_is_its_own_spelling(text):
    once = same_url(f"http://example.com/{text.replace('#', '').replace('?', '')}")
    assert same_url(once) == once
