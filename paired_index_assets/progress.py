"""How long work says how far it is: a callback handed in, so that Dagster, a terminal and a test each show it their way."""

from __future__ import annotations

from typing import Protocol

DAYS_FROM = 48 * 3600  # seconds


class Progress(Protocol):
    """Called as ``progress("pairing", done, total, rows_per_s=...)``; `done` and `total` share one unit and `done` never falls."""

    def __call__(self, step: str, done: int, total: int, /, **facts: float | int | str) -> None: ...


def silent(step: str, done: int, total: int, /, **facts: float | int | str) -> None:
    """Say nothing: the default."""


def duration(seconds: float) -> str:
    """Seconds as people say them: minutes, hours, or days."""
    if seconds >= DAYS_FROM:
        return f"{seconds / 86_400:,.1f} days"
    return f"{seconds / 3600:,.1f} h" if seconds >= 3600 else f"{seconds / 60:,.1f} min"
