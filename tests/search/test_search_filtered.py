"""Conditions on the metadata, scores by the embeddings, and answers to more queries than fit."""

import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from search_builds import NLIST

from paired_index_assets.errors import BadInput, MissingInput
from paired_index_assets.search import filters, streaming
from paired_index_assets.search.filters import parse
from paired_index_assets.search.sharded import ShardedIndex
from paired_index_assets.search.streaming import blocks, stream_npz, stream_parquet
from paired_index_assets.serving.beside import filter_of, originals_of
from paired_index_assets.settings import load_settings


@pytest.fixture
def described(fresh, tmp_path):
    """A build whose rows have metadata: width 0..999, a mark, a text, and NULLs."""
    ids = np.arange(len(fresh.images))
    columns = {
        "width": pa.array(ids % 1000),
        "NSFW": pa.array(["UNLIKELY" if i % 3 else "NSFW" for i in ids]),
        "caption": pa.array([None if i % 10 == 0 else f"cat {i}" for i in ids]),
        "odd name": pa.array(ids % 7 == 0),
    }
    table = pa.table(columns)
    pq.write_table(table, tmp_path / "texts.parquet", row_group_size=700)
    settings = load_settings(
        root=str(fresh.root.root), cache=str(tmp_path / "cache"), landing=str(fresh.landing), caption_texts=str(tmp_path / "texts.parquet")
    )
    settings.save()
    return fresh, settings, table


def exact(build, allowed, query, k):
    """The best k ids of all codes, of those allowed."""
    images = np.concatenate([np.load(f) for f in sorted(build.landing.glob("*.npy"))])
    decoded = build.trained.codec.decode(build.trained.encode(images)[1]).astype(np.float64)
    scores = (decoded @ query.astype(np.float64)).astype(np.float32)
    ids = np.flatnonzero(allowed)
    return ids[np.lexsort((ids, -scores[ids]))][:k]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("width >= 512", lambda t: t["width"] >= 512),
        ("NSFW = 'UNLIKELY' AND width >= 512", lambda t: (t["NSFW"] == "UNLIKELY") & (t["width"] >= 512)),
        ("nsfw <> 'NSFW' or Width between 5 and 9", lambda t: (t["NSFW"] != "NSFW") | ((t["width"] >= 5) & (t["width"] <= 9))),
        ("caption LIKE 'cat 1%'", lambda t: np.array([c is not None and c.startswith("cat 1") for c in t["caption"]])),
        ("NOT (caption LIKE 'cat 1%')", lambda t: np.array([c is not None and not c.startswith("cat 1") for c in t["caption"]])),
        ("caption IS NULL", lambda t: np.array([c is None for c in t["caption"]])),
        ('"odd name" AND width % 2 = 0', lambda t: t["odd name"] & (t["width"] % 2 == 0)),
        ("width IN (3, 4) AND lower(nsfw) = 'nsfw'", lambda t: np.isin(t["width"], (3, 4)) & (t["NSFW"] == "NSFW")),
        ("width = -1", lambda t: t["width"] < 0),
    ],
)
def test_only_rows_that_meet_a_condition_are_found(described, text, expected):
    build, _, table = described
    allowed = expected({name: table[name].to_numpy(zero_copy_only=False) for name in table.schema.names})
    with ShardedIndex.open(build.root.root) as index:
        where = filter_of(load_settings(root=str(build.root.root)), text)
        assert where.matching == allowed.sum()
        scores, ids = index.search(build.captions[:5], 10, nprobe=NLIST, where=where)
        assert (np.isneginf(scores) == (ids < 0)).all()
        for row in range(5):
            np.testing.assert_array_equal(ids[row][ids[row] >= 0], exact(build, allowed, build.captions[row], 10))


def test_k_rows_come_back_where_k_match_however_few_lists_were_asked_for(described):
    build, settings, table = described
    with ShardedIndex.open(build.root.root) as index:
        for text in ("width = 7", "width < 40"):
            matching = int((table["width"].to_numpy() == 7).sum()) if text == "width = 7" else 40
            found = index.search(build.captions[:70], 10, nprobe=1, where=filter_of(settings, text))[1]
            assert ((found >= 0).sum(axis=1) == min(10, matching)).all()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("nothing = 1", "no column 'nothing'; there are caption, NSFW, odd name, width"),
        ("width >=", "syntax error"),
        ("width = 'wide'", "Could not convert"),
        ("1 = 1", "expected an expression over the metadata's columns"),
        ("width = 1; DROP TABLE x", "syntax error"),
        ("width = 1) UNION SELECT (1", "expected one expression"),
        ("width = 1) ORDER BY (1", "expected one expression"),
        ("width = (SELECT 1)", "found a subquery"),
        ("width IN (SELECT 1)", "found a subquery"),
        ("getenv('HOME') = NSFW", "the function 'getenv'"),
        ("NSFW = read_text('/etc/passwd')", "the function 'read_text'"),
        ("sum(width) > 1", "the function 'sum'"),
        ("a.b.c = 1", "expected the name of a column"),
        ("width = ?", "found a parameter"),
        ("x" * 3000, "at most 2000 characters"),
    ],
)
def test_what_is_no_condition_is_refused_in_one_line(described, text, says):
    with pytest.raises(BadInput) as refused:
        filter_of(described[1], text)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


@settings(max_examples=200, deadline=None)
@given(
    st.text(max_size=60)
    | st.lists(st.sampled_from(["width", "=", "(", ")", "1", "'a'", "--", ";", "SELECT", ",", "AND", '"', "/*"])).map(" ".join)
)
def test_no_text_does_more_than_be_a_condition_or_be_refused(text):
    try:
        condition = parse(text)
    except BadInput as error:
        said = str(error)
    else:
        said = condition.columns
    assert said
    assert "\n" not in said


def test_a_bitmap_is_made_once_for_one_meaning_and_again_for_other_metadata(described, tmp_path):
    _, settings, table = described
    told = []
    first = filter_of(settings, "width < 10", lambda step, done, total, **facts: told.append((done, total, facts)))
    assert told[0] == (0, len(table), {"bytes": -(-len(table) // 8), "of": filters.KEPT_BYTES})
    again = filter_of(settings, "width   <   10", lambda *_, **__: pytest.fail("made again"))
    np.testing.assert_array_equal(first.bits, again.bits)
    changed = table.set_column(0, "width", pa.array(np.zeros(len(table), np.int64)))
    pq.write_table(changed, settings.caption_texts)
    assert filter_of(settings, "width < 10").matching == len(table)


def test_bitmaps_that_were_not_used_for_longest_make_room_for_others(described, monkeypatch):
    _, settings, table = described
    kept = settings.build_root.cache.folder / "filters"
    one = filter_of(settings, "width < 1")
    (first,) = kept.glob("*.npy")
    monkeypatch.setattr(filters, "KEPT_BYTES", 3 * first.stat().st_size)
    for number in range(2, 7):
        os.utime(first, ns=(1, 1))
        filter_of(settings, "width < 1")  # in use again
        filter_of(settings, f"width < {number}")
        for file in kept.glob("*.npy"):
            os.utime(file, ns=(file.stat().st_mtime_ns - 10**9,) * 2)
        assert len(list(kept.glob("*.npy"))) == min(number, 3)
        assert first.exists()
    filter_of(settings, "width < 7")
    filter_of(settings, "width < 8")
    filter_of(settings, "width < 9")
    assert not first.exists()
    assert one.matching == (table["width"].to_numpy() < 1).sum() == int(np.bitwise_count(one.bits).sum())  # still mapped
    assert filter_of(settings, "width < 1").matching == one.matching


def test_reranked_scores_are_those_of_the_embeddings(described):
    build, settings, _ = described
    originals = originals_of(build.root)
    images = np.concatenate([np.load(f) for f in sorted(build.landing.glob("*.npy"))]).astype(np.float64)
    with ShardedIndex.open(build.root.root) as index:
        for n in (1, 90):
            queries = build.captions[:n]
            scores, ids = index.search(queries, 10, nprobe=NLIST, rerank=20, originals=originals)
            for row in range(n):
                products = (images @ queries[row].astype(np.float64)).astype(np.float32)
                np.testing.assert_allclose(scores[row], products[ids[row]], atol=1e-6)
                np.testing.assert_allclose(scores[row], np.sort(products)[::-1][:10], atol=1e-6)
        plain = index.search(build.captions[:1], 10, nprobe=NLIST)
        np.testing.assert_array_equal(index.search(build.captions[:1], 10, nprobe=NLIST, rerank=0)[0], plain[0])
        only = index.search(build.captions[:3], 10, nprobe=NLIST, rerank=5, originals=originals, where=filter_of(settings, "width < 100"))[
            1
        ]
        assert (only[only >= 0] % 1000 < 100).all()


def test_reranking_without_the_embeddings_is_refused_in_one_line(described):
    build, settings, _ = described
    opened = originals_of(settings)
    os.remove(build.landing / "img_emb_0003.npy")
    with pytest.raises(MissingInput, match=r"rerank: img_emb_0003\.npy.*search without rerank"):
        originals_of(settings)
    with ShardedIndex.open(build.root.root) as index:
        with pytest.raises(MissingInput, match="search without rerank"):
            index.search(build.captions[:50], 10, rerank=20, nprobe=NLIST, originals=opened)
        assert (index.search(build.captions[0], 5)[1] >= 0).all()
        for wrong in (2.5, -1, 10**6):
            with pytest.raises(BadInput, match="rerank: expected a whole number"):
                index.search(build.captions[0], 5, rerank=wrong, originals=opened)
        with pytest.raises(BadInput, match="originals_of"):
            index.search(build.captions[0], 5, rerank=2)


def test_answers_to_many_queries_are_written_block_by_block(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(streaming, "MOST_QUERIES", 64)
    np.save(tmp_path / "queries.npy", finished.captions[:301])
    queries, steps = np.load(tmp_path / "queries.npy", mmap_mode="r"), []
    with ShardedIndex.open(finished.root.root) as index:
        whole = index.search(finished.captions[:301], 7, nprobe=5)

        def answers():
            return blocks(queries, 7, lambda rows: index.search(rows, 7, nprobe=5), progress=lambda *step: steps.append(step[:3]))

        stream_npz(tmp_path / "found.npz", 301, 7, answers())
        stream_parquet(tmp_path / "found.parquet", answers())
    with np.load(tmp_path / "found.npz") as found:
        np.testing.assert_array_equal(found["scores"], whole[0])
        np.testing.assert_array_equal(found["ids"], whole[1])
    table = pq.read_table(tmp_path / "found.parquet")
    assert table["query"].to_pylist() == list(range(301))
    assert table["ids"].to_pylist() == [row[row >= 0].tolist() for row in whole[1]]
    assert steps[4] == ("search", 301, 301)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["found.npz", "found.parquet", "queries.npy"]


def test_a_bad_query_of_a_block_is_named_and_nothing_is_left(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(streaming, "MOST_QUERIES", 64)
    queries = finished.captions[:200].copy()
    queries[150, 3] = np.nan
    with ShardedIndex.open(finished.root.root) as index, pytest.raises(BadInput, match="row 22 of the block from query 128 on"):
        stream_npz(tmp_path / "found.npz", 200, 5, blocks(queries, 5, lambda rows: index.search(rows, 5)))
    assert list(tmp_path.iterdir()) == []
    stream_npz(tmp_path / "none.npz", 0, 5, iter(()))
    with np.load(tmp_path / "none.npz") as found:
        assert found["ids"].shape == (0, 5)


def test_a_filter_reads_only_the_columns_it_names(described, monkeypatch):
    _, settings, _ = described
    asked = []
    iterate = pq.ParquetFile.iter_batches
    monkeypatch.setattr(filters.pq.ParquetFile, "iter_batches", lambda self, *a, **k: asked.append(k["columns"]) or iterate(self, *a, **k))
    filter_of(settings, "nsfw = 'NSFW' AND width > 5 AND width < 9")
    assert asked == [["NSFW", "width"]]
