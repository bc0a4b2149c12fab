"""How far a build is, and when it will be done at the pace of the last hour: from what lies on the disk, so it holds across crashes,
machines and restarts, and costs one listing a folder."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from upath import UPath

from paired_index_assets.files.listing import ListedFile, list_entries
from paired_index_assets.landing.catalog import Catalog
from paired_index_assets.layout import Generation
from paired_index_assets.progress import duration
from paired_index_assets.shards.segment import file_id_of

WINDOW_SECONDS = 3600.0  # what is called lately
LEAST_SECONDS = 60.0  # over which a pace is one


@dataclass(frozen=True)
class Stage:
    """Rows that one stage has done, of those it will do; `pace` in rows a second lately, None where too little happened to say."""

    done: int
    total: int
    pace: float | None

    @property
    def left_s(self) -> float | None:
        """Seconds until it is done, if it goes on like this; 0 where it is, None where nobody can say."""
        if self.done >= self.total:
            return 0.0
        return (self.total - self.done) / self.pace if self.pace else None


@dataclass(frozen=True)
class Pace:
    """`landed`: rows whose files are complete in the landing folder, None without one. `encoded`: rows in segments of a generation."""

    landed: Stage | None
    encoded: Stage

    @property
    def left_s(self) -> float | None:
        """Until the slower of both is done."""
        left = [stage.left_s for stage in (self.landed, self.encoded) if stage is not None]
        return max(known) if len(known := [each for each in left if each is not None]) == len(left) else None

    def said(self) -> str:
        """In one line, when every row will be encoded."""
        done = f"{self.encoded.done / max(1, self.encoded.total):.0%} of {self.encoded.total:,} rows are encoded"
        left = self.left_s
        if left is None:
            return f"{done}; when the rest will be cannot be said, since too little happened in the last hour"
        if not left:
            return done
        end = datetime.now().astimezone() + timedelta(seconds=left)
        return f"{done}, all in {duration(left)} at the pace of the last hour (about {end:%a %d %b %H:%M})"


def pace_of(generation: Generation, catalog: Catalog, landing: UPath | None, now: float | None = None) -> Pace:
    """Of the shards of `catalog` made for `generation` from files of the folder `landing` (None: the build's own embeddings).

    A file that is cut in slices lands once and is a segment a slice. Files that are known to be missing everywhere are waited for too.
    """
    now = time.time() if now is None else now
    rows_of = {file.file_id: file.rows for file in catalog}
    segments = [(entry.modified, rows_of.get(number, 0)) for entry, number in _segments(generation)]
    arrived = [
        (entry.modified, sum(file.rows for file in catalog.by_name[entry.name]))
        for entry in (_entries(landing) if landing is not None else ())
        if entry.name in catalog.by_name and entry.size == catalog.by_name[entry.name][0].bytes
    ]
    return Pace(
        None if landing is None else _stage(arrived, catalog.total_rows, now),
        _stage(segments, catalog.total_rows, now),
    )


def _segments(generation: Generation) -> Iterable[tuple[ListedFile, int]]:
    for entry in _entries(generation.segments):
        number = file_id_of(entry.name)
        if number is not None:
            yield entry, number


def _entries(folder: UPath) -> list[ListedFile]:
    try:
        return list_entries(folder)
    except FileNotFoundError:
        return []


def _stage(done: list[tuple[float | None, int]], total: int, now: float) -> Stage:
    lately = sorted((modified, rows) for modified, rows in done if modified is not None and now - WINDOW_SECONDS <= modified <= now)
    counted = sum(rows for _, rows in done)
    if not lately:
        return Stage(counted, total, None)
    # From the first that ended lately on: its own rows were made before.
    seconds = max(now - lately[0][0], LEAST_SECONDS)
    pace = sum(rows for _, rows in lately[1:]) / seconds
    return Stage(counted, total, pace or None)
