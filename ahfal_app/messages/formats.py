"""What a server says that all data have in common, checked where it arrives.

Memory is taken by it (the size of every image), and people read it (the names of the classes).
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ahfal_app.config import LONGEST_VECTOR, Settings
from ahfal_app.data.augmentation import Augmentation
from ahfal_app.data.images import DataFormat
from ahfal_app.messages.fields import shown

#: Pixels; the setting `image-size` has the same bound.
LARGEST_SIDE = 4096

_LONGEST_NAME = 200

_Side = Annotated[int, Field(ge=1, le=LARGEST_SIDE)]
_Channels = Annotated[int, Field(ge=1, le=LONGEST_VECTOR)]
_Finite = Annotated[float, Field(allow_inf_nan=False)]
_Scale = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Name = Annotated[str, Field(min_length=1, max_length=_LONGEST_NAME)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class _Augmentation(_Strict):
    padding: int = Field(ge=0, le=LARGEST_SIDE)
    flip: bool


class _Format(_Strict):
    # JSON has lists alone.
    class_names: list[_Name] = Field(min_length=2, max_length=100_000)
    image_shape: tuple[_Side, _Side, _Channels] = Field(strict=False)
    mean_C: list[_Finite]
    std_C: list[_Scale]
    augmentation: _Augmentation
    vectors: bool = False


def data_format_from(text: str, settings: Settings) -> DataFormat:
    """Return the format that a message says.

    Parameters
    ----------
    text : str
        What `DataFormat.to_json` wrote.
    settings : Settings
        What the same message says.

    Raises
    ------
    ValueError
        It is no format, or another one than the settings mean.
    """
    try:
        found = _Format.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ValueError(f"data: {shown(where)}={shown(first['input'])}: {first['msg']}") from None
    _check(found, settings)
    return DataFormat(
        class_names=tuple(found.class_names),
        image_shape=found.image_shape,
        mean_C=tuple(found.mean_C),
        std_C=tuple(found.std_C),
        augmentation=Augmentation(found.augmentation.padding, found.augmentation.flip),
        vectors=found.vectors,
    )


def _has_moments(found: _Format, settings: Settings, channels: int) -> bool:
    """Return whether there is one mean and deviation for each channel, or rightly none yet."""
    counts = {len(found.mean_C), len(found.std_C)}
    return counts == {channels} or (counts == {0} and not settings.has_dataset)


def _check(found: _Format, settings: Settings) -> None:
    height, width, channels = found.image_shape
    fits = height == width == 1 if found.vectors else channels in (1, 3)
    if not fits:
        what = "vectors" if found.vectors else "images"
        raise ValueError(f"data: image_shape={shown(found.image_shape)}: no shape of {what}")
    if found.vectors and (found.augmentation.padding or found.augmentation.flip):
        raise ValueError("data: vectors cannot be augmented as images are")
    if found.augmentation.padding > max(height, width):
        raise ValueError(f"data: padding={found.augmentation.padding} on {height}x{width} pixels")
    if not _has_moments(found, settings, channels):
        raise ValueError(
            f"data: {len(found.mean_C)} means and {len(found.std_C)} deviations; allowed is one "
            f"for each of {channels} channels"
        )
    if settings.image_size and (height, width) != (settings.image_size,) * 2:
        raise ValueError(
            f"data: images of {height}x{width}; allowed is image-size={settings.image_size}"
        )
    if not settings.has_dataset:
        _check_without_data(found, settings)
    # They are written into files that people open, and shown on a page.
    unreadable = [name for name in found.class_names if not name.isprintable()]
    if unreadable:
        raise ValueError(f"data: class {shown(unreadable[0])}: allowed are printable characters")
    if len(set(found.class_names)) < len(found.class_names):
        raise ValueError("data: two classes have the same name")
    if settings.class_list and tuple(found.class_names) != settings.class_list:
        raise ValueError(
            f"data: classes {shown(found.class_names)}; allowed are those of the setting `classes`"
        )


def _check_without_data(found: _Format, settings: Settings) -> None:
    """Refuse another shape than the settings of a server without data say."""
    wanted = settings.vector_length or settings.image_channels
    if found.vectors != bool(settings.vector_length) or found.image_shape[2] != wanted:
        kind = "vector-length" if settings.vector_length else "image-channels"
        raise ValueError(
            f"data: image_shape={shown(found.image_shape)}; allowed is {kind}={wanted}"
        )
