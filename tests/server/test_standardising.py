"""What a run keeps of how its samples are standardised."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest

from ahfal_app.config import parse_settings
from ahfal_app.data.augmentation import NO_AUGMENTATION
from ahfal_app.data.images import DataFormat
from ahfal_app.errors import CheckpointError
from ahfal_app.messages.protocol import Order
from ahfal_app.server.federation import Federation
from ahfal_app.server.standardising import is_asked_of_sites, standardised

GREY = DataFormat(("a", "b"), (8, 8, 1), (), (), NO_AUGMENTATION)


def _order(folder: Path, data: DataFormat | None = GREY, **settings: object) -> Order:
    values = {"partition": "sites", **settings}
    return Order(parse_settings(values), "0" * 16, str(folder), "0" * 64, data=data)


def _standardised(folder: Path) -> DataFormat:
    def never(*_: object) -> None:
        raise AssertionError

    return standardised(cast(Federation, None), _order(folder), never, never)


def test_what_is_kept_is_not_asked_for_again(tmp_path: Path):
    kept = {"samples": 3, "mean": [0.5], "deviation": [0.25]}
    (tmp_path / "standardisation.json").write_text(json.dumps(kept))
    found = _standardised(tmp_path)
    assert (found.mean_C, found.std_C) == ((0.5,), (0.25,))
    assert found.is_measured


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"mean": [0.5]}', '{"mean": [0.5, 1.0], "deviation": [0.25, 1.0]}'],
)
def test_what_cannot_be_read_any_more_ends_the_run(tmp_path: Path, content: str):
    (tmp_path / "standardisation.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"standardisation\.json"):
        _standardised(tmp_path)


def test_who_says_how_samples_are_standardised(tmp_path: Path):
    measured: Any = DataFormat(("a", "b"), (8, 8, 1), (0.5,), (0.2,), NO_AUGMENTATION)
    vectors = DataFormat(("a", "b"), (1, 1, 1), (0.5,), (0.2,), NO_AUGMENTATION, vectors=True)
    assert is_asked_of_sites(_order(tmp_path))
    assert not is_asked_of_sites(_order(tmp_path, measured))
    assert not is_asked_of_sites(_order(tmp_path, None))
    assert is_asked_of_sites(_order(tmp_path, vectors))
    assert not is_asked_of_sites(_order(tmp_path, vectors, standardise="none"))
    assert not is_asked_of_sites(_order(tmp_path, vectors, partition="iid"))
