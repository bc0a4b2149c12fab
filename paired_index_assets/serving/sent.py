"""What a picture will cost, judged before it is decoded; and one made small."""

from __future__ import annotations

import io
import re
import warnings

from PIL import Image, ImageOps

from paired_index_assets.embeddings.rendering import FORMATS
from paired_index_assets.serving.limits import Limits
from paired_index_assets.serving.requests import BadRequest

SMALL_PIXELS, SMALL_BYTES = 512, 200 << 10
END_OF_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # the next marker but those inside a scan


def check_size(content: bytes, limits: Limits) -> None:
    """Raises BadRequest for more pixels, or more passes over them, than `limits` allow. What is no picture at all is for the decoder."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(content), formats=FORMATS) as image:
                kind, pixels = image.format, image.width * image.height
    except Image.DecompressionBombError:
        kind, pixels = None, limits.pixels + 1
    except Exception:  # decoders raise whatever comes to them, and say it once more when they decode
        return
    if pixels > limits.pixels:
        raise BadRequest(f"image: expected at most {limits.pixels} pixels, found more; send a smaller one")
    if kind in ("JPEG", "MPO") and _scans(content, limits.scans + 1) > limits.scans:
        raise BadRequest(f"image: expected at most {limits.scans} scans, found more; save it again as a baseline image")


def smaller(content: bytes, limits: Limits) -> bytes:
    """A picture of more than `SMALL_BYTES` as a JPEG of at most `SMALL_PIXELS` a side; itself where it cannot be made one."""
    if len(content) <= SMALL_BYTES:
        return content
    try:
        check_size(content, limits)
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            image.draft("RGB", (SMALL_PIXELS, SMALL_PIXELS))
            upright = ImageOps.exif_transpose(image).convert("RGBA")
            upright.thumbnail((SMALL_PIXELS, SMALL_PIXELS))
            made, out = Image.new("RGB", upright.size, "white"), io.BytesIO()
            made.paste(upright, mask=upright)
            made.save(out, "JPEG", quality=85)
            return out.getvalue()
    except Exception:  # decoders raise whatever comes to them
        return content


def _scans(jpeg: bytes, most: int) -> int:
    """Scans of a JPEG up to its end, or `most`: its segments are walked, so that what lies behind the picture (a film, say) is none."""
    at, found = 2, 0
    while found < most and (marker := END_OF_SCAN.search(jpeg, at)) is not None and jpeg[marker.end() - 1] != 0xD9:
        found += jpeg[marker.end() - 1] == 0xDA
        at = marker.end() + max(2, int.from_bytes(jpeg[marker.end() : marker.end() + 2], "big"))
    return found
