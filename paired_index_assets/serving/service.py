"""What the server does with a request, without HTTP: clip-retrieval's knn-service on a sharded index.

Request and response fields are those of clip-retrieval 2.45 (`clip_back.KnnService`, `ClipClient`). Of its filters, `deduplicate` drops
rows whose stored codes score exactly alike, and `use_safety_model` drops rows whose metadata says NSFW (LAION's column); the other
models it may load (violence, aesthetics) are not here, and asking for them changes nothing.
"""

from __future__ import annotations

import base64
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from upath import UPath

from paired_index_assets.embeddings.decoding import prepare_image
from paired_index_assets.embeddings.encoders import Encoder
from paired_index_assets.errors import BadInput, Busy
from paired_index_assets.layout import BuildRoot
from paired_index_assets.readers.sample import HeldImage
from paired_index_assets.rows import Float32, Int64
from paired_index_assets.search.filters import Filter
from paired_index_assets.search.rerank import Originals
from paired_index_assets.search.sharded import ShardedIndex
from paired_index_assets.search.shardset import ServedStamp
from paired_index_assets.serving.beside import filter_of, originals_of
from paired_index_assets.serving.limits import Limits
from paired_index_assets.serving.pictures import SHOWN_BYTES
from paired_index_assets.serving.reloading import Reloading, watched
from paired_index_assets.serving.requests import BadRequest, KnnRequest, MetadataRequest, picture_bytes
from paired_index_assets.serving.results import jsonable
from paired_index_assets.serving.sent import check_size
from paired_index_assets.serving.shown import Inputs, Shown, remembered, shown_of
from paired_index_assets.shards.record import read_record

LOG = logging.getLogger(__name__)
OPENINGS = 5  # tries at a set that is being replaced
PICTURES_TOGETHER = 64
UNSAFE = "NSFW"  # LAION's column, and the value in it that means so

Prepared = npt.NDArray[Any]
Stage = Callable[[str], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Searchable:
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


class SearchService:
    """Blocking, safe to call from many threads. `stage` wraps each step of a request, for timing."""

    def __init__(
        self,
        sets: Reloading[Searchable],
        encoder: Encoder | None,
        *,
        name: str = "images",
        nprobe: int | None = None,
        limits: Limits | None = None,
        fetch: Callable[[str], bytes] | None = None,
    ) -> None:
        self.sets, self.encoder, self.name, self.nprobe = sets, encoder, name, nprobe
        self.limits = limits or Limits()
        self._fetch = fetch
        self._encoding = threading.Lock()  # a model uses all cores for one batch

    @classmethod
    def of_build(
        cls,
        root: str | Path | UPath | BuildRoot,
        encoder: Encoder | None,
        *,
        partial: bool = False,
        texts: str | None = None,
        images: str | None = None,
        name: str = "images",
        nprobe: int | None = None,
        limits: Limits | None = None,
        fetch: Callable[[str], bytes] | None = None,
    ) -> SearchService:
        """Serve the build at `root` and follow its rebuilds.

        encoder: the model the index was built with (BadInput for another), None if only vectors will be sent. texts: Parquet whose row i
        describes id i, for builds without metadata of their own. images: the pictures as they were given to the build, to show them.
        fetch: how to get the bytes behind an `image_url`; None refuses them, since a server that fetches what strangers name reaches
        into its own network.
        """
        build = BuildRoot.at(root)
        known = remembered(build)  # what the build itself says may change with it
        inputs = Inputs(None if images == known.get("images") else images, None if texts == known.get("caption_texts") else texts)

        def opened(before: Searchable | None) -> Searchable:
            stamp = ServedStamp(build)
            for _ in range(OPENINGS):
                found = stamp()
                index = ShardedIndex.open(build, partial=partial)
                records = [record for place in index.places if (record := read_record(place)) is not None]
                if stamp() == found:  # else a shard was replaced meanwhile, and its record with it
                    break
            else:
                raise Busy(f"{build.root}: its shards are being replaced faster than they can be opened")
            if encoder is not None:
                check_encoder(encoder, index)
            shown = shown_of(build, [file for record in records for file in record.files], inputs, before.shown if before else None)
            for warning in shown.warnings:
                LOG.warning("%s", warning)
            return Searchable(index, shown)

        return cls(Reloading(opened, watched(build)), encoder, name=name, nprobe=nprobe, limits=limits, fetch=fetch)

    def vector(self, request: KnnRequest, found: Searchable, prepared: Prepared | None = None) -> Float32:
        """(1, d) of what is asked for; `prepared` is its picture (`picture`), where it has one. Raises BadRequest."""
        if request.text:
            return self._encoded_text(request.text)
        if prepared is not None:
            with self._encoding:
                return self._needs_encoder().encode_images(prepared[None])
        d = found.index.d
        if len(given := request.embedding_input or []) != d:
            raise BadRequest(f"embedding_input: expected {d} numbers, found {len(given)}")
        with np.errstate(over="ignore"):
            vector = np.asarray(given, np.float64).astype(np.float32)
            length = np.linalg.norm(vector)
        if not np.isfinite(length):
            raise BadRequest("embedding_input: expected finite numbers, found an infinite length")
        if length == 0:
            raise BadRequest("embedding_input: expected a direction, found zeros only")
        return vector[None]

    def picture(self, request: KnnRequest) -> Prepared:
        """The picture that is looked for, as the model takes it. Raises BadRequest."""
        encoder = self._needs_encoder()
        if request.image:
            content = picture_bytes(request.image)
        elif self._fetch is None:
            raise BadRequest("image_url: this server fetches nothing; send the picture itself in image, base64-encoded")
        else:
            content = self._fetch(request.image_url or "")
        check_size(content, self.limits)
        prepared, outcome = prepare_image(encoder, HeldImage(content))
        if prepared is None:
            raise BadRequest(f"image: expected a PNG, JPEG, WebP, GIF, BMP or TIFF picture, found {outcome}")
        return prepared

    def knn(self, request: KnnRequest, found: Searchable, vector: Float32, stage: Stage = lambda _: nullcontext()) -> list[dict[str, Any]]:
        """The rows nearest to `vector` (1, d): ``{"id", "similarity", ...metadata, "image"}``, best first; only the first `num_images`
        have a picture. Raises BadRequest."""
        count = self.checked(request)
        with stage("search"):
            scores, ids = self._searched(request, found, vector, count)
        hits = list(_hits(scores[0], ids[0].tolist(), request.deduplicate))
        with stage("metadata"):
            return _described(hits, found, request.num_images, self.limits.answered_pictures, safe=request.use_safety_model)

    def _searched(self, request: KnnRequest, found: Searchable, vector: Float32, count: int) -> tuple[Float32, Int64]:
        """As `ShardedIndex.search`; a condition or a rerank that can not be met is the client's to mend."""
        index = found.index
        if not request.where and not request.rerank:
            return index.search(vector, count, nprobe=self.nprobe)
        try:
            where = self._condition(request.where, found) if request.where else None
            originals = found.originals() if request.rerank else None
            return index.search(vector, count, nprobe=self.nprobe, where=where, rerank=request.rerank, originals=originals)
        except BadInput as error:
            raise BadRequest(str(error)) from error

    def _condition(self, text: str, found: Searchable) -> Filter:
        if text not in found.conditions:
            if len(found.conditions) >= self.limits.conditions:
                raise BadRequest(f"where: this server keeps {self.limits.conditions} conditions, which are taken; ask one of those")
            files = found.shown.metadata.files if found.shown.metadata is not None else ()
            found.conditions[text] = filter_of(found.index.build, text, files=files)
        return found.conditions[text]

    def checked(self, request: KnnRequest) -> int:
        """How many results `request` is for. Raises BadRequest for what cannot be answered, whatever the query is."""
        self._check_name(request.indice_name)
        count = request.num_images if request.num_result_ids is None else request.num_result_ids
        if request.modality == "text":
            raise BadRequest("modality: expected image, found text; this index holds images only")
        if request.use_mclip:
            raise BadRequest("use_mclip: expected false; this index has no multilingual model")
        if count > self.limits.results:
            raise BadRequest(f"num_result_ids: expected at most {self.limits.results}, found {count}")
        return count

    def metadata(self, request: MetadataRequest) -> list[dict[str, Any]]:
        """``{"id", "metadata"}`` of each id that has any."""
        self._check_name(request.indice_name)
        if len(request.ids) > self.limits.results:
            raise BadRequest(f"ids: expected at most {self.limits.results}, found {len(request.ids)}")
        found = self.sets.current()
        rows = _looked_up(found, request.ids, len(request.ids), self.limits.answered_pictures)
        return [{"id": row_id, "metadata": row} for row_id, row in zip(request.ids, rows, strict=True) if row]

    def ready_set(self) -> Searchable:
        """The set to answer one request from. Raises Busy where it has no vectors yet."""
        found = self.sets.current()
        if not found.index.ntotal:
            raise Busy("no shard can be searched yet")
        return found

    def health(self) -> dict[str, Any]:
        """What `/healthz` says: `ready` if a search works now, which is tried."""
        index = self.sets.current().index
        try:
            ready = bool(index.ntotal) and len(index.search(np.full(index.d, index.d**-0.5, np.float32), 1, nprobe=1)[1]) == 1
        except Exception:  # whatever it is, it is what requests meet
            LOG.exception("a search to see whether searches work")
            ready = False
        return {
            "ready": ready,
            "status": "ok" if ready and not index.missing and self.sets.problem is None else "degraded",
            "index": self.name,
            "vectors": index.ntotal,
            "dimensions": index.d,
            "shards": len(index.shards),
            "missing_shards": sorted(index.missing),
            "trained": index.fingerprint,
            "model": index.model,
            "takes_text": self.encoder is not None,
            "reloads": self.sets.reloads,
            "newer_set": None if self.sets.problem is None else "cannot be opened yet; the server's log says why",
        }

    def _check_name(self, name: str | None) -> None:
        if name not in (None, "", self.name):
            raise BadRequest(f"indice_name: expected {self.name}, found {str(name)[:100]}")

    def _encoded_text(self, text: str) -> Float32:
        encoder = self._needs_encoder()
        if not text.strip() or len(text) > self.limits.text:
            raise BadRequest(f"text: expected 1 to {self.limits.text} characters, found {len(text)}")
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise BadRequest("text: expected Unicode text, found half a surrogate pair")
        with self._encoding:
            return encoder.encode_texts([text])

    def _needs_encoder(self) -> Encoder:
        if self.encoder is None:
            raise BadRequest("this server has no model: send a vector in embedding_input")
        return self.encoder


def check_encoder(encoder: Encoder, index: ShardedIndex) -> None:
    """Raises BadInput unless `encoder` is the one that made the vectors of `index`."""
    if encoder.identity != index.model:
        found = f"built with {index.model}" if index.model else "built from features of an unnamed model"
        raise BadInput(f"encoder {encoder.identity}: this index was {found}, and their vectors cannot be compared; give that model")


def _hits(scores: Float32, ids: list[int], deduplicate: bool) -> Iterator[tuple[int, float]]:
    last = None
    for row_id, score in zip(ids, scores.tolist(), strict=True):
        if row_id >= 0 and not (deduplicate and score == last):
            yield row_id, score
            last = score


def _described(hits: list[tuple[int, float]], found: Searchable, shown: int, room: int, *, safe: bool) -> list[dict[str, Any]]:
    if safe and found.shown.metadata is not None:
        marks = found.shown.metadata.rows([row_id for row_id, _ in hits], [UNSAFE])
        hits = [hit for hit, mark in zip(hits, marks, strict=True) if (mark or {}).get(UNSAFE) != UNSAFE]
    rows = _looked_up(found, [row_id for row_id, _ in hits], shown, room)
    return [{**row, "id": row_id, "similarity": score} for (row_id, score), row in zip(hits, rows, strict=True)]


def _looked_up(found: Searchable, ids: list[int], shown: int, room: int) -> list[dict[str, Any]]:
    """The metadata of each id, and the pictures of the first `shown` as base64 in `image`, until `room` bytes are full of them."""
    rows: list[dict[str, Any]] = [{} for _ in ids]
    if found.shown.metadata is not None:
        rows = [jsonable(row) if row else {} for row in found.shown.metadata.rows(ids)]
    if found.shown.has_pictures:
        for first in range(0, min(shown, len(ids)), PICTURES_TOGETHER):
            together = slice(first, min(first + PICTURES_TOGETHER, shown))
            for row, content in zip(rows[together], found.shown.pictures(ids[together]), strict=True):
                if content is not None and len(content) <= min(SHOWN_BYTES, room):
                    row["image"] = base64.b64encode(content).decode()
                    room -= len(content)
    return rows
