"""Images as every browser shows them."""

from __future__ import annotations

import io

from PIL import Image, UnidentifiedImageError

from ahfal_app.errors import OracleError

# What else Pillow reads (TIFF, BMP, …) is written anew, without loss.
_SHOWN = {"PNG": "image/png", "JPEG": "image/jpeg", "GIF": "image/gif", "WEBP": "image/webp"}

#: Modes that PNG files have; others (CMYK, floats, …) become RGB.
_PNG_MODES = ("1", "L", "LA", "I;16", "P", "RGB", "RGBA")


def for_browser(content: bytes, name: str) -> tuple[bytes, str]:
    """Return an image file that browsers show, and its media type.

    Parameters
    ----------
    content : bytes
        An image file of any format that Pillow reads; returned as it is where browsers do, too.
    name : str
        What it is called, for messages.

    Raises
    ------
    OracleError
        It is no image.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.format in _SHOWN:
                return content, _SHOWN[image.format]
            written = io.BytesIO()
            shown = image if image.mode in _PNG_MODES else image.convert("RGB")
            shown.save(written, format="PNG")
    except (UnidentifiedImageError, OSError) as error:
        raise OracleError(f"image {name}: cannot be shown in a browser: {error}") from error
    return written.getvalue(), _SHOWN["PNG"]
