"""The recall report as files: JSON for programs, Markdown for people, a picture for both."""

from __future__ import annotations

from pathlib import Path

from upath import UPath

from paired_index_assets.files.storage import as_path, write_bytes
from paired_index_assets.quality.plots import recall_png
from paired_index_assets.quality.report import RecallReport
from paired_index_assets.quality.tables import markdown


def publish_report(report: RecallReport, folder: UPath | Path) -> None:
    """recall.json, recall.md and recall.png in `folder`, each whole or not there; the JSON last, so that it stands for all three."""
    folder = as_path(folder)
    write_bytes(folder / "recall.md", markdown(report).encode())
    write_bytes(folder / "recall.png", recall_png(report))
    write_bytes(folder / "recall.json", report.to_json().encode())
