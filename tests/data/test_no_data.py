"""What a server without data knows of them: what the settings say."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.small_backbone import SETTINGS as BACKBONE
from support.small_backbone import small_backbone

from ahfal_app.config import parse_settings
from ahfal_app.data.augmentation import NO_AUGMENTATION, Augmentation
from ahfal_app.data.sources import load_dataset
from ahfal_app.server.preflight import with_absolute_paths
from ahfal_app.training.resources import Resources

NONE: dict[str, object] = {
    "dataset": "none",
    "partition": "sites",
    "evaluate": "sites",
    "classes": "a, b,c",
}


@pytest.mark.parametrize(
    ("said", "shape", "augmentation"),
    [
        ({"image-size": 64}, (64, 64, 3), Augmentation(padding=8, flip=True)),
        ({"image-size": 64, "image-channels": 1}, (64, 64, 1), Augmentation(8, flip=False)),
        ({"image-size": 64, "augment": "none"}, (64, 64, 3), NO_AUGMENTATION),
        ({"image-size": 64, "augment": "crop"}, (64, 64, 3), Augmentation(8, flip=False)),
        # As large as CIFAR-10's, and not taken for these.
        ({"image-size": 32, "classes": "0,1,2,3,4,5,6,7,8,9"}, (32, 32, 3), Augmentation(4, True)),
    ],
)
def test_images_are_what_settings_say(
    said: dict[str, object], shape: tuple[int, int, int], augmentation: Augmentation
):
    found = load_dataset(parse_settings(NONE | said))
    assert (found.image_shape, found.augmentation) == (shape, augmentation)
    assert (len(found.train), len(found.test), found.fingerprint) == (0, 0, "")
    assert (found.name, found.holds_vectors, found.format.is_measured) == ("none", False, False)


def test_vectors_are_what_settings_say():
    found = load_dataset(parse_settings(NONE | {"vector-length": 5}))
    assert (found.image_shape, found.class_names) == ((1, 1, 5), ("a", "b", "c"))
    assert (found.holds_vectors, found.format.is_measured) == (True, False)
    assert found.augmentation == NO_AUGMENTATION
    as_they_are = load_dataset(parse_settings(NONE | {"vector-length": 5, "standardise": "none"}))
    assert (as_they_are.mean_C, as_they_are.std_C) == ((0.0,) * 5, (1.0,) * 5)


@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_what_a_backbone_wants(channels: int):
    said = NONE | BACKBONE | {"image-channels": channels}
    wanted = small_backbone().preprocessing
    found = Resources(parse_settings(said)).dataset
    assert found.image_shape == (32, 32, channels)
    assert len(found.mean_C) == len(found.std_C) == channels
    if channels == 3:
        assert (found.mean_C, found.std_C) == (wanted.mean_C, wanted.std_C)
    larger = Resources(parse_settings(said | {"image-size": 48})).dataset
    assert larger.image_shape == (48, 48, channels)


def test_a_folder_of_that_name_is_not_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "none").mkdir()
    monkeypatch.chdir(tmp_path)
    settings = parse_settings(NONE | {"image-size": 8})
    assert with_absolute_paths(settings).dataset == "none"
    folder = parse_settings({"dataset": "./none"})
    assert with_absolute_paths(folder).dataset == str(tmp_path / "none")
