"""One part of an embedding set: samples in, a .npy and its Parquet out, each under its name only when it is whole.

sample -> prepared picture (or caption) -> batch -> unit rows -> img_emb/img_emb_0000.npy, metadata/metadata_0000.parquet
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic

import numpy as np
from upath import UPath

from paired_index_assets.embeddings.decoding import Prepared
from paired_index_assets.embeddings.encoders import Encoder
from paired_index_assets.embeddings.fates import Fates
from paired_index_assets.embeddings.metadata import FLUSH_ROWS, MetadataWriter
from paired_index_assets.embeddings.modality import Modality
from paired_index_assets.errors import BadInput, PairedIndexError
from paired_index_assets.files.npy import StreamedNpy
from paired_index_assets.files.storage import atomic_file
from paired_index_assets.readers.captions import OK
from paired_index_assets.readers.sample import Sample, Source, SourcePart
from paired_index_assets.rows import Float32


@dataclass(frozen=True)
class PartWriter(Generic[Prepared]):
    """Embeds samples of one modality, `batch_size` good ones at a time."""

    modality: Modality[Prepared]
    source: Source
    batch_size: int

    def write(self, part: SourcePart, vectors: UPath, metadata: UPath, fingerprint: str, tell: Callable[[int], None]) -> Fates:
        """Embed one part into (rows, dimensions) float16; what became of its samples. `tell` gets the rows of each written batch.

        A thread (or `lanes` of them) encodes batch n while batch n+1 is being read and decoded. Raises BadInput if the source has not the
        rows it promised, PairedIndexError if the encoder gives other shapes or NaN, OutOfDisk.
        """
        encoder = self.modality.encoder
        lanes: int = getattr(encoder, "lanes", 1)
        with (
            atomic_file(metadata) as metadata_file,
            atomic_file(vectors) as vector_file,
            StreamedNpy(vector_file, encoder.dimensions) as npy,
            MetadataWriter(metadata_file, self.source.columns, fingerprint) as table,
            ThreadPoolExecutor(lanes) as encoding,
        ):
            waiting: deque[tuple[list[Sample], list[str], Future[Float32] | None]] = deque()

            def write() -> None:
                samples, reasons, future = waiting.popleft()
                good = np.array([reason == OK for reason in reasons])
                block = np.zeros((len(samples), encoder.dimensions), np.float16)
                if future is not None:
                    block[good] = _checked(future.result(), int(good.sum()), encoder)
                npy.append(block)
                table.append(samples, reasons)
                tell(len(samples))

            for samples, reasons, pieces in self._batches(part):
                waiting.append((samples, reasons, encoding.submit(self.modality.encode, pieces) if pieces else None))
                if len(waiting) > lanes + 1:
                    write()
            while waiting:
                write()
            if part.rows is not None and npy.rows != part.rows:
                raise BadInput(f"{self.source.name}: expected {part.rows} rows, found {npy.rows}; it changed while being read, start again")
        return table.fates

    def _batches(self, part: SourcePart) -> Iterator[tuple[list[Sample], list[str], list[Prepared]]]:
        """Blocks joined until `batch_size` good samples are together; a part's border ends a batch, so resuming repeats the same ones."""
        samples: list[Sample] = []
        reasons: list[str] = []
        pieces: list[Prepared] = []
        for block in self.modality.blocks(part):
            samples += block.samples
            reasons += block.outcomes
            if block.good is not None:
                pieces.append(block.good)
            if sum(map(len, pieces)) >= self.batch_size or len(samples) >= FLUSH_ROWS:
                yield samples, reasons, pieces
                samples, reasons, pieces = [], [], []
        if samples:
            yield samples, reasons, pieces


def _checked(rows: Float32, expected: int, encoder: Encoder) -> Float32:
    if rows.shape != (expected, encoder.dimensions) or not np.isfinite(rows).all():
        raise PairedIndexError(
            f"encoder {encoder.identity}: expected ({expected}, {encoder.dimensions}) finite vectors, found {rows.shape}"
            f"{'' if np.isfinite(rows).all() else ' with NaN or infinity'}"
        )
    return rows
