"""Untrusted picture bytes -> the RGB picture a person would see: one function, one table of modes.

Grey of 16 bits is scaled by its range, what is transparent lies on white, a photo stands as its EXIF says. A picture that cannot be shown
faithfully (numbers of unknown range, a colour space without a table here) is refused by name.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

ZERO_BYTES = "zero bytes"
NOT_AN_IMAGE = "not an image"
TRUNCATED = "truncated image"
BOMB = "decompression bomb"
TOO_NARROW = "image too narrow"
UNDECODABLE = "image cannot be decoded"
UNKNOWN_RANGE = "pixels of unknown range"
UNKNOWN_MODE = "unsupported pixel mode"

MAX_PIXELS = 1 << 27  # 134 million, 400 MB as RGB: a 12k x 11k scan passes, a bomb does not
MAX_ASPECT = 200  # a model's transform makes the shorter side 224: of a line of 65,000 x 1 pixels that would make 10 GB
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")  # not EPS and PDF, which call programs
WHITE = (255, 255, 255)
GREY_16 = 65535
EXIF_ORIENTATION = 274
TIFF_BITS = 258
# What EXIF calls 2 to 8, as the step that undoes it.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class BadPicture(Exception):
    """`outcome` says why these bytes are no picture that can be shown."""

    def __init__(self, outcome: str) -> None:
        super().__init__(outcome)
        self.outcome = outcome


def picture_of(content: bytes) -> Image.Image:
    """The (first frame of the) picture as RGB, upright, on white. Raises BadPicture, and nothing else, for whatever bytes."""
    if not content:
        raise BadPicture(ZERO_BYTES)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # size is judged below; the rest is about metadata
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                _check_size(image)
                image.load()
                return upright(as_rgb(image), image)
    except BadPicture:
        raise
    except Image.DecompressionBombError as error:
        raise BadPicture(BOMB) from error
    except UnidentifiedImageError as error:
        raise BadPicture(NOT_AN_IMAGE) from error
    except (EOFError, OSError) as error:
        cut = isinstance(error, EOFError) or "truncated" in str(error) or "unrecognized data stream" in str(error)
        raise BadPicture(TRUNCATED if cut else UNDECODABLE) from error
    except Exception as error:  # decoders raise SyntaxError, ValueError, struct.error, MemoryError, ...
        raise BadPicture(UNDECODABLE) from error


def _check_size(image: Image.Image) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise BadPicture(BOMB)
    if max(image.size) > MAX_ASPECT * min(image.size):
        raise BadPicture(TOO_NARROW)


def as_rgb(image: Image.Image) -> Image.Image:
    """A loaded picture of any mode as RGB. Raises BadPicture for what has no faithful RGB."""
    show = MODES.get(image.mode)
    if show is None:
        raise BadPicture(f"{UNKNOWN_MODE} {image.mode}")
    return show(image)


def upright(shown: Image.Image, source: Image.Image) -> Image.Image:
    """`shown` turned and mirrored as the EXIF of `source` says; EXIF that cannot be read turns nothing."""
    try:
        orientation = source.getexif().get(EXIF_ORIENTATION)
    except Exception:  # a parser of its own, with exceptions of its own
        return shown
    step = UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return shown if step is None else shown.transpose(step)


def _opaque(image: Image.Image) -> Image.Image:
    """Colours; one of them, or a table of them, may be named as transparent."""
    return _on_white(image) if "transparency" in image.info else image.convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    seen = image if image.mode == "RGBA" else image.convert("RGBA")  # 400 MB of a large scan need no second copy
    page = Image.new("RGB", image.size, WHITE)
    page.paste(seen, mask=seen.getchannel("A"))
    return page


def _grey_16(image: Image.Image) -> Image.Image:
    levels = np.asarray(image).astype(np.float32)
    bits = _tiff_bits(image)
    shown = _grey(levels, (1 << bits) - 1 if bits is not None and 8 < bits < 16 else GREY_16)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):  # PNG names one grey that is not there
        shown.paste(WHITE, mask=Image.fromarray(((levels == transparent) * np.uint8(255)).astype(np.uint8)))
    return shown


def _grey_32(image: Image.Image) -> Image.Image:
    if image.format not in ("PNG", "PPM", "JPEG2000"):  # their grey has 16 bits at most; a TIFF's may count anything
        raise BadPicture(UNKNOWN_RANGE)
    return _grey(np.asarray(image).astype(np.float32), GREY_16)


def _grey_float(image: Image.Image) -> Image.Image:
    levels = np.asarray(image)
    if not np.isfinite(levels).all() or levels.min() < 0 or levels.max() > 1:
        raise BadPicture(UNKNOWN_RANGE)
    return _grey(levels, 1.0)


def _grey(levels: Any, brightest: float) -> Image.Image:
    return Image.fromarray(np.clip(np.rint(levels * (255 / brightest)), 0, 255).astype(np.uint8), "L").convert("RGB")


def _tiff_bits(image: Image.Image) -> int | None:
    bits: Any = getattr(image, "tag_v2", {}).get(TIFF_BITS, ())
    return bits[0] if isinstance(bits, tuple) and bits and isinstance(bits[0], int) else None


def _plain(image: Image.Image) -> Image.Image:
    return image.convert("RGB")


def _premultiplied(image: Image.Image) -> Image.Image:
    return _on_white(image.convert("RGBA" if image.mode == "RGBa" else "LA"))


# Pillow's modes; those that are not here (LAB, BGR;15, ...) have no faithful RGB by `convert`.
MODES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "1": _opaque,
    "L": _opaque,
    "RGB": _opaque,
    "P": _opaque,
    "RGBX": _plain,
    "CMYK": _plain,
    "YCbCr": _plain,
    "HSV": _plain,
    "LA": _on_white,
    "PA": _on_white,
    "RGBA": _on_white,
    "La": _premultiplied,
    "RGBa": _premultiplied,
    "I;16": _grey_16,
    "I;16L": _grey_16,
    "I;16B": _grey_16,
    "I;16N": _grey_16,
    "I": _grey_32,
    "F": _grey_float,
}
