"""Samples: a key, a picture, a caption, in a fixed order and in numbered parts, from whatever a person has.

Row i of the picture embeddings, of the caption embeddings and of the metadata is sample i of its source: a sample that turns out bad
keeps its row. `open_source` picks the reader by what the input is:

| input | pictures | captions |
|---|---|---|
| folder, glob | picture files | the ``.txt`` beside each picture |
| ``.tar`` (a folder or pattern of them) | webdataset, as img2dataset writes it | ``.txt``, or ``caption`` of ``.json``, by key |
| ``.parquet`` | a bytes column, or a column of paths | a text column |
| ``.txt`` | a path a line | a caption a line |
| ``.pt``, ``.pth`` | - | a list of strings saved by torch |
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import pyarrow as pa

from paired_index_assets.embeddings.listing import ListedFile, is_folder, list_files
from paired_index_assets.embeddings.sets import Modality
from paired_index_assets.errors import BadInput
from paired_index_assets.files.storage import as_path, digest_of_parts

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})
MAX_IMAGE_BYTES = 256 << 20  # a larger file is refused unread: one picture must not fill the memory
DEFAULT_PART_ROWS = 50_000  # 77 MB of float16 at d=768: what a crash can cost


@dataclass(frozen=True)
class HeldImage:
    """A picture's bytes, as they came out of a tar or a Parquet."""

    content: bytes

    def read(self) -> bytes:
        return self.content


@dataclass(frozen=True)
class ImageFile:
    """A picture that is read where it is decoded. `read` raises FileNotFoundError, or ValueError for more than MAX_IMAGE_BYTES."""

    url: str

    def read(self) -> bytes:
        with as_path(self.url).open("rb") as stream:
            content: bytes = stream.read(MAX_IMAGE_BYTES + 1)
        if len(content) > MAX_IMAGE_BYTES:
            raise ValueError(f"larger than {MAX_IMAGE_BYTES} bytes")
        return content


@dataclass(frozen=True)
class Sample:
    """One pair, or half of one. `columns` are further facts for the metadata (url, license, ...); a `problem` makes the sample bad."""

    key: str
    image: HeldImage | ImageFile | None = None
    caption: str | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)
    problem: str | None = None


@dataclass(frozen=True)
class SourcePart:
    """Consecutive samples. `rows` is None where only reading tells; `stamp` changes when the input does.

    ``read(images)`` yields the samples; with ``images=False`` pictures may be left out (they are not needed for captions).
    """

    rows: int | None
    stamp: str
    read: Callable[[bool], Iterator[Sample]]


class Source(Protocol):
    """What every reader offers. `columns` are the types of ``Sample.columns``; `name` is for messages."""

    @property
    def name(self) -> str: ...

    @property
    def has(self) -> frozenset[Modality]: ...

    @property
    def columns(self) -> pa.Schema: ...

    def parts(self, part_rows: int) -> list[SourcePart]: ...


@dataclass(frozen=True)
class Columns:
    """Which Parquet columns to read; None: the first known name that is there (parquet.KNOWN_COLUMNS)."""

    image: str | None = None
    caption: str | None = None
    key: str | None = None


def cut(files: list[tuple[ListedFile, int]], part_rows: int) -> Iterator[list[tuple[ListedFile, int, int]]]:
    """Cut files of known row counts into parts of `part_rows` rows: lists of (file, first row, end row)."""
    pieces: list[tuple[ListedFile, int, int]] = []
    room = part_rows
    for file, rows in files:
        start = 0
        while start < rows:
            stop = min(start + room, rows)
            pieces.append((file, start, stop))
            room -= stop - start
            start = stop
            if room == 0:
                yield pieces
                pieces, room = [], part_rows
    if pieces:
        yield pieces


def stamp_of(pieces: list[tuple[ListedFile, int, int]], *more: str) -> str:
    return digest_of_parts(*more, *(f"{file.name} {file.stamp} {start} {stop}" for file, start, stop in pieces))


@dataclass(frozen=True)
class PairedSource:
    """Pictures of one source with the captions of another, line by line: sample i is picture i and caption i.

    Both must say how many rows they have (all but tars do); BadInput with both counts if they differ.
    """

    images: Source
    captions: Source

    @property
    def name(self) -> str:
        return f"{self.images.name} + {self.captions.name}"

    @property
    def has(self) -> frozenset[Modality]:
        return frozenset({"images", "captions"})

    @property
    def columns(self) -> pa.Schema:
        return self.images.columns

    def parts(self, part_rows: int) -> list[SourcePart]:
        pictures, captions = self.images.parts(part_rows), self.captions.parts(part_rows)
        counts = []
        for source, parts in ((self.images, pictures), (self.captions, captions)):
            if any(p.rows is None for p in parts):
                raise BadInput(f"{source.name}: expected an input with a known number of rows, found tars; tars carry their own captions")
            counts.append(sum(p.rows or 0 for p in parts))
        if counts[0] != counts[1]:
            raise BadInput(
                f"{self.captions.name}: expected {counts[0]} captions for the {counts[0]} images of {self.images.name}, found {counts[1]}"
            )
        return [SourcePart(p.rows, digest_of_parts(p.stamp, c.stamp), _Zip(p, c)) for p, c in zip(pictures, captions, strict=True)]


@dataclass(frozen=True)
class _Zip:
    images: SourcePart
    captions: SourcePart

    def __call__(self, images: bool) -> Iterator[Sample]:
        for picture, caption in zip(self.images.read(images), self.captions.read(False), strict=True):
            yield Sample(picture.key, picture.image, caption.caption, picture.columns)


def open_source(spec: str, modality: Modality, *, columns: Columns | None = None) -> Source:
    """The reader for `spec`, which must hold `modality` ("images" or "captions").

    Raises MissingInput if nothing is there, BadInput if it is of no known kind or holds no such thing.
    """
    from paired_index_assets.readers.folders import FolderSource, PathListSource
    from paired_index_assets.readers.parquet import ParquetSource
    from paired_index_assets.readers.text import SavedListSource, TextSource
    from paired_index_assets.readers.webdataset import WebdatasetSource

    Reader = Callable[[str, list[ListedFile], Columns], Source]
    # In this order: img2dataset leaves a .parquet beside each .tar or folder of pictures, and a .txt beside each picture.
    kinds: tuple[tuple[frozenset[str], Mapping[Modality, Reader]], ...] = (
        (frozenset({".tar"}), {"images": WebdatasetSource, "captions": WebdatasetSource}),
        (IMAGE_SUFFIXES, {"images": FolderSource, "captions": FolderSource}),
        (frozenset({".parquet"}), {"images": ParquetSource, "captions": ParquetSource}),
        (frozenset({".pt", ".pth"}), {"captions": SavedListSource}),
        (frozenset({".txt"}), {"images": PathListSource, "captions": TextSource}),
    )
    files = list_files(spec)
    suffixes = {file.suffix for file in files}
    for known, readers in kinds:
        if known & suffixes:
            mine = files if known is IMAGE_SUFFIXES and is_folder(spec) else [f for f in files if f.suffix in known]
            if modality not in readers:
                break
            source = readers[modality](spec, mine, columns or Columns())
            if modality in source.has:
                return source
            raise BadInput(f"{spec}: expected {modality}, found {' and '.join(sorted(source.has)) or 'neither images nor captions'}")
    raise BadInput(
        f"{spec}: expected {modality} as .tar (webdataset), pictures, .parquet, .txt"
        f"{' or .pt (a list saved by torch)' if modality == 'captions' else ' (paths)'}, "
        f"found {', '.join(sorted(s or 'no suffix' for s in suffixes)[:8])}"
    )
