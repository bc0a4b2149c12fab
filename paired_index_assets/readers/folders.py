"""Pictures as files: a folder, a glob, or a text file with a path a line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath

import pyarrow as pa

from paired_index_assets.errors import BadInput
from paired_index_assets.files.listing import ListedFile
from paired_index_assets.files.storage import as_path, digest_of_parts
from paired_index_assets.readers.captions import decoded
from paired_index_assets.readers.sample import (
    IMAGE_SUFFIXES,
    MAX_TEXT_BYTES,
    UNSUPPORTED,
    UNSUPPORTED_SUFFIXES,
    ImageFile,
    ModalityName,
    Picture,
    Refused,
    Sample,
    SourcePart,
    located,
)
from paired_index_assets.readers.text import TextSource


@dataclass(frozen=True)
class _Entry:
    key: str
    image: ListedFile | None
    caption: ListedFile | None


class FolderSource:
    """Picture files sorted by name; the caption is the ``.txt`` of the same name, where a folder has them.

    The key is the name without suffix (with it where two pictures differ in nothing else). A ``.txt`` without picture is a sample without
    picture.
    """

    columns = pa.schema([])

    def __init__(self, name: str, files: list[ListedFile]) -> None:
        self.name = name
        pictures = [f for f in files if f.suffix in IMAGE_SUFFIXES | UNSUPPORTED_SUFFIXES]
        stems = Counter(_stem(f) for f in pictures)
        texts: dict[str, ListedFile] = {}
        for file in files:
            if file.suffix == ".txt":
                texts.setdefault(_stem(file), file)
        self._entries = [_Entry(_stem(f) if stems[_stem(f)] == 1 else f.name, f, texts.get(_stem(f))) for f in pictures]
        if any(stem in stems for stem in texts):  # captions lie beside pictures: then one alone is half a sample, not some README.txt
            self._entries += [_Entry(stem, None, f) for stem, f in texts.items() if stem not in stems]
            self._entries.sort(key=lambda entry: entry.key)
            self.has: frozenset[ModalityName] = frozenset({"images", "captions"})
        else:
            self._entries = [_Entry(e.key, e.image, None) for e in self._entries]
            self.has = frozenset({"images"})
        used = {f.url for entry in self._entries for f in (entry.image, entry.caption) if f}
        self.unread = [f.name for f in files if f.url not in used]

    def parts(self, part_rows: int) -> list[SourcePart]:
        chunks = [self._entries[a : a + part_rows] for a in range(0, len(self._entries), part_rows)]
        return [SourcePart(len(chunk), digest_of_parts(*map(_stamp, chunk)), partial(_read, chunk)) for chunk in chunks]


def _stem(file: ListedFile) -> str:
    return file.name.removesuffix(PurePosixPath(file.name).suffix)


def _stamp(entry: _Entry) -> str:
    return " | ".join([entry.key, *(f"{f.name} {f.stamp}" for f in (entry.image, entry.caption) if f)])


def _read(entries: list[_Entry], images: bool) -> Iterator[Sample]:
    for entry in entries:
        try:
            caption = _caption(entry.caption) if entry.caption else None
        except OSError:
            caption = None
        yield Sample(entry.key, _picture(entry.image), caption)


def _picture(file: ListedFile | None) -> Picture:
    if file is None:
        return None
    return Refused(f"{UNSUPPORTED} {file.suffix}") if file.suffix in UNSUPPORTED_SUFFIXES else ImageFile(file.url, file.stamp)


def _caption(file: ListedFile) -> str:
    with as_path(file.url).open("rb") as stream:
        return decoded(stream.read(MAX_TEXT_BYTES))  # of a longer one, enough to see that it is


class PathListSource:
    """A text file with the path or URL of a picture a line; relative ones start at the folder of the list. The key is the line."""

    columns = pa.schema([])
    has: frozenset[ModalityName] = frozenset({"images"})

    def __init__(self, name: str, files: list[ListedFile]) -> None:
        self.name = name
        if len(files) != 1:
            raise BadInput(f"{name}: expected one text file of paths, found {len(files)}")
        self._folder = str(as_path(files[0].url).parent)
        self._lines = TextSource(name, files)

    def parts(self, part_rows: int) -> list[SourcePart]:
        return [SourcePart(p.rows, p.stamp, partial(self._read, p)) for p in self._lines.parts(part_rows)]

    def _read(self, part: SourcePart, images: bool) -> Iterator[Sample]:
        for line in part.read(False):
            path = (line.caption or "").strip()
            yield Sample(path or line.key, ImageFile(located(path, self._folder)) if path else None)
