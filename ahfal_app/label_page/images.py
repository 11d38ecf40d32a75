"""Images as every browser shows them."""

from __future__ import annotations

import io

from PIL import ExifTags, Image, ImageOps

from ahfal_app.errors import OracleError

# What else Pillow reads (TIFF, BMP, …) is written anew, without loss. Pillow calls a JPEG with a
# preview behind it, as telephones write them, an MPO.
_SHOWN = {
    "PNG": "image/png",
    "JPEG": "image/jpeg",
    "MPO": "image/jpeg",
    "GIF": "image/gif",
    "WEBP": "image/webp",
}

# Of these alone every browser turns what its EXIF says.
_TURNED = ("JPEG", "MPO")

#: Modes that PNG files have; others (CMYK, floats, …) become RGB.
_PNG_MODES = ("1", "L", "LA", "I;16", "P", "RGB", "RGBA")


def for_browser(content: bytes, name: str) -> tuple[bytes, str]:
    """Return an image file that browsers show, upright as models see it, and its media type.

    Parameters
    ----------
    content : bytes
        An image file of any format that Pillow reads; returned as it is where browsers show it so.
    name : str
        What it is called, for messages.

    Raises
    ------
    OracleError
        It is no image.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.format in _SHOWN and _is_shown_upright(image):
                return content, _SHOWN[image.format]
            written = io.BytesIO()
            upright = ImageOps.exif_transpose(image)
            shown = upright if upright.mode in _PNG_MODES else upright.convert("RGB")
            shown.save(written, format="PNG")
    except (OSError, SyntaxError, ValueError) as error:
        raise OracleError(f"image {name}: cannot be shown in a browser: {error}") from error
    return written.getvalue(), _SHOWN["PNG"]


def _is_shown_upright(image: Image.Image) -> bool:
    """Return whether browsers turn an opened image as its orientation says, in EXIF or in XMP."""
    if image.getexif().get(ExifTags.Base.Orientation, 1) == 1:
        return True
    own = Image.Exif()
    own.load(image.info.get("exif", b""))
    return image.format in _TURNED and ExifTags.Base.Orientation in own
