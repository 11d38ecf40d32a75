"""Runs with LeaDQ: what travels, who is away, who is killed, who may not, and what is learned."""

from __future__ import annotations

import html
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
from scipy.stats import chisquare
from support.attacks import Target
from support.hearing import Hearing
from support.killing import Killed, killed_at_each, uninterrupted
from support.simulation import Outcome, Simulation

from ahfal_app.client import policy
from ahfal_app.client.past_runs import PastRuns
from ahfal_app.client_app import app as client_app
from ahfal_app.config import parse_settings
from ahfal_app.data.preparation import parted_tests
from ahfal_app.errors import (
    CheckpointError,
    ConfigError,
    NonFiniteModel,
    PolicyRefused,
    PrivacyRefused,
)
from ahfal_app.privacy.disclosure import Disclosure
from ahfal_app.privacy.store import PrivacyStore
from ahfal_app.query.core.reveals import Reveal
from ahfal_app.query.leadq import LeaDQ, LeaDQServer
from ahfal_app.results.policy import policy_table
from ahfal_app.results.reading import read_run
from ahfal_app.server.checkpoint import read_checkpoint
from ahfal_app.training.resources import resources

STREAM: dict[str, Any] = {
    "arrivals": "count",
    "arrival-start": 10,
    "arrival-rate": 6,
    "pool-memory": 1,
    "initial-labels": 8,
    "query-labels": 2,
    "target-labels": 16,
    "rounds": 1,
    "partition": "iid",
    "reset-model": False,
    "max-train-samples": 150,
    "max-test-samples": 60,
    "held-out": 20,
}
LEADQ: dict[str, Any] = {
    **STREAM,
    "strategy": "leadq",
    "strategy.learn-from": 1,
    "strategy.gradient-steps": 3,
    "strategy.target-every": 4,
    "strategy.hidden": 8,
    "strategy.mixing": 4,
    "strategy.episode": 2,
}
PUBLISHED: dict[str, Any] = {
    "strategy": "leadq",
    "strategy.order": "arrival",
    "strategy.memory": "reset",
    "strategy.observe": "previous",
    "strategy.state": "cross-entropy",
    "strategy.train-mixer": False,
    "strategy.target-state": "published",
    "strategy.bootstrap": "published",
    "strategy.episode": 9,
    "strategy.learn-from": 320,
    "strategy.cold-start": 34,
    "strategy.epsilon-start": 0.0,
    "strategy.epsilon-end": 0.0,
    "strategy.epsilon-cycles": 1,
    "strategy.reward-start": "published",
    "strategy.learning-rate": 0.01,
    "strategy.clip": 0.0,
}
SELECT = "query.select"


class Watch(Hearing):
    """Hears what these runs are about."""

    def selections(self) -> list[tuple[int, int, RecordDict, RecordDict]]:
        """Return cycle, client, what was asked and what was answered of each selection."""
        return [
            (int(asked.config_records["config"]["cycle"]), client, asked, answer)  # type: ignore[arg-type]
            for kind, client, asked, answer in self.heard
            if kind == SELECT
        ]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Simulation:
    return Simulation(tmp_path_factory.mktemp("runs"), data_dir)


@pytest.fixture(scope="module")
def heard(runs: Simulation) -> tuple[Outcome, Watch]:
    watch = Watch()
    return runs(LEADQ, handler=watch, name="heard"), watch


def policy_of(outcome: Outcome) -> bytes:
    """Return the state that the run's newest checkpoint has of the server's half."""
    return read_checkpoint(outcome.folder / "checkpoint").policy


def arrays_in(record: ArrayRecord) -> dict[str, bytes]:
    return {name: array.numpy().tobytes() for name, array in record.items()}


# --- what travels ------------------------------------------------------------------------------


def test_nothing_leaves_a_client_that_is_not_declared(heard: tuple[Outcome, Watch]) -> None:
    """Of a choice the rows that the server learns by and what was chosen of them; else counts."""
    outcome, watch = heard
    assert not any(cycle.failed for cycle in outcome.metrics.cycles)
    kinds = set()
    for kind, _, _, answer in watch.heard:
        kinds.add(kind)
        records = {"config", "metrics"} if kind == "query.join" else {"metrics"}
        if kind == "train":
            records = {"arrays", "metrics"}
        if kind == SELECT:
            records = {"metrics", "report"}
            report = answer.array_records["report"]
            forms = {name: (array.dtype, tuple(array.shape)) for name, array in report.items()}
            assert forms == {"rows": ("float32", (6, 10)), "chosen": ("uint8", (6,))}
            rows_NC = report["rows"].numpy()
            assert np.allclose(rows_NC.sum(axis=1), 1)
            # Sorted by confidence: the order says nothing of ids.
            assert (np.diff(rows_NC.max(axis=1)) >= 0).all()
            assert report["chosen"].numpy().sum() == 2
            told = set(answer.metric_records["metrics"])
            assert not told & {"samples", "ids", "labels", "scores"}
        assert set(answer) == records, kind
    assert kinds == {"query.join", "train", "query.histogram", SELECT}


def test_a_strategy_without_a_half_at_the_server_tells_nothing(runs: Simulation) -> None:
    watch = Watch()
    outcome = runs({**STREAM, "strategy": "entropy"}, handler=watch, name="entropy")
    assert all(set(answer) == {"metrics"} for _, _, _, answer in watch.selections())
    assert not any("policy" in asked for _, _, asked, _ in watch.selections())
    assert policy_of(outcome) == b""
    assert not list(outcome.folder.glob("checkpoint/*/policy.safetensors"))


def test_all_clients_choose_by_one_policy_once_it_is_learned(heard: tuple[Outcome, Watch]) -> None:
    outcome, watch = heard
    policies: dict[int, list[dict[str, bytes]]] = {}
    for cycle, _, asked, _ in watch.selections():
        if "policy" in asked:
            policies.setdefault(cycle, []).append(arrays_in(asked.array_records["policy"]))
    # Reports after cycle 1 complete the first decision: learned from then, acting after cycle 2.
    assert sorted(policies) == [2, 3]
    assert all(each == found[0] for found in policies.values() for each in found)
    assert policies[2][0] != policies[3][0]
    figures = [cycle.policy for cycle in outcome.metrics.cycles]
    assert [("reward" in each, "TD loss" in each, "epsilon" in each) for each in figures] == [
        (False, False, False),
        (True, True, False),
        (True, True, True),
        (True, True, True),
        (False, False, False),
    ]
    assert [each["share of least confidence"] for each in figures[:2]] == [1.0, 1.0]
    # Without a policy the first purchases are those of least confidence.


def test_before_anything_is_learned_the_least_confident_are_bought(
    runs: Simulation, heard: tuple[Outcome, Watch]
) -> None:
    settings = {**STREAM, "strategy": "least-confidence", "strategy.model": "global"}
    plain = runs(settings, name="least-confidence")

    def bought(outcome: Outcome) -> set[tuple[Any, Any, Any]]:
        rows = outcome.selections
        return {(r["cycle"], r["client"], r["sample"]) for r in rows if r["cycle"] < 2}

    assert bought(heard[0]) == bought(plain)
    assert len(bought(plain)) == 12


def test_a_message_that_comes_twice_is_answered_alike(simulation: Simulation) -> None:
    twice = []

    class Repeating(Watch):
        def __call__(self, message: Message, context: Context) -> Message:
            first = super().__call__(message, context)
            if message.metadata.message_type == SELECT:
                second = client_app(message, context)
                reports = [each.content.array_records["report"] for each in (first, second)]
                twice.append([arrays_in(report) for report in reports])
            return first

    outcome = simulation(LEADQ, handler=Repeating())
    assert len(twice) == 12
    assert all(first == second for first, second in twice)
    assert [cycle.labels for cycle in outcome.metrics.cycles] == [24, 30, 36, 42, 48]


# --- who is killed -----------------------------------------------------------------------------


@pytest.mark.parametrize("cycle", [0, pytest.param(1, marks=pytest.mark.slow), 2])
@pytest.mark.parametrize("last", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_who_is_killed_as_choices_are_told_learns_the_same(
    cycle: int, last: int, simulation: Simulation, heard: tuple[Outcome, Watch]
) -> None:
    """Server and clients at once, after so many clients have chosen."""

    def cut(message: Message, client: int, _content: RecordDict) -> None:
        is_now = message.content.config_records["config"]["cycle"] == cycle
        if message.metadata.message_type == SELECT and is_now and client == last:
            raise Killed

    with pytest.raises(Killed):
        simulation(LEADQ, handler=Watch(after=cut), name="killed")
    resumed = simulation.resume(Path(str(simulation.base["output-dir"])) / "killed")
    assert resumed.result == heard[0].result
    assert policy_of(resumed) == policy_of(heard[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"strategy.agent": "set", "strategy.report": "confidence", "rounds": 2},
        {**PUBLISHED, "strategy.learn-from": 2, "strategy.cold-start": 1},
    ],
)
def test_a_run_that_is_killed_learns_the_same(more: dict[str, Any], simulation: Simulation) -> None:
    values = {**LEADQ, **more, "target-labels": 14}
    straight = uninterrupted(simulation, **values)
    for event, folder in killed_at_each(straight.spread(14), simulation, **values):
        resumed = simulation.resume(folder)
        assert resumed.result == straight.result, f"killed at event {event}"
        assert policy_of(resumed) == policy_of(straight), f"killed at event {event}"


@pytest.mark.slow
def test_more_cycles_learn_as_if_they_had_been_there(
    simulation: Simulation, heard: tuple[Outcome, Watch]
) -> None:
    shorter = simulation({**LEADQ, "target-labels": 12}, name="shorter")
    longer = simulation.resume(shorter.folder, cycles="+2")
    assert longer.result == heard[0].result
    assert policy_of(longer) == policy_of(heard[0])


@pytest.mark.slow
def test_all_engines_of_this_process_learn_the_same(
    simulation: Simulation, heard: tuple[Outcome, Watch]
) -> None:
    two = simulation(LEADQ, workers=2)
    assert two.result == heard[0].result
    assert policy_of(two) == policy_of(heard[0])
    memory = simulation({**LEADQ, "client-state": "memory"})
    assert policy_of(memory) == policy_of(heard[0])


def test_a_state_of_another_strategy_is_named(simulation: Simulation) -> None:
    def cut(message: Message, client: int, _content: RecordDict) -> None:
        if (
            message.metadata.message_type == "train"
            and message.content.config_records["config"]["cycle"]
        ):
            raise Killed

    with pytest.raises(Killed):
        simulation(LEADQ, handler=Watch(after=cut), name="other")
    folder = Path(str(simulation.base["output-dir"])) / "other"
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("strategy.hidden: 8", "strategy.hidden: 9"))
    with pytest.raises(CheckpointError, match=r"policy: agent\.\S+: missing, or not of shape"):
        simulation.resume(folder)


# --- who is away, and who lies -----------------------------------------------------------------


def test_who_is_away_is_learned_without(simulation: Simulation) -> None:
    def away(message: Message, client: int) -> None:
        is_now = message.content.config_records["config"].get("cycle") == 1
        if message.metadata.message_type == SELECT and is_now and client == 1:
            raise RuntimeError("power cut")

    outcome = simulation(LEADQ, handler=Watch(before=away))
    cycles = outcome.metrics.cycles
    assert [[each.client for each in cycle.failed] for cycle in cycles] == [[], [1], [], [], []]
    assert all("TD loss" in cycle.policy for cycle in cycles[1:4])
    # What it could not buy it buys with the next arrivals.
    assert cycles[-1].labels_per_client == (16, 16, 16)


def _array(name: str, values: Any) -> Callable[[RecordDict], None]:
    def spoil(content: RecordDict) -> None:
        content["report"] = content.array_records["report"].copy()
        content.array_records["report"][name] = Array(np.asarray(values))

    return spoil


def _without(content: RecordDict) -> None:
    content["report"] = ArrayRecord({"rows": content.array_records["report"]["rows"]})


UNIFORM = np.full((6, 10), 0.1, np.float32)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_array("rows", np.full((6, 10), np.nan, np.float32)), "not finite"),
        (_array("rows", UNIFORM * 2), "allowed are sums from 1 to 1"),
        (_array("rows", UNIFORM[:0]), "0 rows of rows; allowed are 1 to"),
        (_array("rows", UNIFORM[:5]), "expected is"),
        (_array("rows", UNIFORM.astype(np.float64)), "expected is"),
        (_array("rows", np.float32(1.0)), "0 rows"),
        (_array("chosen", np.full(6, 7, np.uint8)), "allowed are 0 and 1"),
        (_array("ids", np.arange(6)), "missing or unknown"),
        (_without, "missing or unknown"),
    ],
)
def test_a_lie_is_named_and_left_out(
    spoil: Callable[[RecordDict], None], said: str, simulation: Simulation
) -> None:
    def after(message: Message, client: int, content: RecordDict) -> None:
        is_now = message.content.config_records["config"].get("cycle") == 1
        if message.metadata.message_type == SELECT and is_now and client == 1:
            spoil(content)

    outcome = simulation({**LEADQ, "target-labels": 12}, handler=Watch(after=after))
    first, second, _ = outcome.metrics.cycles
    assert first.failed == ()
    (failure,) = second.failed
    assert failure.client == 1
    assert "report: " in failure.reason
    assert said in failure.reason
    assert "TD loss" in second.policy


def test_more_arrivals_than_there_can_be_are_a_lie(simulation: Simulation) -> None:
    def after(message: Message, client: int, content: RecordDict) -> None:
        if message.metadata.message_type == SELECT and client == 1:
            content["report"] = ArrayRecord(
                {
                    "rows": Array(np.full((7, 10), 0.1, np.float32)),
                    "chosen": Array(np.ones(7, np.uint8)),
                }
            )

    outcome = simulation({**LEADQ, "target-labels": 10}, handler=Watch(after=after))
    (failure,) = outcome.metrics.cycles[0].failed
    assert "rows: 7; allowed are at most 6" in failure.reason


# --- what a client refuses ---------------------------------------------------------------------


def _policy(change: Callable[[ArrayRecord], None]) -> Watch:
    """Send client 0 another policy."""

    def before(message: Message, client: int) -> None:
        if client == 0 and "policy" in message.content:
            # In this process all clients are handed the same record.
            record = message.content.array_records["policy"].copy()
            change(record)
            message.content["policy"] = record

    return Watch(before=before)


def _named(name: str, values: Any) -> Callable[[ArrayRecord], None]:
    def change(record: ArrayRecord) -> None:
        record[name] = Array(np.asarray(values))

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_named("agent.output.bias", np.full(6, np.nan, np.float32)), "not finite"),
        (_named("agent.output.bias", np.zeros(7, np.float32)), "expected is"),
        (_named("agent.output.bias", np.zeros(6)), "expected is"),
        (_named("agent.other", np.zeros(6, np.float32)), "missing or unknown"),
        (lambda record: record.pop("epsilon"), "missing or unknown"),
    ],
)
def test_policies_that_no_server_makes_are_refused(
    change: Callable[[ArrayRecord], None], said: str, simulation: Simulation
) -> None:
    outcome = simulation({**LEADQ, "target-labels": 14}, handler=_policy(change))
    assert [cycle.failed for cycle in outcome.metrics.cycles[:2]] == [(), ()]
    (failure,) = outcome.metrics.cycles[2].failed
    assert failure.client == 0
    assert said in failure.reason


def test_a_policy_that_the_strategy_does_not_know_is_refused(simulation: Simulation) -> None:
    def before(message: Message, client: int) -> None:
        if message.metadata.message_type == SELECT and client == 0:
            message.content["policy"] = ArrayRecord({"epsilon": Array(np.zeros(1, np.float32))})

    settings = {**STREAM, "strategy": "entropy", "target-labels": 10}
    outcome = simulation(settings, handler=Watch(before=before))
    (failure,) = outcome.metrics.cycles[0].failed
    assert failure.client == 0
    assert "policy: the run's query strategy has none" in failure.reason


def test_a_site_reports_nothing_that_it_has_not_allowed(tmp_path: Path) -> None:
    asked = {"strategy": "leadq", "strategy.agent": "set", "held-out": 20}
    for allowed in (None, "centroids,distances", "observations", "observations,sums"):
        node = {} if allowed is None else {"policy-reveals": allowed}
        target = Target(tmp_path / str(allowed), **node)
        reply = target.send("query.join", asked)
        is_refused = allowed is None or "observations" not in allowed
        assert reply.has_error() is is_refused
        if is_refused:
            assert "policy" in reply.error.reason
        assert not target.leaks()


@pytest.mark.parametrize("privacy", ["secure-aggregation", "local-dp"])
def test_a_client_tells_nothing_of_single_samples_where_privacy_is_wanted(
    privacy: str, tmp_path: Path
) -> None:
    """Whatever a server says of the strategy: the client goes by its own terms."""
    wanted: dict[str, Any] = {"privacy": privacy, "num-clients": 3}
    if privacy == "local-dp":
        wanted["privacy.epsilon"] = 1.0
    plain, protected = (parse_settings(each) for each in ({"num-clients": 3}, wanted))
    Disclosure(PrivacyStore(tmp_path / "plain"), plain, "run", 0).check_report()
    with pytest.raises(PrivacyRefused, match="predictions of single samples are not told"):
        Disclosure(PrivacyStore(tmp_path / "protected"), protected, "run", 0).check_report()


def test_a_policy_that_has_diverged_is_named(
    simulation: Simulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverged(self: LeaDQServer) -> dict[str, Any]:
        return {"epsilon": np.zeros(1, np.float32), "agent": np.full(2, np.nan, np.float32)}

    monkeypatch.setattr(LeaDQServer, "policy", diverged)
    with pytest.raises(NonFiniteModel, match="policy: 'agent' has values that are not finite"):
        simulation(LEADQ)


class Telling(LeaDQ):
    """A strategy of another package, which does not say what it tells."""

    @property
    def reveals(self) -> frozenset[Reveal]:
        return frozenset()


def test_who_does_not_say_what_is_told_needs_a_rule_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(policy, "make_strategy", lambda *_: Telling())
    settings = parse_settings({"strategy": "leadq"})
    for allowed, is_refused in ((None, True), ("observations", True), ("other", False)):
        node = {} if allowed is None else {"policy-reveals": allowed}
        rules = policy.Policy.from_node_config(node)
        if is_refused:
            with pytest.raises(PolicyRefused, match="what another package's strategy says"):
                rules.check(settings, None, PastRuns())
        else:
            rules.check(settings, None, PastRuns())


def test_the_report_says_what_was_learned_and_how_noisy_it_is(heard: tuple[Outcome, Watch]) -> None:
    page = (heard[0].folder / "report.html").read_text()
    table = policy_table(read_run(heard[0].folder))
    assert table is not None
    assert table.headings[:2] == ("Cycle", "Held-out accuracy")
    assert [row[0] for row in table.rows] == ["1", "2", "3", "4"]
    rewards = [each.policy["reward"] for each in heard[0].metrics.cycles[1:4]]
    assert f"Rewards are {np.mean(rewards):.3f} in the mean" in table.note
    assert f"deviation of {np.std(rewards, ddof=1):.2f}" in table.note
    assert table.note in html.unescape(page)


# --- held-out samples --------------------------------------------------------------------------


def test_no_figure_is_of_held_out_samples(heard: tuple[Outcome, Watch], data_dir: Path) -> None:
    settings = parse_settings({**LEADQ, "num-clients": 3, "data-dir": str(data_dir)})
    loaded = resources(settings)
    held_out = loaded.held_out_images
    assert held_out is not None
    assert (len(held_out), len(loaded.test_images), len(loaded.dataset.test)) == (20, 40, 40)
    assert {each.tests[0].samples for each in heard[0].metrics.cycles} == {40}
    assert resources(settings.model_copy(update={"held_out": 0})).held_out_images is None


def test_each_class_gives_its_share_by_the_runs_seed(data_dir: Path) -> None:
    plain = resources(parse_settings({"num-clients": 3, "data-dir": str(data_dir)}))
    tests = plain.dataset.test
    pixels = tests.images_NHWC.reshape(len(tests), -1)
    found = {}
    for seed in (0, 1):
        rest, held_out = parted_tests(tests, 90, seed)
        assert (len(rest), len(held_out)) == (len(tests) - 90, 90)
        counts = np.bincount(held_out.labels_N, minlength=10)
        wanted = np.bincount(tests.labels_N) * 90 / len(tests)
        assert (np.abs(counts - wanted) < 1).all()
        both = np.concatenate([rest.images_NHWC, held_out.images_NHWC]).reshape(len(tests), -1)
        assert np.array_equal(both[np.lexsort(both.T)], pixels[np.lexsort(pixels.T)])
        found[seed] = held_out.images_NHWC.tobytes()
    assert found[0] != found[1]
    assert parted_tests(tests, 90, 0)[1].images_NHWC.tobytes() == found[0]
    with pytest.raises(ConfigError, match=rf"allowed is at most {len(tests) - 10} of {len(tests)}"):
        parted_tests(tests, len(tests), 0)


def test_who_has_no_tests_holds_none_out() -> None:
    with pytest.raises(ConfigError, match="held-out=5: allowed is 0 with dataset='none'"):
        parse_settings(
            {
                "dataset": "none",
                "partition": "sites",
                "evaluate": "sites",
                "classes": "a,b",
                "image-size": 8,
                "held-out": 5,
            }
        )


# --- the published code ------------------------------------------------------------------------


def _choices(cycles: int, cold: int, simulation: Simulation) -> tuple[Outcome, Watch, Outcome]:
    """Run the released algorithm and least confidence: three arrivals a cycle, of which one."""
    stream = {
        "arrivals": "count",
        "arrival-start": 10,
        "arrival-rate": 3,
        "pool-memory": 1,
        "initial-labels": 10,
        "query-labels": 1,
        "target-labels": 9 + cycles,
        "rounds": 1,
        "partition": "iid",
        "reset-model": False,
        "held-out": 20,
    }
    watch = Watch()
    released = {**stream, **PUBLISHED, "strategy.cold-start": cold}
    outcome = simulation(released, handler=watch, name="released")
    least = {**stream, "strategy": "least-confidence", "strategy.model": "global"}
    return outcome, watch, simulation(least, name="least")


@pytest.mark.parametrize(
    ("cycles", "cold"), [(12, 4), pytest.param(90, 34, marks=pytest.mark.slow)]
)
def test_the_released_algorithm_is_least_confidence_and_then_chance(
    cycles: int, cold: int, simulation: Simulation
) -> None:
    """A test of equivalence: 34 purchases are those of least confidence, the others random."""
    outcome, watch, least = _choices(cycles, cold, simulation)

    def bought(run: Outcome) -> list[tuple[Any, Any, Any]]:
        rows = [(r["cycle"], r["client"], r["sample"]) for r in run.selections]
        return sorted(row for row in rows if row[0] < cold)

    assert bought(outcome) == bought(least)
    assert len(bought(outcome)) == 3 * cold
    ranks, places = [], []
    for cycle, _, _, answer in watch.selections():
        report = answer.array_records["report"]
        confidence_N = report["rows"].numpy().max(axis=1)
        (place,) = np.flatnonzero(report["chosen"].numpy())
        rank = int(np.argsort(np.argsort(confidence_N, kind="stable"))[place])
        if cycle < cold:
            assert rank == 0
        else:
            ranks.append(rank)
            places.append(int(place))
    counts = np.bincount(ranks, minlength=3)
    assert counts.sum() == 3 * (cycles - 1 - cold)
    # The policy prefers places, and these say nothing of what lies there; df 2: above 13.8 once in
    # a thousand.
    assert chisquare(counts).statistic < 13.8
    assert counts[1:].sum() > 0
