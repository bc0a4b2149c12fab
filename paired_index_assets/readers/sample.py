"""Samples: a key, a picture, a caption, and what every reader offers of them: parts, in a fixed order, that can be read again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import pyarrow as pa

from paired_index_assets.files.listing import ListedFile
from paired_index_assets.files.storage import as_path, digest_of_parts
from paired_index_assets.readers.captions import whole

ModalityName = Literal["images", "captions"]
IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".jp2", ".ppm", ".pgm", ".pbm", ".pnm"}
)
# Pictures too, which nothing here decodes: they keep their row and say so.
UNSUPPORTED_SUFFIXES = frozenset(
    {".heic", ".heif", ".jxl", ".svg", ".svgz", ".psd", ".ico", ".tga", ".exr", ".hdr", ".eps", ".ai", ".wmf", ".emf", ".jxr", ".xcf"}
    | {".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf"}
)
UNSUPPORTED = "unsupported picture format"
TOO_LARGE = "file too large"
KEY_TWICE = "key comes twice"
MAX_IMAGE_BYTES = 256 << 20  # a larger file is refused unread: one picture must not fill the memory
MAX_TEXT_BYTES = 1 << 20  # of a caption or of facts in a file of their own
DEFAULT_PART_ROWS = 50_000  # 77 MB of float16 at d=768: what a crash can cost


@dataclass(frozen=True)
class HeldImage:
    """A picture's bytes, as they came out of a tar or a Parquet."""

    content: bytes

    def read(self) -> bytes:
        return self.content


@dataclass(frozen=True)
class ImageFile:
    """A picture that is read where it is decoded. `read` raises FileNotFoundError, or ValueError for more than MAX_IMAGE_BYTES.

    `stamp` (files.stamp) is that of the file that was listed, where it was.
    """

    url: str
    stamp: str = ""

    def read(self) -> bytes:
        with as_path(self.url).open("rb") as stream:
            content: bytes = stream.read(MAX_IMAGE_BYTES + 1)
        if len(content) > MAX_IMAGE_BYTES:
            raise ValueError(f"larger than {MAX_IMAGE_BYTES} bytes")
        return content


@dataclass(frozen=True)
class Refused:
    """A picture that is not to be decoded; `why` is its outcome."""

    why: str


Picture = HeldImage | ImageFile | Refused | None


@dataclass(frozen=True)
class Sample:
    """One pair, or half of one. `columns` are further facts for the metadata (url, license, ...); a `problem` makes the sample bad.

    A problem is a name, or ``name: where``; outcomes are counted by their names (`name_of`). `skipped` names what the source held before
    this sample (or after it, if it is the last) that belongs to no sample.
    """

    key: str
    image: Picture = None
    caption: str | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)
    problem: str | None = None
    skipped: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        # Whatever a reader found: text that no file can hold stops at the sample, and costs this one only.
        object.__setattr__(self, "key", whole(self.key))
        if self.caption is not None:
            object.__setattr__(self, "caption", whole(self.caption))
        if any(isinstance(value, str) and not value.isascii() for value in self.columns.values()):
            cleaned = {name: whole(value) if isinstance(value, str) else value for name, value in self.columns.items()}
            object.__setattr__(self, "columns", cleaned)


def name_of(outcome: str) -> str:
    """The name of an outcome, by which it is counted: what stands before the colon."""
    return outcome.partition(": ")[0]


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
    def has(self) -> frozenset[ModalityName]: ...

    @property
    def columns(self) -> pa.Schema: ...

    def parts(self, part_rows: int) -> list[SourcePart]: ...


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


def stamp_of_pieces(pieces: list[tuple[ListedFile, int, int]], *more: str) -> str:
    return digest_of_parts(*more, *(f"{file.name} {file.stamp} {start} {stop}" for file, start, stop in pieces))


def located(path: str, folder: str) -> str:
    """`path` itself if absolute or a URL, else inside `folder`."""
    return path if "://" in path or path.startswith(("/", "~")) else str(as_path(folder) / path)
