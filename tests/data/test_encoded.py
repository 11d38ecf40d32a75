"""Single image files: their own bit depth, how they are turned, why they cannot be used."""

from __future__ import annotations

import contextlib
import io
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo
from support.image_files import (
    bomb,
    deep_files,
    encoded,
    jpeg2000,
    noise,
    png,
    shallow_files,
)

from ahfal_app.data import files
from ahfal_app.data.encoded import UnusableImage, use_image, without_warnings
from ahfal_app.data.pixels import pixels, upright_size

DEEP = deep_files()
SHALLOW = shallow_files()


def _reason(content: bytes | str) -> str:
    with pytest.raises(UnusableImage) as refused:
        use_image(content, np.asarray)
    return refused.value.reason


@pytest.mark.parametrize("name", DEEP)
def test_images_of_more_than_8_bits_are_told_by_what_the_file_says(name: str) -> None:
    content, bits = DEEP[name]
    assert f"{bits} bits for each channel, mode" in _reason(content)


@pytest.mark.parametrize("name", SHALLOW)
def test_images_of_8_bits_and_fewer_have_pillows_own_pixels(name: str, tmp_path: Path) -> None:
    content = SHALLOW[name]
    (tmp_path / name).write_bytes(content)
    with Image.open(io.BytesIO(content)) as image:
        expected = np.asarray(image.convert("RGB"))
    for source in (content, str(tmp_path / name)):
        found = use_image(source, lambda image: pixels(image, expected.shape))
        np.testing.assert_array_equal(found, expected)


def test_a_palette_of_more_than_8_bits_counts() -> None:
    content = jpeg2000(noise(6, 5, 1), 8)
    ihdr = content.index(b"ihdr") - 4
    colours = b"\x00\x02\x03" + b"\x0f" * 3 + bytes(12)
    wide = (8 + len(colours)).to_bytes(4, "big") + b"pclr" + colours
    outer = content.index(b"jp2h") - 4
    length = int.from_bytes(content[outer : outer + 4], "big") + len(wide)
    header = length.to_bytes(4, "big") + content[outer + 4 : ihdr + 22] + wide
    content = content[:outer] + header + content[ihdr + 22 :]
    assert "16 bits for each channel" in _reason(content)


@pytest.mark.parametrize("kind", ["TIFF", "JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(10))
def test_the_size_in_the_header_is_that_of_the_upright_image(kind: str, orientation: int) -> None:
    image = Image.fromarray(noise(6, 10, 3))
    exif = image.getexif()
    exif[0x0112] = orientation
    options = {"tiffinfo": {0x0112: orientation}} if kind == "TIFF" else {"exif": exif}
    content = encoded(image, kind, **options)
    size = use_image(content, upright_size)
    with Image.open(io.BytesIO(content)) as opened:
        expected = np.asarray(ImageOps.exif_transpose(opened))
    assert size == expected.shape[:2]
    np.testing.assert_array_equal(
        use_image(content, lambda image: pixels(image, expected.shape)), expected
    )


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_an_orientation_in_xmp_counts(kind: str) -> None:
    xmp = '<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    info = PngInfo()
    info.add_itxt("XML:com.adobe.xmp", xmp)
    options = {"pnginfo": info} if kind == "PNG" else {"xmp": xmp.encode()}
    content = encoded(Image.fromarray(noise(6, 10, 3)), kind, **options)
    assert use_image(content, upright_size) == (10, 6)


def test_what_is_damaged_is_told_from_what_is_no_image() -> None:
    twelve = bytearray(encoded(Image.fromarray(noise(8, 8, 3)), "JPEG"))
    twelve[twelve.index(b"\xff\xc0") + 4] = 12
    dds = b"DDS " + bytes(200)
    for content, reason in [
        (b"", "empty"),
        (b"this is no image", "no image of the formats that are read: PNG"),
        (dds, "no image of the formats that are read: PNG"),
        (bytes(twelve), "cannot be decoded: JPEG: cannot handle 12-bit layers"),
        (png(noise(6, 5, 3))[:20], "cannot be decoded: "),
        (b"\x89PNG\r\n\x1a\n", "cannot be decoded: PNG"),
        (bomb(), "exceeds limit"),
    ]:
        assert reason in _reason(content), content[:20]
    assert "No such file" in _reason("/nowhere/a.png")


def test_several_images_in_one_file_are_refused_unless_the_first_is_meant() -> None:
    first, second = (Image.new("L", (4, 4), value) for value in (10, 200))
    for kind in ("TIFF", "GIF", "PNG", "WEBP"):
        content = encoded(first, kind, save_all=True, append_images=[second], lossless=True)
        assert "2 images in one file" in _reason(content)
        found = use_image(content, lambda image: pixels(image, (4, 4, 1)), several=True)
        assert (found == 10).all()


def test_no_damage_raises_anything_else() -> None:
    draw = random.Random(1)
    sources = [*(content for content, _ in DEEP.values()), *SHALLOW.values(), png(noise(6, 5, 2))]
    for number in range(600):
        content = bytearray(sources[number % len(sources)])
        for _ in range(draw.randrange(1, 8)):
            content[draw.randrange(len(content))] = draw.randrange(256)
        cut = bytes(content[: draw.randrange(1, len(content) + 1)])
        with without_warnings(), contextlib.suppress(UnusableImage):
            found = use_image(cut, lambda image: pixels(image, (6, 5, 3)))
            assert found.shape == (6, 5, 3)


def test_every_name_that_pillow_gives_to_the_formats_is_known() -> None:
    Image.init()
    names = {
        suffix for suffix, kind in Image.registered_extensions().items() if kind in files.FORMATS
    }
    assert names <= files.SUFFIXES
