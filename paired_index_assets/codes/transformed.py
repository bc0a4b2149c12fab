"""Train a codec on the axes that captions care about: 8 bits for the first, 4 for the next, the rest cut, in the bytes of QT_4bit."""

from __future__ import annotations

import warnings

import numpy as np

from paired_index_assets.codes.axes import QueryAxes, query_axes, transform_onto
from paired_index_assets.codes.codec import DESCENT_PASSES, FEWEST_JUDGES, HELD_OUT, SAMPLE_ROWS, TrainedCodec, training_rows
from paired_index_assets.codes.grid import CodecWarning, LossOfRanking
from paired_index_assets.codes.metric import fit_metric
from paired_index_assets.errors import BadInput
from paired_index_assets.progress import Progress, silent
from paired_index_assets.rows import Float32

FORMAT = "QT_4bit"
SHARES = (1 / 8, 1 / 6, 1 / 4, 0.4, 1 / 2)  # of the columns of 4 bits that begin an axis of 8; none of them is today's code
HALF_WIDTHS = (3.5, 2.75)  # of the grids of 8 and of 4 bits, in standard deviations
RIDGE, WEIGHT = 1e-3, 0.3  # as codes.metric means them; icons, DESIGN: .03 to 1 end alike
FEWEST_DIMENSIONS = 16  # below, a group of axes is a handful and today's code is as good


def train_transformed(
    images: Float32, captions: Float32, *, bytes_per_vector: int | None = None, progress: Progress = silent
) -> TrainedCodec | None:
    """Fit a transformed codec of `bytes_per_vector` (d / 2 if None) on `images` (n, d) and training `captions` (m, d), float16/32.

    How many axes get 8 bits is what costs least `LossOfRanking` over every tenth caption, which the rest does not see. None, with a
    CodecWarning that says why, where the data cannot carry it: fewer captions or images than dimensions, an odd or tiny d, images or
    captions all alike. Raises BadInput for bytes that no allocation has.
    """
    images, captions = training_rows(images, "images"), training_rows(captions, "captions")
    d = images.shape[1]
    columns = 2 * (bytes_per_vector or d // 2)
    if not 2 <= columns <= 2 * d:
        raise BadInput(f"bytes_per_vector: expected 1 .. {d} at {d} dimensions (8 bits each at most), found {bytes_per_vector}")
    if why := _unfit(images, captions):
        warnings.warn(f"{why}: no transform before the codes", CodecWarning, stacklevel=2)
        return None
    captions = captions / np.linalg.norm(captions, axis=1, keepdims=True)
    held_out = np.arange(len(captions)) % HELD_OUT == HELD_OUT - 1
    fitted, judges = (captions[~held_out], captions[held_out]) if held_out.sum() >= FEWEST_JUDGES else (captions, captions)
    axes = query_axes(images, fitted)
    if axes is None:
        warnings.warn("images or captions are all alike: no transform before the codes", CodecWarning, stacklevel=2)
        return None
    sample = images[:: max(1, len(images) // SAMPLE_ROWS)][:SAMPLE_ROWS]
    loss_of = LossOfRanking.of(judges, sample)
    tried: list[tuple[float, TrainedCodec]] = []
    for wide, narrow in allocations(columns, d):
        codec = codec_on(axes, images, fitted, wide, narrow)
        decoded = codec.decode(codec.encode(sample))
        if np.isfinite(decoded).all():
            tried.append((loss_of(decoded - sample), codec))
            progress("codec with a transform", len(tried), len(SHARES), loss=tried[-1][0], axes=codec.axes)
    return min(tried, key=lambda entry: entry[0])[1] if tried else None


def allocations(columns: int, d: int) -> list[tuple[int, int]]:
    """(axes of 8 bits, axes of 4 bits) that fill `columns` of 4 bits and use no more than d axes, fewest wide ones first."""
    least = max(0, columns - d)
    wide = {min(max(2 * round(share * columns / 2), least), columns // 2) for share in SHARES}
    return [(n, columns - 2 * n) for n in sorted(wide) if n]


def _unfit(images: Float32, captions: Float32) -> str:
    d = images.shape[1]
    if d % 2 or d < FEWEST_DIMENSIONS:
        return f"{d} dimensions, expected an even number of at least {FEWEST_DIMENSIONS}"
    for what, rows in (("captions", captions), ("images", images)):
        if len(rows) < d:
            return f"{len(rows)} {what} for {d} dimensions"
        if (rows == rows[0]).all():
            return f"all {what} are equal"
    return ""


def codec_on(axes: QueryAxes, images: Float32, captions: Float32, wide: int, narrow: int) -> TrainedCodec:
    """The codec of the first `wide` axes at 8 bits and the next `narrow` at 4, for rows like `images` (n, d) and unit `captions` (m, d)."""
    transform = transform_onto(axes, images, wide, narrow)
    coordinates = (images - transform.mean) @ transform.base.T
    widths = np.repeat(HALF_WIDTHS, [wide, narrow])
    step = 2 * widths * coordinates.std(0, dtype=np.float64) / (transform.tops + 1.0)
    first = coordinates.mean(0, dtype=np.float64) + transform.base.astype(np.float64) @ transform.mean - transform.tops / 2 * step
    firsts, steps = transform.steps_of_columns(first.astype(np.float32), step.astype(np.float32))
    metric = fit_metric(images, captions, step, RIDGE, WEIGHT, DESCENT_PASSES, onto=transform.query)
    return TrainedCodec(FORMAT, "query", firsts - steps / np.float32(2), np.float32(15) * steps, metric, transform)
