"""A client's part of the stop set: drawn once, whatever becomes of its samples."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from ahfal_app.client import stop_set
from ahfal_app.client.state import ClientState
from ahfal_app.client.stop_set import StopSet
from ahfal_app.config import parse_settings

CLASSES = 3


class Site:
    """Samples with ids, of which some go, and a model that predicts a class by a sample's id."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ids_N = np.arange(0, 200, 2)
        self.state = ClientState.on_disk(folder)
        monkeypatch.setattr(stop_set, "predict", self._predict)

    def sums(self, shift: int, cycle: int, **settings: Any) -> np.ndarray:
        loaded: Any = SimpleNamespace(
            num_classes=CLASSES,
            train_images=None,
            client_rows=lambda _: self.ids_N,
            model_with=lambda tensors: tensors["shift"],
        )
        given = parse_settings({"num-clients": 2, "stop-set-size": 80, **settings})
        part = StopSet(given, 1, self.state, loaded)
        return part.sums({"shift": torch.tensor(shift)}, cycle)

    def _predict(self, model: torch.Tensor, images: None, rows_N: torch.Tensor) -> Any:
        logits_NC = torch.nn.functional.one_hot((rows_N + model) % CLASSES, CLASSES).float()
        return SimpleNamespace(logits_NC=logits_NC)

    def drawn(self) -> list[int]:
        ids_N = self.state.load_stop_set()
        assert ids_N is not None
        return ids_N.tolist()


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    return Site(tmp_path / "state", monkeypatch)


def test_it_is_drawn_once_by_seed_and_client(site: Site) -> None:
    first = site.sums(0, 0)
    assert (first[0], first[2]) == (40, 0)
    drawn = site.drawn()
    assert len(set(drawn)) == 40
    assert drawn == sorted(drawn)
    assert set(drawn) <= set(site.ids_N.tolist())
    # Later settings, and other samples, draw no other one.
    site.ids_N = np.arange(0, 400, 2)
    assert site.sums(0, 1, **{"stop-set-size": 20, "seed": 7})[0] == 40
    assert site.drawn() == drawn


def test_another_seed_draws_another(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.sums(0, 0)
    other = Site(tmp_path / "other", monkeypatch)
    other.sums(0, 0, seed=1)
    assert other.drawn() != site.drawn()


def test_what_is_compared_is_the_cycle_before(site: Site) -> None:
    for cycle, shift, same in ((0, 0, None), (1, 0, True), (2, 1, False), (3, 1, True)):
        sums_E = site.sums(shift, cycle)
        table_CC = sums_E[3:].reshape(CLASSES, CLASSES)
        assert sums_E[2] == table_CC.sum() == (0 if same is None else 40)
        if same is not None:
            assert table_CC.trace() == (40 if same else 0)
        # Asked again, it says the same.
        assert (site.sums(shift, cycle) == sums_E).all()
    # A cycle that was missed cannot be compared with.
    assert site.sums(1, 5)[2] == 0


def test_samples_that_are_gone_are_missing_and_come_back(site: Site) -> None:
    site.sums(0, 0)
    drawn, all_N = site.drawn(), site.ids_N
    site.ids_N = np.setdiff1d(all_N, drawn[:15])
    sums_E = site.sums(0, 1)
    assert (sums_E[0], sums_E[2]) == (25, 25)
    site.ids_N = all_N
    sums_E = site.sums(0, 2)
    assert (sums_E[0], sums_E[2]) == (40, 25)
    site.ids_N = np.array(drawn[:9])
    assert not site.sums(0, 3).any()


def test_a_cycle_is_closed_again_after_later_ones(site: Site) -> None:
    """As where the newest checkpoint is damaged: what it was compared with is still there."""
    expected = [site.sums(shift, cycle) for cycle, shift in enumerate((0, 1, 1, 2))]
    assert (site.sums(1, 2) == expected[2]).all()
    kept = sorted(path.name for path in (site.state.oracle_folder or Path()).parent.glob("pred*"))
    assert kept == [f"predictions-{cycle}.safetensors" for cycle in (1, 2, 3)]
