"""Progress bars, tables and one-line errors on a terminal."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from paired_index_assets.progress import Progress as ProgressCallback

SAY_EVERY_SECONDS = 5.0

console = Console()
errors = Console(stderr=True)


class Bars:
    """One bar a step, each made when its step first reports; a plain line every few seconds where the output is not a terminal."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._tasks: dict[str, Any] = {}
        self._start = time.monotonic()
        self._said: dict[str, float] = {}

    def __call__(self, step: str, done: int, total: int, /, **facts: float | int | str) -> None:
        said = "  ".join(f"{name} {value:,.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in facts.items())
        if not console.is_terminal:
            now = time.monotonic()
            if now - self._said.get(step, self._start) >= SAY_EVERY_SECONDS:
                self._said[step] = now
                console.print(f"  {step}: {done:,} of {total:,}  {said}", highlight=False)
            return
        if step not in self._tasks or self._bars.tasks[self._tasks[step]].finished:
            self._tasks[step] = self._bars.add_task(step, total=total, facts=said)
        self._bars.update(self._tasks[step], completed=done, total=total, facts=said)


@contextmanager
def bars() -> Iterator[ProgressCallback]:
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("[dim]{task.fields[facts]}"),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield Bars(progress)


WHOLE = 9  # characters of a cell that is not to be wrapped: a number broken in two is none


def table(title: str, columns: list[str], rows: list[list[Any]]) -> None:
    shown = Table(title=title, title_justify="left", header_style="bold")
    for number, column in enumerate(columns):
        widest = max((len(str(row[number])) for row in rows), default=0)
        shown.add_column(column, overflow="fold", min_width=widest if widest <= WHOLE else None)
    for row in rows:
        shown.add_row(*(str(cell) for cell in row))
    console.print(shown)


def fail(message: str) -> None:
    """Print one line on standard error."""
    errors.print(
        f"[bold red]error:[/] {message}" if errors.is_terminal else f"error: {message}",
        highlight=False,
        soft_wrap=True,
        markup=errors.is_terminal,
    )
    sys.stderr.flush()
