"""Batches on the device: bytes in, normalised and augmented floats out.

The slow version below treats one image after the other, given the same random draws.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from ahfal_app.data.augmentation import Augmentation
from ahfal_app.data.device import DeviceImages
from ahfal_app.data.device import normalised as normalise
from ahfal_app.data.images import Images

CPU = torch.device("cpu")
MEAN = (0.2, 0.4, 0.6)
STD = (0.5, 0.25, 0.125)


def make_images(pixels: NDArray[np.uint8]) -> DeviceImages:
    channels = pixels.shape[3]
    images = Images(pixels, np.zeros(len(pixels), np.int64))
    return DeviceImages(images, MEAN[:channels], STD[:channels], CPU)


def augmented(
    images: DeviceImages, rows_B: Tensor, augmentation: Augmentation, draws: torch.Generator
) -> Tensor:
    """As training sees a batch."""
    images_BHWC = images.augmented(rows_B, augmentation, draws)
    assert images_BHWC.dtype == torch.uint8
    return normalise(images_BHWC, images.scale_C, images.shift_C)


def random_pixels(*shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normalised(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """One image (H, W, C) as (C, H, W)."""
    channels = pixels.shape[2]
    values = (pixels / 255.0 - np.array(MEAN[:channels])) / np.array(STD[:channels])
    return values.transpose(2, 0, 1)


def slowly_augmented(
    pixels: NDArray[np.uint8], rows: Tensor, augmentation: Augmentation, seed: int
) -> NDArray[np.float64]:
    draws = generator(seed)
    size, padding = len(rows), augmentation.padding
    top_left = torch.zeros(2, size, dtype=torch.int64)
    if padding:
        top_left = torch.randint(0, 2 * padding + 1, (2, size), generator=draws)
    flips = torch.zeros(size)
    if augmentation.flip:
        flips = (torch.rand(size, generator=draws) < 0.5).float()
    batch = []
    for position, row in enumerate(rows.tolist()):
        image = pixels[row]
        height, width = image.shape[:2]
        top, left = top_left[:, position].tolist()
        black = np.pad(image, ((padding, padding), (padding, padding), (0, 0)))
        image = black[top : top + height, left : left + width]
        batch.append(normalised(image[:, ::-1] if flips[position] else image))
    return np.stack(batch)


@given(
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    channels=st.sampled_from([1, 3]),
    padding=st.integers(0, 5),
    flip=st.booleans(),
    rows=st.lists(st.integers(0, 5), min_size=1, max_size=8),
    seed=st.integers(0, 1000),
)
@hypothesis_settings(max_examples=60, deadline=None)
def test_augmentation_equals_one_image_after_the_other(
    height: int, width: int, channels: int, padding: int, flip: bool, rows: list[int], seed: int
) -> None:
    pixels = random_pixels(6, height, width, channels)
    rows_B, augmentation = torch.tensor(rows), Augmentation(padding, flip)
    batch = augmented(make_images(pixels), rows_B, augmentation, generator(seed))
    expected = slowly_augmented(pixels, rows_B, augmentation, seed)
    assert batch.dtype == torch.float32
    assert batch.shape == (len(rows), channels, height, width)
    np.testing.assert_allclose(batch.numpy(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_batch_is_normalised_and_channels_last(channels: int) -> None:
    pixels = random_pixels(5, 4, 6, channels)
    batch = make_images(pixels).batch(torch.tensor([4, 0, 4]))
    expected = np.stack([normalised(pixels[row]) for row in (4, 0, 4)])
    np.testing.assert_allclose(batch.numpy(), expected, rtol=1e-5, atol=1e-5)
    assert batch.is_contiguous(memory_format=torch.channels_last)


def test_padding_is_black_before_normalisation() -> None:
    images = make_images(np.full((1, 4, 4, 3), 255, np.uint8))
    batch = augmented(
        images, torch.zeros(64, dtype=torch.int64), Augmentation(4, False), generator(0)
    )
    black = torch.tensor([-m / s for m, s in zip(MEAN, STD, strict=True)])
    white = torch.tensor([(1 - m) / s for m, s in zip(MEAN, STD, strict=True)])
    is_black = torch.isclose(batch, black.view(1, 3, 1, 1)).all(dim=1)
    is_white = torch.isclose(batch, white.view(1, 3, 1, 1)).all(dim=1)
    assert bool((is_black | is_white).all())
    assert bool(is_black.any())
    assert bool(is_white.any())


def test_every_crop_and_both_orientations_occur() -> None:
    padding = 2
    pixels = np.zeros((1, 5, 5, 1), np.uint8)
    pixels[0, 2, 2] = 255  # The centre stays in sight under every offset and shows it.
    images = make_images(pixels)
    rows_B = torch.zeros(2000, dtype=torch.int64)
    batch = augmented(images, rows_B, Augmentation(padding, False), generator(0))
    places = batch.flatten(1).argmax(dim=1)
    counts = torch.bincount(places, minlength=25)
    assert counts.min() > 0
    assert counts.sum() == 2000

    pixels[0, 2, 2], pixels[0, 0, 0] = 0, 255
    flipped = augmented(make_images(pixels), rows_B, Augmentation(0, True), generator(0))
    corners = flipped.flatten(1).argmax(dim=1)
    assert set(corners.tolist()) == {0, 4}
    assert 0.45 < float((corners == 4).double().mean()) < 0.55


def test_without_augmentation_nothing_is_drawn() -> None:
    draws = generator(0)
    before = draws.get_state()
    images = make_images(random_pixels(3, 4, 4, 1))
    batch = augmented(images, torch.arange(3), Augmentation(0, False), draws)
    assert torch.equal(draws.get_state(), before)
    assert torch.equal(batch, images.batch(torch.arange(3)))


def test_equal_generators_give_equal_batches() -> None:
    images = make_images(random_pixels(8, 6, 6, 3))
    first, again, other = (
        augmented(images, torch.arange(8), Augmentation(4, True), generator(seed))
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_pixels_are_shared_and_not_copied() -> None:
    pixels = random_pixels(4, 3, 3, 1)
    pixels.setflags(write=False)
    images = make_images(pixels)
    assert images.images_NHWC.dtype == torch.uint8
    assert images.images_NHWC.data_ptr() == pixels.ctypes.data
    assert len(images) == 4
