"""What people see of a sample that is a vector: its text or link as a picture, or its image.

All oracles show images; so a text is drawn, and needs nothing else of them.
"""

from __future__ import annotations

import io
import textwrap
from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ahfal_app.data.encoded import UnusableImage, use_image

_SIZE, _MARGIN, _COLUMNS, _MOST_LINES = 20, 16, 72, 120

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
