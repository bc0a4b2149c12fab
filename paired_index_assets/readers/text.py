"""Captions: a text file with one a line, or a list of strings saved by torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice

import pyarrow as pa
import torch

from paired_index_assets.errors import BadInput
from paired_index_assets.files.listing import ListedFile
from paired_index_assets.files.storage import as_path
from paired_index_assets.readers.sample import Modality, Sample, SourcePart, cut, decoded, stamp_of_pieces


@dataclass(frozen=True)
class _Lines:
    file: ListedFile
    offset: int  # bytes before the first line of the part
    first: int
    rows: int


class TextSource:
    """A caption a line, split at newline bytes only (a caption may hold U+2028 and still be one row). The key is the line's number."""

    columns = pa.schema([])
    has: frozenset[Modality] = frozenset({"captions"})

    def __init__(self, name: str, files: list[ListedFile]) -> None:
        self.name = name
        self._files = files

    def parts(self, part_rows: int) -> list[SourcePart]:
        """One pass over the bytes counts lines and notes where parts start; parts of several files do not share lines."""
        parts: list[SourcePart] = []
        before = 0
        for file in self._files:
            starts, offset, rows = [0], 0, 0
            with as_path(file.url).open("rb") as stream:
                for line in stream:
                    if rows and rows % part_rows == 0:
                        starts.append(offset)
                    rows += 1
                    offset += len(line)
            for number, start in enumerate(starts):
                count = min(part_rows, rows - number * part_rows)
                if count:
                    lines = _Lines(file, start, before + number * part_rows, count)
                    stamp = stamp_of_pieces([(file, lines.first, lines.first + count)])
                    parts.append(SourcePart(count, stamp, partial(_read_lines, lines)))
            before += rows
        return parts


def _read_lines(lines: _Lines, images: bool) -> Iterator[Sample]:
    with as_path(lines.file.url).open("rb") as stream:
        stream.seek(lines.offset)
        for number, line in enumerate(islice(stream, lines.rows), lines.first):
            yield Sample(str(number), caption=decoded(line))


class SavedListSource:
    """Lists of strings saved by torch (``weights_only=True``: nothing but plain data is ever unpickled)."""

    columns = pa.schema([])
    has: frozenset[Modality] = frozenset({"captions"})

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
