"""Members of a tar that belong together -> samples: which of them are a picture, a caption, facts, and which are none of these.

Webdataset's key of ``d/1.seg.png`` is ``d/1``: a mask of the sample, where there is a ``d/1.png``. But ``2024.05.01.png`` with
``2024.05.01.txt`` is a sample of its own. So the name up to its last dot is a sample, unless a sample beside it has the name up to an
earlier dot and this one has not both picture and caption.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from paired_index_assets.readers.captions import decoded
from paired_index_assets.readers.sample import (
    IMAGE_SUFFIXES,
    MAX_IMAGE_BYTES,
    MAX_TEXT_BYTES,
    TOO_LARGE,
    UNSUPPORTED,
    UNSUPPORTED_SUFFIXES,
    HeldImage,
    Picture,
    Refused,
    Sample,
)
from paired_index_assets.readers.tar import Member

MAX_STEMS = 16  # of one group held in memory: a sample has a few annotations, dates of one year are not its annotations
PICTURE_SUFFIXES = IMAGE_SUFFIXES | UNSUPPORTED_SUFFIXES
KNOWN_SUFFIXES = PICTURE_SUFFIXES | {".txt", ".json"}
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
# Where the picture lies in its tar, written where samples are made: so it can be read again without walking the tar.
PLACE_COLUMNS = pa.schema([("tar", pa.string()), ("tar_offset", pa.int64()), ("tar_bytes", pa.int64())])
INT64 = range(-(1 << 63), 1 << 63)


def split_name(name: str) -> tuple[str, str, str]:
    """(``d/``, ``2024.05.01``, ``.png``) of ``d/2024.05.01.PNG``."""
    folder, slash, base = name.rpartition("/")
    stem, dot, suffix = base.rpartition(".")
    return (folder + slash, stem, f".{suffix.lower()}") if dot else (folder + slash, base, "")


@dataclass
class _Stem:
    picture: Picture = None
    place: tuple[int | None, int] | None = None  # of the picture: offset and size
    text: bytes | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    suffixes: set[str] = field(default_factory=set)
    names: list[str] = field(default_factory=list)
    problem: str | None = None

    @property
    def has_both(self) -> bool:
        return bool(self.suffixes & PICTURE_SUFFIXES) and (".txt" in self.suffixes or "caption" in self.facts)

    def sample(self, key: str) -> Sample:
        caption = decoded(self.text) if self.text is not None else self.facts.get("caption")
        columns = {column.name: cast(self.facts.get(column.name), column.type) for column in JSON_COLUMNS}
        if self.place is not None and self.place[0] is not None:
            columns |= {"tar_offset": self.place[0], "tar_bytes": self.place[1]}
        return Sample(key, self.picture, caption if isinstance(caption, str) else None, columns, self.problem)


Finished = tuple[Sample | None, frozenset[str], list[str]]  # a sample (None: an annotation of another), its suffixes, its members


class Group:
    """Members whose names agree up to the first dot, in the order they come."""

    def __init__(self, base: str | None = None) -> None:
        self.base = base
        self._stems: dict[str, _Stem] = {}

    def take(self, member: Member, key: str, suffix: str, images: bool) -> list[str]:
        """Read what a sample is made of; the members that are not, named with the reason."""
        name = key.rpartition("/")[2]
        if suffix not in KNOWN_SUFFIXES or not name or name.startswith("."):
            return [member.name]
        if member.kind != "file":
            if suffix in PICTURE_SUFFIXES:  # a sample with other members says why it has no picture
                stem = self._stems.setdefault(key, _Stem())
                stem.picture = stem.picture or Refused(f"a {member.kind} in a tar")
            return [f"{member.name} (a {member.kind})"]
        stem = self._stems.setdefault(key, _Stem())
        taken = stem.suffixes & (PICTURE_SUFFIXES if suffix in PICTURE_SUFFIXES else {suffix})
        if taken:
            return [f"{member.name} (another {'picture' if suffix in PICTURE_SUFFIXES else suffix} of its key)"]
        stem.suffixes.add(suffix)
        stem.names.append(member.name)
        if suffix in PICTURE_SUFFIXES:
            stem.picture = _picture(member, suffix, images)
            stem.place = (member.offset, member.size)
        elif suffix == ".txt":
            stem.text = member.read(MAX_TEXT_BYTES)
        elif member.size > MAX_TEXT_BYTES:
            return [f"{member.name} (larger than {MAX_TEXT_BYTES} bytes)"]
        else:
            stem.facts = facts_of(member.read())
        return [f"{member.name} ({member.note})"] if member.note else []

    def mark(self, member: Member, key: str, suffix: str, problem: str) -> bool:
        """Give the sample of a member that is cut short its `problem`; False if the member is of none."""
        if suffix not in KNOWN_SUFFIXES or not key.rpartition("/")[2]:
            return False
        stem = self._stems.setdefault(key, _Stem())
        stem.suffixes.add(suffix)
        stem.names.append(member.name)
        stem.problem = problem
        return not self._is_annotation(key)

    def mark_unless(self, shape: frozenset[str] | None, problem: str) -> bool:
        """Give the last sample its `problem` unless it has the suffixes in `shape`, those of the sample before it: then it is whole."""
        keys = [key for key, stem in self._stems.items() if stem.suffixes and not self._is_annotation(key)]
        if not keys or shape is None or self._stems[keys[-1]].suffixes >= shape:
            return False
        self._stems[keys[-1]].problem = problem
        return True

    def finished(self) -> Iterator[Finished]:
        for key in list(self._stems):
            yield self._finished(key)
        self._stems = {}

    def overflowing(self) -> Iterator[Finished]:
        """The oldest, where there are more than can be one sample's annotations."""
        if len(self._stems) > MAX_STEMS:
            key = next(key for key in self._stems if key != self.base)
            yield self._finished(key)
            del self._stems[key]

    def _finished(self, key: str) -> Finished:
        stem = self._stems[key]
        alone = not stem.suffixes or self._is_annotation(key)
        return None if alone else stem.sample(key), frozenset(stem.suffixes), stem.names

    def _is_annotation(self, key: str) -> bool:
        return not self._stems[key].has_both and any(key.startswith(f"{other}.") for other in self._stems)


def _picture(member: Member, suffix: str, images: bool) -> Picture:
    if suffix in UNSUPPORTED_SUFFIXES:
        return Refused(f"{UNSUPPORTED} {suffix}")
    if member.size > MAX_IMAGE_BYTES:
        return Refused(TOO_LARGE)
    return HeldImage(member.read()) if images else None


def facts_of(content: bytes) -> dict[str, Any]:
    """The object in a ``.json``; one that is broken, or nested so deep that reading it ends, costs its facts and not the sample."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def cast(value: Any, kind: pa.DataType) -> Any:
    """`value` as a column of `kind` holds it; None where it cannot."""
    try:
        if value is None:
            return None
        if kind == pa.string():
            return str(value)
        if kind == pa.float64():
            return float(value)
        number = int(value)
        return number if number in INT64 else None
    except (TypeError, ValueError, OverflowError, RecursionError):
        return None
