"""An open build as requests see it: its index, what ids stand for, and what is shown of them."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from paired_index_assets.embeddings.encoders import Encoder
from paired_index_assets.errors import BadInput
from paired_index_assets.search.filters import Filter
from paired_index_assets.search.rerank import Originals
from paired_index_assets.search.sharded import ShardedIndex
from paired_index_assets.serving.beside import originals_of
from paired_index_assets.serving.limits import Limits
from paired_index_assets.serving.pictures import SHOWN_BYTES
from paired_index_assets.serving.results import jsonable
from paired_index_assets.serving.sent import smaller
from paired_index_assets.serving.shown import Shown

PICTURES_TOGETHER = 64
UNSAFE = "NSFW"  # LAION's column, and the value in it that means so


@dataclass(frozen=True)
class OpenSet:
    """An open build with what its ids stand for."""

    index: ShardedIndex
    shown: Shown = field(default_factory=Shown)
    conditions: dict[str, Filter] = field(default_factory=dict)  # those asked so far

    def originals(self) -> Originals:
        """The embeddings of the index, opened when they are first asked for. Raises MissingInput."""
        if not self._opened:
            self._opened.append(originals_of(self.index.build))
        return self._opened[0]

    _opened: list[Originals] = field(default_factory=list)


def check_encoder(encoder: Encoder, index: ShardedIndex) -> None:
    """Raises BadInput unless `encoder` is the one that made the vectors of `index`."""
    if encoder.identity != index.model:
        found = f"built with {index.model}" if index.model else "built from features of an unnamed model"
        raise BadInput(f"encoder {encoder.identity}: this index was {found}, and their vectors cannot be compared; give that model")


def tried(index: ShardedIndex) -> bool:
    """Whether a search, and what is stored of its result, is possible."""
    query = np.full(index.d, index.d**-0.5, np.float32)
    found = index.search(query, 1, nprobe=1)[1][0]
    return bool(index.ntotal) and len(index.stored(query, found, nprobe=1)) == 1


def safe(found: OpenSet, ids: list[int]) -> npt.NDArray[np.bool_]:
    """(n,) whether the metadata of each id does not say that it is unsafe."""
    if found.shown.metadata is None:
        return np.ones(len(ids), np.bool_)
    return np.array([(mark or {}).get(UNSAFE) != UNSAFE for mark in found.shown.metadata.rows(ids, [UNSAFE])], np.bool_)


def looked_up(found: OpenSet, ids: list[int], shown: int, limits: Limits, *, small: bool = False) -> list[dict[str, Any]]:
    """The metadata of each id, and the pictures of the first `shown` as base64 in `image`, until there is no more room for them."""
    rows: list[dict[str, Any]] = [{} for _ in ids]
    room = limits.answered_pictures
    if found.shown.metadata is not None:
        rows = [jsonable(row) if row else {} for row in found.shown.metadata.rows(ids)]
    if found.shown.has_pictures:
        for first in range(0, min(shown, len(ids)), PICTURES_TOGETHER):
            together = slice(first, min(first + PICTURES_TOGETHER, shown))
            for row, content in zip(rows[together], found.shown.pictures(ids[together]), strict=True):
                picture = smaller(content, limits) if small and content else content
                if picture is not None and len(picture) <= min(SHOWN_BYTES, room):
                    row["image"] = base64.b64encode(picture).decode()
                    room -= len(picture)
    return rows
