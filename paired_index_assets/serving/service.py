"""What the server does with a request, without HTTP: clip-retrieval's knn-service on a sharded index.

Request and response fields are those of clip-retrieval 2.45 (`clip_back.KnnService`, `ClipClient`). Of its filters, `deduplicate` keeps one
of rows whose stored vectors are alike (serving.duplicates), and `use_safety_model` drops rows whose metadata says NSFW (LAION's column);
the other models it may load (violence, aesthetics) are not here, and asking for them changes nothing.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from upath import UPath

from paired_index_assets.builds.metadata import MetadataFile
from paired_index_assets.embeddings.decoding import prepare_image
from paired_index_assets.embeddings.encoders import Encoder
from paired_index_assets.errors import BadInput, Busy, MissingInput
from paired_index_assets.layout import BuildRoot
from paired_index_assets.readers.sample import HeldImage
from paired_index_assets.rows import Float32, Int64
from paired_index_assets.search.filters import Filter, parse
from paired_index_assets.search.sharded import ShardedIndex
from paired_index_assets.search.shardset import ServedStamp
from paired_index_assets.serving.beside import filter_of
from paired_index_assets.serving.duplicates import distinct
from paired_index_assets.serving.limits import Limits
from paired_index_assets.serving.open_set import OpenSet, check_encoder, looked_up, safe, tried
from paired_index_assets.serving.reloading import Reloading, watched
from paired_index_assets.serving.requests import BadRequest, KnnRequest, MetadataRequest, picture_bytes
from paired_index_assets.serving.sent import check_size
from paired_index_assets.serving.shown import Inputs, remembered, shown_of
from paired_index_assets.shards.record import read_record

LOG = logging.getLogger(__name__)
OPENINGS = 5  # tries at a set that is being replaced

Prepared = npt.NDArray[Any]
Stage = Callable[[str], AbstractContextManager[Any]]


class SearchService:
    """Blocking, safe to call from many threads. `stage` wraps each step of a request, for timing."""

    name = "images"  # of the one index, as clip-retrieval's requests name it

    def __init__(
        self,
        sets: Reloading[OpenSet],
        encoder: Encoder | None,
        *,
        nprobe: int | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.sets, self.encoder, self.nprobe = sets, encoder, nprobe
        self.limits = limits or Limits()
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
        nprobe: int | None = None,
        limits: Limits | None = None,
    ) -> SearchService:
        """Serve the build at `root` and follow its rebuilds.

        encoder: the model the index was built with (BadInput for another), None if only vectors will be sent. texts: Parquet whose row i
        describes id i, for builds without metadata of their own. images: the pictures as they were given to the build, to show them.
        """
        build = BuildRoot.at(root)
        known = remembered(build)  # what the build itself says may change with it
        inputs = Inputs(None if images == known.get("images") else images, None if texts == known.get("caption_texts") else texts)

        def opened(before: OpenSet | None) -> OpenSet:
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
            files = [file for record in records for file in record.files]
            shown = shown_of(build, files, inputs, before.shown if before else None, encoder)
            tried(index)  # what a first search compiles and maps, no client waits for
            for warning in shown.warnings:
                LOG.warning("%s", warning)
            return OpenSet(index, shown)

        return cls(Reloading(opened, watched(build)), encoder, nprobe=nprobe, limits=limits)

    def vector(self, request: KnnRequest, found: OpenSet, prepared: Prepared | None = None) -> Float32:
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
        if not request.image:  # a server that fetches what strangers name reaches into its own network
            raise BadRequest("image_url: this server fetches nothing; send the picture itself in image, base64-encoded")
        content = picture_bytes(request.image)
        check_size(content, self.limits)
        prepared, outcome = prepare_image(encoder, HeldImage(content))
        if prepared is None:
            raise BadRequest(f"image: expected a PNG, JPEG, WebP, GIF, BMP or TIFF picture, found {outcome}")
        return prepared

    def knn(self, request: KnnRequest, found: OpenSet, vector: Float32, stage: Stage = lambda _: nullcontext()) -> list[dict[str, Any]]:
        """The rows nearest to `vector` (1, d): ``{"id", "similarity", ...metadata, "image"}``, best first; only the first `num_images`
        have a picture. Raises BadRequest."""
        count = self.checked(request)
        with stage("search"):
            scores, ids = self._searched(request, found, vector, count)
            vectors = None
            if request.deduplicate or request.with_vectors:
                vectors = found.index.stored(vector, ids[0], nprobe=self.nprobe)
        places = np.flatnonzero(ids[0] >= 0)
        if request.deduplicate and vectors is not None:
            places = places[distinct(vectors[places])]
        with stage("metadata"):
            if request.use_safety_model:
                places = places[safe(found, ids[0][places].tolist())]
            places = places[request.offset :]
            rows = looked_up(found, ids[0][places].tolist(), request.num_images, self.limits, small=request.small_pictures)
        hits = zip(places, rows, strict=True)
        answer = [{**row, "id": int(ids[0][place]), "similarity": float(scores[0][place])} for place, row in hits]
        if request.with_vectors and vectors is not None:
            for hit, place in zip(answer, places, strict=True):
                if vectors[place].any():
                    hit["vector"] = [round(value, 4) for value in vectors[place].tolist()]
        return answer

    def _searched(self, request: KnnRequest, found: OpenSet, vector: Float32, count: int) -> tuple[Float32, Int64]:
        """As `ShardedIndex.search`. Raises BadRequest for a condition that is none, or embeddings that are not at hand."""
        if not request.where and not request.rerank:
            return found.index.search(vector, count, nprobe=self.nprobe)
        where = self._condition(request.where, found) if request.where else None
        try:
            originals = found.originals() if request.rerank else None
        except MissingInput as error:
            LOG.warning("%s", error)
            raise BadRequest("rerank: this server has no embeddings at hand to score by; ask without it") from error
        return found.index.search(vector, count, nprobe=self.nprobe, where=where, rerank=request.rerank, originals=originals)

    def _condition(self, text: str, found: OpenSet) -> Filter:
        """The rows that meet a condition; of those asked before, the last `Limits.conditions` are kept."""
        if text not in found.conditions:
            try:
                parse(text)
            except BadInput as error:
                raise BadRequest(str(error)) from error
            files = found.shown.metadata.files if found.shown.metadata is not None else ()
            if not files:
                raise BadRequest("where: this index has no metadata to hold a condition against")
            made = self._made_filter(found, text, files)
            while len(found.conditions) >= self.limits.conditions:
                found.conditions.pop(next(iter(found.conditions)), None)
            found.conditions[text] = made
            return made
        return found.conditions[text]

    def _made_filter(self, found: OpenSet, text: str, files: Sequence[MetadataFile]) -> Filter:
        try:
            return filter_of(found.index.build, text, files=files)
        except MissingInput:
            raise
        except BadInput as error:
            if any(file.url in str(error) for file in files):
                raise
            raise BadRequest(str(error)) from error  # a column that is not there, or of another type

    def checked(self, request: KnnRequest) -> int:
        """How many results to search for. Raises BadRequest for what cannot be answered, whatever the query is."""
        self._check_name(request.indice_name)
        count = request.num_images if request.num_result_ids is None else request.num_result_ids
        if request.modality == "text":
            raise BadRequest("modality: expected image, found text; this index holds images only")
        if request.use_mclip:
            raise BadRequest("use_mclip: expected false; this index has no multilingual model")
        if count > self.limits.results:
            raise BadRequest(f"num_result_ids: expected at most {self.limits.results}, found {count}")
        if request.offset + count > self.limits.results:
            raise BadRequest(f"offset: expected at most {self.limits.results} results with those skipped, found {request.offset + count}")
        return request.offset + count

    def metadata(self, request: MetadataRequest) -> list[dict[str, Any]]:
        """``{"id", "metadata"}`` of each id that has any."""
        self._check_name(request.indice_name)
        if len(request.ids) > self.limits.results:
            raise BadRequest(f"ids: expected at most {self.limits.results}, found {len(request.ids)}")
        found = self.sets.current()
        rows = looked_up(found, request.ids, len(request.ids), self.limits)
        return [{"id": row_id, "metadata": row} for row_id, row in zip(request.ids, rows, strict=True) if row]

    def ready_set(self) -> OpenSet:
        """The set to answer one request from. Raises Busy where it has no vectors yet."""
        found = self.sets.current()
        if not found.index.ntotal:
            raise Busy("no shard can be searched yet")
        return found

    def health(self) -> dict[str, Any]:
        """What `/healthz` says: `ready` if a search works now, which is tried."""
        index = self.sets.current().index
        try:
            ready = tried(index)
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
