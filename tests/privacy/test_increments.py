"""Noisy counts of new labels alone: each label is in one release, and so they do not add up."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.simulation import Simulation

from ahfal_app.client.past_runs import past_runs
from ahfal_app.config import Settings, parse_settings
from ahfal_app.errors import ConfigError, PrivacyRefused
from ahfal_app.forgetting import weights
from ahfal_app.labels.store import STORE_FILE
from ahfal_app.privacy.disclosure import Disclosure
from ahfal_app.privacy.local_dp import LaplaceMechanism
from ahfal_app.privacy.store import PrivacyStore

NOISY: dict[str, object] = {
    "privacy": "local-dp",
    "privacy.epsilon": 1.0,
    "privacy.releases": "increments",
    "num-clients": 3,
}


def _settings(**more: object) -> Settings:
    return parse_settings({**NOISY, **more})


def _store() -> PrivacyStore:
    return PrivacyStore(Path(":memory:"))


class Exact:
    """Adds no noise, and keeps what it was given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.released: list[list[int]] = []
        self.scales: list[float] = []
        monkeypatch.setattr(LaplaceMechanism, "release", self._release_of())

    def _release_of(self):
        def release(mechanism: LaplaceMechanism, counts_C: np.ndarray) -> np.ndarray:
            self.released.append(counts_C.tolist())
            self.scales.append(mechanism.scale)
            return counts_C

        return release


COUNTS = np.array([[4, 0], [1, 1], [0, 2]])


def test_each_label_is_in_one_release_with_the_whole_budget(monkeypatch: pytest.MonkeyPatch):
    exact, store = Exact(monkeypatch), _store()
    disclosure = Disclosure(store, _settings(), "run", 0)
    for cycle in range(3):
        answer = disclosure.histogram(cycle, COUNTS[: cycle + 1])
        assert answer.counts_C.tolist() == COUNTS[: cycle + 1].sum(axis=0).tolist()
        assert answer.epsilon_spent == 1.0
    assert exact.released == COUNTS.tolist()
    assert exact.scales == [2.0] * 3
    assert store.spent() == 1


def test_forgetting_is_a_recursion_on_what_was_released(monkeypatch: pytest.MonkeyPatch):
    exact, store = Exact(monkeypatch), _store()
    disclosure = Disclosure(store, _settings(forget=2.0), "run", 0)
    for cycle in range(3):
        answer = disclosure.histogram(cycle, COUNTS[: cycle + 1])
    assert answer.weighted_C == pytest.approx([2.707107, 2.707107], abs=1e-6)
    again = disclosure.histogram(2, COUNTS)
    assert again.weighted_C.tolist() == answer.weighted_C.tolist()
    assert len(exact.released) == 3


@given(st.lists(st.integers(0, 6), min_size=1, max_size=12), st.data())
def test_no_label_is_in_two_releases_whatever_is_asked(asked: list[int], data: st.DataObject):
    """Labels come, and the server asks for cycles in any order, again and again."""
    shape = (7, 3)
    counts = np.array(data.draw(st.lists(st.integers(0, 4), min_size=21, max_size=21))).reshape(
        shape
    )
    with pytest.MonkeyPatch.context() as patch:
        exact = Exact(patch)
        store = _store()
        disclosure = Disclosure(store, _settings(**{"privacy.adjacency": "add-remove"}), "run", 0)
        for cycle in asked:
            disclosure.histogram(cycle, counts[: cycle + 1])
    total = np.array(exact.released).sum(axis=0)
    assert total.tolist() == counts[: max(asked) + 1].sum(axis=0).tolist()
    assert store.spent() == 1


def test_neighbouring_labelled_histories_differ_in_one_release_by_the_sensitivity(
    monkeypatch: pytest.MonkeyPatch,
):
    other = COUNTS.copy()
    other[1] = [0, 2]  # The class of one label of cycle 1 is another.
    released = []
    for counts in (COUNTS, other):
        with monkeypatch.context() as patch:
            exact = Exact(patch)
            disclosure = Disclosure(_store(), _settings(), "run", 0)
            for cycle in range(3):
                disclosure.histogram(cycle, counts[: cycle + 1])
            released.append(np.array(exact.released))
    distances = np.abs(released[0] - released[1]).sum(axis=1)
    assert distances.tolist() == [0, _settings().sensitivity, 0]


def test_cycles_without_new_labels_cost_nothing_and_say_what_was_said(
    monkeypatch: pytest.MonkeyPatch,
):
    exact = Exact(monkeypatch)
    disclosure = Disclosure(_store(), _settings(), "run", 0)
    assert not disclosure.histogram(0, np.zeros((1, 2), np.int64)).has_labels
    assert disclosure.histogram(1, np.array([[0, 0], [3, 1]])).counts_C.tolist() == [3, 1]
    assert disclosure.histogram(2, np.array([[0, 0], [3, 1], [0, 0]])).counts_C.tolist() == [3, 1]
    assert exact.released == [[3, 1]]


@pytest.mark.parametrize("first", ["cumulative", "increments"])
def test_releases_are_part_of_the_terms(first: str):
    store = _store()
    Disclosure(store, _settings(**{"privacy.releases": first}), "run", 0)
    other = {"cumulative": "increments", "increments": "cumulative"}[first]
    with pytest.raises(PrivacyRefused, match="releases"):
        Disclosure(store, _settings(**{"privacy.releases": other}), "run", 0)


def test_what_a_past_run_has_cost_is_its_dearest_release(tmp_path: Path):
    store = PrivacyStore(tmp_path / "old" / "0" / STORE_FILE)
    disclosure = Disclosure(store, _settings(), "old", 0)
    for cycle in range(3):
        disclosure.histogram(cycle, COUNTS[: cycle + 1])
    store.close()
    assert past_runs(tmp_path, "new").epsilon == Fraction(1)


@pytest.mark.parametrize(
    ("cycles", "half_life", "expected"),
    [
        (5, 1, 1.33),
        (5, 2, 1.94),
        (5, 5, 3.1),
        (5, 0, 5),
        (10, 1, 1.33),
        (10, 2, 2.0),
        (10, 5, 3.87),
        (10, 0, 10),
    ],
)
def test_noise_of_the_sum(cycles: int, half_life: float, expected: float):
    """In units of one release's with the whole budget; cumulative ones have cycles²."""
    assert (weights(cycles, half_life) ** 2).sum() == pytest.approx(expected, abs=0.006)


def test_forgetting_with_noise_needs_increments():
    with pytest.raises(ConfigError, match=r"privacy\.releases='increments'"):
        _settings(**{"forget": 3.0, "privacy.releases": "cumulative"})
    with pytest.raises(ConfigError, match=r"privacy\.releases='increments': has no effect"):
        parse_settings({"privacy.releases": "increments"})


@pytest.mark.slow
@pytest.mark.parametrize("privacy", ["local-dp", "local-dp+secure-aggregation"])
def test_a_run_spends_its_budget_once(privacy: str, simulation: Simulation):
    settings = {**NOISY, "privacy": privacy, "privacy.epsilon": 1e6, "forget": 1.0}
    noisy = simulation(settings)
    assert [c.epsilon_spent for c in noisy.metrics.cycles] == [1e6, 1e6, None]
    exact = simulation({"forget": 1.0, "num-clients": 3})
    for one, other in zip(noisy.metrics.cycles[:-1], exact.metrics.cycles[:-1], strict=True):
        assert one.deviation == pytest.approx(other.deviation, abs=1e-5)
    assert exact.metrics.cycles[1].forgetting is not None
    assert exact.metrics.cycles[1].forgetting.deviation != exact.metrics.cycles[1].deviation


@pytest.mark.slow
def test_secure_sums_are_of_forgotten_counts(simulation: Simulation):
    secure = simulation({"forget": 1.0, "num-clients": 3, "privacy": "secure-aggregation"})
    exact = simulation({"forget": 1.0, "num-clients": 3})
    # As text, since scores may be NaN.
    assert repr(secure.selections) == repr(exact.selections)
