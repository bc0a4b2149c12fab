"""The two modalities: what their files are called, how samples become what the encoder takes, how that is encoded."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, ClassVar, Generic

import numpy as np
import numpy.typing as npt

from paired_index_assets.embeddings.decoding import CHUNK, ImagePool, Prepared, PreparedSamples
from paired_index_assets.embeddings.encoders import Encoder
from paired_index_assets.readers.captions import OK, caption_outcome
from paired_index_assets.readers.sample import ModalityName, Sample, SourcePart
from paired_index_assets.rows import Float32


class Modality(ABC, Generic[Prepared]):
    """One half of the samples. `vectors` and `metadata` name its folders and files under embeddings/, as clip-retrieval does."""

    name: ClassVar[ModalityName]
    vectors: ClassVar[str]
    metadata: ClassVar[str]

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder

    def blocks(self, part: SourcePart) -> Iterator[PreparedSamples[Prepared]]:
        """The samples of a part, prepared, in their order."""
        return self.prepare(_chunks(part.read(self.name == "images"), CHUNK))

    @abstractmethod
    def prepare(self, chunks: Iterable[list[Sample]]) -> Iterator[PreparedSamples[Prepared]]:
        """A block a chunk of samples."""

    @abstractmethod
    def encode(self, pieces: Sequence[Prepared]) -> Float32:
        """What several blocks prepared, n samples together, as (n, dimensions) unit rows."""


class Images(Modality[npt.NDArray[Any]]):
    """Pictures, read and decoded by the workers of a pool."""

    name, vectors, metadata = "images", "img_emb", "metadata"

    def __init__(self, encoder: Encoder, pool: ImagePool) -> None:
        super().__init__(encoder)
        self._pool = pool

    def prepare(self, chunks: Iterable[list[Sample]]) -> Iterator[PreparedSamples[npt.NDArray[Any]]]:
        return self._pool.prepare(chunks)

    def encode(self, pieces: Sequence[npt.NDArray[Any]]) -> Float32:
        return self.encoder.encode_images(np.concatenate(pieces))


class Captions(Modality[list[str]]):
    """Captions, of which those that are no text are refused."""

    name, vectors, metadata = "captions", "text_emb", "text_metadata"

    def prepare(self, chunks: Iterable[list[Sample]]) -> Iterator[PreparedSamples[list[str]]]:
        for chunk in chunks:
            outcomes = [s.problem or caption_outcome(s.caption) for s in chunk]
            good = [s.caption for s, outcome in zip(chunk, outcomes, strict=True) if outcome == OK and s.caption is not None]
            yield PreparedSamples([replace(s, image=None) for s in chunk], outcomes, good or None)

    def encode(self, pieces: Sequence[list[str]]) -> Float32:
        return self.encoder.encode_texts([text for piece in pieces for text in piece])


def folder_of(modality: ModalityName) -> str:
    """The folder of a modality's .npy files under embeddings/."""
    return {kind.name: kind.vectors for kind in (Images, Captions)}[modality]


def _chunks(samples: Iterator[Sample], size: int) -> Iterator[list[Sample]]:
    while chunk := list(islice(samples, size)):
        yield chunk
