"""`TrainedCodec`: vectors to bytes and back; `train_codec` fits one.

Three roundings onto the same bytes (any faiss reads them, see `formats`):

- ``faiss``: the ranges and the encoder faiss trains by itself (minimum to maximum of each dimension);
- ``nearest``: a grid of mean +- w sigma, w the one of least measured error, each dimension to its nearest level;
- ``query``: such a grid, levels chosen to keep the scores of captions (see `rounding`).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from paired_index_assets.codes.formats import CODECS, CodeFormat
from paired_index_assets.codes.rounding import Float64, coordinate_descent, error_feedback, feedback_matrix, visiting_order
from paired_index_assets.errors import BadInput
from paired_index_assets.progress import Progress, silent
from paired_index_assets.rows import Float32, Int64, UInt8

__all__ = ["CODECS", "ROUNDINGS", "CodecWarning", "TrainedCodec", "train_codec"]

ROUNDINGS = ("query", "nearest", "faiss")
TILE = 4096  # rows coded together, always: BLAS may round a column otherwise in another shape, and a code would hang on its batch

SAMPLE_ROWS = 8192  # rows the grid is chosen on; the loss is a mean over rows and dimensions, so few are enough
WIDTHS = (1.5, 1.75, 2.0, 2.25, 2.5, 2.75, 3.0, 3.5, 4.0, 4.5, 5.0, 6.0, 8.0)  # half widths of the grid tried, in sigmas
RIDGES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)  # tried, in units of the mean of S's diagonal
FIRST_RIDGE = 0.01
HELD_OUT = 10  # every tenth caption measures, the others make S
NARROWEST = 1e-3  # least width of a dimension, of the median width: a constant dimension keeps a grid


class CodecWarning(UserWarning):
    """Training went on with less than was asked for; the message says with what."""


@dataclass(frozen=True)
class TrainedCodec:
    """Everything needed to code vectors of d dimensions; arrays are read only by convention.

    `metric` is S = E[q q'] + ridge (d, d) float32 for rounding "query", else empty; `passes` is of coordinate descent.
    """

    name: str
    rounding: str
    vmin: Float32
    vdiff: Float32
    metric: Float32
    passes: int = 0

    @property
    def format(self) -> CodeFormat:
        return CODECS[self.name]

    @property
    def d(self) -> int:
        return len(self.vmin)

    @property
    def code_size(self) -> int:
        return self.format.code_size(self.d)

    def encode(self, vectors: npt.NDArray[Any]) -> UInt8:
        """(n, d) float16/32 to (n, code_size) codes. A row's code depends on that row alone, not on its neighbours or their number.

        Raises BadInput for another width, or for rows that are not finite.
        """
        vectors = np.asarray(vectors)
        if vectors.ndim != 2 or vectors.shape[1] != self.d:
            raise BadInput(f"vectors to encode: expected shape (n, {self.d}), found {vectors.shape}; use the model the codec was made for")
        codes = np.empty((len(vectors), self.code_size), np.uint8)
        for start in range(0, len(vectors), TILE):
            tile = np.ascontiguousarray(vectors[start : start + TILE], dtype=np.float32)
            if not np.isfinite(tile).all():
                row = start + int(np.flatnonzero(~np.isfinite(tile).all(axis=1))[0])
                raise BadInput(f"vectors to encode: row {row} is not finite; leave such rows out")
            coded = self._quantizer.compute_codes(tile) if self.rounding == "faiss" else self.format.pack(self._levels(tile))
            codes[start : start + TILE] = coded
        return codes

    def decode(self, codes: UInt8) -> Float32:
        """(n, code_size) codes to (n, d) vectors, by faiss."""
        decoded: Float32 = self._quantizer.decode(np.ascontiguousarray(codes))
        return decoded

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Everything but name and rounding, for a file or a fingerprint."""
        return {"vmin": self.vmin, "vdiff": self.vdiff, "metric": self.metric, "passes": np.int64(self.passes).reshape(1)}

    @classmethod
    def from_arrays(cls, name: str, rounding: str, arrays: Mapping[str, npt.NDArray[Any]]) -> TrainedCodec:
        return cls(name, rounding, arrays["vmin"], arrays["vdiff"], arrays["metric"], int(arrays["passes"][0]))

    def _levels(self, tile: Float32) -> UInt8:
        step, first = _steps(self.vmin, self.vdiff, self.format.top)
        targets = (tile - first) / step
        if self.rounding == "nearest":
            return targets.round().clip(0, self.format.top).astype(np.uint8)
        order, feedback, metric = self._plan
        columns = np.zeros((self.d, TILE), np.float32)
        columns[:, : len(tile)] = targets.T[order]
        levels, errors = error_feedback(columns, feedback, self.format.top)
        coordinate_descent(levels, errors, metric, self.format.top, self.passes)
        packed = np.empty(tile.shape, np.uint8)
        packed[:, order] = levels[:, : len(tile)].T
        return packed

    @cached_property
    def _quantizer(self) -> faiss.ScalarQuantizer:
        return self.format.quantizer(self.vmin, self.vdiff)

    @cached_property
    def _plan(self) -> tuple[Int64, Float32, Float32]:
        """Order of the dimensions, and the feedback matrix and H in that order."""
        step, _ = _steps(self.vmin, self.vdiff, self.format.top)
        metric = self.metric.astype(np.float64) * step[:, None] * step
        order = visiting_order(metric)
        metric = metric[np.ix_(order, order)]
        return order, feedback_matrix(metric), metric.astype(np.float32)


def train_codec(name: str, rounding: str, images: Float32, captions: Float32, *, progress: Progress = silent) -> TrainedCodec:
    """Fit a codec on a sample of `images` (n, d) and training `captions` (m, d); rows need not be aligned.

    Widths and ridge are those of least measured loss E <q, x - x^>^2 over every tenth caption, which S is not made of.
    Warns with CodecWarning, and goes on with something safe, for rows that are not usable, few captions and constant dimensions.
    Raises BadInput for an unknown name or rounding, or when no image row is usable.
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
    if rounding == "query" and not len(captions):
        warnings.warn("no caption to round for: the codec rounds to the nearest level instead", CodecWarning, stacklevel=2)
        rounding = "nearest"
    elif rounding == "query" and len(captions) < images.shape[1]:
        warnings.warn(
            f"{len(captions)} captions for {images.shape[1]} dimensions: their second moments are singular and lean on the ridge",
            CodecWarning,
            stacklevel=2,
        )
    return _choose(name, rounding, images, captions, progress)


def _choose(name: str, rounding: str, images: Float32, captions: Float32, progress: Progress) -> TrainedCodec:
    d = images.shape[1]
    mean, sigma = images.mean(0, dtype=np.float64), _spread(images)
    sample = images[:: max(1, len(images) // SAMPLE_ROWS)][:SAMPLE_ROWS]
    held_out = np.arange(len(captions)) % HELD_OUT == HELD_OUT - 1
    fitted, judge = (captions[~held_out], captions[held_out]) if len(captions) >= 2 * HELD_OUT else (captions, captions)
    second = _second_moment(fitted, d)
    measured = _second_moment(judge, d) if len(judge) else np.eye(d, dtype=np.float32) / d
    tried: list[tuple[float, TrainedCodec]] = []

    def attempt(width: float, ridge: float) -> float:
        metric = _ridged(second, ridge) if rounding == "query" else np.zeros((0, 0), np.float32)
        vmin, vdiff = _grid(mean, sigma, width)
        codec = TrainedCodec(name, rounding, vmin, vdiff, metric, passes_for(d) if rounding == "query" else 0)
        error = codec.decode(codec.encode(sample)) - sample
        loss = float(np.einsum("ij,ij->", error @ measured, error, dtype=np.float64)) / len(sample)
        tried.append((loss, codec))
        progress("codec", len(tried), len(WIDTHS) + len(RIDGES), loss=loss, width=width, ridge=ridge)
        return loss

    width = min(WIDTHS, key=lambda w: attempt(w, FIRST_RIDGE))
    if rounding == "query":
        for ridge in RIDGES:
            attempt(width, ridge)
    return min(tried, key=lambda entry: entry[0])[1]


def passes_for(d: int) -> int:
    """Passes of coordinate descent: three gain most; wide vectors get one, to keep encoding far cheaper than assignment."""
    return 3 if d <= 512 else 1


def _trained_by_faiss(name: str, images: Float32) -> TrainedCodec:
    quantizer = faiss.ScalarQuantizer(images.shape[1], CODECS[name].qtype)
    quantizer.train(np.ascontiguousarray(images))
    vmin, vdiff = faiss.vector_to_array(quantizer.trained).reshape(2, -1)
    return TrainedCodec(name, "faiss", vmin.copy(), vdiff.copy(), np.zeros((0, 0), np.float32))


def _usable(rows: npt.NDArray[Any], what: str) -> Float32:
    rows = np.asarray(rows, dtype=np.float32)
    if rows.ndim != 2:
        raise BadInput(f"{what} to train a codec on: expected shape (rows, dimensions), found {rows.shape}")
    usable = np.isfinite(rows).all(axis=1) & rows.any(axis=1)
    if not usable.all():
        message = f"{int((~usable).sum())} of {len(rows)} {what} are zero or not finite: left out of training"
        warnings.warn(message, CodecWarning, stacklevel=3)
        rows = rows[usable]
    return rows


def _spread(images: Float32) -> Float64:
    sigma = images.std(0, dtype=np.float64)
    constant = sigma <= NARROWEST * np.median(sigma) if sigma.any() else np.ones(len(sigma), bool)
    if constant.any():
        warnings.warn(f"{int(constant.sum())} of {len(sigma)} dimensions are constant: they keep a narrow grid", CodecWarning, stacklevel=4)
    typical = np.median(sigma[sigma > 0]) if sigma.any() else np.abs(images).max()
    widths: Float64 = np.maximum(sigma, NARROWEST * typical)
    return widths


def _grid(mean: Float64, sigma: Float64, width: float) -> tuple[Float32, Float32]:
    """vmin, vdiff of a grid of mean +- width sigma."""
    return (mean - width * sigma).astype(np.float32), (2 * width * sigma).astype(np.float32)


def _steps(vmin: Float32, vdiff: Float32, top: int) -> tuple[Float32, Float32]:
    """Step a and first level b: level c decodes to b + c a."""
    step: Float32 = vdiff / np.float32(top)
    return step, vmin + step / np.float32(2)


def _second_moment(captions: Float32, d: int) -> Float32:
    moment: Float32 = captions.T @ captions / np.float32(max(1, len(captions)))
    return moment


def _ridged(second: Float32, ridge: float) -> Float32:
    d = len(second)
    return second + np.float32(ridge * np.trace(second) / d) * np.eye(d, dtype=np.float32)
