"""A picture of any mode is embedded as a person would see it, or refused by name: against renderings of the same picture in 8 bits."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageDraw
from sample_packing import png

from paired_index_assets.embeddings.decoding import prepare_image
from paired_index_assets.embeddings.rendering import MODES, BadPicture, as_rgb, picture_of
from paired_index_assets.readers.sample import HeldImage

SIZE = 48
SHAPES = ("circle", "square", "cross")


def drawing(shape="circle", mode="L", ink=0, paper=255):
    image = Image.new(mode, (SIZE, SIZE), paper)
    draw = ImageDraw.Draw(image)
    if shape == "circle":
        draw.ellipse((8, 8, 36, 36), fill=ink)
    elif shape == "square":
        draw.rectangle((8, 8, 36, 36), fill=ink)
    else:
        draw.line((8, 8, 40, 40), fill=ink, width=5)
        draw.line((40, 8, 8, 40), fill=ink, width=5)
    return image


def grey_ramp():
    """Greys of 8 bits that are not symmetric in any way EXIF could turn them."""
    rows, columns = np.mgrid[0:SIZE, 0 : SIZE // 2]
    return Image.fromarray(((rows * 3 + columns * 5) % 256).astype(np.uint8), "L")


def photo():
    generator = np.random.default_rng(0)
    return Image.fromarray(generator.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8), "RGB").resize((96, 64), Image.Resampling.BICUBIC)


def stored(image, kind="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def seen(content):
    image = picture_of(content)
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def assert_looks_like(content, expected, tolerance=1):
    np.testing.assert_allclose(seen(content), np.asarray(expected.convert("RGB")).astype(int), atol=tolerance)


def grey_16(image):
    return Image.fromarray(np.asarray(image).astype(np.uint16) * 257)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM", "JPEG2000"])
def test_grey_of_16_bits_looks_as_in_8_bits(kind):
    options = {"irreversible": False} if kind == "JPEG2000" else {}
    assert_looks_like(stored(grey_16(grey_ramp()), kind, **options), grey_ramp())


def test_a_tiff_of_12_bits_is_scaled_by_12_bits():
    grey = Image.fromarray(((np.asarray(grey_ramp()).astype(np.uint32) * 4095 + 127) // 255).astype(np.uint16))
    grey.format, grey.tag_v2 = "TIFF", {258: (12,)}  # as Pillow opens one; nothing here writes one
    np.testing.assert_allclose(np.asarray(as_rgb(grey))[..., 0].astype(int), np.asarray(grey_ramp()).astype(int), atol=1)


def test_floats_from_0_to_1_are_shown_and_others_refused():
    values = np.asarray(grey_ramp()).astype(np.float32) / 255
    assert_looks_like(stored(Image.fromarray(values), "TIFF"), grey_ramp())
    for bad in (values * 255, values - 1, np.where(values > 0.5, np.nan, values).astype(np.float32)):
        with pytest.raises(BadPicture, match="pixels of unknown range"):
            picture_of(stored(Image.fromarray(bad), "TIFF"))


def test_a_tiff_of_32_bit_integers_has_no_known_range():
    with pytest.raises(BadPicture, match="pixels of unknown range"):
        picture_of(stored(Image.fromarray(np.asarray(grey_ramp()).astype(np.int32) * 1000), "TIFF"))


def transparent(shape, mode):
    """Black ink on nothing."""
    ink = drawing(shape).point(lambda value: 255 - value)
    image = Image.new("RGBA", (SIZE, SIZE), (0, 0, 0, 0))
    image.putalpha(ink)
    return image if mode == "RGBA" else image.convert(mode)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "AVIF"])
def test_ink_on_nothing_is_ink_on_white(kind, mode):
    if (kind, mode) in {("WEBP", "LA"), ("AVIF", "LA")}:
        return
    options = {"lossless": True} if kind == "WEBP" else {"quality": 100} if kind == "AVIF" else {}
    for shape in SHAPES:
        assert_looks_like(stored(transparent(shape, mode), kind, **options), drawing(shape), tolerance=8 if kind == "AVIF" else 1)


def test_three_shapes_on_nothing_are_three_vectors(encoder):
    arrays = [prepare_image(encoder, HeldImage(stored(transparent(shape, "RGBA"))))[0] for shape in SHAPES]
    vectors = encoder.encode_images(np.stack(arrays))
    assert (vectors @ vectors.T)[np.triu_indices(3, 1)].max() < 0.99


def test_half_transparent_colours_mix_with_white():
    assert seen(stored(Image.new("RGBA", (4, 4), (255, 0, 0, 128))))[0, 0].tolist() == [255, 127, 127]


def test_one_colour_or_one_entry_of_a_palette_can_be_transparent():
    ink = drawing("cross")
    grey = stored(ink.point(lambda value: 7 if value else 0), transparency=7)
    colour = stored(ink.convert("RGB").point(lambda value: 9 if value else 0), transparency=(9, 9, 9))
    palette = ink.convert("P")
    table = bytes(0 if i == 255 else 255 for i in range(256))
    by_table = stored(ink.point(lambda value: value).convert("L").convert("P"), transparency=table)
    gif = stored(palette, "GIF", transparency=255)
    wide = stored(grey_16(ink.point(lambda value: 9 if value else 0)), transparency=9 * 257)
    for content in (grey, colour, by_table, gif):
        assert_looks_like(content, ink)
    if Image.open(io.BytesIO(wide)).info.get("transparency") is not None:
        assert_looks_like(wide, ink)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr"])
def test_plain_modes_look_as_they_are(mode):
    source = drawing("cross") if mode in "1LP" else photo().convert(mode)
    kind = "TIFF" if mode in ("CMYK", "YCbCr") else "PNG"
    assert_looks_like(stored(source.convert(mode), kind), source.convert(mode), tolerance=3)


def test_an_inverted_cmyk_jpeg_has_its_own_colours():
    red = Image.new("RGB", (16, 16), (255, 0, 0)).convert("CMYK")
    assert np.abs(seen(stored(red, "JPEG", quality=100)) - [255, 0, 0]).max() < 8


ORIENTATIONS = range(1, 9)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_a_photo_stands_as_its_exif_says(kind, orientation):
    """Written as a camera does: the sensor's picture and the step that puts it upright."""
    lies = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
        8: lambda a: np.rot90(a, -1),
    }
    upright = np.asarray(photo())
    sensor = Image.fromarray(np.ascontiguousarray(lies[orientation](upright)), "RGB")
    exif = Image.Exif()
    exif[274] = orientation
    options = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
    assert_looks_like(stored(sensor, kind, exif=exif, **options), photo(), tolerance=12 if kind == "JPEG" else 1)


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x63\0\0"]
)
def test_exif_that_cannot_be_read_turns_nothing(exif):
    assert_looks_like(stored(photo(), "JPEG", quality=100, subsampling=0, exif=exif), photo(), tolerance=12)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_an_animated_picture_the_first_frame_is_seen(kind):
    frames = [drawing("square").convert("RGB"), drawing("cross").convert("RGB")]
    options = {"lossless": True} if kind == "WEBP" else {}
    assert_looks_like(stored(frames[0], kind, save_all=True, append_images=frames[1:], **options), frames[0])


def test_modes_without_a_faithful_rgb_are_refused_by_name():
    with pytest.raises(BadPicture) as caught:
        picture_of(stored(photo().convert("LAB"), "TIFF"))
    assert caught.value.outcome == "unsupported pixel mode LAB"
    assert "LAB" not in MODES


def header_of(width, height, depth=8, colour=2):
    content = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunk = b"IHDR" + content
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk)) + b"\0\0\0\0IDAT"


@pytest.mark.parametrize(
    ("content", "outcome"),
    [
        (b"", "zero bytes"),
        (b"<html>", "not an image"),
        (header_of(60_000, 60_000), "decompression bomb"),
        (stored(Image.new("1", (65_000, 1))), "image too narrow"),
        (stored(Image.new("L", (2, 9_000))), "image too narrow"),
        (stored(photo())[:700], "truncated image"),
        (stored(photo(), "JPEG")[:700], "truncated image"),
        (stored(photo(), "WEBP", lossless=True)[:700], "image cannot be decoded"),
        (header_of(0, 5), "not an image"),
    ],
)
def test_what_cannot_be_shown_is_named(content, outcome):
    with pytest.raises(BadPicture) as caught:
        picture_of(content)
    assert caught.value.outcome == outcome


def test_an_encoder_that_fails_on_a_picture_costs_that_picture(tiny):
    class Fussy(type(tiny)):
        def prepare_image(self, image):
            raise ZeroDivisionError

    assert prepare_image(Fussy(), HeldImage(png())) == (None, "image cannot be decoded")
