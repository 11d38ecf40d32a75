"""Views of images: what is drawn for them hangs on pixels and number alone; features are kept."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from support.small_backbone import small_backbone

from ahfal_app.data.augmentation import NO_AUGMENTATION, Augmentation
from ahfal_app.data.device import (
    AugmentationDraws,
    DeviceFeatures,
    draw_augmentation,
    joined_draws,
)
from ahfal_app.data.features import FeatureStore
from ahfal_app.data.views import WithViews

CPU = torch.device("cpu")


def pixels(count: int, seed: int = 0, side: int = 8, channels: int = 3) -> np.ndarray:
    shape = (count, side, side, channels)
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def slow_view(image: np.ndarray, view: int, padding: int, flip: bool) -> np.ndarray:
    """Return a view, computed a pixel at a time from the words of the documentation."""
    shape = ",".join(str(size) for size in image.shape).encode()
    digest = hashlib.sha256(shape + b"\0" + image.tobytes()).digest()
    drawn = hashlib.sha256(digest + bytes([view])).digest()
    top, left, mirrored = (int.from_bytes(drawn[8 * i : 8 * i + 8], "little") for i in range(3))
    height, width, _ = image.shape
    made = np.zeros_like(image)
    for down in range(height):
        for right in range(width):
            above = down + top % (2 * padding + 1) - padding
            beside = right + left % (2 * padding + 1) - padding
            if 0 <= above < height and 0 <= beside < width:
                made[down, right] = image[above, beside]
    return made[:, ::-1] if flip and mirrored % 2 else made


@pytest.mark.parametrize(("padding", "flip"), [(2, True), (3, False), (0, True)])
def test_a_view_is_moved_and_mirrored_as_its_pixels_say(padding: int, flip: bool) -> None:
    images = pixels(6)
    views = WithViews(images, Augmentation(padding, flip), 2)
    assert len(views) == 18
    wanted = [*images, *(slow_view(i, v, padding, flip) for v in (1, 2) for i in images)]
    np.testing.assert_array_equal(views[np.arange(18)], wanted)
    for row in (0, 7, 17):
        np.testing.assert_array_equal(views[row], wanted[row])


def test_a_view_does_not_hang_on_other_images_or_their_order() -> None:
    images, how = pixels(5), Augmentation(2, True)
    many, few = WithViews(images, how, 4), WithViews(images[[3, 1]], how, 2)
    np.testing.assert_array_equal(few[np.array([2, 3, 4, 5])], many[np.array([8, 6, 13, 11])])


def test_rows_of_images_and_their_views() -> None:
    views = WithViews(pixels(4), Augmentation(1, False), 2)
    assert views.rows(np.array([0, 3])).tolist() == [0, 3, 4, 7, 8, 11]


def test_features_are_those_of_the_views_and_equal_views_share_them(tmp_path: Path) -> None:
    images = pixels(5, channels=1)
    # Nothing but mirrored or not: half of the views are the images themselves.
    views = WithViews(images, Augmentation(0, True), 2)
    store = FeatureStore(tmp_path, small_backbone(), CPU)
    found = store.of(views, "with views")
    different = {views[row].tobytes() for row in range(len(views))}
    assert len(images) < found.computed == len(different) < len(views)
    split = DeviceFeatures(found, np.arange(5), CPU)
    rows, chosen = torch.tensor([4, 0, 4]), torch.tensor([0, 2, 1])
    taken = split.transformed(rows, NO_AUGMENTATION, AugmentationDraws(None, None, chosen))
    for row, view, values in zip(rows.tolist(), chosen.tolist(), taken, strict=True):
        alone = FeatureStore(tmp_path / "alone", small_backbone(), CPU)
        one = alone.of(views[np.array([row + 5 * view])], f"{row} {view}")
        np.testing.assert_allclose(values[0, 0], one.values_MD[one.rows_N[0]], rtol=2e-3, atol=1e-4)
    # Whoever does not train sees the images themselves, and there are five of them.
    own = split.transformed(rows, NO_AUGMENTATION, AugmentationDraws(None, None))
    assert torch.equal(split.batch(rows)[:, :, 0, 0].half(), own[:, 0, 0])
    assert len(split) == 5
    # Without views nothing has to be computed any more.
    assert store.of(images, "without").computed == 0


def test_features_of_views_go_with_their_images(tmp_path: Path) -> None:
    images, how = pixels(4), Augmentation(2, False)
    store = FeatureStore(tmp_path, small_backbone(), CPU, "site-1")
    store.of(WithViews(images, how, 2), "before")
    left = WithViews(images[:1], how, 2)
    store.forget_others(store.of(left, "after"))
    rows = (store.folder / "digests.bin").stat().st_size // 32
    assert rows == len({left[row].tobytes() for row in range(3)})


def test_one_of_all_views_is_drawn_each_time_and_nothing_without() -> None:
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    assert draw_augmentation(100, NO_AUGMENTATION, generator) == AugmentationDraws(None, None)
    assert torch.equal(generator.get_state(), before)
    how = Augmentation(0, False, views=2)
    draws = [draw_augmentation(300, how, generator) for _ in range(2)]
    joined = joined_draws(draws).views_B
    assert joined is not None
    assert joined.shape == (600,)
    assert all(150 < count < 250 for count in torch.bincount(joined, minlength=3).tolist())
