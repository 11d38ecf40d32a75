"""Runs whose budget goes by what the clients' samples are: who gets what, and who may not ask."""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from numpy.typing import NDArray
from support.attacks import Target
from support.hearing import Hearing
from support.killing import Uninterrupted, killed_at_each, uninterrupted
from support.simulation import Outcome, Simulation
from torch import Tensor

from ahfal_app.client import coordination
from ahfal_app.errors import ConfigError, QuorumNotReached
from ahfal_app.messages.keys import ARRAYS_KEY
from ahfal_app.query import PoolView, QueryContext, ScoringStrategy
from ahfal_app.query.core import splitting
from ahfal_app.query.core.splitting import class_budgets, class_share, sorted_scores
from ahfal_app.results.grants import grants_table
from ahfal_app.results.reading import read_run
from ahfal_app.server.preflight import check_settings

#: Three clients of 31, 61 and 58 samples, two purchases.
CLIENTS: dict[str, Any] = {
    "partition": "dirichlet",
    "alpha": 0.5,
    "min-partition-size": 5,
    "max-train-samples": 150,
    "max-test-samples": 40,
    "budget": "global",
    "initial-labels": 12,
    "query-labels": 9,
    "target-labels": 30,
    "strategy": "entropy",
    "rounds": 1,
}
MISSING: dict[str, Any] = {**CLIENTS, "budget-split": "missing"}
THRESHOLD: dict[str, Any] = {
    **CLIENTS,
    "budget-split": "threshold",
    "strategy.model": "global",
    "budget-cap": 9,
}
SECURE = {"privacy": "secure-aggregation"}


class Watch(Hearing):
    """Hears what these runs are about."""

    def answers(self, name: str) -> list[tuple[int, dict[str, Any]]]:
        """Return what was answered to the steps of a name: clients and arrays, in order."""
        return [
            (client, {key: array.numpy() for key, array in answer["questions"].items()})  # type: ignore[attr-defined]
            for kind, client, question, answer in self.heard
            if kind == "query.split" and last_step(question) == name
        ]


def last_step(content: RecordDict) -> str:
    record = content.config_records.get("coordination")
    return "" if record is None else str(list(record["names"])[-1])  # type: ignore[arg-type]


def labels_of(outcome: Outcome) -> list[tuple[int, ...]]:
    return [cycle.labels_per_client for cycle in outcome.metrics.cycles]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Simulation:
    return Simulation(tmp_path_factory.mktemp("runs"), data_dir)


@pytest.fixture(scope="module")
def missing(runs: Simulation) -> tuple[Outcome, Watch]:
    watch = Watch()
    return runs(MISSING, handler=watch, name="missing"), watch


@pytest.fixture(scope="module")
def scores() -> dict[tuple[int, int], NDArray[np.float64]]:
    """Scores of each client's pool, by cycle and client, as `threshold` has found them."""
    return {}


@pytest.fixture(scope="module")
def threshold(
    runs: Simulation, scores: dict[tuple[int, int], NDArray[np.float64]]
) -> tuple[Outcome, Watch]:
    def kept(strategy: ScoringStrategy, pool: PoolView, context: QueryContext) -> Tensor:
        found = sorted_scores(strategy, pool, context)
        scores[context.cycle, context.client] = found.numpy()
        return found

    watch = Watch()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(splitting, "sorted_scores", kept)
        return runs(THRESHOLD, handler=watch, name="threshold"), watch


def test_who_has_the_highest_scores_of_all_gets_the_labels(
    threshold: tuple[Outcome, Watch], scores: dict[tuple[int, int], NDArray[np.float64]]
) -> None:
    """As if all samples were in one place."""
    outcome, _ = threshold
    labels = labels_of(outcome)
    assert [sum(each) for each in labels] == [12, 21, 30]
    for cycle in (1, 2):
        pools = [scores[cycle, client] for client in range(3)]
        lowest = np.sort(np.concatenate(pools))[-9]
        expected = [int((pool_N >= lowest).sum()) for pool_N in pools]
        assert sum(expected) == 9
        assert [b - a for a, b in zip(labels[cycle - 1], labels[cycle], strict=True)] == expected
        bought = [row for row in outcome.selections if row["cycle"] == cycle - 1]
        assert min(row["score"] for row in bought) == lowest
        record = outcome.metrics.cycles[cycle - 1].grants
        assert record is not None
        assert [grant.weight for grant in record.clients] == expected


def test_no_client_gets_more_than_the_cap(
    threshold: tuple[Outcome, Watch], simulation: Simulation
) -> None:
    first, second, _ = labels_of(threshold[0])
    most = max(b - a for a, b in zip(first, second, strict=True))
    outcome = simulation({**THRESHOLD, "budget-cap": most - 1, "cycles": 2})
    start, end = labels_of(outcome)
    added = [b - a for a, b in zip(start, end, strict=True)]
    assert start == first
    assert max(added) == most - 1
    assert sum(added) == 9


def test_what_all_caps_leave_is_said_and_due_in_the_next_cycle(simulation: Simulation) -> None:
    outcome = simulation({**THRESHOLD, "budget-cap": 2})
    labels = labels_of(outcome)
    assert [sum(each) for each in labels] == [12, 18, 24]
    # Nine were due and six taken, and of the nine of the next cycle and these three, six.
    assert outcome.summary["budget"]["left_per_cycle"] == [3, 6]
    assert outcome.summary["budget"]["granted"] == dict(zip("012", labels[-1], strict=True))
    table = grants_table(read_run(outcome.folder))
    assert table is not None
    assert table.note.endswith(
        "3 after cycle 1, 6 after cycle 2; those are due in the next cycle, if there is one."
    )


def test_masked_counts_find_the_same_threshold(
    runs: Simulation, threshold: tuple[Outcome, Watch]
) -> None:
    watch = Watch()
    outcome = runs({**THRESHOLD, **SECURE}, handler=watch, name="threshold-secure")
    assert labels_of(outcome) == labels_of(threshold[0])
    assert outcome.metrics.cycles[0].grants == threshold[0].metrics.cycles[0].grants
    assert {key for _, told in watch.answers("counts") for key in told} == set()
    assert {key for _, told in watch.answers("last") for key in told} == {"clear.above"}


def test_labels_go_to_who_seems_to_have_what_all_lack(missing: tuple[Outcome, Watch]) -> None:
    """Reckoned anew from what the clients have counted."""
    outcome, watch = missing
    labels = labels_of(outcome)
    assert [sum(each) for each in labels] == [12, 21, 30]
    classes, shares = watch.answers("classes"), watch.answers("shares")
    for cycle in range(2):
        counted = [told for _, told in classes[3 * cycle : 3 * cycle + 3]]
        labelled_C = sum(told["sum.labelled"] for told in counted)
        predicted_C = sum(told["sum.predicted"] for told in counted)
        assert int(labelled_C.sum()) == sum(labels[cycle])
        assert int(predicted_C.sum()) == 150 - sum(labels[cycle])
        budgets_C = class_budgets(labelled_C, predicted_C, 9)
        own = [class_share(budgets_C, told["sum.predicted"], predicted_C) for told in counted]
        told_shares = [float(told["clear.share"][0]) for _, told in shares[3 * cycle :][:3]]
        assert told_shares == list(map(float, own))
        for client in range(3):
            bought = labels[cycle + 1][client] - labels[cycle][client]
            assert abs(bought - own[client]) <= 1 + Fraction(9 - int(budgets_C.sum()))


def test_the_report_says_by_what_labels_went(missing: tuple[Outcome, Watch]) -> None:
    outcome, _ = missing
    labels, told = labels_of(outcome), [cycle.grants for cycle in outcome.metrics.cycles]
    assert told[-1] is None
    for cycle, record in enumerate(told[:-1]):
        assert record is not None
        assert record.split == "missing"
        assert tuple(grant.before for grant in record.clients) == labels[cycle]
        assert tuple(g.before + g.added for g in record.clients) == labels[cycle + 1]
        assert sum(g.weight or 0 for g in record.clients) <= 9 + 1e-9
    table = grants_table(read_run(outcome.folder))
    assert table is not None
    assert [row[-1] for row in table.rows] == [str(count) for count in labels[-1]]
    assert "classes that all clients lack" in table.note
    assert "budget-split=missing" in (outcome.folder / "report.html").read_text()


@pytest.mark.parametrize("which", ["missing", "threshold"])
def test_nothing_leaves_a_client_that_is_not_declared(
    which: str, request: pytest.FixtureRequest
) -> None:
    declared = {
        "classes": {"sum.labelled", "sum.predicted"},
        "shares": {"clear.share"},
        "counts": {"sum.above"},
        "last": {"clear.above"},
    }
    _, watch = request.getfixturevalue(which)
    asked = [content for kind, _, content, _ in watch.heard if kind == "query.split"]
    # The model is sent once a cycle, and no statistics.
    assert [ARRAYS_KEY in content for content in asked] == [
        last_step(content) == "opening" for content in asked
    ]
    for kind, _, question, answer in watch.heard:
        if kind != "query.split":
            continue
        if last_step(question) == "opening":
            assert set(answer) == {"metrics"}
            told = answer.metric_records["metrics"]
            assert set(told) == {"budget", "labelled", "pool"}
            assert told["budget"] == 0
            continue
        assert set(answer) == {"questions"}
        assert set(answer.array_records["questions"]) == declared[last_step(question)]


def test_masked_sums_grant_the_same_and_tell_no_clients_own(
    runs: Simulation, missing: tuple[Outcome, Watch]
) -> None:
    watch = Watch()
    outcome = runs({**MISSING, **SECURE}, handler=watch, name="missing-secure")
    assert labels_of(outcome) == labels_of(missing[0])
    assert outcome.metrics.cycles[0].grants == missing[0].metrics.cycles[0].grants
    assert {key for _, told in watch.answers("classes") for key in told} == set()
    assert {key for _, told in watch.answers("shares") for key in told} == {"clear.share"}


def test_strategies_that_choose_together_have_their_own_steps_after_it(
    simulation: Simulation,
) -> None:
    values = {
        **MISSING,
        **SECURE,
        "strategy": "coordinated-typicality",
        "strategy.max-clusters": 6,
        "strategy.least-region": 2,
        "cycles": 2,
    }
    outcome = simulation(values)
    assert not any(cycle.failed for cycle in outcome.metrics.cycles)
    assert [sum(each) for each in labels_of(outcome)] == [12, 21]


def test_processes_that_forget_are_told_all_anew(
    missing: tuple[Outcome, Watch], simulation: Simulation
) -> None:
    def forget(_message: Message, _client: int) -> None:
        coordination._under_way.clear()

    outcome = simulation(MISSING, handler=Watch(before=forget))
    assert outcome.result == missing[0].result


def test_where_nothing_is_kept_clients_are_told_all_anew(
    missing: tuple[Outcome, Watch], simulation: Simulation
) -> None:
    def lose(message: Message, client: int) -> None:
        coordination._under_way.clear()
        for path in folder.glob(f"clients/{client}/**/budget-*"):
            path.unlink()

    folder = Path(str(simulation.base["output-dir"])) / "lossy"
    watch = Watch(before=lose)
    outcome = simulation(MISSING, handler=watch, name="lossy")
    assert outcome.result == missing[0].result
    assert any("coordination" in answer for kind, _, _, answer in watch.heard if "split" in kind)


# --- who is away, and who lies -----------------------------------------------------------------


def test_who_misses_a_step_gets_nothing_new_and_the_others_all(simulation: Simulation) -> None:
    def away(message: Message, client: int) -> None:
        if client == 1 and last_step(message.content) == "shares":
            raise RuntimeError("power cut")

    outcome = simulation({**MISSING, "cycles": 2}, handler=Watch(before=away))
    first, second = labels_of(outcome)
    assert second[1] == first[1]
    assert sum(second) == 21
    (failure,) = outcome.metrics.cycles[0].failed
    assert failure.client == 1
    assert failure.reason.startswith("no part of the budget: ")


def test_too_few_answers_stop_the_run(simulation: Simulation) -> None:
    def away(message: Message, client: int) -> None:
        if client and last_step(message.content) == "classes":
            raise RuntimeError("power cut")

    with pytest.raises(QuorumNotReached, match="budget: 1 of 3 clients"):
        simulation({**MISSING, "quorum": 0.5}, handler=Watch(before=away))


@pytest.mark.parametrize(
    ("step", "name", "value"),
    [
        ("classes", "sum.predicted", np.full(10, 10**15)),
        ("classes", "sum.labelled", np.full(10, -1)),
        ("shares", "clear.share", np.array([9.5])),
        ("shares", "clear.share", np.array([np.nan])),
        ("shares", "clear.share", np.array([1.0, 1.0])),
    ],
)
def test_a_lie_is_named_and_left_out(
    step: str, name: str, value: Any, simulation: Simulation
) -> None:
    def after(message: Message, client: int, content: RecordDict) -> None:
        if client == 1 and last_step(message.content) == step:
            content.array_records["questions"][name] = Array(np.asarray(value))

    outcome = simulation({**MISSING, "cycles": 2}, handler=Watch(after=after))
    (failure,) = outcome.metrics.cycles[0].failed
    assert failure.client == 1
    first, second = labels_of(outcome)
    assert second[1] == first[1]


# --- crashes -----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("settings", [MISSING, THRESHOLD])
def test_a_run_that_is_killed_at_every_third_event_grants_the_same(
    settings: dict[str, Any], simulation: Simulation
) -> None:
    values = {**settings, "cycles": 2}
    straight = uninterrupted(simulation, **values)
    _kill_at_each(values, straight, simulation, range(3, straight.events, 3))


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{**MISSING, **SECURE}, {**THRESHOLD, **SECURE}])
def test_a_run_that_is_killed_in_masked_sums_grants_the_same(
    settings: dict[str, Any], simulation: Simulation
) -> None:
    values = {**settings, "cycles": 2}
    straight = uninterrupted(simulation, **values)
    _kill_at_each(values, straight, simulation, straight.spread(8))


def _kill_at_each(
    settings: dict[str, Any],
    straight: Uninterrupted,
    simulation: Simulation,
    events: Iterable[int],
) -> None:
    plan = (straight.folder / "budget.json").read_text()
    for event, folder in killed_at_each(events, simulation, **settings):
        assert simulation.resume(folder).result == straight.result, f"killed at event {event}"
        assert (folder / "budget.json").read_text() == plan, f"killed at event {event}"


# --- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            {"budget-split": "threshold"},
            "budget-split='threshold': allowed is 'share', 'equal' or 'missing', since scores of "
            "strategy='entropy' do not mean the same at all clients; with strategy.model='global' "
            "these do: entropy, least-confidence, margin",
        ),
        (
            {"budget-split": "threshold", "strategy": "core-set", "strategy.model": "global"},
            "since strategy='core-set' gives samples no scores",
        ),
        ({"budget": "client"}, "budget-split='missing': has no effect with budget='client'"),
        (
            {"budget-split": "equal", "budget-cap": 3},
            "budget-cap=3: has no effect with budget-split='equal'; allowed is 0",
        ),
        (
            {"budget-floor": 4, "budget-cap": 3},
            "budget-floor=4: allowed is at most budget-cap=3",
        ),
        (
            {"privacy": "local-dp", "privacy.epsilon": 5},
            "budget-split='missing': allowed with privacy='local-dp' is 'share' or 'equal'",
        ),
        (
            {"privacy": "local-dp+secure-aggregation", "privacy.epsilon": 5},
            "privacy='local-dp+secure-aggregation' is 'share' or 'equal'",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        check_settings({**MISSING, **values})
    assert any(said in problem for problem in error.value.problems), error.value.problems


class Site(Target):
    """A site that is asked how a budget is to be split."""

    def ask(self, split: str, name: str, more: dict[str, Any] | None = None) -> Message:
        values = {"budget": "global", "budget-split": split, **(more or {})}

        def spoil(content: RecordDict) -> None:
            content["coordination"] = ConfigRecord({"first": 0, "names": ["opening", name]})
            content["questions"] = ArrayRecord()
            content["arrays"] = self.arrays()

        return self.send("query.split", values, spoil)


ALLOWED = {"policy-reveals": "budget,sums"}


@pytest.mark.parametrize(
    ("node", "more", "error"),
    [
        ({}, {}, "policy"),
        ({"policy-reveals": "sums"}, {}, "policy"),
        ({"policy-reveals": "budget"}, {}, "policy"),
        (ALLOWED, {}, ""),
        ({"policy-reveals": "budget"}, SECURE, ""),
    ],
)
def test_a_site_tells_only_what_its_policy_allows(
    node: dict[str, Any], more: dict[str, Any], error: str, tmp_path: Path
) -> None:
    site = Site(tmp_path, **node)
    reply = site.ask("missing", "classes", more)
    if error:
        assert error in str(reply.error.reason)
        return
    arrays = reply.content.array_records["questions"]
    assert set(arrays) == (set() if more else {"sum.labelled", "sum.predicted"})


def test_a_site_is_asked_nothing_where_budgets_are_split_without_asking(tmp_path: Path) -> None:
    reply = Site(tmp_path, **ALLOWED).ask("share", "classes")
    assert "message" in str(reply.error.reason)


def test_a_site_answers_under_the_first_model_alone(tmp_path: Path) -> None:
    site = Site(tmp_path, **ALLOWED)
    assert not site.ask("missing", "classes").has_error()
    assert not site.ask("missing", "classes").has_error()
    arrays = site.arrays

    def other() -> ArrayRecord:
        return ArrayRecord({k: Array(np.asarray(v.numpy() + 1)) for k, v in arrays().items()})

    site.arrays = other  # type: ignore[method-assign]
    reply = site.ask("missing", "classes")
    assert "privacy" in str(reply.error.reason)
