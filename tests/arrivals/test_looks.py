"""How images look as they arrive: strengths by level, levels by cycle, and what is done to them."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from ahfal_app.arrivals.core.looks import STRENGTHS, changed_images, strength
from ahfal_app.config import Settings, parse_settings
from ahfal_app.training.resources import Resources

#: At the levels 0 to 5.
LEVELS = {
    "noise": (0, 0.04, 0.06, 0.08, 0.09, 0.10),
    "brightness": (0, 0.05, 0.10, 0.15, 0.20, 0.30),
    "contrast": (1, 0.75, 0.50, 0.40, 0.30, 0.15),
    "blur": (0, 0.4, 0.6, 0.7, 0.8, 1.0),
    "rotation": (0, 12, 24, 36, 48, 60),
}


@pytest.mark.parametrize("look", LEVELS)
def test_strengths_by_level(look: str) -> None:
    expected = LEVELS[look]
    assert [strength(look, level) for level in range(6)] == pytest.approx(expected)
    between = [strength(look, level + 0.25) for level in range(5)]
    assert between == pytest.approx([a + 0.25 * (b - a) for a, b in pairwise(expected)])


def test_all_looks_have_their_strengths_here() -> None:
    assert STRENGTHS.keys() == LEVELS.keys()


@pytest.mark.parametrize("level", [2 * 0.25, *range(1, 6)])
def test_noise_has_the_deviation_of_its_level(level: float) -> None:
    """Of grey, so that next to nothing is clipped; bytes are rounded, which adds a 12th."""
    grey = np.full((4, 64, 64, 3), 128, np.uint8)
    changed = changed_images(grey, np.full(4, level), "noise", np.random.default_rng(0))
    added = changed.astype(np.float64) - 128
    amount = 0.02 if level == 0.5 else LEVELS["noise"][int(level)]
    assert added.std() == pytest.approx(np.hypot(255 * amount, 12**-0.5), rel=0.01)
    assert abs(added.mean()) < 0.4
    # Each pixel of each channel has its own.
    assert abs(np.corrcoef(added[..., 0].ravel(), added[..., 1].ravel())[0, 1]) < 0.03


@pytest.mark.parametrize("level", [0.5, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("look", ["brightness", "contrast"])
def test_images_change_as_much_as_their_level_says(look: str, level: float) -> None:
    # The mean is 100.
    image = np.array([40, 80, 120, 160], np.uint8).reshape(1, 2, 2, 1)
    changed = changed_images(image, np.array([level]), look, np.random.default_rng(0))
    amount = float(np.interp(level, range(6), LEVELS[look]))
    expected = image + 255 * amount if look == "brightness" else 100 + amount * (image - 100.0)
    assert np.abs(changed - expected).max() <= 0.5 + 1e-3


def _settings(data_dir: Path, **more: object) -> Settings:
    """Return settings of five cycles, in each of which 10 of a client's 60 images arrive."""
    return parse_settings(
        {
            "dataset": "digits",
            "max-train-samples": 120,
            "max-test-samples": 20,
            "partition": "iid",
            "num-clients": 2,
            "arrivals": "count",
            "arrival-start": 10,
            "arrival-rate": 10,
            "initial-labels": 2,
            "query-labels": 2,
            "target-labels": 10,
            "covariate-drift": "brightness",
            "severity": 4.0,
            "device": "cpu",
            "data-dir": str(data_dir),
            **{name.replace("_", "-"): value for name, value in more.items()},
        }
    )


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({}, [0, 1, 2, 3, 4]),
        ({"severity_path": "sudden"}, [0, 0, 0, 4, 4]),
        ({"severity_path": "recurring"}, [0, 2, 4, 2, 0]),
        ({"severity_path": "recurring", "severity_period": 2}, [0, 4, 0, 4, 0]),
    ],
    ids=str,
)
def test_levels_by_cycle(more: dict[str, object], expected: list[float], data_dir: Path) -> None:
    settings = _settings(data_dir, **more)
    loaded = Resources(settings)
    assert loaded.levels(settings) == pytest.approx(expected)
    assert loaded.levels(settings.model_copy(update={"severity": 2.0})) == pytest.approx(
        [level / 2 for level in expected]
    )
    # And so do images look that arrive then; those of the digits' border are black.
    arrivals = loaded.arrivals(settings)
    assert arrivals is not None
    clean, looked = loaded.dataset.train.images_NHWC, loaded.train.images_NHWC
    for each in arrivals.clients:
        for cycle, level in enumerate(expected):
            rows = each.rows_N[each.cycle_N == cycle]
            assert len(rows) == 10
            is_black = clean[rows] == 0
            assert is_black.any()
            added = 255 * np.interp(level, range(6), LEVELS["brightness"])
            assert np.abs(looked[rows][is_black] - added).max() <= 0.5 + 1e-3
        never = each.rows_N[each.cycle_N < 0]
        assert len(never) == 10
        assert (looked[never] == clean[never]).all()
