import io
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from quality_world import make_world

from paired_index_assets.errors import BadInput, DamagedArtifact, MissingInput
from paired_index_assets.quality import served as served_module
from paired_index_assets.quality.codes import DecodedRows, measure_codes
from paired_index_assets.quality.intervals import Interval
from paired_index_assets.quality.plots import recall_png
from paired_index_assets.quality.publish import publish_report
from paired_index_assets.quality.recall import measure
from paired_index_assets.quality.report import SCHEMA, RecallReport, build_report
from paired_index_assets.quality.served import Served, ServedPoint, differing
from paired_index_assets.quality.tables import markdown, said_of_served, served_section

MOST_PNG_BYTES = 120_000


@pytest.fixture(scope="module")
def measured(world):
    index = world.scalar()
    other = replace(world.candidate(index, "paired_kmeans, centroids, QT_4bit faiss"), method="paired_kmeans")
    shuffled = world.lists.copy()
    shuffled[200:600] = 3  # a worse candidate, with uneven lists
    worse = replace(world.candidate(None, "uneven"), list_of_image=shuffled)
    return [measure(c, world.queries, world.truth) for c in (world.candidate(index), other, worse)]


@pytest.fixture(scope="module")
def report(world, measured) -> RecallReport:
    index = world.scalar()
    decoded = DecodedRows(index.sq.compute_codes(world.images), index.sq.decode, 32)
    codes = [measure_codes("QT_4bit faiss", decoded, world.queries, world.truth, bytes_per_vector=16, rerank=True)]
    peers = [
        replace(
            measure(world.candidate(index), world.queries, world.truth, nprobes=(8,), shares=(0.01,), exhaustive=True, rerank=True),
            name="peer",
        )
    ]
    return build_report(
        measured, codes=codes, peers=peers, baseline=measured[0].name, promoted=measured[1].name,
        facts={"images": "synthetic", "dimensions": 32}, notes=["A note."], seed=1,
    )  # fmt: skip


def test_a_report_comes_back_as_it_was_written(tmp_path, report):
    publish_report(report, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["recall.json", "recall.md", "recall.png"]
    assert RecallReport.read(tmp_path) == report
    content = json.loads((tmp_path / "recall.json").read_text())
    assert content["schema"] == SCHEMA
    assert "NaN" not in (tmp_path / "recall.json").read_text()
    assert content["candidates"][0]["points"][0]["product"]["10"].keys() == {"mean", "low", "high"}


def test_the_numbers_are_those_of_the_measurement(report, measured):
    point = report.candidate(measured[0].name).at(nprobe=8)
    assert point.product[10].mean == pytest.approx(float(measured[0].recall(10, nprobe=8).mean()))
    assert point.coverage[100].low < point.coverage[100].mean < point.coverage[100].high
    assert point.scanned == pytest.approx(measured[0].scanned[measured[0].settings.index(measured[0].settings[3])].mean() / 1500)
    assert report.candidate("uneven").imbalance > report.candidate(measured[0].name).imbalance
    same = [d for d in report.differences if d.name == measured[1].name]
    assert same
    assert all(d.difference.mean == d.difference.low == d.difference.high == 0 for d in same), (
        "the same index: no difference at any setting"
    )
    assert {d.of for d in report.differences if d.name == "uneven"} == {"coverage"}


def test_the_tables_name_every_candidate_and_tell_the_losses_apart(report):
    text = markdown(report)
    for expected in (
        "| **paired_kmeans, centroids, QT_4bit faiss** (promoted) |", "coverage loss | code loss", "recall@1\n", "recall@100\n", "| 0.25% |",
        "A note.", "| dimensions | 32 |", "## Codes alone", "## Beside stock faiss codes",
    ):  # fmt: skip
        assert expected in text, expected
    widths = {
        (before.count("|"), line.count("|"))
        for before, line in zip(text.splitlines(), text.splitlines()[1:], strict=False)
        if "|" in before and "|" in line
    }
    assert all(a == b for a, b in widths), "every row of a table has as many cells"


def test_the_picture_is_compact_and_drawn_for_any_report(report, measured):
    png = recall_png(report)
    assert len(png) < MOST_PNG_BYTES
    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
    assert pixels.shape[1] > 900
    assert (pixels < 200).any(axis=2).mean() > 0.005, "something is drawn"
    many = [replace(measured[n % 2], name=f"candidate {n}") for n in range(12)]
    assert len(recall_png(build_report(many, promoted="candidate 11", seed=0))) < MOST_PNG_BYTES
    recall_png(build_report(measured[2:], seed=0))  # coverage only, no baseline


def test_a_report_of_one_scale_is_drawn_and_printed(world):
    only_share = measure(world.candidate(None), world.queries, world.truth, nprobes=(), shares=(0.1,), ks=(5,))
    report = build_report([only_share], seed=0)
    assert "recall@5" in markdown(report)
    assert recall_png(report)


def test_what_is_not_a_report_is_named(tmp_path, report, measured):
    with pytest.raises(MissingInput, match=r"recall\.json"):
        RecallReport.read(tmp_path)
    for content, said in (
        ("{", "not JSON"),
        ("[]", "expected a JSON object"),
        ('{"schema": 99}', "schema 99"),
        (f'{{"schema": {SCHEMA}}}', "fields are wrong"),
    ):
        (tmp_path / "recall.json").write_text(content)
        with pytest.raises(DamagedArtifact, match=said):
            RecallReport.read(tmp_path)
    with pytest.raises(BadInput, match="different names"):
        build_report([measured[0], measured[0]], seed=0)
    with pytest.raises(BadInput, match="one set"):
        build_report([measured[0], replace(measured[1], images=7)], seed=0)
    with pytest.raises(BadInput, match="'kmeanz'"):
        build_report(measured, baseline="kmeanz", seed=0)
    with pytest.raises(BadInput, match="no candidate 'x'"):
        report.candidate("x")


def test_the_report_says_what_is_served_and_what_was_not_measured() -> None:
    at = ServedPoint(8, 0.02, {1: Interval(0.5, 0.4, 0.6), 10: Interval(0.8, 0.7, 0.9)})
    every = ServedPoint(4096, 1.0, at.recall)
    served = Served(900, 0, 1_000_000, 58, [], 0, "f" * 16, "c" * 16, [at, every], 8, 200, 0)
    section = served_section(served)
    assert "58 shards of 1,000,000 vectors" in section
    assert "| 8 | 2.00% | 0.500 [0.400, 0.600] | 0.800 [0.700, 0.900] |" in section
    assert said_of_served(served) == ["Stock faiss over the same files gives the same results (nprobe 8, 200 captions)."]
    few = replace(served, points=[at, replace(every, queries=70)])
    assert "the first 70 captions were asked" in said_of_served(few)[0]
    assert "With every list probed nothing was measured" in said_of_served(replace(served, points=[at]))[0]
    worse = replace(served, missing_shards=[3, 7], unproven=12, lossy_rows=938_000, stock_differs=5)
    said = " ".join(said_of_served(worse))
    for part in ("shards 3, 7", "12 captions are left out", "938,000 vectors were rebuilt", "differs in 5 results"):
        assert part in said


@pytest.mark.parametrize(("most", "asked"), [(10**9, 200), (60 * 5000, 60), (49 * 5000, None)])
def test_with_every_list_probed_as_many_captions_are_asked_as_may_scan_so_much(most, asked, monkeypatch) -> None:
    world, searched = make_world(3, queries=200), {}

    class Index:
        nlist, ntotal = world.nlist, 5000

        def search(self, queries, k, *, nprobe):
            searched[nprobe] = len(queries)
            return np.zeros((len(queries), k), np.float32), np.tile(np.arange(k), (len(queries), 1))

        def list_sizes(self):
            return np.full(world.nlist, 10)

    monkeypatch.setattr(served_module, "MOST_SCANNED", most)
    points = served_module.measure_served(Index(), world.probe, world.queries, world.truth, nprobes=(1, 4), seed=0)
    assert searched == {1: 200, 4: 200} | ({world.nlist: asked} if asked else {})
    assert [point.queries for point in points] == [None, None] + ([None if asked == 200 else asked] if asked else [])


def test_results_that_differ_are_counted_and_ties_are_not() -> None:
    scores = np.array([[0.9, 0.5, 0.5, 0.3], [0.8, 0.7, 0.6, 0.5]], np.float32)
    ids = np.array([[1, 2, 3, 4], [5, 6, 7, 8]])
    assert differing(scores, ids, scores, ids) == 0
    assert differing(scores, ids, scores, ids[:, [0, 2, 1, 3]]) == 2  # the second row is no tie
    assert differing(scores, ids, scores, np.array([[1, 3, 2, 9], [5, 6, 7, 9]])) == 0  # who has the last score is not seen
    assert differing(scores, ids, scores - np.float32([[0, 0, 0, 0.1], [0, 0, 0, 0]]), ids) == 1
    gone = np.array([[0.9, -np.inf]], np.float32)
    assert differing(gone, np.array([[1, -1]]), gone, np.array([[1, -1]])) == 0
