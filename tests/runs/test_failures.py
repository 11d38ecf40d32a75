"""Clients that fail, drop out or answer nonsense; people who label late."""

from __future__ import annotations

import math
import threading
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from flwr.app import Array, Context, Message, RecordDict
from support.killing import killed_at
from support.simulation import Handler, SharedRuns, Simulation

from ahfal_app import oracle as oracle_module
from ahfal_app.client_app import app as client_app
from ahfal_app.engine.in_process import InProcessGrid
from ahfal_app.errors import CodeMismatch, ConfigError, QuorumNotReached
from ahfal_app.labels.store import LabelReceipt, LabelRequest, LabelStore
from ahfal_app.ledger import Ledger
from ahfal_app.oracle import Site
from ahfal_app.oracle.simulated import SimulatedOracle


def _when(kind: str, client: int, spoil):
    """Return a handler that spoils the answers of one client to one type of message."""

    def handler(message: Message, context: Context) -> Message:
        if message.metadata.message_type != kind or context.node_config["partition-id"] != client:
            return client_app(message, context)
        return spoil(message, context)

    return handler


def _raising(message: Message, context: Context) -> Message:
    raise RuntimeError("power cut")


def _with_array(name: str, array: np.ndarray):
    def spoil(message: Message, context: Context) -> Message:
        reply = client_app(message, context)
        reply.content.array_records["arrays"][name] = Array(array)
        return reply

    return spoil


def _npy(array: np.ndarray) -> bytes:
    return bytes(Array(array).data)


def _with_bytes(name: str, content: bytes):
    """Keep what an array declares about itself, and change what it holds."""

    def spoil(message: Message, context: Context) -> Message:
        reply = client_app(message, context)
        arrays = reply.content.array_records["arrays"]
        said = arrays[name]
        arrays[name] = Array(said.dtype, said.shape, said.stype, content)
        return reply

    return spoil


def _with_metric(key: str, value: object):
    def spoil(message: Message, context: Context) -> Message:
        reply = client_app(message, context)
        reply.content.metric_records["metrics"][key] = value
        return reply

    return spoil


def _without(name: str):
    def spoil(message: Message, context: Context) -> Message:
        reply = client_app(message, context)
        del reply.content[name]
        return reply

    return spoil


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (_raising, "power cut"),
        (_with_array("head.bias", np.full(10, np.nan, np.float32)), "'head.bias' has values"),
        (_with_array("head.bias", np.zeros(11, np.float32)), r"expected is float32 (10,)"),
        (_with_array("head.bias", np.zeros(10, np.float64)), "is float64"),
        (_with_array("extra", np.zeros(1, np.float32)), "['extra'] are missing or unknown"),
        (_with_bytes("head.bias", b"garbage"), "'head.bias' cannot be decoded"),
        (_with_bytes("head.bias", _npy(np.zeros(7, np.float32))), "not what it declares"),
        (_with_metric("loss", math.inf), "loss=inf"),
        (_with_metric("num-examples", -1), "num-examples=-1"),
        (_without("arrays"), "answer without 'arrays'"),
        (_without("metrics"), "answer without"),
    ],
)
def test_unusable_answers_are_named_and_left_out(simulation: Simulation, spoil, reason: str):
    outcome = simulation(handler=_when("train", 1, spoil), cycles=1)
    for record in outcome.metrics.rounds:
        assert record.clients == 2
        (failure,) = record.failed
        assert failure.client == 1
        assert reason in failure.reason
    assert "client 1" in outcome.log


@pytest.mark.parametrize(
    ("kind", "spoil", "reason"),
    [
        ("query.histogram", _with_metric("counts", [1] * 9), "allowed are 10 counts"),
        ("query.histogram", _with_metric("counts", [-1] * 10), "allowed are integers"),
        ("query.histogram", _without("metrics"), "answer without 'metrics'"),
        ("query.select", _with_metric("seconds", [1.0]), "seconds=[1.0]"),
        ("query.select", _with_metric("labelled", -500), "labelled=-500"),
        ("query.select", _with_metric("spent", 99999), "allotted must be spent"),
        ("query.select", _without("metrics"), "answer without 'metrics'"),
    ],
)
def test_nonsense_about_a_purchase_is_named_and_left_out(
    simulation: Simulation, kind: str, spoil, reason: str
):
    outcome = simulation(handler=_when(kind, 1, spoil), cycles=2)
    (failure,) = outcome.metrics.cycles[0].failed
    assert failure.client == 1
    assert reason in failure.reason
    for cycle in outcome.metrics.cycles:
        ledger = cycle.ledger
        assert ledger.allotted == ledger.spent + ledger.reserved + ledger.free


@pytest.mark.parametrize(
    "spoil",
    [
        _raising,
        _without("config"),
        _without("metrics"),
        _with_metric("labelled", -1),
        _with_metric("num-samples", 1.5),
    ],
)
def test_client_that_fails_to_join_is_away_for_a_cycle_and_then_takes_part(
    simulation: Simulation, spoil
):
    calls = 0

    def once(message: Message, context: Context) -> Message:
        nonlocal calls
        calls += 1
        return spoil(message, context) if calls == 1 else client_app(message, context)

    outcome = simulation(handler=_when("query.join", 0, once))
    first = [record for record in outcome.metrics.rounds if record.cycle == 0]
    later = [record for record in outcome.metrics.rounds if record.cycle > 0]
    assert all([f.client for f in record.failed] == [0] for record in first)
    assert all(record.clients == 3 and not record.failed for record in later)
    assert outcome.metrics.cycles[-1].labels_per_client[0] > 0
    assert "client 0 did not join" in outcome.log


class RestartingGrid(InProcessGrid):
    """A node comes back under another id after the first cycle."""

    def __init__(self, app, num_clients: int, workers: int = 1) -> None:
        def watched(message: Message, context: Context) -> Message:
            if message.metadata.message_type == "query.select" and 2 in self._contexts:
                self._contexts[77] = self._contexts.pop(2)
            return app(message, context)

        super().__init__(watched, num_clients, workers)


def test_node_that_restarts_under_another_id_takes_part_again(
    simulation: Simulation, shared_runs: SharedRuns
):
    outcome = simulation(grid=RestartingGrid, **{"round-timeout": 30.0})
    assert all(record.clients == 3 for record in outcome.metrics.rounds)
    assert outcome.metrics.cycles[-1].ledger == shared_runs().metrics.cycles[-1].ledger


class ImpostorGrid(InProcessGrid):
    """A second node comes after the first cycle and says that it is the site of node 2."""

    called: ClassVar[list[str]] = []

    def __init__(self, app, num_clients: int, workers: int = 1) -> None:
        def watched(message: Message, context: Context) -> Message:
            kind = message.metadata.message_type
            if context.node_id == 77:
                self.called.append(kind)
            elif kind == "query.select" and 77 not in self._contexts:
                config = dict(self._contexts[2].node_config)
                self._contexts[77] = Context(1, 77, config, RecordDict(), {})
            return app(message, context)

        super().__init__(watched, num_clients, workers)


def test_a_node_cannot_take_the_place_of_one_that_is_there(
    simulation: Simulation, shared_runs: SharedRuns, caplog: pytest.LogCaptureFixture
):
    """Its labels and its budget are those of another site."""
    ImpostorGrid.called.clear()
    outcome = simulation(grid=ImpostorGrid)
    assert set(ImpostorGrid.called) == {"query.join"}
    assert "node 77, partition-id=1, is left out: node 2 has it and is connected" in caplog.text
    assert outcome.result == shared_runs().result


def test_labels_are_counted_right_where_the_answer_to_a_purchase_got_lost(
    simulation: Simulation, shared_runs: SharedRuns
):
    calls = 0

    def lost(message: Message, context: Context) -> Message:
        nonlocal calls
        calls += 1
        reply = client_app(message, context)
        if calls == 1:
            raise RuntimeError("connection lost")
        return reply

    outcome = simulation(handler=_when("query.select", 2, lost))
    straight = shared_runs().metrics
    for cycle, expected in zip(outcome.metrics.cycles, straight.cycles, strict=True):
        assert cycle.labels_per_client == expected.labels_per_client
    last = max(record.num_examples for record in outcome.metrics.rounds)
    assert outcome.metrics.cycles[-1].labels == last


def test_sites_that_label_late_do_not_count_against_the_quorum(
    simulation: Simulation, monkeypatch: pytest.MonkeyPatch
):
    def nobody(self, request_id: str) -> list[LabelReceipt]:
        request = self._requests[request_id]
        labels = {s: self._truth[s] for s in request.samples if 0 in self._truth}
        return [LabelReceipt(request_id, s, label, "anna") for s, label in labels.items()]

    monkeypatch.setattr(SimulatedOracle, "collect", nobody)
    outcome = simulation(cycles=1, quorum=1.0, **{"label-deadline": 0.0})
    for record in outcome.metrics.rounds:
        assert record.clients == 1
        assert {f.reason for f in record.failed} == {"it has no labelled samples"}


def test_left_out_client_does_not_change_the_others_model(simulation: Simulation):
    """Whatever nonsense it is, the aggregate is that of the other clients."""
    nan = _with_array("head.bias", np.full(10, np.nan, np.float32))
    first = simulation(handler=_when("train", 1, nan), cycles=1)
    second = simulation(handler=_when("train", 1, _raising), cycles=1)
    assert first.result == second.result


def test_client_that_misses_selection_catches_up(simulation: Simulation, shared_runs: SharedRuns):
    calls = 0

    def once(message: Message, context: Context) -> Message:
        nonlocal calls
        calls += 1
        return _raising(message, context) if calls == 1 else client_app(message, context)

    outcome = simulation(handler=_when("query.select", 2, once))
    first, second, last = outcome.metrics.cycles
    assert [failure.client for failure in first.failed] == [2]
    assert second.labels_per_client[2] == first.labels_per_client[2]
    straight = shared_runs().metrics.cycles[-1]
    assert last.labels_per_client == straight.labels_per_client
    assert last.ledger == straight.ledger


def test_client_that_misses_the_last_round_scores_with_a_model_of_its_own(simulation: Simulation):
    def last_round(message: Message, context: Context) -> Message:
        if message.content.config_records["config"]["server-round"] == 2:
            raise RuntimeError("late")
        return client_app(message, context)

    outcome = simulation(handler=_when("train", 0, last_round))
    assert "client 0 missed the cycle's last round" in outcome.log
    assert len(outcome.metrics.cycles) == 3


@pytest.mark.parametrize("kind", ["query.join", "train", "query.histogram", "query.select"])
def test_below_the_quorum_the_run_stops_with_a_named_error(simulation: Simulation, kind: str):
    def handler(message: Message, context: Context) -> Message:
        if message.metadata.message_type == kind and context.node_config["partition-id"] > 0:
            raise RuntimeError("power cut")
        return client_app(message, context)

    with pytest.raises(QuorumNotReached, match="power cut"):
        simulation(handler=handler, quorum=0.5, name="stopped")


@pytest.mark.slow
@pytest.mark.usefixtures("charts")
def test_stopped_run_says_so_and_can_go_on(simulation: Simulation, shared_runs: SharedRuns):
    def handler(message: Message, context: Context) -> Message:
        order = message.content.config_records["config"]
        if message.metadata.message_type == "train" and order["cycle"] == 1:
            raise RuntimeError("power cut")
        return client_app(message, context)

    with pytest.raises(QuorumNotReached):
        simulation(handler=handler, name="stopped")
    folder = Path(str(simulation.base["output-dir"])) / "stopped"
    assert "QuorumNotReached" in (folder / "report.html").read_text()
    assert simulation.resume(folder).result == shared_runs().result


@pytest.mark.slow
def test_answers_that_never_come(simulation: Simulation):
    """A client that hangs is reported after the timeout, and the round goes on."""
    hang, grid = _hanging()
    outcome = simulation(
        handler=_when("train", 2, hang),
        grid=grid,
        workers=3,
        cycles=1,
        rounds=1,
        **{"round-timeout": 4.0},
    )
    (record,) = outcome.metrics.rounds
    (failure,) = record.failed
    assert (failure.client, failure.reason) == (2, "no answer within 4 s (round-timeout)")


@pytest.mark.slow
def test_a_resumed_run_that_nobody_answers_in_time_can_be_resumed_again(
    simulation: Simulation, shared_runs: SharedRuns
):
    """Processes of sites may start slowly on a machine that has too much to do."""
    folder = killed_at(40, simulation)
    before = _ledgers(folder)
    hang, grid = _hanging()
    with pytest.raises(QuorumNotReached) as stopped:
        simulation.resume(folder, hang, grid, workers=3, **{"round-timeout": 2.0})
    late = "node 1, node 2, node 3: no answer within 2 s (round-timeout)"
    said = f"start: 0 of 3 clients joined (quorum=0.3): {late}; there: nobody"
    assert str(stopped.value) == said
    assert _ledgers(folder) == before
    resumed = simulation.resume(folder, **{"round-timeout": 3600.0})
    assert resumed.result == shared_runs().result


def _ledgers(folder: Path) -> list[Ledger]:
    found = []
    for path in sorted(folder.rglob("labels.sqlite")):
        store = LabelStore.open_existing(path)
        found.append(store.ledger())
        store.close()
    return found


def _hanging() -> tuple[Handler, type[InProcessGrid]]:
    """Return a client that never answers, and a grid that lets go of it at its end."""
    released = threading.Event()

    def hang(message: Message, context: Context) -> Message:
        released.wait()
        return client_app(message, context)

    class ReleasedAtTheEnd(InProcessGrid):
        def __exit__(self, *error: Any) -> None:
            released.set()
            super().__exit__(*error)

    return hang, ReleasedAtTheEnd


@pytest.mark.slow
def test_busy_client_gets_no_second_message(simulation: Simulation):
    """Flower would run both at once, each on its copy of the client's state."""
    running: set[int] = set()
    over = threading.Event()

    def slow(message: Message, context: Context) -> Message:
        client = int(context.node_config["partition-id"])
        number = message.content.config_records["config"]["server-round"]
        assert client not in running
        running.add(client)
        if number == 3:
            over.set()
        if client == 2 and number == 1:
            over.wait()
        reply = client_app(message, context)
        running.remove(client)
        return reply

    outcome = simulation(
        handler=slow, workers=3, cycles=1, rounds=3, **{"round-timeout": 3.0, "quorum": 0.5}
    )
    reasons = [[f.reason for f in record.failed] for record in outcome.metrics.rounds]
    assert reasons[0] == ["no answer within 3 s (round-timeout)"]
    assert reasons[1] == ["it is still busy with an earlier message"]


def test_site_that_goes_away_with_open_labels_is_named_and_not_waited_for(
    simulation: Simulation, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("ahfal_app.server.purchase._FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr("ahfal_app.server.purchase._LONGEST_PAUSE_S", 0.001)
    monkeypatch.setattr(SimulatedOracle, "collect", _half)
    outcome = simulation(handler=_when("query.collect", 1, _raising), cycles=2)
    assert "no longer waiting for the labels of client 1: error 2: RuntimeError: power cut" in (
        outcome.log
    )


def _half(self, request_id: str) -> list[LabelReceipt]:
    """Half at first; the rest for everyone but client 1, who is not asked again."""
    samples = self._requests[request_id].samples
    _asked[request_id] = _asked.get(request_id, 0) + 1
    done = len(samples) if _asked[request_id] > 1 else len(samples) // 2
    return [LabelReceipt(request_id, s, self._truth[s], "anna") for s in samples[:done]]


_asked: dict[str, int] = {}


def test_other_code_at_a_client_is_refused(simulation: Simulation):
    def other_code(message: Message, context: Context) -> Message:
        reply = client_app(message, context)
        reply.content.config_records["config"]["code"] = "0" * 64
        return reply

    with pytest.raises(CodeMismatch, match="different code"):
        simulation(handler=_when("query.join", 1, other_code))


def test_other_data_at_the_clients_is_refused(simulation: Simulation):
    def other_data(message: Message, context: Context) -> Message:
        reply = client_app(message, context)
        if message.metadata.message_type == "query.join":
            reply.content.config_records["config"]["data"] = "0" * 64
        return reply

    with pytest.raises(ConfigError, match="client 0 has data"):
        simulation(handler=other_data)
    with pytest.raises(ConfigError, match="client 1 has data"):
        simulation(handler=_when("query.join", 1, other_data))


@pytest.mark.slow
def test_repeated_select_returns_the_first_answer_and_buys_nothing(
    simulation: Simulation, shared_runs: SharedRuns
):
    def twice(message: Message, context: Context) -> Message:
        first = client_app(message, context)
        second = client_app(message, context)
        for key in ("selected", "labelled", "pending", "allotted", "spent", "free"):
            assert first.content["metrics"][key] == second.content["metrics"][key]
        return second

    def handler(message: Message, context: Context) -> Message:
        is_select = message.metadata.message_type == "query.select"
        return twice(message, context) if is_select else client_app(message, context)

    assert simulation(handler=handler).result == shared_runs().result


@pytest.fixture
def _people(monkeypatch: pytest.MonkeyPatch) -> None:
    real = oracle_module.make_oracle
    rounds: dict[str, int] = {}

    class Gradual:
        """Simulated people: each time they are asked, one more half of the request is done."""

        def __init__(self, site) -> None:
            self._inner = real("simulated", site)

        def submit(self, request: LabelRequest) -> None:
            self._inner.submit(request)

        def collect(self, request_id: str) -> list[LabelReceipt]:
            receipts = self._inner.collect(request_id)[::-1]
            rounds[request_id] = rounds.get(request_id, 0) + 1
            done = math.ceil(len(receipts) * min(1.0, rounds[request_id] / 2))
            return receipts[:done] * 2

        def check(self) -> str:
            return ""

    def gradual(name: str, site: Site, parameters: object) -> Gradual:
        return Gradual(site)

    monkeypatch.setattr("ahfal_app.client.annotation.make_oracle", gradual)
    monkeypatch.setattr("ahfal_app.server.purchase._FIRST_PAUSE_S", 0.01)


@pytest.mark.slow
@pytest.mark.usefixtures("_people")
def test_labels_that_come_in_parts_are_waited_for(simulation: Simulation):
    outcome = simulation()
    assert "waiting for" in outcome.log
    last = outcome.metrics.cycles[-1].ledger
    assert last.reserved == last.free == 0
    assert last.spent == last.allotted


@pytest.mark.slow
@pytest.mark.usefixtures("_people")
def test_at_the_deadline_the_cycle_goes_on_and_late_labels_are_used_later(simulation: Simulation):
    outcome = simulation(**{"label-deadline": 0.0})
    assert "going on without 36 labels" in outcome.log
    first, second, _ = outcome.metrics.cycles
    assert first.pending > 0
    # Half of the initial labels came when the clients joined, the others later.
    assert 0 < first.labels < 72
    assert first.ledger.reserved == first.pending
    assert second.labels > first.labels
    for cycle in outcome.metrics.cycles:
        ledger = cycle.ledger
        assert ledger.allotted == ledger.spent + ledger.reserved + ledger.free
