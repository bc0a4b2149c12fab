"""Webdataset tars as img2dataset writes them: members of one key (``000000012.jpg``, ``.txt``, ``.json``) follow each other.

Tars are read as streams, front to back, and nothing is ever extracted: member names are keys, not paths. One tar is one part.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa

from paired_index_assets.files.listing import ListedFile
from paired_index_assets.files.storage import as_path
from paired_index_assets.readers.sample import (
    IMAGE_SUFFIXES,
    MAX_IMAGE_BYTES,
    HeldImage,
    Modality,
    Sample,
    SourcePart,
    decoded,
    stamp_of_pieces,
)

MAX_TEXT_BYTES = 1 << 20
KNOWN_SUFFIXES = IMAGE_SUFFIXES | {".txt", ".json"}
BROKEN_TAR = "broken tar"
BUFFER_BYTES = 1 << 20
# What img2dataset and LAION write into the .json of a sample, and is worth keeping.
JSON_COLUMNS = pa.schema(
    [
        ("url", pa.string()),
        ("license", pa.string()),
        ("LICENSE", pa.string()),
        ("NSFW", pa.string()),
        ("similarity", pa.float64()),
        ("original_width", pa.int64()),
        ("original_height", pa.int64()),
        ("md5", pa.string()),
        ("sha256", pa.string()),
    ]
)
CASTS: dict[pa.DataType, Any] = {pa.string(): str, pa.float64(): float, pa.int64(): int}


class WebdatasetSource:
    """Tars in order of their names; the sample's caption is ``.txt``, else ``caption`` in ``.json``."""

    columns = JSON_COLUMNS
    has: frozenset[Modality] = frozenset({"images", "captions"})

    def __init__(self, name: str, files: list[ListedFile]) -> None:
        self.name = name
        self._files = files

    def parts(self, part_rows: int) -> list[SourcePart]:
        return [SourcePart(None, stamp_of_pieces([(file, 0, 0)]), partial(_read, file)) for file in self._files]


def _read(file: ListedFile, images: bool) -> Iterator[Sample]:
    key: str | None = None
    members: dict[str, bytes | None] = {}
    problem = None
    with as_path(file.url).open("rb") as raw:
        try:
            with tarfile.open(fileobj=raw, mode="r|", bufsize=BUFFER_BYTES) as tar:
                for member in tar:
                    folder, _, base = member.name.rpartition("/")
                    stem, _, suffix = base.partition(".")
                    suffix = f".{suffix.lower()}"
                    if not (member.isfile() and stem and suffix in KNOWN_SUFFIXES):
                        continue
                    here = f"{folder}/{stem}" if folder else stem
                    if here != key:
                        if key is not None:
                            yield _sample(key, members)
                        key, members = here, {}
                    if suffix not in members:
                        members[suffix] = _content(tar, member, images or suffix not in IMAGE_SUFFIXES)
        except (tarfile.TarError, EOFError):
            problem = BROKEN_TAR  # what came before is good; the rest is one row that says so
            key = key or file.name
    if key is not None:
        yield replace(_sample(key, members), problem=problem)


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo, wanted: bool) -> bytes | None:
    limit = MAX_IMAGE_BYTES if PurePosixPath(member.name).suffix.lower() in IMAGE_SUFFIXES else MAX_TEXT_BYTES
    stream = tar.extractfile(member) if wanted and member.size <= limit else None
    if stream is None:
        return None
    content = stream.read()
    if len(content) != member.size:
        raise EOFError(member.name)
    return content


def _sample(key: str, members: dict[str, bytes | None]) -> Sample:
    picture = next((content for suffix, content in members.items() if suffix in IMAGE_SUFFIXES), None)
    facts: dict[str, Any] = {}
    with suppress(ValueError):  # a broken .json costs its facts, not the sample
        found = json.loads(members.get(".json") or b"{}")
        facts = found if isinstance(found, dict) else {}
    text = members.get(".txt")
    caption = decoded(text) if text is not None else facts.get("caption")
    return Sample(
        key,
        HeldImage(picture) if picture is not None else None,
        caption if isinstance(caption, str) else None,
        {column.name: _cast(facts.get(column.name), column.type) for column in JSON_COLUMNS},
    )


def _cast(value: Any, kind: pa.DataType) -> Any:
    try:
        return None if value is None else CASTS[kind](value)
    except (TypeError, ValueError, OverflowError):
        return None
