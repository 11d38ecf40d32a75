"""Features that are kept belong to the images as they look in this run, not in another one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.small_backbone import SETTINGS
from torch import Tensor

from ahfal_app.config import parse_settings
from ahfal_app.data.augmentation import NO_AUGMENTATION
from ahfal_app.data.images import DataFormat
from ahfal_app.data.site.loading import SiteFolders
from ahfal_app.training import resources as module
from ahfal_app.training.resources import Resources, site_resources

TRAIN, TEST = 90, 30


def changing(data_dir: Path, **given: object) -> dict[str, Tensor]:
    """Features of a run whose images change over time."""
    settings = parse_settings(
        {
            "dataset": "digits",
            "max-train-samples": TRAIN,
            "max-test-samples": TEST,
            "partition": "iid",
            "num-clients": 3,
            "arrivals": "share",
            "arrival-start": 0.2,
            "arrival-rate": 0.2,
            "target-fraction": 0.5,
            "covariate-drift": "noise",
            "severity": 5.0,
            "seed": 0,
            "compile": "never",
            "data-dir": str(data_dir),
            **SETTINGS,
            **{name.replace("_", "-"): value for name, value in given.items()},
        }
    )
    made = Resources(settings)
    return {
        "train": made.train_images.batch(torch.arange(TRAIN)),
        "test": made.test_images_at(settings, 2).batch(torch.arange(TEST)),
    }


@pytest.mark.parametrize(
    "other",
    [
        {"num_clients": 4},
        {"partition": "dirichlet", "alpha": 0.5},
        {"seed": 1},
        {"covariate_drift": "rotation"},
        {"severity": 3.0},
    ],
    ids=str,
)
def test_other_looks_have_other_features(tmp_path: Path, other: dict[str, object]) -> None:
    """As with a cache in which no run has been before."""
    changing(tmp_path / "warm")
    warm, cold = (changing(tmp_path / cache, **other) for cache in ("warm", "cold"))
    for split, features in cold.items():
        assert torch.equal(warm[split], features), split


def test_equal_looks_are_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = changing(tmp_path)

    def none(*_arguments: object, **_named: object) -> Callable[[], None]:
        raise AssertionError("features were computed again")

    monkeypatch.setattr("ahfal_app.data.features.extracting", none)
    again = changing(tmp_path)
    assert all(torch.equal(again[split], features) for split, features in first.items())


def test_a_sites_images_of_another_shape_have_other_features(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    random = np.random.default_rng(0)
    for number in range(8):
        pixels = random.integers(0, 256, (48, 64, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "data" / f"{number}.png")

    def features(size: int, cache: str) -> Tensor:
        settings = parse_settings(
            {
                "dataset": "none",
                "partition": "sites",
                "evaluate": "sites",
                "classes": "a,b",
                "image-size": size,
                "compile": "never",
                "data-dir": str(tmp_path / cache),
                **SETTINGS,
            }
        )
        colours = (0.5, 0.5, 0.5), (0.2, 0.2, 0.2)
        wanted = DataFormat(("a", "b"), (size, size, 3), *colours, NO_AUGMENTATION)
        monkeypatch.setattr(module, "_sites", {})
        made = site_resources(settings, SiteFolders(tmp_path / "data", tmp_path / "state"), wanted)
        return made.train_images.batch(torch.arange(8))

    features(32, "warm")
    after_others, alone = features(16, "warm"), features(16, "cold")
    assert torch.equal(after_others, alone)
    assert not torch.equal(alone, features(32, "cold"))
