"""What people see of a sample that is a vector: its text or link as a picture, or its image.

All oracles show images; so a text is drawn, and needs nothing else of them. An address is drawn,
too, and beside its picture people get it as what they can follow.
"""

from __future__ import annotations

import io
import re
import textwrap
from functools import lru_cache
from pathlib import Path
from urllib.parse import urlsplit

from PIL import Image, ImageDraw, ImageFont

from ahfal_app.data.encoded import UnusableImage, use_image

_SIZE, _MARGIN, _COLUMNS, _MOST_LINES = 20, 16, 72, 120

# Nothing of it ends an attribute, a tag or a line.
_LINK = re.compile(r'https?://[^\s<>"`\\^{|}]+', re.IGNORECASE)
_LONGEST_LINK = 2048

_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def picture(shown: bytes, name: str) -> bytes:
    """Return an image file of what is shown of a sample: itself where it is an image.

    Parameters
    ----------
    shown : bytes
        An image's file, or a text in UTF-8; empty: nothing but the sample's name.
    name : str
        What the sample is called.
    """
    try:
        use_image(shown, lambda image: image.load(), several=True)
        return shown
    except UnusableImage:
        return drawn(shown.decode(errors="replace") or name)


def link_of(shown: bytes) -> str:
    """Return the address that is shown of a sample, or nothing where it is anything else.

    Only http and https are addresses here: what a column holds may come from anybody, and is
    opened by people.

    Parameters
    ----------
    shown : bytes
        An image's file, or a text in UTF-8.
    """
    if len(shown) > _LONGEST_LINK:
        return ""
    try:
        text = shown.decode().strip()
        parts = urlsplit(text)
    except ValueError:
        return ""
    # What turns letters around is not printable; a name before the host looks like the host.
    is_plain = text.isprintable() and _LINK.fullmatch(text) is not None and "@" not in parts.netloc
    return text if is_plain and parts.hostname else ""


def drawn(text: str) -> bytes:
    """Return a PNG file of a text, black on white, in lines of at most 72 letters.

    What goes beyond 120 lines is left out, and the last line says so.
    """
    lines = [
        line
        for paragraph in text.splitlines() or [""]
        for line in textwrap.wrap(paragraph, _COLUMNS) or [""]
    ]
    if len(lines) > _MOST_LINES:
        lines = [*lines[: _MOST_LINES - 1], f"[… {len(lines) - _MOST_LINES + 1} more lines]"]
    font, whole = _font(), "\n".join(lines)
    probe = ImageDraw.Draw(Image.new("L", (1, 1)))
    _, _, right, bottom = probe.multiline_textbbox((_MARGIN, _MARGIN), whole, font=font)
    image = Image.new("L", (int(right) + _MARGIN, int(bottom) + _MARGIN), 255)
    ImageDraw.Draw(image).multiline_text((_MARGIN, _MARGIN), whole, fill=0, font=font)
    content = io.BytesIO()
    image.save(content, format="PNG")
    return content.getvalue()


@lru_cache(maxsize=1)
def _font() -> _Font:
    """Return a font with more than Latin letters, which matplotlib brings along."""
    import matplotlib

    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    return ImageFont.truetype(str(path), _SIZE)
