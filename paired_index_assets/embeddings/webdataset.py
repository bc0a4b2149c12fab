"""Webdataset tars as img2dataset writes them: members of one key (``000000012.jpg``, ``.txt``, ``.json``) follow each other.

Tars are read as streams, front to back, and nothing is ever extracted: member names are keys, not paths. One tar is one part.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from functools import partial
from typing import Any

import pyarrow as pa

from paired_index_assets.embeddings.listing import ListedFile
from paired_index_assets.embeddings.sets import Modality
from paired_index_assets.embeddings.sources import IMAGE_SUFFIXES, MAX_IMAGE_BYTES, Columns, HeldImage, ImageFile, Sample, SourcePart, stamp_of
from paired_index_assets.embeddings.text import decoded
from paired_index_assets.errors import BadInput
from paired_index_assets.storage import as_path

MAX_TEXT_BYTES = 1 << 20
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

    def __init__(self, name: str, files: list[ListedFile], columns: Columns | None = None) -> None:
        self.name = name
        self._files = files

    def parts(self, part_rows: int) -> list[SourcePart]:
        return [SourcePart(None, stamp_of([(file, 0, 0)]), partial(_read, file)) for file in self._files]


def _read(file: ListedFile, images: bool) -> Iterator[Sample]:
    key: str | None = None
    members: dict[str, bytes | None] = {}
    with as_path(file.url).open("rb") as raw:
        try:
            with tarfile.open(fileobj=raw, mode="r|", bufsize=BUFFER_BYTES) as tar:
                for member in tar:
                    if not member.isfile():
                        continue
                    folder, _, base = member.name.rpartition("/")
                    stem, _, suffix = base.partition(".")
                    if not stem:  # hidden files, and those macOS puts beside every member
                        continue
                    here = f"{folder}/{stem}" if folder else stem
                    if here != key:
                        if key is not None:
                            yield _sample(key, members)
                        key, members = here, {}
                    suffix = f".{suffix.lower()}"
                    limit = MAX_IMAGE_BYTES if suffix in IMAGE_SUFFIXES else MAX_TEXT_BYTES
                    if suffix in members or not (suffix in IMAGE_SUFFIXES or suffix in (".txt", ".json")):
                        continue
                    wanted = images or suffix not in IMAGE_SUFFIXES
                    members[suffix] = tar.extractfile(member).read() if wanted and member.size <= limit else None  # type: ignore[union-attr]
        except (tarfile.TarError, EOFError) as error:
            raise BadInput(
                f"{file.url}: expected a complete tar, found one that ends or breaks after key {key} ({error}); fetch it again or take it out"
            ) from error
    if key is not None:
        yield _sample(key, members)


def _sample(key: str, members: dict[str, bytes | None]) -> Sample:
    picture = next((content for suffix, content in members.items() if suffix in IMAGE_SUFFIXES), None)
    facts: dict[str, Any] = {}
    try:
        found = json.loads(members.get(".json") or b"{}")
        facts = found if isinstance(found, dict) else {}
    except ValueError:
        pass  # a broken .json costs its facts, not the sample
    text = members.get(".txt")
    caption = decoded(text) if text is not None else facts.get("caption")
    image: HeldImage | ImageFile | None = HeldImage(picture) if picture is not None else None
    return Sample(key, image, caption if isinstance(caption, str) else None, {f.name: _cast(facts.get(f.name), f.type) for f in JSON_COLUMNS})


def _cast(value: Any, kind: pa.DataType) -> Any:
    try:
        return None if value is None else CASTS[kind](value)
    except (TypeError, ValueError):
        return None
