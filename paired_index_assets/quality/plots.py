"""The recall report as a picture: recall against how much is scanned, one line a candidate."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter
from PIL import Image

from paired_index_assets.quality.report import CandidateReport, Point, RecallReport

# Okabe and Ito (2008): told apart by colour-blind readers as well.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#000000")
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "*")
INK, GRID = "#333333", "#E3E3E3"
MAX_LINES = len(COLOURS)
PALETTE = 256  # colours of the file: a third of the bytes of true colour, and no visible difference


def recall_png(report: RecallReport, *, k: int = 10, dots_per_inch: int = 110) -> bytes:
    """Product recall@k (coverage where there are no codes) against the mean share of images really scanned, and against nprobe.

    Solid: product; dotted in the same colour: its coverage, the most that better codes could reach. Bands: bootstrap intervals.
    The baseline is grey and dashed, the promoted candidate is drawn thicker. No pyplot: nothing global is touched.
    """
    k = k if k in report.ks else report.ks[0]
    figure = Figure(figsize=(10, 4.6), dpi=dots_per_inch, layout="constrained")
    by_share, by_nprobe = figure.subplots(1, 2, sharey=True)
    first = {report.promoted: 0, report.baseline: 1}
    shown = sorted(report.candidates, key=lambda c: first.get(c.name, 2))[:MAX_LINES]
    for place, candidate in enumerate(shown):
        style = _style(report, candidate, place)
        _curve(by_share, [(100 * p.scanned, p) for p in candidate.curve("share")], k, style, candidate.name)
        _curve(by_nprobe, [(p.amount, p) for p in candidate.curve("nprobe")], k, style, candidate.name)
    _frame(by_share, "vectors scanned (% of the images)", "{:g} %", [100 * p.amount for c in shown for p in c.curve("share")])
    _frame(by_nprobe, "lists probed (nprobe)", "{:g}", [p.amount for c in shown for p in c.curve("nprobe")])
    by_share.set_ylabel(f"recall@{k}", color=INK)
    figure.suptitle(
        f"recall@{k}, {report.queries:,} held-out captions, {report.images:,} images", color=INK, fontsize=12, x=0.01, ha="left"
    )
    handles, labels = by_share.get_legend_handles_labels()
    if not handles:
        handles, labels = by_nprobe.get_legend_handles_labels()
    if any(point.product for candidate in shown for point in candidate.points):
        handles.append(Line2D([], [], color=INK, linestyle=":", linewidth=1.0))
        labels.append("coverage: what exact scores would find in the same lists")
    if len(report.candidates) > len(shown):
        handles.append(Line2D([], [], linestyle="none"))
        labels.append(f"{len(report.candidates) - len(shown)} more in the tables")
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=9, labelcolor=INK)
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    picture = io.BytesIO()
    pixels = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    pixels.quantize(PALETTE).save(picture, "PNG", optimize=True)
    return picture.getvalue()


def _style(report: RecallReport, candidate: CandidateReport, place: int) -> dict[str, Any]:
    if candidate.name == report.baseline:
        return {"color": "#7F7F7F", "marker": "o", "linestyle": "--", "linewidth": 1.6}
    colours = [c for c in COLOURS if c != "#7F7F7F"]
    return {
        "color": colours[place % len(colours)],
        "marker": MARKERS[place % len(MARKERS)],
        "linestyle": "-",
        "linewidth": 2.6 if candidate.name == report.promoted else 1.6,
    }


def _curve(axes: Any, points: list[tuple[float, Point]], k: int, style: dict[str, Any], label: str) -> None:
    if not points:
        return
    at = [amount for amount, _ in points]
    found = [point.best[k] for _, point in points]
    axes.fill_between(at, [i.low for i in found], [i.high for i in found], color=style["color"], alpha=0.15, linewidth=0)
    axes.plot(at, [i.mean for i in found], markersize=4.5, label=label, **style)
    if any(point.product for _, point in points):
        axes.plot(at, [point.coverage[k].mean for _, point in points], color=style["color"], linestyle=":", linewidth=1.2)


APART = 1.5  # times the last tick, or their labels run into each other


def _frame(axes: Any, label: str, tick: str, at: list[float]) -> None:
    axes.set_xscale("log", base=2)
    ticks: list[float] = []
    for value in sorted(set(at)):
        if not ticks or value >= APART * ticks[-1]:
            ticks.append(value)
    axes.set_xticks(ticks)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: tick.format(round(x, 4))))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.minorticks_off()
    axes.set_xlabel(label, color=INK)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, length=0)
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(False)
    axes.set_ylim(top=min(1.0, axes.get_ylim()[1]) + 0.01)
