"""Webdataset tars as img2dataset writes them: members of one key (``000000012.jpg``, ``.txt``, ``.json``) follow each other.

Tars are read as streams, front to back, and nothing is ever extracted: member names are keys, not paths. One tar is one part.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import pyarrow as pa

from paired_index_assets.files.listing import ListedFile
from paired_index_assets.files.storage import as_path
from paired_index_assets.readers.members import JSON_COLUMNS, PLACE_COLUMNS, Group, split_name
from paired_index_assets.readers.sample import KEY_TWICE, ModalityName, Sample, SourcePart, stamp_of_pieces
from paired_index_assets.readers.sidecar import Recorded, recorded_beside, stamps_beside
from paired_index_assets.readers.tar import Member, TarBroken, walk

BROKEN_TAR = "broken tar"
NO_SAMPLES = "no samples in a tar"
MISSING = "missing from its tar"


class WebdatasetSource:
    """Tars in order of their names; the sample's caption is ``.txt``, else ``caption`` in ``.json``.

    A tar that cannot be read to its end has a row that says where reading ended; what img2dataset recorded beside a tar as downloaded,
    and the tar does not hold, has a row each. A key whose members do not follow each other is a row that says so: sort such a tar by name.
    """

    columns: pa.Schema = pa.schema([*JSON_COLUMNS, *PLACE_COLUMNS])
    has: frozenset[ModalityName] = frozenset({"images", "captions"})

    def __init__(self, name: str, files: list[ListedFile]) -> None:
        self.name = name
        self._files = files

    def parts(self, part_rows: int) -> list[SourcePart]:
        beside = stamps_beside(self._files)
        return [
            SourcePart(None, stamp_of_pieces([(file, 0, 0)], *beside.get(file.url, ())), partial(_read, file, bool(beside.get(file.url))))
            for file in self._files
        ]


def _read(file: ListedFile, recorded: bool, images: bool) -> Iterator[Sample]:
    made = _Made(file.name)
    with as_path(file.url).open("rb") as raw:
        group = Group()
        try:
            for member in walk(raw):
                if member.kind == "folder":
                    continue
                folder, stem, suffix = split_name(member.name)
                base = f"{folder}{stem.partition('.')[0]}"
                if base != group.base:
                    yield from made.samples(group.finished())
                    group = Group(base)
                made.skipped += group.take(member, folder + stem, suffix, images)
                yield from made.samples(group.overflowing())
            yield from made.samples(group.finished())
        except TarBroken as broken:
            yield from made.broken(group, broken)
    yield from made.end(recorded_beside(file) if recorded else None)


class _Made:
    """The samples of one tar, one behind, so that what is skipped after the last can still be reported with it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.skipped: list[str] = []
        self._last: Sample | None = None
        self._shape: frozenset[str] | None = None
        self._seen: set[str] = set()
        self._rows = 0

    def samples(self, stems: Iterator[tuple[Sample | None, frozenset[str], list[str]]]) -> Iterator[Sample]:
        for sample, suffixes, names in stems:
            if sample is None:
                self.skipped += names
                continue
            self._shape = suffixes
            if sample.key in self._seen:
                sample = replace(sample, problem=sample.problem or KEY_TWICE)
            self._seen.add(sample.key)
            sample = replace(sample, columns={**sample.columns, "tar": self.name})
            self._rows += 1
            yield from self._next(sample)

    def broken(self, group: Group, broken: TarBroken) -> Iterator[Sample]:
        """The sample that the end of reading cut, or, where it lies between two whole ones, a row of its own."""
        problem = f"{BROKEN_TAR}: {broken}"
        if broken.member:
            folder, stem, suffix = split_name(broken.member)
            base = f"{folder}{stem.partition('.')[0]}"
            if base != group.base:
                yield from self.samples(group.finished())
                group = Group(base)
            marked = group.mark(Member(broken.member, "file", 0), folder + stem, suffix, problem)
        else:
            marked = group.mark_unless(self._shape, problem)
        yield from self.samples(group.finished())
        if not marked:
            yield from self._next(Sample(self.name, problem=problem))

    def end(self, recorded: Recorded | None) -> Iterator[Sample]:
        if recorded is not None:
            for key in recorded.missing(self._seen, self._rows):
                yield from self._next(Sample(key or self.name, problem=MISSING))
        if self._last is None and self.skipped:
            self._last = Sample(self.name, problem=NO_SAMPLES)
        if self._last is not None:
            yield replace(self._last, skipped=(*self._last.skipped, *self.skipped))

    def _next(self, sample: Sample) -> Iterator[Sample]:
        if self._last is not None:
            yield self._last
        self._last = replace(sample, skipped=tuple(self.skipped))
        self.skipped = []
