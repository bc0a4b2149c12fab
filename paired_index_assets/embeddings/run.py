"""Samples -> embeddings: float16 parts, row-aligned with a Parquet of keys and outcomes, resumable part by part.

Several runs can share the parts; a run that finds or makes all of them describes the set. A part counts as done when its .npy and its
Parquet are there and the Parquet names what it was made from. Old Parquet is removed before a part is made again, and the set's JSON
before the first: a crash at any point leaves nothing that looks finished and is not.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Generic

from upath import UPath

from paired_index_assets.embeddings.decoding import ImagePool, Prepared, default_workers
from paired_index_assets.embeddings.encoders import Encoder
from paired_index_assets.embeddings.fates import Fates
from paired_index_assets.embeddings.metadata import finished_part
from paired_index_assets.embeddings.modality import Captions, Images
from paired_index_assets.embeddings.part import PartWriter
from paired_index_assets.embeddings.sets import SetPart, write_set
from paired_index_assets.errors import BadInput
from paired_index_assets.files.locks import one_of_writers, only_writer
from paired_index_assets.files.storage import digest_of_parts
from paired_index_assets.layout import BuildRoot
from paired_index_assets.progress import Progress, silent
from paired_index_assets.readers.sample import DEFAULT_PART_ROWS, ModalityName, Source, SourcePart
from paired_index_assets.shares import WHOLE, Share

FORMAT = "2"  # change it when the same input gives other files
DEFAULT_BATCH = 256


@dataclass(frozen=True)
class EmbedSummary:
    """What a run made. `bad` counts rows by reason; the duration is of this run, reused parts cost none of it.

    stamp: names what all parts of the set are made from, whoever made them."""

    modality: ModalityName
    model: str
    rows: int
    dimensions: int
    parts: int
    reused_parts: int
    bytes: int
    seconds: float
    rows_per_s: float
    stamp: str
    fates: Fates = field(default_factory=Fates)

    @property
    def bad(self) -> dict[str, int]:
        return self.fates.bad

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
    share: Share = WHOLE,
    progress: Progress = silent,
) -> EmbedSummary:
    """Write img_emb/ and metadata/ parts and images.json under ``root.embeddings``; finished parts of the same input are kept.

    `workers` processes read and decode (0: this process; None: `default_workers`). A bad picture has a zero row, its reason in `outcome`.
    A run with a `share` of the parts writes no images.json; one without, when all have ended, finds the parts and does.
    Raises BadInput if the source has no images or no samples, Busy if another run writes the same set (with a `share`: all of it).
    """
    with ImagePool(encoder, default_workers() if workers is None else workers) as pool:
        writer = PartWriter(Images(encoder, pool), source, batch_size)
        return _Run(writer, root, share, progress).make(part_rows)


def embed_captions(
    source: Source,
    encoder: Encoder,
    root: BuildRoot,
    *,
    part_rows: int = DEFAULT_PART_ROWS,
    batch_size: int = DEFAULT_BATCH,
    share: Share = WHOLE,
    progress: Progress = silent,
) -> EmbedSummary:
    """Write text_emb/ and text_metadata/ parts and captions.json under ``root.embeddings``, as `embed_images` does for pictures."""
    return _Run(PartWriter(Captions(encoder), source, batch_size), root, share, progress).make(part_rows)


def part_fingerprint(source: Source, part: SourcePart, modality: ModalityName, model: str, dimensions: int) -> str:
    """Names what a part of a set is made from; it is the part's `stamp`, and is written into its Parquet."""
    kept = ", ".join(f"{f.name} {f.type}" for f in source.columns)
    return digest_of_parts(FORMAT, modality, model, str(dimensions), kept, part.stamp)


@dataclass
class _Run(Generic[Prepared]):
    writer: PartWriter[Prepared]
    root: BuildRoot
    share: Share
    progress: Progress
    done: int = 0
    total: int = 0
    made: int = 0
    started: float = 0.0

    def make(self, part_rows: int) -> EmbedSummary:
        modality, source, batch_size = self.writer.modality.name, self.writer.source, self.writer.batch_size
        if modality not in source.has:
            raise BadInput(f"{source.name}: expected {modality}, found {' and '.join(sorted(source.has))} only")
        if part_rows < 1 or batch_size < 1:
            raise BadInput(f"expected part_rows and batch_size of at least 1, found {part_rows} and {batch_size}")
        alone = only_writer if self.share == WHOLE else one_of_writers
        with alone(self.root.embeddings / f".{modality}.lock"):
            return self._make(part_rows)

    def _make(self, part_rows: int) -> EmbedSummary:
        self.started = time.monotonic()
        source, encoder, modality = self.writer.source, self.writer.modality.encoder, self.writer.modality.name
        all_parts = source.parts(part_rows)
        if not all_parts:
            raise BadInput(f"{source.name}: expected samples, found none")
        numbers = self.share.pieces(len(all_parts))
        mine = [all_parts[number] for number in numbers]
        parts: list[SetPart] = []
        found = Fates()
        reused = 0
        for number, part in zip(numbers, mine, strict=True):
            self.total = _estimate(mine, [p.rows for p in parts])
            made, fates, kept = self._part(number, part)
            parts.append(made)
            found.add(fates)
            reused += kept
        if self.share == WHOLE:
            self._describe(parts)
        rows, seconds = found.rows, time.monotonic() - self.started
        self.progress(f"embedding {modality}", rows, rows)
        return EmbedSummary(
            modality,
            encoder.identity,
            rows=rows,
            dimensions=encoder.dimensions,
            parts=len(parts),
            reused_parts=reused,
            bytes=sum(p.path.stat().st_size for p in parts),
            seconds=seconds,
            rows_per_s=self.made / seconds if seconds else 0.0,
            stamp=digest_of_parts(*map(self._fingerprint, all_parts)),
            fates=found,
        )

    def _part(self, number: int, part: SourcePart) -> tuple[SetPart, Fates, bool]:
        """Part `number`, what became of its samples, and whether it was there already."""
        names, folder = self.writer.modality, self.root.embeddings
        vectors = folder / names.vectors / f"{names.vectors}_{number:04d}.npy"
        metadata = folder / names.metadata / f"{names.metadata}_{number:04d}.parquet"
        fingerprint = self._fingerprint(part)
        fates = finished_part(vectors, metadata, fingerprint)
        if kept := fates is not None:
            self.done += fates.rows
            self.progress(f"embedding {self.writer.modality.name}", self.done, max(self.total, self.done))
        else:
            self._description.unlink(missing_ok=True)
            metadata.unlink(missing_ok=True)
            fates = self.writer.write(part, vectors, metadata, fingerprint, self._tell)
        return SetPart(vectors, fates.rows, fingerprint, metadata), fates, kept

    def _describe(self, parts: list[SetPart]) -> None:
        modality, folder = self.writer.modality, self.root.embeddings
        if not sum(p.rows for p in parts):
            raise BadInput(f"{self.writer.source.name}: expected samples, found none")
        for name, suffix in ((modality.vectors, "npy"), (modality.metadata, "parquet")):  # of a longer run before this one
            for stale in (folder / name).glob(f"{name}_*.{suffix}"):
                if stale.stem.removeprefix(f"{name}_").isdigit() and int(stale.stem.removeprefix(f"{name}_")) >= len(parts):
                    stale.unlink()
        write_set(self._description, parts, model=modality.encoder.identity, modality=modality.name, cache=self.root.cache)

    @property
    def _description(self) -> UPath:
        return self.root.embedding_set(self.writer.modality.name)

    def _fingerprint(self, part: SourcePart) -> str:
        modality = self.writer.modality
        return part_fingerprint(self.writer.source, part, modality.name, modality.encoder.identity, modality.encoder.dimensions)

    def _tell(self, rows: int) -> None:
        self.done += rows
        self.made += rows
        rate = self.made / max(time.monotonic() - self.started, 1e-9)
        total = max(self.total, self.done)
        left = round((total - self.done) / rate)
        self.progress(f"embedding {self.writer.modality.name}", self.done, total, rows_per_s=round(rate, 1), seconds_left=left)


def _estimate(parts: list[SourcePart], finished: list[int]) -> int:
    """Rows in all; parts that do not know theirs are taken to be like the mean of the finished ones."""
    mean = sum(finished) // len(finished) if finished else 0
    return sum(finished) + sum(mean if p.rows is None else p.rows for p in parts[len(finished) :])
