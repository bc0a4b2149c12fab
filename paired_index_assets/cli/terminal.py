"""Progress bars, tables and one-line errors on a terminal. Everything that is printed goes through here, as text: data is no markup."""

import os
import sys
import time
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from paired_index_assets.progress import Progress as ProgressCallback

SAY_EVERY_SECONDS = 5.0
UNSEEN_WIDTH = 160  # columns, where the output is a file or a pipe: rich would fold tables to 80

BIDI = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")  # reorder what stands around them

console = Console(width=None if sys.stdout.isatty() or os.environ.get("COLUMNS") else UNSEEN_WIDTH)
errors = Console(stderr=True)


def shown(data: object) -> str:
    """`data` as text for a terminal: what would control it (escape sequences, line ends, reordering, half characters) is written out."""
    text = str(data)
    return text if text.isprintable() else "".join(map(_visible, text))


def _visible(character: str) -> str:
    controls = unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or character in BIDI
    return character.encode("unicode_escape").decode() if controls else character


def say(message: object, style: str = "") -> None:
    """Print one line of text, data and all."""
    console.print(Text(shown(message), style), soft_wrap=True)


class Bars:
    """One bar a step, each made when its step first reports; a plain line every few seconds where the output is not a terminal."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._tasks: dict[str, Any] = {}
        self._start = time.monotonic()
        self._reported: dict[str, float] = {}

    def __call__(self, step: str, done: int, total: int, /, **facts: float | int | str) -> None:
        detail = "  ".join(f"{name} {value:,.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in facts.items())
        if not console.is_terminal:
            now = time.monotonic()
            if now - self._reported.get(step, self._start) >= SAY_EVERY_SECONDS:
                self._reported[step] = now
                say(f"  {step}: {done:,} of {total:,}  {detail}")
            return
        if step not in self._tasks or self._bars.tasks[self._tasks[step]].finished:
            self._tasks[step] = self._bars.add_task(shown(step), total=total, facts=shown(detail))
        self._bars.update(self._tasks[step], completed=done, total=total, facts=shown(detail))


@contextmanager
def bars() -> Iterator[ProgressCallback]:
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[facts]}", style="dim", markup=False),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield Bars(progress)


WHOLE = 9  # characters of a cell that is not to be wrapped: a number broken in two is none


def table(title: str, columns: list[str], rows: list[list[Any]]) -> None:
    cells = [[shown(cell) for cell in row] for row in rows]
    made = Table(title=Text(shown(title)), title_justify="left", header_style="bold")
    for number, column in enumerate(columns):
        widest = max((len(row[number]) for row in cells), default=0)
        made.add_column(Text(shown(column)), overflow="fold", min_width=widest if widest <= WHOLE else None)
    for row in cells:
        made.add_row(*map(Text, row))
    console.print(made)


def fail(message: object) -> None:
    """Print one line on standard error."""
    errors.print(Text("error: ", "bold red" if errors.is_terminal else "") + Text(shown(message)), soft_wrap=True)
    sys.stderr.flush()
