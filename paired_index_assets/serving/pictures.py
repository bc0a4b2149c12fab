"""id -> the picture itself, from the source that was embedded: sample i of the source is row i of the index.

A picture is shown only while it is the file that was there when the source was opened: one that was replaced meanwhile is another's.
"""

from __future__ import annotations

import base64
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import islice
from typing import Any

import numpy as np

from paired_index_assets.builds.metadata import Metadata
from paired_index_assets.errors import PairedIndexError
from paired_index_assets.files.listing import ListedFile, list_files
from paired_index_assets.files.stamp import stamp_of
from paired_index_assets.files.storage import as_path
from paired_index_assets.readers.members import PLACE_COLUMNS
from paired_index_assets.readers.open import open_source
from paired_index_assets.readers.parquet import KNOWN_COLUMNS, ParquetSource
from paired_index_assets.readers.sample import MAX_IMAGE_BYTES, HeldImage, ImageFile, Source, SourcePart

PART_ROWS = 64  # read to reach one picture, at most
SHOWN_BYTES = 4 << 20  # a larger picture is not put into a page
# by their first bytes; SVG is not among them: it can carry scripts
KINDS = ((b"\x89PNG\r\n\x1a\n", "png"), (b"\xff\xd8\xff", "jpeg"), (b"GIF8", "gif"), (b"BM", "bmp"))


class Pictures(ABC):
    """Bytes of pictures by global id. Safe to use from many threads."""

    @abstractmethod
    def read(self, ids: Sequence[int]) -> list[bytes | None]:
        """The encoded picture of each id, None where there is none, or where it cannot be read."""

    @abstractmethod
    def __len__(self) -> int:
        """Ids that may have one."""

    @staticmethod
    def of(images: str, rows: int | None = None) -> Pictures | None:
        """Pictures of an input as given to a build; None for tars, or where it is not of `rows` samples, those of the index."""
        source = open_source(images, "images")
        found: Pictures = SourcePictures(source)
        if isinstance(getattr(source, "source", source), ParquetSource):  # maybe with files beside it that nothing reads
            listed = [file for file in list_files(images) if file.suffix == ".parquet"]
            held = Metadata.in_order([file.url for file in listed], hold=True)
            if [file.held.stamp for file in held.files if file.held] != [file.stamp for file in listed]:
                return None  # replaced just now
            column = next((name for name in KNOWN_COLUMNS["image"] if name in held.bytes_columns), None)
            found = found if column is None else ColumnPictures(held, column)
        elif any(part.rows is None for part in source.parts(PART_ROWS)):
            return None
        return found if rows in (None, len(found)) else None


class ColumnPictures(Pictures):
    """From a column of bytes in Parquet files, which are held as they are."""

    def __init__(self, held: Metadata, column: str) -> None:
        self._held, self._column = held, column

    def __len__(self) -> int:
        return len(self._held)

    def read(self, ids: Sequence[int]) -> list[bytes | None]:
        return [_content(row) for row in self._held.rows(ids, [self._column])]


class SourcePictures(Pictures):
    """From any source that knows its row counts (all but tars), by reading up to the row."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def read(self, ids: Sequence[int]) -> list[bytes | None]:
        found: dict[int, bytes] = {}
        wanted = np.unique(np.asarray(ids, np.int64))
        wanted = wanted[(wanted >= 0) & (wanted < len(self))]
        parts = np.searchsorted(self._ends, wanted, side="right")
        for number in np.unique(parts):
            first = int(self._ends[number - 1]) if number else 0
            found |= _read(self._parts[number], [int(i) - first for i in wanted[parts == number]], first)
        return [found.get(int(i)) for i in ids]

    @cached_property
    def _parts(self) -> list[SourcePart]:
        return self._source.parts(PART_ROWS)

    @cached_property
    def _ends(self) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        return np.cumsum([part.rows or 0 for part in self._parts], dtype=np.int64)


class TarPictures(Pictures):
    """Members of tars, each read from where the metadata of its row says that it lies; `tars` by their names in it."""

    def __init__(self, tars: Mapping[str, ListedFile], metadata: Metadata) -> None:
        self._tars, self._metadata = tars, metadata

    def __len__(self) -> int:
        return len(self._metadata)

    def read(self, ids: Sequence[int]) -> list[bytes | None]:
        return [self._member(row or {}) for row in self._metadata.rows(ids, PLACE_COLUMNS.names)]

    def _member(self, place: dict[str, Any]) -> bytes | None:
        name, offset, size = (place.get(column) for column in PLACE_COLUMNS.names)
        tar = self._tars.get(str(name))
        if tar is None or offset is None or size is None or size > MAX_IMAGE_BYTES:
            return None
        path = as_path(tar.url)
        try:
            content: bytes = path.fs.cat_file(path.path, start=offset, end=offset + size)
        except Exception:  # each file system has its own
            return None
        return content if stamp_of(path) == tar.stamp else None


def data_uri(content: bytes | None) -> str | None:
    """``data:image/png;base64,...`` of a PNG, JPEG, GIF, WebP or BMP of at most `SHOWN_BYTES`; None for anything else."""
    kind = kind_of(content) if content is not None and len(content) <= SHOWN_BYTES else None
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}" if kind and content else None


def kind_of(content: bytes) -> str | None:
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "webp"
    return next((kind for start, kind in KINDS if content.startswith(start)), None)


def _content(row: dict[str, Any] | None) -> bytes | None:
    """The bytes of a picture cell, or of the `bytes` in one as datasets writes it."""
    cell = next(iter(row.values()), None) if row else None
    content = cell.get("bytes") if isinstance(cell, dict) else cell
    return content if isinstance(content, bytes) else None


def _read(part: SourcePart, rows: list[int], first: int) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    wanted = set(rows)
    try:
        for row, sample in enumerate(islice(part.read(True), max(rows) + 1)):
            if row in wanted and isinstance(sample.image, HeldImage | ImageFile):
                try:
                    found[first + row] = sample.image.read()
                except (OSError, ValueError):
                    continue  # gone or unreadable: the result is shown without its picture
                if isinstance(sample.image, ImageFile) and sample.image.stamp not in ("", stamp_of(sample.image.url)):
                    del found[first + row]
    except (PairedIndexError, OSError):
        return found
    return found
