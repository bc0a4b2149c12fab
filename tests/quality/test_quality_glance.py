"""The report at a glance: small enough for Dagster to show it in place, and numbers that say where they were measured."""

import base64
import xml.etree.ElementTree as xml
from dataclasses import replace

import pytest

from paired_index_assets.quality import glance
from paired_index_assets.quality.intervals import Interval
from paired_index_assets.quality.recall import NPROBES
from paired_index_assets.quality.report import CandidateReport, Point, RecallReport
from paired_index_assets.quality.served import Served, ServedPoint

KS = [1, 10, 100]


def recalls(value):
    return {k: Interval(value, value - 0.01, value + 0.01) for k in KS}


@pytest.fixture
def report():
    fields = {name: "" for name in CandidateReport.__dataclass_fields__ if name != "points"}

    def candidate(name, better):
        nprobes = [Point("nprobe", n, n / 1000, n, recalls(min(0.9 + better, 0.1 * n**0.4)), None, None) for n in NPROBES]
        shares = [Point("share", share, share, 1, recalls(0.123456789 + better), None, None) for share in (0.005, 0.01)]
        return CandidateReport(**fields | {"name": name}, points=[*nprobes, *shares])

    return RecallReport(944, 12_000, KS, [candidate("ours", 0.05), candidate("stock", 0)], promoted="ours", baseline="stock")


def test_the_picture_and_the_table_are_shown_in_place(report):
    for text in (glance.picture(report), glance.table(report, NPROBES[2])):
        assert 0 < len(text) < glance.INLINE
    svg = base64.b64decode(glance.picture(report).partition("base64,")[2].removesuffix(")"))
    lines = [line for line in xml.fromstring(svg).iter() if line.tag.endswith("polyline")]
    assert len(lines) == 2
    for line in lines:
        places = [tuple(map(int, place.split(","))) for place in line.attrib["points"].split()]
        assert 2 <= len(places) <= glance.MOST_POINTS
        assert [x for x, _ in places] == sorted(x for x, _ in places)
        assert all(0 <= x <= glance.WIDTH and 0 <= y <= glance.HEIGHT for x, y in places)


def test_the_table_marks_the_nprobe_that_searches_take(report):
    lines = glance.table(report, NPROBES[2]).splitlines()
    assert lines[0] == "| nprobe | scanned | recall@1 | recall@10 | recall@100 |"
    (marked,) = [line for line in lines if "**" in line]
    assert marked.startswith(f"| **{NPROBES[2]}** |")
    assert len(lines) <= 2 + glance.ROWS


def test_numbers_say_at_which_nprobe_and_share_and_are_rounded(report):
    found = glance.numbers(report, NPROBES[2])
    assert found["recall_at_10_scanning_1_percent"] == 0.1735
    assert f"recall_at_1_nprobe_{NPROBES[2]}" in found
    assert not any(name.startswith("served_") for name in found)
    assert glance.numbers(report, 5_000).keys() == {"recall_at_10_scanning_0.5_percent", "recall_at_10_scanning_1_percent"}


def test_what_the_shards_find_is_named_so(report):
    point = ServedPoint(7, 0.0123, recalls(0.5))
    served = Served(**dict.fromkeys(Served.__dataclass_fields__, 0) | {"points": [point, replace(point, nprobe=9)]})
    found = glance.numbers(replace(report, served=served), 7)
    assert found["served_recall_at_10_nprobe_7"] == 0.5
    assert found["served_percent_scanned_nprobe_7"] == 1.23
    assert "| **7** | 1.2 % | 0.500 | 0.500 | 0.500 |" in glance.table(replace(report, served=served), 7)
