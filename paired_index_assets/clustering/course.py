"""The course of training as a picture."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from paired_index_assets.clustering.clusters import Iteration


def course_png(histories: Mapping[str, Sequence[Iteration]]) -> bytes:
    """Objective and imbalance of every iteration, one line a method, side by side."""
    figure = Figure(figsize=(8, 3), dpi=100, layout="constrained")
    for axes, name in zip(figure.subplots(1, 2), ("objective", "imbalance"), strict=True):
        for method, history in histories.items():
            axes.plot(range(1, len(history) + 1), [getattr(step, name) for step in history], marker="o", markersize=3, label=method)
        axes.set(xlabel="iteration", title=name)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    canvas: Any = FigureCanvasAgg(figure)
    stream = io.BytesIO()
    canvas.print_png(stream)
    return stream.getvalue()
