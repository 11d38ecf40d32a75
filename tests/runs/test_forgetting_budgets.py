"""A client's class budgets by labels that count less with age."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from support.pools import context_of
from support.simulation import TINY, SharedRuns, Simulation

from ahfal_app.errors import ConfigError
from ahfal_app.forgetting import forgotten_counts
from ahfal_app.query.core.budgets import allocate, inverse_count_weights, shortfall_weights
from ahfal_app.results.arrivals import statistics_warning
from ahfal_app.results.reading import read_run
from ahfal_app.server.start import prepare

FORGETS = {"forget": 0.5, "forget-budgets": True, "rounds": 1}


def test_old_labels_leave_room_for_their_class():
    # Two classes of four labels, those of the first four cycles old: weighted 1 and 4.
    counts_TC = [[4, 0], [0, 0], [0, 4]]
    weighted_C = forgotten_counts(counts_TC, 1.0)
    assert weighted_C.tolist() == [1, 4]
    weights = inverse_count_weights(weighted_C.tolist())
    assert weights == (1, Fraction(1, 4))
    assert allocate(weights, [9, 9], 5).tolist() == [4, 1]
    assert allocate(inverse_count_weights([4, 4]), [9, 9], 4).tolist() == [2, 2]


def test_weights_below_one_are_as_of_a_class_without_labels():
    assert inverse_count_weights([0.25, 0, 1, 2.5]) == (1, 1, 1, Fraction(2, 5))
    assert shortfall_weights([1.5, 0.5], [0.5, 0.5]) == (0, Fraction(1, 4))


def test_what_ties_on_paper_ties():
    # 0.1 + 0.2 is a little more than 0.3.
    one, other = inverse_count_weights([1 + 0.1 + 0.2, 1.3])
    assert one == other


def test_a_run_with_old_labels_that_count_less_chooses_others(shared_runs: SharedRuns):
    plain = shared_runs({"forget": 0.5, "rounds": 1})
    weighted = shared_runs(FORGETS)
    # There is nothing old at the first purchase.
    first = [[s for s in run.selections if s["cycle"] == 0] for run in (plain, weighted)]
    assert repr(first[0]) == repr(first[1])
    later = [[s for s in run.selections if s["cycle"] == 1] for run in (plain, weighted)]
    assert repr(later[0]) != repr(later[1])
    assert [c.labels for c in plain.metrics.cycles] == [c.labels for c in weighted.metrics.cycles]


def test_each_cycle_whose_statistics_may_be_noise_says_so_once(shared_runs: SharedRuns):
    run = shared_runs({"forget": 0.5, "rounds": 1})
    settings = read_run(run.folder).settings
    warnings = [statistics_warning(cycle, settings) for cycle in run.metrics.cycles]
    assert any(warnings)
    said = [line for line in run.log.splitlines() if "effective ones" in line]
    for line, warning in zip(said, filter(None, warnings), strict=True):
        assert line.endswith(warning)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"forget": 0}, "forget-budgets=true: has no effect with forget=0"),
        ({"strategy": "entropy"}, "allowed is false with strategy='entropy'"),
        ({"strategy.balance": "representation-ratio"}, "with strategy.balance='representation"),
        ({"align": "estimated"}, "allowed is false with align='estimated'"),
    ],
)
def test_budgets_that_cannot_forget_are_refused(
    settings: dict[str, object], reason: str, simulation: Simulation
):
    with pytest.raises(ConfigError) as refused:
        prepare({**TINY, **simulation.base, **FORGETS, **settings})
    assert reason in str(refused.value)


def test_a_context_has_one_weighted_count_for_each_class():
    with pytest.raises(ValueError, match="weighted_counts_C has shape"):
        context_of(5, [4, 4], weighted_counts_C=np.ones(3))
    assert context_of(5, [4, 4]).budget_counts_C.tolist() == [4, 4]
