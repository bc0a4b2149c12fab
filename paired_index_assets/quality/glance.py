"""The recall report at a glance, for places that hold a thousand characters: a small curve, a small table, and numbers by name.

The Dagster UI shows Markdown of less than `INLINE` characters in place, and hides longer ones behind a click.
"""

from __future__ import annotations

import base64
import math

from paired_index_assets.quality.report import RecallReport

INLINE = 1_000  # characters, less than these
DECIMALS = 4  # of a recall: finer than its interval
ROWS = 5  # of the table
WIDTH, HEIGHT, MARGIN = 320, 110, 18
FEWEST_SCANNED = 1e-4
MOST_POINTS = 9  # of a curve

Curve = list[tuple[float, float]]
"""(share of the vectors scanned, recall)."""


def numbers(report: RecallReport, nprobe: int, k: int = 10) -> dict[str, float]:
    """Name -> value, rounded: what is plotted over time. A name says at how many lists, or at which share scanned, it was measured.

    `served_`: found by the shards on disk; without it, by the promoted index in memory.
    """
    found: dict[str, float] = {}
    ours = report.candidate(report.promoted or report.candidates[0].name)
    if (served := report.served.at(nprobe) if report.served else None) is not None:
        found |= {f"served_recall_at_{depth}_nprobe_{nprobe}": interval.mean for depth, interval in served.recall.items()}
        found[f"served_percent_scanned_nprobe_{nprobe}"] = 100 * served.scanned
    if (at := ours.at(nprobe=nprobe)) is not None:
        found |= {f"recall_at_{depth}_nprobe_{nprobe}": interval.mean for depth, interval in at.best.items()}
    for point in ours.curve("share"):
        if k in point.best:
            found[f"recall_at_{k}_scanning_{100 * point.amount:g}_percent"] = point.best[k].mean
    return {name: round(value, DECIMALS) for name, value in found.items()}


def picture(report: RecallReport, k: int = 10) -> str:
    """Markdown of less than `INLINE` characters: recall@k against the share scanned, of the shards (blue) and of the baseline (grey)."""
    curves = [("#07b", _ours(report, k)), ("#999", _of(report, report.baseline, k))]
    shares = [max(share, FEWEST_SCANNED) for _, curve in curves for share, _ in curve]
    if not shares:
        return ""
    low, high = math.log(min(shares)), math.log(max(shares))
    floor = math.floor(10 * min(recall for _, curve in curves for _, recall in curve)) / 10

    def place(share: float, recall: float) -> str:
        x = MARGIN + (WIDTH - 2 * MARGIN) * (math.log(max(share, FEWEST_SCANNED)) - low) / max(high - low, 1e-9)
        y = HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * (recall - floor) / max(1 - floor, 1e-9)
        return f"{x:.0f},{y:.0f}"

    def text(x: int, y: int, said: str, end: str = "") -> str:
        return f'<text x="{x}" y="{y}"{end}>{said}</text>'

    lines = "".join(
        f'<polyline stroke="{colour}" points="{" ".join(place(*point) for point in curve)}"/>' for colour, curve in curves if curve
    )
    at_the_end, whose = ' text-anchor="end"', "shards" if report.served else "promoted"
    labels = (
        text(0, 10, f"recall@{k} from {floor:.1f} to 1; blue: {whose}, grey: baseline")
        + text(0, HEIGHT - 3, f"{100 * min(shares):.2g} %")
        + text(WIDTH, HEIGHT - 3, f"{100 * max(shares):.3g} % scanned", at_the_end)
    )
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" font-size="11" font-family="sans-serif">'
        f'<g fill="none" stroke-width="2">{lines}</g><g fill="#555">{labels}</g></svg>'
    )
    return f"![recall](data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()})"


def table(report: RecallReport, nprobe: int) -> str:
    """Markdown of less than `INLINE` characters: recall by nprobe and share scanned, around the `nprobe` that searches take."""
    ours = report.candidate(report.promoted or report.candidates[0].name)
    served = report.served
    rows = (
        [(point.nprobe, point.scanned, point.recall) for point in served.points]
        if served
        else [(int(point.amount), point.scanned, point.best) for point in ours.curve("nprobe")]
    )
    chosen = next((number for number, row in enumerate(rows) if row[0] >= nprobe), len(rows) - 1)
    first = max(0, min(chosen - ROWS // 2, len(rows) - ROWS))
    ks = sorted(rows[0][2]) if rows else []
    lines = ["| nprobe | scanned | " + " | ".join(f"recall@{k}" for k in ks) + " |", "| ---: " * (2 + len(ks)) + "|"]
    for probed, scanned, recall in rows[first : first + ROWS]:
        marked = f"**{probed}**" if probed == nprobe else str(probed)
        lines.append(f"| {marked} | {100 * scanned:.2g} % | " + " | ".join(f"{recall[k].mean:.3f}" for k in ks) + " |")
    return "\n".join(lines)


def _ours(report: RecallReport, k: int) -> Curve:
    if report.served:
        return _thinned([(point.scanned, point.recall[k].mean) for point in report.served.points if k in point.recall])
    return _of(report, report.promoted or report.candidates[0].name, k)


def _of(report: RecallReport, name: str | None, k: int) -> Curve:
    if name is None:
        return []
    return _thinned([(point.scanned, point.best[k].mean) for point in report.candidate(name).curve("nprobe") if k in point.best])


def _thinned(curve: Curve) -> Curve:
    """Its ends and `MOST_POINTS` at most."""
    if len(curve) <= MOST_POINTS:
        return curve
    return [curve[round(number * (len(curve) - 1) / (MOST_POINTS - 1))] for number in range(MOST_POINTS)]
