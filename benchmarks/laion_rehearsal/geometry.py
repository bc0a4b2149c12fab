"""Made vectors: a stated model of what CLIP's embeddings of pictures and captions look like. Not real data.

An image is   unit(MEAN m + CONCEPT c[z] + WITHIN w B + FLAT e), its caption unit(MEAN m' + CONCEPT c[z] + HEARD WITHIN w B + FLAT_TEXT e').
m and m' are mean directions with cosine GAP_COSINE (the modality gap); c are `concepts` unit vectors in LEADING directions B, of a spectrum
that falls as 1 / rank, chosen with Zipf's frequencies (few concepts are many of the rows: uneven lists); w is of the same spectrum, and the
caption hears HEARD of it; e is noise without a preferred direction. A share DUPLICATES of the rows are near copies
(cosine above .999) of one of POPULAR pictures, as crawls have. Norms are off by about 1e-3, as of vectors normalised in half precision.

A file's rows depend on the seed and its number alone, whatever else was made.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

Float16 = npt.NDArray[np.float16]
Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]

MEAN, CONCEPT, WITHIN, FLAT = 0.70, 0.45, 0.35, 0.35  # lengths of an image's parts, before it is normalised
HEARD, FLAT_TEXT = 0.5, 0.50
GAP_COSINE = 0.2
DECAY = 1.0  # of the spectrum: rank^-DECAY
LEADING = 128  # directions that the spectrum is of
ZIPF = 0.7  # the frequency of a concept falls as rank^-ZIPF
DUPLICATES, POPULAR, CLOSE = 0.03, 2_000, 0.02
NORM_ERROR = 1e-3
IMAGES, CAPTIONS, BASE = 1, 2, 3  # streams of random numbers


@dataclass(frozen=True)
class Geometry:
    """`d` dimensions; another `seed` is another data set."""

    seed: int
    d: int = 768
    concepts: int = 8_000

    def images(self, file_id: int, rows: int, *, version: int = 0) -> Float16:
        """(rows, d) what lies in img_emb_{file_id}.npy; another `version` of a file has other rows of the same concepts."""
        rng = self._rng(IMAGES, file_id, version)
        made = MEAN * self._means[0] + self._meaning(file_id, rows, 1.0) + FLAT * self._flat(rng, rows)
        copies = np.flatnonzero(rng.random(rows) < DUPLICATES)
        of = rng.integers(0, POPULAR, len(copies))
        made[copies] = self._popular[of] + CLOSE * self._flat(rng, len(copies))
        return _stored(made, rng)

    def captions(self, file_id: int, rows: int) -> Float16:
        """(rows, d) what lies in text_emb_{file_id}.npy: row i is the caption of image i."""
        rng = self._rng(CAPTIONS, file_id)
        return _stored(MEAN * self._means[1] + self._meaning(file_id, rows, HEARD) + FLAT_TEXT * self._flat(rng, rows), rng)

    def _meaning(self, file_id: int, rows: int, heard: float) -> Float32:
        """(rows, d) what an image and its caption share."""
        rng = self._rng(BASE, file_id)
        drawn = np.searchsorted(self._popularity, rng.random(rows))
        within = rng.standard_normal((rows, LEADING), dtype=np.float32) * self._spectrum
        return np.asarray(CONCEPT * self._concepts[drawn] + (heard * WITHIN) * (within @ self._basis[:LEADING]), np.float32)

    def _flat(self, rng: np.random.Generator, rows: int) -> Float32:
        return rng.standard_normal((rows, self.d), dtype=np.float32) / np.float32(np.sqrt(self.d))

    def _rng(self, *stream: int) -> np.random.Generator:
        return np.random.Generator(np.random.SFC64([self.seed, *stream]))

    @cached_property
    def _spectrum(self) -> Float32:
        """(LEADING,) standard deviations, their squares summing to one."""
        energy = np.arange(1, LEADING + 1) ** -DECAY
        return np.asarray(np.sqrt(energy / energy.sum()), np.float32)

    @cached_property
    def _basis(self) -> Float32:
        """(LEADING + 2, d) orthonormal rows: the directions of the spectrum, turned away from the axes, and two for the means."""
        drawn = self._rng(0).standard_normal((self.d, LEADING + 2), dtype=np.float32)
        return np.ascontiguousarray(np.linalg.qr(drawn)[0].T)

    @cached_property
    def _means(self) -> tuple[Float32, Float32]:
        image, other = self._basis[-1], self._basis[-2]
        return image, np.asarray(GAP_COSINE * image + np.sqrt(1 - GAP_COSINE**2) * other, np.float32)

    @cached_property
    def _concepts(self) -> Float32:
        drawn = self._rng(0, 1).standard_normal((self.concepts, LEADING), dtype=np.float32) * self._spectrum
        return _unit(np.asarray(drawn @ self._basis[:LEADING], np.float32))

    @cached_property
    def _popularity(self) -> npt.NDArray[np.float64]:
        """(concepts,) the cumulated frequencies."""
        frequency = np.arange(1, self.concepts + 1) ** -ZIPF
        return np.cumsum(frequency / frequency.sum())

    @cached_property
    def _popular(self) -> Float32:
        """(POPULAR, d) the pictures that the copies are of."""
        rng = self._rng(0, 2)
        concepts = self._concepts[np.searchsorted(self._popularity, rng.random(POPULAR))]
        return _unit(MEAN * self._means[0] + CONCEPT * concepts + np.hypot(WITHIN, FLAT) * self._flat(rng, POPULAR))

    def stated(self, rows: int = 2_000) -> dict[str, float]:
        """What the model comes to: mean cosines and the distance of both clouds' centres, of the pairs of a file."""
        images, captions = (_unit(made.astype(np.float32)) for made in (self.images(0, rows), self.captions(0, rows)))
        norms = np.linalg.norm(self.images(0, rows).astype(np.float32), axis=1)
        apart = np.roll(np.arange(rows), 1)
        return {
            "cosine of a pair": float((images * captions).sum(1).mean()),
            "of an image and another's caption": float((images * captions[apart]).sum(1).mean()),
            "of two images": float((images * images[apart]).sum(1).mean()),
            "of two captions": float((captions * captions[apart]).sum(1).mean()),
            "modality gap": float(np.linalg.norm(images.mean(0) - captions.mean(0))),
            "mean error of a norm": float(np.abs(norms - 1).mean()),
        }


def _unit(x: Float32) -> Float32:
    return np.asarray(x / np.linalg.norm(x, axis=1, keepdims=True), np.float32)


def _stored(made: Float32, rng: np.random.Generator) -> Float16:
    """As float16, of norms that are off by about NORM_ERROR."""
    off = 1 + NORM_ERROR * rng.standard_normal((len(made), 1), dtype=np.float32)
    return (_unit(made) * off).astype(np.float16)
