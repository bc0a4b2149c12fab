"""What is promoted, how many lists it probes, and what a report says that each piece of it adds."""

from dataclasses import replace

import numpy as np
import pytest
from unit_vectors import unit

from paired_index_assets.clustering.clusters import Clustering
from paired_index_assets.clustering.kmeans import Training, train_kmeans
from paired_index_assets.codes.codec import CodecWarning
from paired_index_assets.contest.contestants import CodeChoice, Contestant, codes_for, make_and_judge, pieces_apart
from paired_index_assets.contest.evidence import pieces
from paired_index_assets.contest.measuring import Contest, EvaluationData, choose
from paired_index_assets.errors import BadInput
from paired_index_assets.nlist import FEWEST_LISTS, FINER, fine_lists, flat_lists
from paired_index_assets.pairing.split import Split
from paired_index_assets.quality.recall import Measurement, Setting
from paired_index_assets.quality.truth import ground_truth

D, ROWS = 32, 6000


@pytest.fixture(scope="module")
def pairs():
    rng = np.random.default_rng(2)
    things = (2 * rng.standard_normal((400, D)))[rng.integers(0, 400, ROWS)] + rng.standard_normal((ROWS, D))
    spectrum = np.exp(-np.arange(D) / 8)
    images, captions = things * spectrum, (things + 0.5 * rng.standard_normal((ROWS, D))) * spectrum + 0.3
    return unit(images), unit(captions)


@pytest.fixture(scope="module")
def judged(pairs):
    images, captions = pairs
    rows = np.arange(ROWS)
    split = Split(rows[:5000], rows[5000:5500], rows[5500:], rows)
    coarse, fine = (train_kmeans(images, nlist, Training(niter=3, seed=1)) for nlist in (32, 128))
    contestants = [Contestant("kmeans", 1, coarse), Contestant("kmeans", 2, fine)]
    data = EvaluationData(images, captions, np.ones(ROWS, bool), seed=1)
    return make_and_judge(data, split, contestants, CodeChoice("QT_4bit", "query"), model="m")


def test_every_kind_of_lists_competes_with_every_code(judged):
    lists = ("kmeans", "kmeans.two_level", "kmeans.learned", "kmeans.two_level.learned")
    assert {entry.file_method for entry in judged.candidates} == {f"{of}{code}" for of in lists for code in ("", ".transformed")}
    assert judged.verdict.gain.mean > 0
    assert judged.winner.trained.groups is not None


def test_only_what_reports_compare_is_kept_and_all_have_a_standing(judged):
    assert [standing.name for standing in judged.standings] == [entry.name for entry in judged.candidates]
    kept = {entry.name: pieces_apart(judged.winner.trained, entry.trained) for entry in judged.compared}
    assert kept[judged.winner.name] == []
    assert sorted(apart[0] for apart in kept.values() if len(apart) == 1) == ["codes", "lists", "routing"]
    assert {name for name, apart in kept.items() if len(apart) > 1} <= {judged.verdict.baseline.name}
    assert judged.verdict.baseline.name in kept


@pytest.mark.parametrize("odd", ["odd d", "tiny d", "few captions", "captions all equal", "images all equal", "constant dimensions"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_data_that_can_not_carry_the_new_pieces_gets_an_index_without_them(odd, pairs):
    images, captions = (rows[:600].copy() for rows in pairs)
    rows = np.arange(600)
    train = rows[:20] if odd == "few captions" else rows[:500]
    if odd in ("odd d", "tiny d"):
        width = 31 if odd == "odd d" else 6
        images, captions = (
            np.ascontiguousarray(r[:, :width]) / np.linalg.norm(r[:, :width], axis=1, keepdims=True) for r in (images, captions)
        )
    elif odd == "captions all equal":
        captions[:] = captions[0]
    elif odd == "images all equal":
        images[:] = images[0]
    elif odd == "constant dimensions":
        images[:, [3, 30]] = 0, 0.25
    centroids = np.unique(images, axis=0)[:16] if odd == "images all equal" else images[:16].copy()
    clustering = Clustering(centroids, (), 0)
    contestants = [Contestant("kmeans", 1, clustering), Contestant("kmeans", 2, clustering)]
    split = Split(train, rows[500:560], rows[560:], rows)
    data = EvaluationData(images, captions, np.ones(600, bool), seed=1)
    judged = make_and_judge(data, split, contestants, CodeChoice("QT_4bit", "query"), model="m")
    assert any(entry.trained.codec.transform for entry in judged.candidates) == (odd == "constant dimensions")
    for entry in judged.candidates:
        lists, codes = entry.trained.encode(images)
        assert np.isfinite(entry.trained.codec.decode(codes)).all()
        assert lists.min() >= 0
    assert all(np.isfinite(standing.recall) for standing in judged.standings)


def test_two_levels_probe_as_many_lists_as_scan_what_the_papers_nprobe_scans_in_one(judged):
    for entry, found in zip(judged.candidates, judged.measurements, strict=True):
        scanned = found.scanned[0].mean() / ROWS
        if entry.trained.groups is None:
            assert entry.trained.nprobe == 8
        else:
            assert scanned <= 8 * FINER / entry.trained.nlist
            assert entry.trained.nprobe >= 8


def test_the_report_says_what_each_piece_adds(judged, pairs):
    images, captions = pairs
    queries = captions[5500:]
    contest = Contest(images, queries, ground_truth(queries, images))
    candidates = [entry.trained for entry in judged.candidates]
    found = {trained.fingerprint: contest.measured(trained, nprobes=(), shares=(0.25,)) for trained in candidates}
    heading, table = pieces(judged.winner.trained, candidates, found, share=0.25, seed=1)
    assert judged.winner.name in heading
    won = judged.winner.trained
    routing = ", learned routing" if won.learned else ""
    assert f"| codes | kmeans, 128 lists in two levels{routing}, QT_4bit query |" in table
    assert f"| lists | kmeans, 32 lists{routing}, QT_4bit" in table
    assert "| routing | kmeans, 128 lists in two levels" in table


def measurement(name: str, recall: float, dots: int, learned: bool = False) -> Measurement:
    shape = (1, 1, 50)
    return Measurement(
        name, "kmeans", "QT_4bit query", 64, 1, learned, dots, 8, 16, 0.0, 100, 100, 1.0, 0, 10, (10,), (Setting("share", 0.01),),
        np.ones((1, 50), np.int64), np.ones((1, 50), np.int64), np.full(shape, recall, np.float32), np.full(shape, recall, np.float32),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("recalls", "chosen"),
    [
        ({"dear": (0.900, 400), "cheap": (0.896, 100)}, "cheap"),
        ({"dear": (0.900, 400), "cheap": (0.890, 100)}, "dear"),
        ({"plain": (0.896, 100), "taught": (0.900, 100, True)}, "plain"),
        ({"plain": (0.893, 100), "taught": (0.900, 100, True)}, "taught"),
        ({"taught": (0.896, 100, True), "dear": (0.900, 400)}, "taught"),
        ({"first": (0.896, 100), "second": (0.899, 100), "dear": (0.9, 400)}, "second"),
    ],
)
def test_fewer_centroids_compared_win_where_recall_is_as_good(recalls, chosen):
    measured = [measurement(name, *values) for name, values in recalls.items()]
    assert choose(measured, measured[0], share=0.01, seed=1).winner.name == chosen


def test_bytes_that_only_the_transform_has_are_made_by_it_or_refused(pairs):
    images, captions = pairs
    choice = CodeChoice("QT_4bit", "query", bytes_per_vector=20)
    (code,) = codes_for(images, captions, choice)
    assert (code.code_size, code.transform is not None) == (20, True)
    for wrong in ({"transform": False}, {"rounding": "nearest"}, {"codec": "QT_6bit"}):
        with pytest.raises(BadInput, match="bytes_per_vector"):
            codes_for(images, captions, replace(choice, **wrong))
    with pytest.raises(BadInput, match="bytes_per_vector"), pytest.warns(CodecWarning):
        codes_for(images, captions[:20], choice)


def test_the_rules_for_how_many_lists():
    assert (flat_lists(12_000), fine_lists(12_000, 12_000)) == (256, 1024)
    assert (flat_lists(2_170_337_258), fine_lists(2_170_337_258, 20_000_000)) == (131_072, 524_288)
    assert fine_lists(2_170_337_258, 1_000_000) is None  # too few images to train so many
    assert fine_lists(3_000, 3_000) is None
    assert FINER * flat_lists(4_095) < FEWEST_LISTS
