"""Image files of kinds that Pillow reads but does not write, and of all that it does."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import Image

_PNG_COLOURS = {1: 0, 2: 4, 3: 2, 4: 6}


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """Return an image as Pillow writes it."""
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def noise(*shape: int, seed: int = 0, deepest: int = 255) -> np.ndarray:
    """Return random values, of 8 or 16 bits as they need."""
    kind = np.uint8 if deepest < 256 else np.uint16
    return np.random.default_rng(seed).integers(0, deepest + 1, shape).astype(kind)


def png_chunk(kind: bytes, content: bytes) -> bytes:
    """Return a chunk of a PNG file."""
    checksum = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + checksum


def png(values_HWC: np.ndarray, before: bytes = b"") -> bytes:
    """Return a PNG of 8 or 16 bits, with chunks before its header if so wanted."""
    height, width, channels = values_HWC.shape
    depth = 8 * values_HWC.itemsize
    header = struct.pack(">IIBBBBB", width, height, depth, _PNG_COLOURS[channels], 0, 0, 0)
    rows = values_HWC.astype(values_HWC.dtype.newbyteorder(">")).reshape(height, -1)
    packed = b"".join(b"\0" + row.tobytes() for row in rows)
    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            before,
            png_chunk(b"IHDR", header),
            png_chunk(b"IDAT", zlib.compress(packed)),
            png_chunk(b"IEND", b""),
        )
    )


def tiff(values_HWC: np.ndarray) -> bytes:
    """Return an uncompressed TIFF of 8 or 16 bits, grey or RGB, with or without transparency."""
    height, width, channels = values_HWC.shape
    data = values_HWC.astype(values_HWC.dtype.newbyteorder("<")).tobytes()
    bits = struct.pack(f"<{channels}H", *[8 * values_HWC.itemsize] * channels)
    start = 8 + len(bits)
    tags = [
        (256, 3, 1, width),
        (257, 3, 1, height),
        (258, 3, channels, 8 if channels > 2 else int.from_bytes(bits, "little")),
        (259, 3, 1, 1),
        (262, 3, 1, 2 if channels > 2 else 1),
        (273, 4, 1, start),
        (277, 3, 1, channels),
        (278, 3, 1, height),
        (279, 4, 1, len(data)),
    ]
    if channels in (2, 4):
        tags.append((338, 3, 1, 2))
    directory = struct.pack("<H", len(tags))
    for tag, kind, count, value in tags:
        directory += struct.pack("<HHI", tag, kind, count) + struct.pack("<I", value)
    return b"II*\0" + struct.pack("<I", start + len(data)) + bits + data + directory + bytes(4)


def jpeg2000(values_HWC: np.ndarray, depth: int, boxes: bool = True) -> bytes:
    """Return a JPEG 2000 of 8 bits whose headers say another depth."""
    image = Image.fromarray(values_HWC.squeeze())
    content = bytearray(encoded(image, "JPEG2000", no_jp2=not boxes))
    size = content.index(b"\xff\x4f\xff\x51") + 4
    (components,) = struct.unpack_from(">H", content, size + 36)
    for component in range(components):
        content[size + 38 + 3 * component] = depth - 1
    if boxes:
        content[content.index(b"ihdr") + 14] = depth - 1
    return bytes(content)


def bomb() -> bytes:
    """Return the header of a PNG of 40,000 x 40,000 pixels."""
    header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", b""), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)


def deep_files() -> dict[str, tuple[bytes, int]]:
    """Return files of more than 8 bits for each channel, and how many they have.

    What a camera measures in 12 of 16 bits is black to who takes the upper 8.
    """
    dark = {channels: noise(6, 5, channels, deepest=4095) for channels in (1, 2, 3, 4)}
    colour = noise(6, 5, 3)
    text = b"P3\n# a comment # of two\n2 1 4095\n" + b"4095 0 1 2 3 4 "
    rgb = dark[3].astype(">u2").tobytes()
    long_comment = b"#" + b"x" * 9000 + b"\n"
    return {
        "gray.png": (png(dark[1]), 16),
        "gray-alpha.png": (png(dark[2]), 16),
        "colour.png": (png(dark[3]), 16),
        "colour-alpha.png": (png(dark[4]), 16),
        "late-header.png": (png(dark[3], png_chunk(b"tEXt", b"a\0b")), 16),
        "gray.tif": (tiff(dark[1]), 16),
        "colour.tif": (tiff(dark[3]), 16),
        "colour-alpha.tif": (tiff(dark[4]), 16),
        "floating.tif": (encoded(Image.new("F", (5, 6)), "TIFF"), 32),
        "integers.tif": (encoded(Image.new("I", (5, 6)), "TIFF"), 32),
        "colour.ppm": (b"P6 5 6 4095\n" + rgb, 12),
        "deepest.ppm": (b"P6\n5 6\n65535\n" + rgb, 16),
        "commented.ppm": (b"P6\n" + long_comment + b"5 6 10#99\n23\n" + rgb, 10),
        "text.ppm": (text, 12),
        "gray.pgm": (b"P5 5 6 1023\n" + dark[1].astype(">u2").tobytes(), 10),
        "text.pgm": (b"P2 2 1 65535\n65535 0 ", 16),
        "gray.jp2": (encoded(Image.new("I;16", (5, 6)), "JPEG2000"), 16),
        "colour.jp2": (jpeg2000(colour, 16), 16),
        "colour.j2k": (jpeg2000(colour, 12, boxes=False), 12),
        "gray-alpha.jp2": (jpeg2000(noise(6, 5, 2), 10), 10),
    }


def shallow_files() -> dict[str, bytes]:
    """Return files of at most 8 bits for each channel that look like others."""
    palette = Image.new("P", (5, 6), 3)
    palette.putpalette(list(range(96)))
    return {
        "bits.png": encoded(Image.new("1", (5, 6), 1)),
        "palette.png": encoded(palette, bits=2),
        "colour.png": png(noise(6, 5, 3)),
        "colour.tif": tiff(noise(6, 5, 3)),
        "bits.tif": encoded(Image.new("1", (5, 6), 1), "TIFF"),
        "palette.tif": encoded(palette, "TIFF"),
        "colour.ppm": b"P6 5 6 255\n" + noise(6, 5, 3).tobytes(),
        "dim.ppm": b"P6 5 6 100\n" + noise(6, 5, 3, deepest=100).tobytes(),
        "bits.pbm": b"P1 2 1 1 0 ",
        "colour.jp2": encoded(Image.fromarray(noise(6, 5, 3)), "JPEG2000"),
        "palette.gif": encoded(palette, "GIF"),
        "colour.webp": encoded(Image.fromarray(noise(6, 5, 3)), "WEBP"),
        "colour.bmp": encoded(Image.fromarray(noise(6, 5, 3)), "BMP"),
    }
