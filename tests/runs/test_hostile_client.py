"""Clients that want to take over the model, stop the run, or fill the server's memory."""

from __future__ import annotations

import re
import tracemalloc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ConfigRecord, Context, Message, MetricRecord, RecordDict
from support.simulation import Outcome, Simulation
from support.small_backbone import SETTINGS as BACKBONE
from support.small_backbone import small_backbone
from support.spoiling import Spoil, about, arrays, every, failing, in_turn, metric, of_client

from ahfal_app.client_app import app as client_app
from ahfal_app.engine.in_process import InProcessGrid
from ahfal_app.errors import ConfigError, QuorumNotReached
from ahfal_app.results.reading import read_run
from ahfal_app.results.report import render_report

#: Beside two honest clients.
HOSTILE = 1


@pytest.fixture(autouse=True)
def _without_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their pictures take longer than everything else here."""
    monkeypatch.setattr("ahfal_app.server.run.write_report", lambda folder: folder)


def _npy(shape: str) -> bytes:
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({shape}), }}".encode()
    header += b" " * (117 - len(header)) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header


def _set(name: str, value: Any) -> Spoil:
    return arrays(lambda values: values.update({name: value}))


def _times(factor: float) -> Spoil:
    def change(values: dict[str, Any]) -> None:
        for name, value in values.items():
            if value.dtype.kind == "f":
                values[name] = np.full_like(value, factor)

    return arrays(change)


def test_a_model_that_was_driven_apart_is_tested_all_the_same(simulation: Simulation) -> None:
    """Values that are allowed one by one, and whose network gives no numbers any more."""
    hostile = of_client(HOSTILE, "train", _times(9.9e5))
    few = {"max-test-samples": 50, "rounds": 1, "cycles": 1}
    outcome = simulation(few, handler=hostile, model="small-cnn", evaluate="both")
    (cycle,) = outcome.metrics.cycles
    assert [test.samples > 0 for test in cycle.tests] == [True, True]
    assert 0 <= cycle.accuracy <= 1


def _record(name: str, record: ConfigRecord | MetricRecord) -> Spoil:
    def spoil(content: RecordDict) -> None:
        content[name] = record

    return spoil


def _told(outcome: Outcome) -> list[str]:
    """Return what is told of the hostile client in each round; nobody else may be named."""
    assert all(f.client == HOSTILE for record in outcome.metrics.rounds for f in record.failed)
    return [failure.reason for record in outcome.metrics.rounds for failure in record.failed]


#: One for each round, and what is told of it.
SPOILT_ROUNDS: list[tuple[Spoil, str]] = [
    # The whole model would be this client's.
    (metric("num-examples", 10**15), "num-examples=1000000000000000: allowed is"),
    (metric("num-examples", 10**9), "num-examples=1000000000: it has at most 24 labels"),
    (metric("num-examples", 25), "num-examples=25: it has at most 24 labels"),
    (metric("num-examples", 2**63 - 1), "allowed is an integer"),
    (metric("num-examples", [5]), "num-examples=[5]"),
    (metric("num-examples", [5] * 10**6), "num-examples=[5, 5, 5, 5, ...]"),
    # Finite alone, and not once they are weighted and summed.
    (metric("loss", 1.7e308), "loss=1.7e+308: allowed is a number"),
    (metric("loss", -1.7e308), "loss=-1.7e+308: allowed is a number"),
    (metric("loss", 1), "loss=1"),
    (metric("seconds", 1e308), "seconds=1e+308"),
    (_times(3e38), "has values of 3e+38; allowed is at most 1e+06"),
    (_times(-3e38), "has values of 3e+38"),
    (_times(1.1e6), "has values of 1.1e+06"),
    (_set("bn1.running_var", np.full(32, -1e-3, np.float32)), "below 0, which no variance"),
    (_set("bn1.num_batches_tracked", np.array(2**63 - 1)), "has values of 9.22e+18"),
    (_set("bn1.num_batches_tracked", np.array(-(2**63))), "has values of 9.22e+18"),
    (
        _set("head.bias", Array("float32", (10,), "numpy.ndarray", _npy("100000, 100000"))),
        "holds float32 (100000, 100000), not what it declares",
    ),
    (
        _set("head.bias", Array("float32", (10,), "numpy.ndarray", b"PK\x03\x04" + bytes(99))),
        "cannot be decoded",
    ),
    (_set("x" * 10**6, np.zeros(1, np.float32)), "are missing or unknown"),
    (_set("\x1b[2J", np.zeros(1, np.float32)), "are missing or unknown"),
    # Flower cannot count these, and its error would end the run.
    (every(_record("more", ConfigRecord({"a": []})), metric("loss", 1e300)), "loss=1e+300"),
    (every(_record("more", ConfigRecord({"a": ""})), metric("loss", 1e300)), "loss=1e+300"),
]


@pytest.mark.slow
def test_what_would_spoil_a_round_is_named_and_left_out(simulation: Simulation):
    """A round for each attack; the model is that of the others, as if the client were away."""
    attacks = iter(SPOILT_ROUNDS)
    settings = {"cycles": 1, "rounds": len(SPOILT_ROUNDS), "model": "small-cnn"}
    outcome = simulation(settings, handler=of_client(HOSTILE, "train", in_turn(attacks)))
    told = _told(outcome)
    assert len(told) == len(SPOILT_ROUNDS)
    for text, (_, reason) in zip(told, SPOILT_ROUNDS, strict=True):
        assert reason in text
        assert len(text) < 400
        assert text.isprintable()
    assert all(record.clients == 2 for record in outcome.metrics.rounds)
    away = simulation(settings, handler=failing("power cut"))
    assert outcome.result[3] == away.result[3]


@pytest.mark.slow
def test_records_that_flower_cannot_count_do_no_harm(simulation: Simulation):
    empty = ConfigRecord({"list": [], "text": "", "bytes": b""})
    outcome = simulation(handler=of_client(HOSTILE, "train", _record("more", empty)))
    assert not _told(outcome)
    assert outcome.result == simulation().result


def test_no_memory_is_taken_for_an_array_that_is_not_there(simulation: Simulation):
    spoil = _set("head.bias", Array("float32", (10,), "numpy.ndarray", _npy("100000, 100000")))
    tracemalloc.start()
    try:
        outcome = simulation(handler=of_client(HOSTILE, "train", spoil), cycles=1)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(_told(outcome)) == 2
    assert peak < 1 << 30


#: What a client says of its failure, and what is told of it.
REASONS = [
    (None, "error 2: unknown"),
    ("", "error 2: unknown"),
    ("a\nb\n", "error 2: b"),
    ("x" * 10**7, "error 2: " + "x" * 197 + "..."),
    ("\n" * 10**6, "error 2: unknown"),
    ("[red]a[/] </script><script>alert(1)</script>", "error 2: [red]a[/] </script>"),
    ("\x1b[2J\x07\u202eevil", "error 2:  [2J  evil"),
]


def test_whatever_a_client_says_of_its_failure_is_a_short_line(simulation: Simulation):
    settings = {"cycles": 1, "rounds": len(REASONS)}
    outcome = simulation(settings, handler=failing(*(reason for reason, _ in REASONS)))
    for text, (_, told) in zip(_told(outcome), REASONS, strict=True):
        assert text.startswith(told)
        assert len(text) < 250
        assert told[:60] in outcome.log
    page = render_report(read_run(outcome.folder))
    assert "<script>alert" not in page
    assert "\x1b" not in page + outcome.log


#: One for each attempt to join, and what is told of it.
LIES: list[tuple[Spoil, str]] = [
    (metric("num-samples", 10**9), "num-samples=1000000000: allowed is at most max-client"),
    (metric("num-samples", 10**15), "num-samples=1000000000000000"),
    (metric("labelled", 10**6), "labelled=1000000: allowed is at most num-samples="),
    (metric("labelled", -1), "labelled=-1"),
    (metric("purchases", 10**15), "purchases=1000000000000000"),
    (every(metric("allotted", 10**9), metric("free", 10**9 - 24)), "allotted=1000000000"),
    (metric("spent", 99999), "allotted must be spent"),
    (about("client", -1), "client=-1"),
    (about("client", 2**70), "client=11805916207"),
    (about("num-clients", 10**12), "num-clients=1000000000000"),
    (about("num-clients", 0), "num-clients=0"),
    (about("code", "x" * 10**7), "code='xxx"),
    (about("code", 5), "code=5"),
    (about("data", "/etc/passwd"), "data='/etc/passwd'"),
    (about("partition", "a" * 65), "partition="),
    (about("device", "\x1b[2J"), "device='\\x1b[2J'"),
    (about("device", "cpu" * 10), "device="),
    (about("code-folder", "a" * 5000), "code-folder="),
    (about("version", "<img src=x>"), "version='<img src=x>'"),
    (_record("config", ConfigRecord()), "unusable answer to join"),
    (_record("metrics", MetricRecord()), "unusable answer to join"),
]

#: So many cycles that each lie has its own.
MANY_CYCLES: dict[str, object] = {
    "rounds": 1,
    "initial-fraction": 0.05,
    "query-fraction": 0.005,
    "target-fraction": 0.5,
    "start-timeout": 2.0,
}


@pytest.mark.slow
def test_who_lies_as_it_joins_is_away_and_the_others_go_on(simulation: Simulation):
    """It tries again in each cycle, with another lie; then it tells the truth, and takes part."""
    lies = iter(LIES)
    handler = of_client(HOSTILE, "query.join", in_turn(lies), times=len(LIES))
    outcome = simulation(MANY_CYCLES, handler=handler, cycles=len(LIES) + 1)
    told = _told(outcome)
    assert len(told) == len(LIES)
    for text, (_, reason) in zip(told, LIES, strict=True):
        assert reason in text
        assert len(text) < 600
        assert text.isprintable()
    assert [record.clients for record in outcome.metrics.rounds] == [*[2] * len(LIES), 3]


def _without(key: str) -> Spoil:
    def spoil(content: RecordDict) -> None:
        del content.config_records["config"][key]

    return spoil


@pytest.mark.parametrize(
    ("settings", "spoil", "said"),
    [
        (BACKBONE, about("backbone", "ab" * 32), "ab" * 6),
        (BACKBONE, _without("backbone"), ""),
        ({}, about("backbone", "ab" * 32), "ab" * 6),
    ],
    ids=["another", "none", "one where there is none"],
)
def test_who_has_another_backbone_is_left_out_with_both_hashes(
    simulation: Simulation, settings: dict[str, object], spoil: Spoil, said: str
):
    own = small_backbone().digest[:12] if settings else ""
    few = {**settings, "model": "linear", "max-train-samples": 60, "max-test-samples": 20}
    handler = of_client(HOSTILE, "query.join", spoil)
    outcome = simulation(few, handler=handler, cycles=1)
    (reason,) = set(_told(outcome))
    assert f"preprocessing with the hash {said!r}, the server's {own!r}" in reason
    assert all(record.clients == 2 for record in outcome.metrics.rounds)


@pytest.mark.parametrize("number", [2, 10**6])
def test_most_nodes_say_how_many_there_are(simulation: Simulation, number: int):
    handler = of_client(HOSTILE, "query.join", about("num-clients", number))
    outcome = simulation(handler=handler, cycles=1, **{"start-timeout": 2.0})
    (reason,) = set(_told(outcome))
    assert f"it says num-partitions={number}, most nodes 3" in reason


def test_where_nodes_do_not_agree_how_many_there_are_the_run_does_not_begin(
    simulation: Simulation,
):
    """Two say two numbers, and the server does not know better."""
    handler = of_client(HOSTILE, "query.join", about("num-clients", 10**6))

    class Two(InProcessGrid):
        def __init__(self, app: Any, num_clients: int, workers: int = 1) -> None:
            super().__init__(app, 2, workers)

    with pytest.raises(ConfigError, match="num-partitions: nodes say 2 and 1000000"):
        _without_number(simulation, handler, Two)


def _without_number(simulation: Simulation, handler: Any, grid: type[InProcessGrid]) -> Outcome:
    settings: dict[str, object] = {"num-clients": 0, "start-timeout": 1.0}
    return simulation(settings, handler=handler, grid=grid)


class Latecomer(InProcessGrid):
    """A fourth node comes after the first cycle, and in each cycle says another thing."""

    lies: Iterator[tuple[Spoil, str]]

    def __init__(self, app: Any, num_clients: int, workers: int = 1) -> None:
        def watched(message: Message, context: Context) -> Message:
            kind = message.metadata.message_type
            if kind == "query.select" and 77 not in self._contexts:
                config = {"partition-id": 0, "num-partitions": 3}
                self._contexts[77] = Context(1, 77, config, RecordDict(), {})
            reply = app(message, context)
            if context.node_id == 77:
                next(type(self).lies)[0](reply.content)
            return reply

        super().__init__(watched, num_clients, workers)


@pytest.mark.slow
def test_a_newcomer_cannot_stop_a_run_that_is_under_way(
    simulation: Simulation, caplog: pytest.LogCaptureFixture
):
    """Client 2 is away from the first cycle on, so its place is free."""
    free = about("client", 2)
    lies = [
        (about("code", "0" * 64), "node 1 has it and is connected"),
        (every(free, about("code", "0" * 64)), "different code"),
        (every(free, about("data", "0" * 64)), "other data than the run"),
        (every(free, about("code", 5)), ""),
        (every(free, metric("num-samples", 10**9)), ""),
        (about("client", 10**6), ""),
    ]
    Latecomer.lies = iter(lies)

    def away(message: Message, context: Context) -> Message:
        if context.node_id == 3:
            raise RuntimeError("power cut")
        return client_app(message, context)

    outcome = simulation(MANY_CYCLES, handler=away, grid=Latecomer, cycles=len(lies) + 2)
    assert len(outcome.metrics.cycles) == len(lies) + 2
    assert all(record.clients == 2 for record in outcome.metrics.rounds)
    # What is no client of the run is not asked again.
    assert next(Latecomer.lies, None) is None
    for _, told in lies:
        assert told in caplog.text


def audit(asked: int, labelled: int, right: int) -> Spoil:
    """Tell of an audit that nobody has asked for."""
    numbers = {"asked": asked, "labelled": labelled, "right": right}
    return every(*(metric(f"audit-{name}", number) for name, number in numbers.items()))


#: One for each purchase, and what is told of it.
PURCHASES: list[tuple[str, Spoil, str]] = [
    ("query.histogram", metric("counts", [10**15] * 10), "allowed are integers"),
    ("query.histogram", metric("counts", [2**70] * 10), "allowed are integers"),
    ("query.histogram", metric("counts", [10**6] * 10), "counts of 10000000 labels: it has at"),
    ("query.histogram", metric("counts", [1] * 10**6), "allowed are 10 counts"),
    ("query.histogram", metric("epsilon-spent", 1e300), "epsilon-spent=1e+300"),
    ("query.select", metric("selected", 10**9), "selected=1000000000: allowed is at most"),
    ("query.select", metric("labelled", 10**9), "labelled=1000000000: allowed is at most"),
    ("query.select", metric("labelled", 10**15), "labelled=1000000000000000"),
    ("query.select", metric("pending", 10**6), "pending=1000000: allowed is at most reserved"),
    ("query.select", metric("seconds", 1e300), "seconds=1e+300"),
    ("query.select", metric("longest", 1), "longest=1: allowed is at most pending=0"),
    ("query.select", metric("longest", -1), "longest=-1"),
    ("query.select", metric("longest-seconds", -1.0), "longest-seconds=-1.0"),
    ("query.select", metric("longest-seconds", 1e300), "longest-seconds=1e+300"),
    ("query.select", metric("fine-tuned", -1), "fine-tuned=-1"),
    ("query.select", metric("audit-asked", -1), "audit-asked=-1"),
    ("query.select", metric("audit-asked", 1), "audit-labelled=None"),
    ("query.select", audit(10**6, 1, 1), "allowed are no more than were asked for"),
    ("query.select", audit(1, 1, 2), "allowed is 0 <= right <= labelled <= asked"),
]


@pytest.mark.slow
def test_lies_about_labels_are_named_and_left_out(simulation: Simulation):
    def handler(message: Message, context: Context) -> Message:
        cycle = int(str(message.content.config_records["config"]["cycle"]))
        reply = client_app(message, context)
        if context.node_config["partition-id"] == HOSTILE and cycle < len(PURCHASES):
            kind, spoil, _ = PURCHASES[cycle]
            if message.metadata.message_type == kind:
                spoil(reply.content)
        return reply

    outcome = simulation(MANY_CYCLES, handler=handler, cycles=len(PURCHASES) + 1)
    for cycle, (_, _, reason) in zip(outcome.metrics.cycles, PURCHASES, strict=False):
        (failure,) = cycle.failed
        assert failure.client == HOSTILE
        assert reason in failure.reason
        assert len(failure.reason) < 400
    assert not outcome.metrics.cycles[-1].failed


#: One for each time that a client is told to begin, and what is told of it.
BEGINNINGS: list[tuple[Spoil, str]] = [
    (metric("selected", 10**9), "selected=1000000000: allowed is at most"),
    (metric("pending", 10**6), "pending=1000000: allowed is at most reserved"),
    (metric("labelled", 10**15), "labelled=1000000000000000"),
    (every(metric("allotted", 10**9), metric("free", 10**9)), "allotted=1000000000"),
    (_record("metrics", MetricRecord()), "selected=None: allowed is"),
]


@pytest.mark.slow
def test_lies_about_first_labels_are_named_and_left_out(simulation: Simulation):
    """It is told to begin in each cycle, until it says what can be; then it takes part."""
    lies = [spoil for spoil, _ in BEGINNINGS]

    def handler(message: Message, context: Context) -> Message:
        kind, reply = message.metadata.message_type, client_app(message, context)
        if context.node_config["partition-id"] != HOSTILE:
            return reply
        if kind == "query.begin" and lies:
            lies.pop(0)(reply.content)
        elif kind == "query.histogram" and lies:
            # What it would buy now it need not begin with any more.
            del reply.content["metrics"]
        return reply

    cycles = len(BEGINNINGS) + 2
    outcome = simulation(MANY_CYCLES, handler=handler, budget="global", cycles=cycles)
    for _, reason in BEGINNINGS:
        assert reason in outcome.log
    last = outcome.metrics.cycles[-1]
    assert last.labels_per_client[HOSTILE] > 0
    assert (last.ledger.allotted, last.ledger.free) == (last.labels, 0)


def test_labels_that_were_bought_unheard_count_and_no_more(simulation: Simulation):
    """The answer to a purchase got lost: what was due is believed, one more is not."""

    def handler(message: Message, context: Context) -> Message:
        reply = client_app(message, context)
        kind, config = message.metadata.message_type, message.content.config_records["config"]
        if context.node_config["partition-id"] != HOSTILE:
            return reply
        if kind == "query.select" and config["cycle"] == 0:
            del reply.content["metrics"]
        if kind == "train" and config["cycle"] == 1 and config["server-round"] == 2:
            reply.content.metric_records["metrics"]["num-examples"] = 49
        return reply

    outcome = simulation(handler=handler, cycles=2)
    last = outcome.metrics.rounds[2:]
    assert [[f.reason for f in record.failed] for record in last] == [
        [],
        ["num-examples=49: it has at most 48 labels, by its own word"],
    ]


# --- what each aggregation withstands ----------------------------------------------------------

#: Long enough to learn something.
LEARNING: dict[str, object] = {
    "rounds": 4,
    "local-epochs": 3,
    "batch-size": 16,
    "cycles": 1,
    "initial-fraction": 0.2,
    "query-fraction": 0.05,
    "target-fraction": 0.4,
    "partition": "iid",
}

ROBUST: list[dict[str, object]] = [
    {"aggregation": "fedmedian"},
    {"aggregation": "fedtrimmedavg", "aggregation.trimmed-share": 0.34},
    {"aggregation": "norm-clipping"},
]


def _accuracy(simulation: Simulation, **settings: object) -> float:
    """Return what the model comes to where one of three says the largest that is believed."""
    handler = of_client(HOSTILE, "train", _times(9e5))
    outcome = simulation(LEARNING | settings, handler=handler)
    return outcome.metrics.cycles[-1].accuracy


@pytest.mark.slow
@pytest.mark.parametrize("settings", ROBUST, ids=lambda settings: str(settings["aggregation"]))
def test_one_of_three_sites_cannot_take_over_a_robust_choice(
    simulation: Simulation, settings: dict[str, object]
):
    assert _accuracy(simulation, **settings) > 0.45


def test_one_of_three_sites_can_take_over_the_mean(simulation: Simulation):
    """Which is why the documentation says so, and names the others."""
    assert _accuracy(simulation, aggregation="fedavg") < 0.3


@pytest.mark.parametrize("settings", ROBUST, ids=lambda settings: str(settings["aggregation"]))
def test_a_robust_choice_of_fewer_than_three_is_refused(
    simulation: Simulation, settings: dict[str, object]
):
    """A median or a clipped mean of two is as far off as one of the two likes."""
    with pytest.raises(ConfigError, match=r"2 clients in a round|there are 2"):
        simulation(settings | {"num-clients": 2}, cycles=1)
    with pytest.raises(QuorumNotReached, match="too few usable answers"):
        simulation(settings, handler=failing("power cut"), cycles=1)


def test_a_share_that_trims_nobody_is_told_one_that_does(simulation: Simulation):
    with pytest.raises(ConfigError, match=re.escape("is less; 0.34 is enough")):
        simulation({"aggregation": "fedtrimmedavg"}, cycles=1)
