"""Images of a folder as a backbone gets them: of one size as they are, of several at its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from support.image_files import noise, png
from support.small_backbone import SETTINGS, small_backbone

from ahfal_app.config import parse_settings
from ahfal_app.data import sources
from ahfal_app.errors import ImageSizesDiffer
from ahfal_app.training.resources import Resources

ONE_SIZE = [(12, 20)] * 12
SEVERAL = [(12, 20), (20, 12)] * 6


def loaded(root: Path, sizes: list[tuple[int, int]], **settings: object) -> Resources:
    """Load a folder of bright images of two classes."""
    for number, (height, width) in enumerate(sizes):
        path = root / "images" / f"class {number // 6}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(155 + noise(height, width, 3, seed=number, deepest=100)))
    sources._load.cache_clear()
    own = {"dataset": str(root / "images"), "data-dir": str(root / "data"), "num-clients": 2}
    more = {name.replace("_", "-"): value for name, value in settings.items()}
    return Resources(parse_settings({**own, **more}))


@pytest.mark.parametrize(
    ("sizes", "settings", "shape"),
    [
        (ONE_SIZE, {}, (12, 20, 3)),
        (SEVERAL, {}, (32, 32, 3)),
        (SEVERAL, {"backbone-size": 40}, (40, 40, 3)),
        (SEVERAL, {"image-size": 16}, (16, 16, 3)),
        (ONE_SIZE, {"image-size": 16}, (16, 16, 3)),
    ],
    ids=["one size", "several", "a set size", "several scaled", "one scaled"],
)
def test_images_are_scaled_where_they_differ_or_it_is_said(
    tmp_path: Path, sizes: list[tuple[int, int]], settings: dict[str, object], shape: object
) -> None:
    made = loaded(tmp_path, sizes, **{**SETTINGS, **settings})
    assert made.dataset.image_shape == shape
    images_NHWC = np.array(made.dataset.train.images_NHWC)
    own = small_backbone(size=int(str(settings.get("backbone-size", 32))))
    with torch.inference_mode():
        features_ND = own.network(own.preprocessing(torch.from_numpy(images_NHWC))).numpy()
    found_ND = made.train_images.batch(torch.arange(len(images_NHWC))).flatten(1).numpy()
    np.testing.assert_allclose(found_ND, features_ND, rtol=2e-3, atol=1e-4)


def extents(image_HWC: np.ndarray) -> tuple[tuple[int, int], ...]:
    """Return the first and the last row, and column, that is not black."""
    bright_HW = image_HWC.any(axis=2)
    found = (np.flatnonzero(bright_HW.any(axis=axis)) for axis in (1, 0))
    return tuple((int(each[0]), int(each[-1])) for each in found)


def test_images_of_several_sizes_stay_whole_and_centred_on_black(tmp_path: Path) -> None:
    images_NHWC = loaded(tmp_path, SEVERAL, **SETTINGS).dataset.train.images_NHWC
    # 12 by 20 pixels become 19 by 32.
    short, long = (6, 24), (0, 31)
    assert set(map(extents, images_NHWC)) == {(short, long), (long, short)}


def test_without_a_backbone_they_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageSizesDiffer, match="set image-size"):
        loaded(tmp_path, SEVERAL)
