"""What clients predict of the stop set: recorded, summed, resumed, and refused where it must be."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from safetensors.numpy import load_file
from sklearn.metrics import cohen_kappa_score
from support.killing import Uninterrupted, killed_at, killed_at_each, uninterrupted
from support.simulation import Outcome, Simulation

from ahfal_app.client_app import app as client_app
from ahfal_app.errors import ConfigError
from ahfal_app.messages.arrays import held_record
from ahfal_app.server.preflight import check_settings
from ahfal_app.stop_set import Observation, sums_size

#: Recorded and asked for by no rule: the run goes as it would without.
WATCHED: dict[str, Any] = {"stop-set": "always", "stop-set-size": 300}
SECURE: dict[str, Any] = {**WATCHED, "privacy": "secure-aggregation"}

STEPS = ("query.advertise_keys", "query.share_keys", "query.mask", "query.unmask")


class Watch:
    """Hears all that clients answer, and spoils what one of them says of its predictions."""

    def __init__(self, spoil: dict[int, Any] | None = None) -> None:
        self.answers: list[tuple[str, int, RecordDict]] = []
        self._spoil = spoil or {}

    def __call__(self, message: Message, context: Context) -> Message:
        kind, client = message.metadata.message_type, int(context.node_config["partition-id"])
        reply = client_app(message, context)
        if kind == "query.predictions" and client in self._spoil:
            self._spoil[client](reply.content)
        self.answers.append((kind, client, reply.content))
        return reply

    def sums(self, client: int | None = None) -> list[np.ndarray]:
        """Return what was told of predictions, by one client or by all."""
        return [
            np.array(content.metric_records["metrics"]["sums"])
            for kind, who, content in self.answers
            if kind == "query.predictions" and client in (None, who)
        ]


def observed(outcome: Outcome) -> list[Observation | None]:
    return [cycle.stop_set for cycle in outcome.metrics.cycles]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Simulation:
    return Simulation(tmp_path_factory.mktemp("runs"), data_dir)


@pytest.fixture(scope="module")
def straight(runs: Simulation) -> Uninterrupted:
    return uninterrupted(runs, **WATCHED)


@pytest.fixture(scope="module")
def heard(runs: Simulation) -> tuple[Outcome, Watch]:
    watch = Watch()
    return runs(WATCHED, handler=watch, name="heard"), watch


@pytest.fixture(scope="module")
def secure(runs: Simulation) -> tuple[Outcome, Watch]:
    watch = Watch()
    return runs(SECURE, handler=watch, name="secure"), watch


# --- what is recorded --------------------------------------------------------------------------


@pytest.mark.slow
def test_to_watch_changes_nothing_else(runs: Simulation, straight: Uninterrupted) -> None:
    without = runs(name="without")
    assert straight.result == without.result
    assert observed(without) == [None] * 3
    kinds = [record.seconds.keys() for record in without.metrics.cycles]
    assert not any("stop-set" in each for each in kinds)
    assert all("stop-set" in record.seconds for record in straight.metrics.cycles)


def test_values_are_those_of_the_predictions_that_clients_keep(straight: Uninterrupted) -> None:
    folders = sorted((straight.folder / "clients").iterdir())
    kept = [
        [load_file(folder / f"predictions-{cycle}.safetensors") for folder in folders]
        for cycle in range(3)
    ]
    before = None
    for values, parts in zip(observed(straight), kept, strict=True):
        assert values is not None
        ids, now = (np.concatenate([part[key] for part in parts]) for key in ("ids", "classes"))
        assert (values.drawn, values.predicted) == (300, len(now)) == (300, len(set(ids)))
        units = np.concatenate([part["entropies"] for part in parts])
        assert values.uncertainty == units.sum() / (300 * 2**20)
        if before is None:
            assert (values.compared, values.kappa) == (0, None)
        else:
            assert (before[0] == ids).all()  # Whatever was labelled in between.
            assert values.compared == 300
            assert values.kappa == pytest.approx(cohen_kappa_score(before[1], now))
            assert values.changed == (before[1] != now).mean()
        before = ids, now


@pytest.mark.slow
def test_a_rule_that_goes_by_predictions_ends_a_run(runs: Simulation) -> None:
    settings = {"stopping": "change,uncertainty", "stopping.changed": 0.99, "stopping.after": 2}
    outcome = runs({**settings, "stop-set-size": 300, "stopping-mode": "any"}, name="stopped")
    first, second = outcome.metrics.cycles
    assert first.stopped_by == ""
    assert "of the predictions changed, at most 0.99 may" in second.stopped_by
    assert second.bought == 0
    assert runs({**settings, "stop-set-size": 300}, name="both").metrics.cycles[-1].cycle == 2


# --- what travels ------------------------------------------------------------------------------


def test_what_a_client_tells_is_its_sums_and_no_more(heard: tuple[Outcome, Watch]) -> None:
    outcome, watch = heard
    assert observed(outcome)[0] is not None
    answers = [content for kind, _, content in watch.answers if kind == "query.predictions"]
    assert len(answers) == 9  # Three clients, three cycles, the last one among them.
    for content in answers:
        assert set(content) == {"metrics"}
        assert set(content["metrics"]) == {"sums"}
    for sums_E in watch.sums():
        assert len(sums_E) == sums_size(10)
        assert sums_E[0] == 100


@pytest.mark.slow
def test_secure_sums_give_the_same_values_and_no_clients_own(
    heard: tuple[Outcome, Watch], secure: tuple[Outcome, Watch]
) -> None:
    assert observed(secure[0]) == observed(heard[0])
    assert secure[1].sums() == []
    told = [content for kind, _, content in secure[1].answers if kind in STEPS]
    assert len(told) == 4 * 3 * (2 + 3)  # Two purchases and three cycles.
    own = [sums_E.astype("<u8").tobytes() for sums_E in heard[1].sums()]
    for content in told:
        assert set(content) == {"secure-aggregation"}
        record = content.config_records["secure-aggregation"]
        assert set(record) <= {
            *("cipher-key", "mask-key", "has-labels", "epsilon-spent", "peers", "ciphertexts"),
            *("masked", "survivors", "seed-shares", "dropped", "key-shares"),
        }
        masked = record.get("masked", b"")
        assert isinstance(masked, bytes)
        assert not any(each in masked for each in own)


# --- kill and resume ---------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.32, 0.36, 0.66, 0.7, 0.98])
def test_a_killed_run_observes_what_one_that_ran_through_does(
    share: float, straight: Uninterrupted, simulation: Simulation
) -> None:
    folder = killed_at(round(share * straight.events), simulation, **WATCHED)
    resumed = simulation.resume(folder)
    assert observed(resumed) == observed(straight)
    assert resumed.result == straight.result


@pytest.mark.slow
def test_a_run_killed_within_a_secure_sum_observes_the_same(simulation: Simulation) -> None:
    settings = {**SECURE, "rounds": 1, "target-fraction": 0.1}
    straight = uninterrupted(simulation, **settings)
    # Around the first cycle's sums, at each of their messages and writes in turn.
    events = range(20, straight.events - 20, max(1, straight.events // 7))
    for _, folder in killed_at_each(events, simulation, **settings):
        resumed = simulation.resume(folder)
        assert observed(resumed) == observed(straight)
        assert resumed.result == straight.result


# --- who lies, and who is away -----------------------------------------------------------------


def _set(place: int, value: int) -> Any:
    def spoil(content: RecordDict) -> None:
        sums = list(content.metric_records["metrics"]["sums"])  # type: ignore[arg-type]
        sums[place] = value
        content.metric_records["metrics"]["sums"] = sums

    return spoil


def _drop(content: RecordDict) -> None:
    content["metrics"] = MetricRecord({"other": 1})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_set(0, 101), "allowed is at most 100 of the stop set"),
        (_set(0, -1), "allowed are counts"),
        (_set(1, 2**61), "sums that no predictions have"),
        (_set(5, 50), "do not add up|above the"),
        (_drop, "allowed are 103 integers"),
    ],
)
def test_a_lie_is_named_and_moves_nobody_elses_figures(
    spoil: Any, said: str, heard: tuple[Outcome, Watch], simulation: Simulation
) -> None:
    outcome = simulation(WATCHED, handler=Watch({1: spoil}))
    assert outcome.result == heard[0].result
    for number, cycle in enumerate(outcome.metrics.cycles):
        (failure,) = cycle.failed
        assert failure.client == 1
        assert any(part in failure.reason for part in said.split("|"))
        values = cycle.stop_set
        assert values is not None
        assert (values.drawn, values.predicted) == (300, 200)
        expected = [heard[1].sums(client)[number] for client in (0, 2)]
        assert values.uncertainty == sum(each[1] for each in expected) / (200 * 2**20)


@pytest.mark.slow
def test_below_half_of_the_stop_set_no_rule_decides(simulation: Simulation) -> None:
    def away(message: Message, context: Context) -> Message:
        if message.metadata.message_type == "query.predictions" and context.node_id != 1:
            raise RuntimeError("power cut")
        return client_app(message, context)

    settings = {"stopping": "change", "stopping.changed": 0.99, "stopping.after": 1}
    outcome = simulation({**settings, "stop-set-size": 300}, handler=away)
    assert [values and values.compared for values in observed(outcome)] == [0, 100, 100]
    assert not any(cycle.stopped_by for cycle in outcome.metrics.cycles)


@pytest.mark.slow
def test_a_secure_sum_that_cannot_be_had_stops_no_run(simulation: Simulation) -> None:
    def cut(message: Message, context: Context) -> Message:
        content, kind = message.content, message.metadata.message_type
        about = content.config_records.get("secure-aggregation", {})
        if kind == "query.mask" and about["topic"] == "stop-set":
            raise RuntimeError("power cut")
        return client_app(message, context)

    outcome = simulation(SECURE, handler=cut)
    assert observed(outcome) == [None] * 3
    assert len(outcome.metrics.cycles) == 3
    assert "the predictions of the stop set are not known in this cycle" in outcome.log


def test_a_server_that_asks_again_with_another_model_hears_the_same(
    simulation: Simulation,
) -> None:
    """Tables of one model after another would tell how single images are predicted."""
    told: list[list[np.ndarray]] = []

    def asking_again(message: Message, context: Context) -> Message:
        reply = client_app(message, context)
        if message.metadata.message_type == "query.predictions":
            arrays = message.content.array_records["arrays"]
            other = held_record({name: -array.numpy() for name, array in arrays.items()})
            message.content["arrays"] = other
            again = client_app(message, context)
            told.append([np.array(r.content["metrics"]["sums"]) for r in (reply, again)])
        return reply

    simulation(WATCHED, handler=asking_again, rounds=1)
    assert len(told) == 9
    for first, second in told:
        assert first.tolist() == second.tolist()


def _messages() -> Iterator[tuple[str, dict[str, object]]]:
    for kind in STEPS:
        yield kind, {"session": "a", "topic": "labels"}
        yield kind, {"session": "a", "topic": 3}


@pytest.mark.parametrize(("kind", "said"), list(_messages()))
def test_what_is_no_sum_is_refused(
    kind: str, said: dict[str, object], simulation: Simulation
) -> None:
    def asking(message: Message, context: Context) -> Message:
        if message.metadata.message_type == kind:
            message.content["secure-aggregation"] = ConfigRecord(said)  # type: ignore[arg-type]
        return client_app(message, context)

    outcome = simulation(SECURE, handler=asking, cycles=1, rounds=1)
    reasons = [failure.reason for cycle in outcome.metrics.cycles for failure in cycle.failed]
    assert observed(outcome) == [None]
    assert all("topic=" in reason for reason in reasons)


def test_settings_that_cannot_be_are_refused_before_anything_is_done() -> None:
    for settings, said in (
        (
            {"stopping": "kappa", "privacy": "local-dp", "privacy.epsilon": 1.0},
            "stopping='kappa': allowed with privacy='local-dp' is none that needs predictions",
        ),
        (
            {**WATCHED, "privacy": "local-dp", "privacy.epsilon": 1.0},
            "stop-set='always': allowed with privacy='local-dp' is none",
        ),
        ({**WATCHED, "num-clients": 31}, "stop-set-size=300: allowed is at least 310"),
        ({"stopping": "kappa,gian"}, "stopping='gian': allowed is"),
        ({"stopping": "kappa", "stopping.changed": 0.1}, "'kappa' has no such parameter"),
        ({"stopping-mode": "both"}, "stopping-mode='both': allowed is"),
    ):
        with pytest.raises(ConfigError) as error:
            check_settings(settings)
        assert said in str(error.value)
    check_settings({"stopping": "none", "num-clients": 500, "min-partition-size": 1})
    check_settings(
        {"stopping": "kappa", "privacy": "local-dp+secure-aggregation", "privacy.epsilon": 1.0}
    )
