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

from paired_index_assets.codes.axes import QueryTransform
from paired_index_assets.codes.formats import CODECS, CodeFormat
from paired_index_assets.codes.grid import CodecWarning, LossOfRanking, ranges, spread_of
from paired_index_assets.codes.metric import QueryMetric, fit_metric
from paired_index_assets.codes.rounding import Rounding
from paired_index_assets.errors import BadInput
from paired_index_assets.progress import Progress, silent
from paired_index_assets.rows import Float32, UInt8, usable_rows

__all__ = ["CODECS", "ROUNDINGS", "CodecWarning", "TrainedCodec", "train_codec"]

ROUNDINGS = ("query", "nearest", "faiss")
TILE = 1024  # rows that a thread codes before it takes others
MOST_TILES = 8  # at once
DESCENT_PASSES = 1  # two more add -.0003 (icons) to .0016 (names) of recall, and a tenth of the time

SAMPLE_ROWS = 4096  # rows that the grid is chosen on
WIDTHS = (1.5, 1.75, 2.0, 2.25, 2.5, 2.75, 3.0, 3.5, 4.0, 5.0, 6.0)  # half widths tried, in standard deviations
RIDGES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)  # tried, in units of the mean of the second moments' diagonal
WEIGHTS = (0.0, 0.03, 0.1, 0.3, 1.0)  # of the expected query tried, the trace of the second moments being 1
WIDTH, RIDGE, WEIGHT = 2.5, 0.01, 0.1  # where the search starts
HELD_OUT = 10  # every tenth caption judges
FEWEST_JUDGES = 20


@dataclass(frozen=True)
class TrainedCodec:
    """Everything needed to code vectors of d dimensions.

    vmin, vdiff (columns,) float32: the ranges of what faiss stores; without a transform columns are dimensions. `metric` is what rounding
    "query" knows of queries, None for the others. `transform` puts vectors and queries on other axes; only QT_4bit has one.
    """

    name: str
    rounding: str
    vmin: Float32
    vdiff: Float32
    metric: QueryMetric | None = None
    transform: QueryTransform | None = None

    @property
    def format(self) -> CodeFormat:
        return CODECS[self.name]

    @property
    def d(self) -> int:
        """Of the embeddings."""
        return self.columns if self.transform is None else self.transform.d

    @property
    def columns(self) -> int:
        """Of a code: the width of the faiss IVF that holds it."""
        return len(self.vmin)

    @property
    def code_size(self) -> int:
        return self.format.code_size(self.columns)

    @property
    def axes(self) -> str:
        """In a word, for names: "" without a transform, else its axes by bits, as "52x8+24x4"."""
        return "" if self.transform is None else f"{self.transform.wide}x8+{self.transform.r - self.transform.wide}x4"

    def transform_queries(self, queries: Float32) -> Float32:
        """(n, d) queries to (n, columns), contiguous float32: what lists, quantizer and codes of the files are searched with.

        ``transform_queries(q) @ columns of a code == q @ decode(code)``; without a transform they are the queries.
        """
        queries = np.ascontiguousarray(queries, dtype=np.float32)
        return queries if self.transform is None else self.transform.queries(queries)

    def places(self, vectors: Float32) -> Float32:
        """(n, d) vectors of the base's side, as centroids are, to the (n, columns) that a transformed query meets."""
        vectors = np.ascontiguousarray(vectors, dtype=np.float32)
        return vectors if self.transform is None else self.transform.places(vectors)

    def encode(self, vectors: npt.NDArray[Any]) -> UInt8:
        """(n, d) float16/32 to (n, code_size) codes. A row's code depends on that row alone, not on its neighbours or their
        number, nor, with rounding "query", on the processor (one with AVX2 or another fused multiply-add).

        Raises BadInput for another width, or for rows that are not finite.
        """
        vectors = np.asarray(vectors)
        if vectors.ndim != 2 or vectors.shape[1] != self.d:
            raise BadInput(f"vectors to encode: expected shape (n, {self.d}), found {vectors.shape}; use the model the codec was made for")
        codes = np.empty((len(vectors), self.code_size), np.uint8)
        levels_of = self._nearest if self._rounded is None else self._rounded

        def code_tile(start: int) -> None:
            tile = np.ascontiguousarray(vectors[start : start + TILE], dtype=np.float32)
            if not np.isfinite(tile).all():
                row = start + int(np.flatnonzero(~np.isfinite(tile).all(axis=1))[0])
                raise BadInput(f"vectors to encode: row {row} is not finite; leave such rows out")
            if self.rounding == "faiss":
                codes[start : start + TILE] = self._quantizer.compute_codes(tile)
                return
            levels = levels_of(tile)
            codes[start : start + TILE] = self.format.pack(levels if self.transform is None else self.transform.split(levels))

        starts = range(0, len(vectors), TILE)
        if self._rounded is not None and len(starts) > 1:
            with ThreadPoolExecutor(min(len(starts), MOST_TILES, os.cpu_count() or 1)) as pool:
                list(pool.map(code_tile, starts))
        else:
            for start in starts:
                code_tile(start)
        return codes

    def decode(self, codes: UInt8) -> Float32:
        """(n, code_size) codes to (n, d) float32 in the space of the embeddings: an inner product with it is the score of the code."""
        decoded: Float32 = self._quantizer.decode(np.ascontiguousarray(codes))
        return decoded if self.transform is None else decoded @ self.transform.matrix

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Everything but name and rounding, for a file or a fingerprint."""
        arrays = {"vmin": self.vmin, "vdiff": self.vdiff} | (self.metric.arrays() if self.metric else {})
        return arrays | (self.transform.arrays() if self.transform else {})

    @classmethod
    def from_arrays(cls, name: str, rounding: str, arrays: Mapping[str, npt.NDArray[Any]]) -> TrainedCodec:
        """Undo `arrays`. Raises KeyError for an array that is not there."""
        transform = QueryTransform.from_arrays(arrays) if "transform.base" in arrays else None
        metric = QueryMetric.from_arrays(arrays) if rounding == "query" else None
        return cls(name, rounding, arrays["vmin"], arrays["vdiff"], metric, transform)

    @cached_property
    def steps(self) -> tuple[Float32, Float32]:
        """Step a and first level b of each axis: level c decodes to b + c a."""
        step: Float32 = self.vdiff / np.float32(self.format.top)
        first: Float32 = self.vmin + step / np.float32(2)
        return (step, first) if self.transform is None else self.transform.of_axes(step, first)

    def _nearest(self, tile: Float32) -> UInt8:
        """(n, d) levels of a tile, each the nearest."""
        step, first = self.steps
        nearest: UInt8 = ((tile - first) / step).round().clip(0, self.format.top).astype(np.uint8)
        return nearest

    @cached_property
    def _quantizer(self) -> faiss.ScalarQuantizer:
        return self.format.quantizer(self.vmin, self.vdiff)

    @cached_property
    def _rounded(self) -> Callable[[Float32], UInt8] | None:
        """Rows to levels, in the unit of the widest step: data may be tiny or huge."""
        if self.metric is None:
            return None
        m, t, (step, first), o = self.metric, self.transform, self.steps, self.metric.order
        weighed = m.in_steps(step / (unit := step.max()))
        outward = np.float32(m.weight**0.5) * m.outward
        missed = None
        if t is not None and t.r < t.d:
            missed = -(outward @ t.lost) / unit
            missed = np.hstack([missed, -missed @ t.mean[:, None]]).astype(np.float32)
        onto = outward if t is None else outward @ t.query.T
        return Rounding(
            order=o,
            base=None if t is None else np.ascontiguousarray(t.base[o]),
            first=first[o],
            step=step[o],
            tops=np.full(self.columns, self.format.top, np.float32) if t is None else t.tops[o],
            metric=weighed,
            inward=np.ascontiguousarray(m.inward.T),
            outward=np.ascontiguousarray((onto * (step / unit)).T[o], dtype=np.float32),
            missed=missed,
            passes=m.passes,
        ).prepared()


def train_codec(name: str, rounding: str, images: Float32, captions: Float32, *, progress: Progress = silent) -> TrainedCodec:
    """Fit a codec on a sample of `images` (n, d) and training `captions` (m, d), float16/32; rows need not be aligned, nor unit vectors.

    Width, ridge and the weight of the expected query are those of least `LossOfRanking` over every tenth caption, which the rest of
    training does not see. Warns with CodecWarning, and goes on with something safe, for rows that are not usable, few captions and
    constant dimensions. Raises BadInput for an unknown name or rounding, or when no image row is usable.
    """
    if name not in CODECS or rounding not in ROUNDINGS:
        raise BadInput(f"codec {name!r} with rounding {rounding!r}: expected one of {tuple(CODECS)} and one of {ROUNDINGS}")
    images = training_rows(images, "images")
    if not len(images):
        raise BadInput("images to train a codec on: expected at least one finite, non-zero row, found none; check the embeddings")
    if rounding == "faiss":
        return _trained_by_faiss(name, images)
    captions = training_rows(captions, "captions")
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


def training_rows(rows: npt.NDArray[Any], what: str) -> Float32:
    rows = np.asarray(rows, dtype=np.float32)
    if rows.ndim != 2:
        raise BadInput(f"{what} to train a codec on: expected shape (rows, dimensions), found {rows.shape}")
    usable = usable_rows(rows)
    if not usable.all():
        message = f"{int((~usable).sum())} of {len(rows)} {what} are zero or not finite: left out of training"
        warnings.warn(message, CodecWarning, stacklevel=3)
        rows = rows[usable]
    return rows
