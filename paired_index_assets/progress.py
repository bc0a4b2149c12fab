"""How long work says how far it is: a callback handed in, so that Dagster, a terminal and a test each show it their way."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called as ``progress("pairing", done, total, rows_per_s=...)``; `done` and `total` share one unit and `done` never falls."""

    def __call__(self, step: str, done: int, total: int, /, **facts: float | int | str) -> None: ...


def silent(step: str, done: int, total: int, /, **facts: float | int | str) -> None:
    """Say nothing: the default."""
