"""`TrainedCodec`: vectors to bytes and back. `train_codec` fits one.

Three roundings onto the same bytes, which any faiss reads (see `formats`):

- ``faiss``: the ranges and the encoder faiss trains by itself (minimum to maximum of each dimension);
- ``nearest``: a grid of mean +- w sigma, w the one of least measured loss, each dimension to its nearest level;
- ``query``: such a grid, levels chosen to keep the scores of captions (see `rounding`).
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
import torch

from paired_index_assets.blas import single_threaded_blas
from paired_index_assets.codes.formats import CODECS, CodeFormat
from paired_index_assets.codes.grid import CodecWarning, LossOfRanking, ranges, spread_of
from paired_index_assets.codes.metric import QueryMetric, fit_metric
from paired_index_assets.codes.rounding import Rounding, feedback_matrix
from paired_index_assets.errors import BadInput
from paired_index_assets.progress import Progress, silent
from paired_index_assets.rows import Float32, UInt8, usable_rows

__all__ = ["CODECS", "ROUNDINGS", "CodecWarning", "TrainedCodec", "train_codec"]

ROUNDINGS = ("query", "nearest", "faiss")
TILE = 4096  # rows coded together, always: in another shape BLAS may sum otherwise, and a code would hang on its batch
DEVICE_TILE = 1 << 16  # the same on a torch device: some 200 launches a block of dimensions want wide rows
MOST_TILES = 8  # at once; at d = 768 each takes 60 MB
DESCENT_PASSES = 1  # a second one adds .001 of recall on icons and costs as much as all the rest

SAMPLE_ROWS = TILE  # rows that the grid is chosen on
WIDTHS = (1.5, 1.75, 2.0, 2.25, 2.5, 2.75, 3.0, 3.5, 4.0, 5.0, 6.0)  # half widths tried, in standard deviations
RIDGES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)  # tried, in units of the mean of the second moments' diagonal
WEIGHTS = (0.0, 0.03, 0.1, 0.3, 1.0)  # of the expected query tried, the trace of the second moments being 1
WIDTH, RIDGE, WEIGHT = 2.5, 0.01, 0.1  # where the search starts
HELD_OUT = 10  # every tenth caption judges
FEWEST_JUDGES = 20


@dataclass(frozen=True)
class TrainedCodec:
    """Everything needed to code vectors of d dimensions. `metric` is what rounding "query" knows of queries, None for the others."""

    name: str
    rounding: str
    vmin: Float32
    vdiff: Float32
    metric: QueryMetric | None = None

    @property
    def format(self) -> CodeFormat:
        return CODECS[self.name]

    @property
    def d(self) -> int:
        return len(self.vmin)

    @property
    def code_size(self) -> int:
        return self.format.code_size(self.d)

    def encode(self, vectors: npt.NDArray[Any], *, device: str | None = None) -> UInt8:
        """(n, d) float16/32 to (n, code_size) codes. A row's code depends on that row alone, not on its neighbours or their number.

        With a torch `device` query-aware rounding runs there; near ties may then round otherwise than without. Raises BadInput for
        another width, or for rows that are not finite.
        """
        vectors = np.asarray(vectors)
        if vectors.ndim != 2 or vectors.shape[1] != self.d:
            raise BadInput(f"vectors to encode: expected shape (n, {self.d}), found {vectors.shape}; use the model the codec was made for")
        codes = np.empty((len(vectors), self.code_size), np.uint8)
        rounding = None if self.metric is None else self._rounding if device is None else self._rounding.on(device)
        rows = TILE if device is None else DEVICE_TILE

        def code_tile(start: int) -> None:
            tile = np.ascontiguousarray(vectors[start : start + rows], dtype=np.float32)
            if not np.isfinite(tile).all():
                row = start + int(np.flatnonzero(~np.isfinite(tile).all(axis=1))[0])
                raise BadInput(f"vectors to encode: row {row} is not finite; leave such rows out")
            if self.rounding == "faiss":
                codes[start : start + rows] = self._quantizer.compute_codes(tile)
                return
            if rounding is not None and len(tile) < rows:
                tile = np.vstack([tile, np.zeros((rows - len(tile), self.d), np.float32)])
            codes[start : start + rows] = self.format.pack(self._levels(tile, rounding)[: len(vectors) - start])

        starts = range(0, len(vectors), rows)
        if rounding is not None and device is None:
            with single_threaded_blas(), ThreadPoolExecutor(max(1, min(len(starts), MOST_TILES, os.cpu_count() or 1))) as pool:
                list(pool.map(code_tile, starts))
        else:
            for start in starts:
                code_tile(start)
        return codes

    def decode(self, codes: UInt8) -> Float32:
        """(n, code_size) codes to (n, d) vectors, by faiss."""
        decoded: Float32 = self._quantizer.decode(np.ascontiguousarray(codes))
        return decoded

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Everything but name and rounding, for a file or a fingerprint."""
        return {"vmin": self.vmin, "vdiff": self.vdiff} | (self.metric.arrays() if self.metric else {})

    @classmethod
    def from_arrays(cls, name: str, rounding: str, arrays: Mapping[str, npt.NDArray[Any]]) -> TrainedCodec:
        """Undo `arrays`. Raises KeyError for an array that is not there."""
        return cls(name, rounding, arrays["vmin"], arrays["vdiff"], QueryMetric.from_arrays(arrays) if rounding == "query" else None)

    @cached_property
    def steps(self) -> tuple[Float32, Float32]:
        """Step a and first level b of each dimension: level c decodes to b + c a."""
        step: Float32 = self.vdiff / np.float32(self.format.top)
        return step, self.vmin + step / np.float32(2)

    def _levels(self, tile: Float32, rounding: Rounding | None) -> UInt8:
        """(n, d) levels of a tile of at most as many rows as `encode` makes them; without a `rounding`, the nearest."""
        if rounding is None:
            step, first = self.steps
            nearest: UInt8 = ((tile - first) / step).round().clip(0, self.format.top).astype(np.uint8)
            return nearest
        if isinstance(rounding.step, np.ndarray):
            return np.asarray(rounding.levels(tile), np.uint8)
        levels: UInt8 = rounding.levels(torch.from_numpy(tile).to(rounding.step.device)).to(torch.uint8).cpu().numpy()
        return levels

    @cached_property
    def _quantizer(self) -> faiss.ScalarQuantizer:
        return self.format.quantizer(self.vmin, self.vdiff)

    @cached_property
    def _rounding(self) -> Rounding:
        """In the unit of the widest step: data may be tiny or huge."""
        assert self.metric is not None
        step, first = self.steps
        weighed = self.metric.in_steps(step / step.max())
        m = self.metric
        return Rounding(
            m.order,
            feedback_matrix(weighed),
            weighed.astype(np.float32),
            first,
            step,
            m.inward,
            m.outward,
            m.weight,
            m.passes,
            self.format.top,
        )


def train_codec(name: str, rounding: str, images: Float32, captions: Float32, *, progress: Progress = silent) -> TrainedCodec:
    """Fit a codec on a sample of `images` (n, d) and training `captions` (m, d), float16/32; rows need not be aligned, nor unit vectors.

    Width, ridge and the weight of the expected query are those of least `LossOfRanking` over every tenth caption, which the rest of
    training does not see. Warns with CodecWarning, and goes on with something safe, for rows that are not usable, few captions and
    constant dimensions. Raises BadInput for an unknown name or rounding, or when no image row is usable.
    """
    if name not in CODECS or rounding not in ROUNDINGS:
        raise BadInput(f"codec {name!r} with rounding {rounding!r}: expected one of {tuple(CODECS)} and one of {ROUNDINGS}")
    images = _usable(images, "images")
    if not len(images):
        raise BadInput("images to train a codec on: expected at least one finite, non-zero row, found none; check the embeddings")
    if rounding == "faiss":
        return _trained_by_faiss(name, images)
    captions = _usable(captions, "captions")
    captions = captions / np.linalg.norm(captions, axis=1, keepdims=True)
    d = images.shape[1]
    if rounding == "query" and not len(captions):
        warnings.warn("no caption to round for: the codec rounds to the nearest level instead", CodecWarning, stacklevel=2)
        rounding = "nearest"
    elif rounding == "query" and len(captions) < d:
        message = f"{len(captions)} captions for {d} dimensions: their second moments are singular and lean on the ridge"
        warnings.warn(message, CodecWarning, stacklevel=2)
    return _least_loss(name, rounding, images, captions, progress)


def _least_loss(name: str, rounding: str, images: Float32, captions: Float32, progress: Progress) -> TrainedCodec:
    """Coordinate search over width, ridge and weight, one after the other, each downhill from where it starts."""
    mean, spread = spread_of(images)
    sample = images[:: max(1, len(images) // SAMPLE_ROWS)][:SAMPLE_ROWS]
    held_out = np.arange(len(captions)) % HELD_OUT == HELD_OUT - 1
    fitted, judges = (captions[~held_out], captions[held_out]) if held_out.sum() >= FEWEST_JUDGES else (captions, captions)
    loss_of = LossOfRanking.of(judges, sample)
    metric = fit_metric(images, fitted, spread, RIDGE, WEIGHT, DESCENT_PASSES) if rounding == "query" else None
    tried: dict[tuple[float, float, float], tuple[float, TrainedCodec]] = {}

    def loss(width: float, ridge: float = RIDGE, weight: float = WEIGHT) -> float:
        """Memoised: the search crosses its own path."""
        if (width, ridge, weight) not in tried:
            vmin, vdiff = ranges(mean, spread, width)
            codec = TrainedCodec(name, rounding, vmin, vdiff, metric.tuned(ridge, weight) if metric else None)
            found = loss_of(codec.decode(codec.encode(sample)) - sample)
            tried[width, ridge, weight] = found, codec
            progress("codec", len(tried), len(WIDTHS) + len(RIDGES) + len(WEIGHTS), loss=found, width=width, ridge=ridge, weight=weight)
        return tried[width, ridge, weight][0]

    width = _downhill(WIDTHS, WIDTH, loss)
    if rounding == "query":
        ridge = _downhill(RIDGES, RIDGE, lambda r: loss(width, r))
        _downhill(WEIGHTS, WEIGHT, lambda w: loss(width, ridge, w))
    return min(tried.values(), key=lambda entry: entry[0])[1]


def _downhill(values: tuple[float, ...], start: float, loss: Callable[[float], float]) -> float:
    """The value of ordered `values` from which no neighbour has less loss, coming from `start`."""
    at = values.index(start)
    while True:
        best = min((i for i in (at, at - 1, at + 1) if 0 <= i < len(values)), key=lambda i: loss(values[i]))
        if best == at:
            return values[at]
        at = best


def _trained_by_faiss(name: str, images: Float32) -> TrainedCodec:
    quantizer = faiss.ScalarQuantizer(images.shape[1], CODECS[name].qtype)
    quantizer.train(np.ascontiguousarray(images))
    vmin, vdiff = faiss.vector_to_array(quantizer.trained).reshape(2, -1)
    return TrainedCodec(name, "faiss", vmin.copy(), vdiff.copy())


def _usable(rows: npt.NDArray[Any], what: str) -> Float32:
    rows = np.asarray(rows, dtype=np.float32)
    if rows.ndim != 2:
        raise BadInput(f"{what} to train a codec on: expected shape (rows, dimensions), found {rows.shape}")
    usable = usable_rows(rows)
    if not usable.all():
        message = f"{int((~usable).sum())} of {len(rows)} {what} are zero or not finite: left out of training"
        warnings.warn(message, CodecWarning, stacklevel=3)
        rows = rows[usable]
    return rows
