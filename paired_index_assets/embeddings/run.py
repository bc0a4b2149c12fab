"""Samples -> embeddings: float16 parts, row-aligned with a Parquet of keys and outcomes, resumable part by part.

    sample -> prepared picture (or caption) -> batch -> unit rows -> img_emb/img_emb_0000.npy, metadata/metadata_0000.parquet

A part counts as done when its .npy and its Parquet are there and the Parquet names what it was made from. Old Parquet is removed before
a part is made again, and the set's JSON before the first: a crash at any point leaves nothing that looks finished and is not.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from upath import UPath

from paired_index_assets.embeddings.decoding import CHUNK, OK, ImagePool, default_workers
from paired_index_assets.embeddings.encoders import Encoder
from paired_index_assets.embeddings.metadata import FLUSH_ROWS, MetadataWriter, finished_outcomes
from paired_index_assets.embeddings.npy import StreamedNpy
from paired_index_assets.embeddings.sets import Modality, SetPart, write_set
from paired_index_assets.embeddings.sources import DEFAULT_PART_ROWS, Sample, Source, SourcePart
from paired_index_assets.errors import BadInput, PairedIndexError
from paired_index_assets.layout import BuildRoot
from paired_index_assets.progress import Progress, silent
from paired_index_assets.rows import Float32
from paired_index_assets.storage import atomic_file, digest_of_parts, only_writer

FORMAT = "1"  # change it when the same input gives other files
NO_CAPTION = "no caption"
EMPTY_CAPTION = "empty caption"
LONG_CAPTION = "caption too long"
MAX_CAPTION = 2000  # characters; a caption of more is a page, of which a model's 77 tokens see the head only
DEFAULT_BATCH = 256


@dataclass(frozen=True)
class _Names:
    """Files of one modality under embeddings/: clip-retrieval's names."""

    vectors: str
    metadata: str


NAMES: dict[Modality, _Names] = {"images": _Names("img_emb", "metadata"), "captions": _Names("text_emb", "text_metadata")}


@dataclass(frozen=True)
class EmbedSummary:
    """What a run made. `bad` counts rows by reason; the duration is of this run, reused parts cost none of it."""

    modality: Modality
    model: str
    rows: int
    dimensions: int
    parts: int
    reused_parts: int
    bytes: int
    seconds: float
    rows_per_s: float
    bad: dict[str, int] = field(default_factory=dict)

    @property
    def bad_rows(self) -> int:
        return sum(self.bad.values())


def embed_images(
    source: Source,
    encoder: Encoder,
    root: BuildRoot,
    *,
    part_rows: int = DEFAULT_PART_ROWS,
    workers: int | None = None,
    batch_size: int = DEFAULT_BATCH,
    progress: Progress = silent,
) -> EmbedSummary:
    """Write img_emb/ and metadata/ parts and images.json under ``root.embeddings``; finished parts of the same input are kept.

    `workers` processes read and decode (0: this process; None: `default_workers`). A bad picture has a zero row, its reason in `outcome`.
    Raises BadInput if the source has no images or no samples, Busy if another run writes the same set.
    """
    with ImagePool(encoder, default_workers() if workers is None else workers) as pool:

        def blocks(samples: Iterable[Sample]) -> Iterator[_Block]:
            # Two iterators walk the samples: the pool takes their pictures ahead, `held` keeps the rest until the pictures come back.
            held: deque[list[Sample]] = deque()

            def pictures() -> Iterator[list[Any]]:
                for chunk in _chunks(samples, CHUNK):
                    held.append([replace(s, image=None) for s in chunk])
                    yield [None if s.problem else s.image for s in chunk]

            for arrays, outcomes in pool.prepare(pictures()):
                kept = held.popleft()
                yield kept, [s.problem or outcome for s, outcome in zip(kept, outcomes, strict=True)], arrays

        return _Run("images", source, encoder, root, batch_size, progress, blocks, _joined_arrays, encoder.encode_images).make(part_rows)


def embed_captions(
    source: Source,
    encoder: Encoder,
    root: BuildRoot,
    *,
    part_rows: int = DEFAULT_PART_ROWS,
    batch_size: int = DEFAULT_BATCH,
    progress: Progress = silent,
) -> EmbedSummary:
    """Write text_emb/ and text_metadata/ parts and captions.json under ``root.embeddings``, as `embed_images` does for pictures."""

    def blocks(samples: Iterable[Sample]) -> Iterator[_Block]:
        for chunk in _chunks(samples, CHUNK):
            outcomes = [s.problem or caption_outcome(s.caption) for s in chunk]
            good = [s.caption for s, outcome in zip(chunk, outcomes, strict=True) if outcome == OK and s.caption is not None]
            yield [replace(s, image=None) for s in chunk], outcomes, good or None

    return _Run("captions", source, encoder, root, batch_size, progress, blocks, _joined_texts, encoder.encode_texts).make(part_rows)


def caption_outcome(caption: str | None) -> str:
    if caption is None:
        return NO_CAPTION
    if not caption.strip():
        return EMPTY_CAPTION
    return LONG_CAPTION if len(caption) > MAX_CAPTION else OK


_Block = tuple[list[Sample], list[str], Any]  # samples without pictures, their outcomes, what the encoder takes of the good ones (or None)
T = TypeVar("T")


def _chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, size)):
        yield chunk


def _joined_arrays(pieces: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    return np.concatenate(pieces)


def _joined_texts(pieces: list[list[str]]) -> list[str]:
    return [text for piece in pieces for text in piece]


@dataclass
class _Run:
    modality: Modality
    source: Source
    encoder: Encoder
    root: BuildRoot
    batch_size: int
    progress: Progress
    blocks: Callable[[Iterable[Sample]], Iterator[_Block]]
    join: Callable[[list[Any]], Any]
    encode: Callable[[Any], Float32]
    done: int = 0
    total: int = 0
    made: int = 0
    started: float = 0.0

    def make(self, part_rows: int) -> EmbedSummary:
        if self.modality not in self.source.has:
            raise BadInput(f"{self.source.name}: expected {self.modality}, found {' and '.join(sorted(self.source.has))} only")
        if part_rows < 1 or self.batch_size < 1:
            raise BadInput(f"expected part_rows and batch_size of at least 1, found {part_rows} and {self.batch_size}")
        folder = self.root.embeddings
        with only_writer(folder / f".{self.modality}.lock"):
            return self._make(folder, part_rows)

    def _make(self, folder: UPath, part_rows: int) -> EmbedSummary:
        self.started = time.monotonic()
        names = NAMES[self.modality]
        step = f"embedding {self.modality}"
        json_path = self.root.image_set if self.modality == "images" else self.root.caption_set
        parts: list[SetPart] = []
        bad: Counter[str] = Counter()
        reused = 0
        source_parts = self.source.parts(part_rows)
        if not source_parts:
            raise BadInput(f"{self.source.name}: expected samples, found none")
        for number, part in enumerate(source_parts):
            vectors = folder / names.vectors / f"{names.vectors}_{number:04d}.npy"
            metadata = folder / names.metadata / f"{names.metadata}_{number:04d}.parquet"
            fingerprint = self._fingerprint(part)
            self.total = _estimate(source_parts, [p.rows for p in parts])
            outcomes = finished_outcomes(vectors, metadata, fingerprint)
            if outcomes is None:
                json_path.unlink(missing_ok=True)
                metadata.unlink(missing_ok=True)
                outcomes = self._make_part(part, vectors, metadata, fingerprint)
            else:
                reused += 1
                self.done += outcomes.total()
                self.progress(step, self.done, max(self.total, self.done))
            bad += outcomes
            parts.append(SetPart(vectors, outcomes.total(), fingerprint, metadata))
        if not sum(p.rows for p in parts):
            raise BadInput(f"{self.source.name}: expected samples, found none")
        for name, suffix in ((names.vectors, "npy"), (names.metadata, "parquet")):  # of a longer run before this one
            for stale in (folder / name).glob(f"{name}_*.{suffix}"):
                if stale.stem.removeprefix(f"{name}_").isdigit() and int(stale.stem.removeprefix(f"{name}_")) >= len(parts):
                    stale.unlink()
        found = write_set(json_path, parts, model=self.encoder.identity, modality=self.modality, cache=self.root.cache)
        seconds = time.monotonic() - self.started
        self.progress(step, len(found), len(found))
        del bad[OK]
        return EmbedSummary(
            self.modality,
            self.encoder.identity,
            rows=len(found),
            dimensions=found.dimensions,
            parts=len(parts),
            reused_parts=reused,
            bytes=sum(p.path.stat().st_size for p in parts),
            seconds=seconds,
            rows_per_s=self.made / seconds if seconds else 0.0,
            bad=dict(bad.most_common()),
        )

    def _fingerprint(self, part: SourcePart) -> str:
        kept = ", ".join(f"{f.name} {f.type}" for f in self.source.columns)
        return digest_of_parts(FORMAT, self.modality, self.encoder.identity, str(self.encoder.dimensions), kept, part.stamp)

    def _make_part(self, part: SourcePart, vectors: UPath, metadata: UPath, fingerprint: str) -> Counter[str]:
        """Embed one part. A thread (or `lanes` of them) encodes batch n while batch n+1 is being read and decoded."""
        lanes: int = getattr(self.encoder, "lanes", 1)
        outcomes: Counter[str] = Counter()
        with (
            atomic_file(metadata) as metadata_file,
            atomic_file(vectors) as vector_file,
            StreamedNpy(vector_file, self.encoder.dimensions) as npy,
            MetadataWriter(metadata_file, self.source.columns, fingerprint) as table,
            ThreadPoolExecutor(lanes) as encoding,
        ):
            waiting: deque[tuple[list[Sample], list[str], Future[Float32] | None]] = deque()

            def write() -> None:
                samples, reasons, future = waiting.popleft()
                good = np.array([reason == OK for reason in reasons])
                block = np.zeros((len(samples), self.encoder.dimensions), np.float16)
                if future is not None:
                    block[good] = _checked(future.result(), int(good.sum()), self.encoder)
                npy.append(block)
                table.append(samples, reasons)
                outcomes.update(reasons)
                self._tell(len(samples))

            for samples, reasons, pieces in self._batches(part):
                waiting.append((samples, reasons, encoding.submit(self.encode, self.join(pieces)) if pieces else None))
                if len(waiting) > lanes + 1:
                    write()
            while waiting:
                write()
            if part.rows is not None and npy.rows != part.rows:
                raise BadInput(f"{self.source.name}: expected {part.rows} rows, found {npy.rows}; it changed while being read, start again")
        return outcomes

    def _batches(self, part: SourcePart) -> Iterator[tuple[list[Sample], list[str], list[Any]]]:
        """Blocks joined until `batch_size` good samples are together; a part's border ends a batch, so resuming repeats the same ones."""
        samples: list[Sample] = []
        reasons: list[str] = []
        pieces: list[Any] = []
        for more, outcomes, good in self.blocks(part.read(self.modality == "images")):
            samples += more
            reasons += outcomes
            if good is not None:
                pieces.append(good)
            if sum(map(len, pieces)) >= self.batch_size or len(samples) >= FLUSH_ROWS:
                yield samples, reasons, pieces
                samples, reasons, pieces = [], [], []
        if samples:
            yield samples, reasons, pieces

    def _tell(self, rows: int) -> None:
        self.done += rows
        self.made += rows
        rate = self.made / max(time.monotonic() - self.started, 1e-9)
        total = max(self.total, self.done)
        left = round((total - self.done) / rate)
        self.progress(f"embedding {self.modality}", self.done, total, rows_per_s=round(rate, 1), seconds_left=left)


def _estimate(parts: list[SourcePart], finished: list[int]) -> int:
    """Rows in all; parts that do not know theirs are taken to be like the mean of the finished ones."""
    mean = sum(finished) // len(finished) if finished else 0
    return sum(finished) + sum(mean if p.rows is None else p.rows for p in parts[len(finished) :])


def _checked(rows: Float32, expected: int, encoder: Encoder) -> Float32:
    if rows.shape != (expected, encoder.dimensions) or not np.isfinite(rows).all():
        raise PairedIndexError(
            f"encoder {encoder.identity}: expected ({expected}, {encoder.dimensions}) finite vectors, found {rows.shape}"
            f"{'' if np.isfinite(rows).all() else ' with NaN or infinity'}"
        )
    return rows
