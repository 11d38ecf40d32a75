"""Local differential privacy: the noise, its account, and what a retry may and may not do."""

from __future__ import annotations

import itertools
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from ahfal_app.config import Settings, parse_settings
from ahfal_app.errors import ConfigError, PrivacyBudgetExceeded, PrivacyRefused, StoreError
from ahfal_app.privacy.disclosure import Disclosure
from ahfal_app.privacy.local_dp import LaplaceMechanism, proportions_of_noisy
from ahfal_app.privacy.store import PrivacyStore

EPSILONS = (0.1, 0.7, 1.0, 3.3, 5.0, 10.0, 1e-6, 1e6)


@pytest.fixture
def store(tmp_path: Path) -> PrivacyStore:
    return PrivacyStore(tmp_path / "labels.sqlite")


def _settings(**values: object) -> Settings:
    """Five releases, as in the paper's protocol: 10 % to 35 % in steps of 5 %."""
    return parse_settings(
        {"num-clients": 3, "privacy": "local-dp", "privacy.epsilon": 5.0}
        | {
            ("privacy." if key in ("epsilon", "adjacency", "threshold") else "")
            + key.replace("_", "-"): value
            for key, value in values.items()
        }
    )


# --- the mechanism ---------------------------------------------------------------------------


@pytest.mark.parametrize("sensitivity", [1, 2])
@pytest.mark.parametrize("epsilon", EPSILONS)
def test_scale_is_the_smallest_that_opendp_says_is_private_enough(epsilon: float, sensitivity: int):
    for releases in (1, 3, 5, 7):
        cost = Fraction(str(epsilon)) / releases
        mechanism = LaplaceMechanism.calibrated(sensitivity, cost)
        assert mechanism.epsilon() <= cost
        assert mechanism.scale == pytest.approx(float(sensitivity / cost), rel=1e-14)


@pytest.mark.slow
@pytest.mark.parametrize(("sensitivity", "epsilon"), [(2, 1.0), (1, 1.0), (2, 0.25)])
def test_noise_has_the_promised_distribution(sensitivity: int, epsilon: float):
    """P(k) = (1 - q) / (1 + q) q^|k| with q = exp(-ε / Δ); false alarms: one in 10^9."""
    mechanism = LaplaceMechanism.calibrated(sensitivity, Fraction(str(epsilon)))
    noise_N = mechanism.release(np.full(40_000, 7)) - 7
    q = np.exp(-epsilon / sensitivity)
    last = int(np.floor(np.log(5 * (1 + q) / (1 - q) / len(noise_N)) / np.log(q)))
    values_K = np.arange(-last, last + 1)
    chances_K = (1 - q) / (1 + q) * q ** np.abs(values_K)
    tails = 1 - chances_K.sum()
    seen_K = [np.count_nonzero(noise_N == value) for value in values_K]
    seen = [*seen_K, np.count_nonzero(np.abs(noise_N) > last)]
    expected = np.array([*chances_K, tails]) * len(noise_N)
    assert stats.chisquare(seen, expected).pvalue > 1e-9
    # algorithms: the variance is 2 (Δ / ε)², up to what integers cost.
    assert noise_N.var() == pytest.approx(2 * q / (1 - q) ** 2, rel=0.1)
    assert noise_N.var() == pytest.approx(2 * (sensitivity / epsilon) ** 2, rel=0.2)


def test_noise_of_an_unlimited_budget_is_none():
    mechanism = LaplaceMechanism.calibrated(2, Fraction(10**6) / 5)
    counts_C = np.array([0, 1, 2, 1000, 10**6])
    np.testing.assert_array_equal(mechanism.release(counts_C), counts_C)


def test_noise_is_not_that_of_the_experiments_seed():
    mechanism = LaplaceMechanism.calibrated(2, Fraction(1, 10))
    first_C, second_C = (mechanism.release(np.zeros(50, np.int64)) for _ in range(2))
    assert (first_C != second_C).any()


@pytest.mark.parametrize(
    ("noisy", "expected"),
    [
        ([-1, 3, 1], [0.0, 0.75, 0.25]),
        ([0, 0, 0, 0], [0.25, 0.25, 0.25, 0.25]),
        ([-5, -1], [0.5, 0.5]),
        ([[2, -2], [-1, -1]], [[1.0, 0.0], [0.5, 0.5]]),
    ],
)
def test_noisy_counts_are_clipped_and_normalised(noisy: list[object], expected: list[object]):
    np.testing.assert_array_equal(proportions_of_noisy(noisy), expected)


@given(
    hnp.arrays(np.int64, hnp.array_shapes(min_dims=2, max_dims=2), elements=st.integers(-50, 50))
)
def test_noisy_counts_become_proportions(noisy_MC: np.ndarray):
    proportions_MC = proportions_of_noisy(noisy_MC)
    assert (proportions_MC >= 0).all()
    np.testing.assert_allclose(proportions_MC.sum(axis=1), 1.0)


# --- releases --------------------------------------------------------------------------------


@pytest.mark.parametrize("epsilon", [0.1, 0.7, 1 / 3, 5.0, 9.999999])
@pytest.mark.parametrize("cycles", [2, 4, 6])
def test_all_releases_together_spend_exactly_the_budget(
    store: PrivacyStore, epsilon: float, cycles: int
):
    settings = _settings(epsilon=epsilon, cycles=cycles)
    disclosure = Disclosure(store, settings, "run", 0)
    for cycle in range(cycles - 1):
        answer = disclosure.histogram(cycle, np.array([3, 2]))
        assert answer.epsilon_spent == pytest.approx(epsilon * (cycle + 1) / (cycles - 1))
    assert store.spent() == Fraction(str(epsilon))
    assert answer.epsilon_spent == epsilon
    with pytest.raises(PrivacyBudgetExceeded, match=f"cycle {cycles}: a histogram costs"):
        disclosure.histogram(cycles, np.array([3, 2]))
    assert store.spent() == Fraction(str(epsilon))


def test_release_is_repeated_and_costs_nothing_again(tmp_path: Path):
    path = tmp_path / "labels.sqlite"
    counts_C = np.arange(40)
    answers = []
    for _ in range(4):
        store = PrivacyStore(path)  # A new process each time.
        answers.append(Disclosure(store, _settings(epsilon=0.5), "run", 0).histogram(2, counts_C))
        store.close()
        counts_C = counts_C + 1  # Late labels must not be told in a second release.
    assert {tuple(answer.counts_C.tolist()) for answer in answers} == {
        tuple(answers[0].counts_C.tolist())
    }
    assert {answer.epsilon_spent for answer in answers} == {0.1}


def test_same_settings_and_seed_give_other_noise(tmp_path: Path):
    def release(name: str) -> list[int]:
        disclosure = Disclosure(PrivacyStore(tmp_path / name), _settings(seed=3), "run", 0)
        counts: list[int] = disclosure.histogram(0, np.full(50, 9)).counts_C.tolist()
        return counts

    assert release("first") != release("second")


def test_release_that_fails_spends_nothing(store: PrivacyStore):
    def draw() -> np.ndarray:
        raise OSError("no randomness")

    with pytest.raises(OSError, match="no randomness"):
        store.release(0, Fraction(1), Fraction(1), draw)
    assert store.spent() == 0
    store.release(0, Fraction(1), Fraction(1), lambda: np.array([4]))
    assert store.spent() == 1


@given(st.lists(st.integers(0, 5), max_size=20), st.integers(1, 5))
def test_budget_is_never_exceeded_whatever_is_asked(asked: list[int], releases: int):
    store = PrivacyStore(Path(":memory:"))
    draws = itertools.count()
    first: dict[int, int] = {}
    for cycle in asked:
        try:
            (value,) = store.release(
                cycle, Fraction(1, releases), Fraction(1), lambda: np.array([next(draws)])
            )
        except PrivacyBudgetExceeded:
            assert cycle not in first
            assert len(first) == releases
        else:
            assert first.setdefault(cycle, value) == value
        assert store.spent() == Fraction(len(first), releases) <= 1
    store.close()


def test_empty_labelled_set_is_told_where_its_size_is_public(store: PrivacyStore):
    nothing_C = np.zeros(4, np.int64)
    answer = Disclosure(store, _settings(), "run", 0).histogram(0, nothing_C)
    assert not answer.has_labels
    assert answer.epsilon_spent == 0
    assert not answer.counts_C.any()


def test_empty_labelled_set_is_hidden_where_its_size_is_not_public(store: PrivacyStore):
    settings = _settings(adjacency="add-remove", epsilon=0.05)
    answer = Disclosure(store, settings, "run", 0).histogram(0, np.zeros(40, np.int64))
    assert answer.has_labels
    assert answer.epsilon_spent == 0.01
    assert answer.counts_C.any()


def test_sensitivity_is_the_largest_change_that_a_neighbour_makes():
    """Replacing one label moves two counts by one, adding one moves one."""
    counts_C = np.array([3, 1, 0])
    replaced, added = np.array([2, 1, 1]), np.array([3, 1, 1])
    assert np.abs(counts_C - replaced).sum() == _settings().sensitivity == 2
    assert np.abs(counts_C - added).sum() == _settings(adjacency="add-remove").sensitivity == 1


@pytest.mark.parametrize(
    "change",
    [
        {"privacy": "none", "privacy.epsilon": 0.0},
        {"privacy.epsilon": 50.0},
        {"cycles": 3},
        {"privacy.adjacency": "add-remove"},
        {"num_clients": 4},
        {"privacy": "local-dp+secure-aggregation"},
    ],
)
def test_server_is_held_to_the_terms_of_the_start(store: PrivacyStore, change: dict[str, object]):
    Disclosure(store, _settings(), "run", 0)
    Disclosure(store, _settings(seed=9), "run", 0)
    with pytest.raises(PrivacyRefused, match="privacy must not change"):
        Disclosure(store, _settings(**change), "run", 0)


def test_damaged_store_is_named(tmp_path: Path):
    path = tmp_path / "labels.sqlite"
    path.write_bytes(b"not a database, and long enough to be looked at as one" * 20)
    with pytest.raises(StoreError, match=r"labels\.sqlite"):
        PrivacyStore(path)


# --- settings --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"privacy": "local-dp"}, r"privacy.epsilon=0\.0: allowed is at least 1e-06"),
        (
            {"privacy": "local-dp", "privacy.epsilon": -1.0},
            r"privacy.epsilon=-1\.0: allowed is number, ≥ 0",
        ),
        ({"privacy": "local-dp+secure-aggregation"}, "privacy.epsilon=0.0"),
        ({"privacy.epsilon": 1.0}, "privacy.epsilon=1.0: has no effect with privacy='none'"),
        (
            {"privacy": "secure-aggregation", "privacy.epsilon": 1.0},
            "privacy.epsilon=1.0: has no effect",
        ),
        ({"privacy.adjacency": "add-remove"}, "privacy.adjacency='add-remove': has no effect"),
        (
            {"privacy": "local-dp", "privacy.epsilon": 1.0, "privacy.threshold": 0.9},
            "privacy.threshold=0.9: has no effect",
        ),
        (
            {"privacy": "secure-aggregation", "privacy.threshold": 0.5},
            "privacy.threshold=0.5: allowed is number, > 0.5, ≤ 1",
        ),
        ({"privacy": "secure-aggregation", "num-clients": 2}, "num-clients=2: allowed is at least"),
        (
            {"privacy": "secure-aggregation", "client-state": "memory"},
            "client-state='memory': allowed is 'disk'",
        ),
        ({"privacy": "dp"}, "privacy='dp': allowed is"),
    ],
)
def test_contradictory_settings_are_refused(values: dict[str, object], problem: str):
    with pytest.raises(ConfigError, match=problem):
        parse_settings(values)


def test_releases_are_one_before_each_purchase_but_the_first():
    assert _settings().num_releases == 5
    assert _settings().epsilon_per_release == 1
    assert _settings(epsilon=10.0).epsilon_per_release == 2
    assert _settings(cycles=1).num_releases == 0
