"""Captions: a text file with one a line, or a list of strings saved by torch."""

from __future__ import annotations

from codecs import BOM_UTF8
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import groupby, islice
from typing import BinaryIO

import pyarrow as pa

from paired_index_assets.errors import BadInput
from paired_index_assets.files.listing import ListedFile
from paired_index_assets.files.storage import as_path
from paired_index_assets.readers.captions import MARK_BYTES, encoding_of
from paired_index_assets.readers.sample import ModalityName, Sample, SourcePart, cut, stamp_of_pieces

READ_BYTES = 1 << 20


@dataclass(frozen=True)
class _Lines:
    """Consecutive lines of one file, the first of them `offset` bytes into it."""

    file: ListedFile
    encoding: str
    offset: int
    first: int
    rows: int


class TextSource:
    """A caption a line, split at newlines only (a caption may hold U+2028 and still be one row). The key is the line's number.

    UTF-8, or what a byte order mark says: Windows writes UTF-16.
    """

    columns = pa.schema([])
    has: frozenset[ModalityName] = frozenset({"captions"})

    def __init__(self, name: str, files: list[ListedFile]) -> None:
        self.name = name
        self._files = files

    def parts(self, part_rows: int) -> list[SourcePart]:
        """One pass over the bytes counts lines and notes where parts start; a part goes on in the next file."""
        pieces: list[_Lines] = []
        row = 0
        for file in self._files:
            with as_path(file.url).open("rb") as stream:
                encoding, offset = encoding_of(stream.read(MARK_BYTES))
                stream.seek(offset)
                first, start = row, offset
                for line in _lines(stream, encoding):
                    if row > first and row % part_rows == 0:
                        pieces.append(_Lines(file, encoding, start, first, row - first))
                        first, start = row, offset
                    row += 1
                    offset += len(line)
                if row > first:
                    pieces.append(_Lines(file, encoding, start, first, row - first))
        parts = [list(of_part) for _, of_part in groupby(pieces, lambda piece: piece.first // part_rows)]
        return [
            SourcePart(
                sum(piece.rows for piece in part),
                stamp_of_pieces([(piece.file, piece.first, piece.first + piece.rows) for piece in part]),
                partial(_read_lines, part),
            )
            for part in parts
        ]


def _read_lines(pieces: list[_Lines], images: bool) -> Iterator[Sample]:
    for piece in pieces:
        with as_path(piece.file.url).open("rb") as stream:
            stream.seek(piece.offset)
            for number, line in enumerate(islice(_lines(stream, piece.encoding), piece.rows), piece.first):
                text = line.removeprefix(BOM_UTF8) if piece.encoding == "utf-8" else line  # files with marks, put one after another
                yield Sample(str(number), caption=text.decode(piece.encoding, "replace").rstrip("\r\n"))


def _lines(stream: BinaryIO, encoding: str) -> Iterator[bytes]:
    newline = "\n".encode(encoding)
    width = len(newline)
    if width == 1:
        yield from stream
        return
    held = b""
    while block := stream.read(READ_BYTES):
        held += block
        start = at = 0
        while (at := held.find(newline, at)) >= 0:
            if at % width:  # half of one character and half of the next
                at += 1
                continue
            at += width
            yield held[start:at]
            start = at
        held = held[start:]
    if held:
        yield held


class SavedListSource:
    """Lists of strings saved by torch (``weights_only=True``: nothing but plain data is ever unpickled)."""

    columns = pa.schema([])
    has: frozenset[ModalityName] = frozenset({"captions"})

    def __init__(self, name: str, files: list[ListedFile]) -> None:
        self.name = name
        self._lists = [(file, _saved_list(file)) for file in files]

    def parts(self, part_rows: int) -> list[SourcePart]:
        texts = dict(self._lists)
        pieces = cut([(file, len(captions)) for file, captions in self._lists], part_rows)
        return [
            SourcePart(
                sum(b - a for _, a, b in part), stamp_of_pieces(part), partial(_read_list, [(f, texts[f][a:b], a) for f, a, b in part])
            )
            for part in pieces
        ]


def _read_list(pieces: list[tuple[ListedFile, list[str], int]], images: bool) -> Iterator[Sample]:
    for file, captions, first in pieces:
        for number, caption in enumerate(captions, first):
            yield Sample(f"{file.name}:{number}", caption=caption)


def _saved_list(file: ListedFile) -> list[str]:
    import torch

    try:
        with as_path(file.url).open("rb") as stream:
            content = torch.load(stream, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # torch raises RuntimeError, UnpicklingError, EOFError, ... by what is wrong
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BadInput(
            f"{file.url}: expected a list of strings saved by torch, found a file that plain data does not explain ({reason[:160]}); "
            "save the captions as a text file, one a line"
        ) from error
    if not isinstance(content, list | tuple) or not all(isinstance(c, str) for c in content):
        kind = type(content).__name__
        raise BadInput(f"{file.url}: expected a list of strings saved by torch, found {kind}; save list[str], or a text file")
    return list(content)
