"""Whole runs with private histograms: what the server sees, drop-outs, refusals, records."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from rich.console import Console
from support.simulation import TINY, Outcome, Simulation

from ahfal_app.class_statistics import class_proportions
from ahfal_app.client_app import app as client_app
from ahfal_app.config import Settings
from ahfal_app.engine.in_process import InProcessGrid
from ahfal_app.errors import (
    CheckpointError,
    ConfigError,
    PrivacyBudgetExceeded,
    PrivacyRefused,
    QuorumNotReached,
    SecureAggregationFailed,
)
from ahfal_app.privacy.quantisation import UNITS
from ahfal_app.results.progress import Progress
from ahfal_app.results.reading import read_run
from ahfal_app.results.report import render_report
from ahfal_app.server.run import execute
from ahfal_app.server.start import prepare

DP = {"privacy": "local-dp", "privacy.epsilon": 4.0}
SECURE = {"privacy": "secure-aggregation"}
BOTH = {"privacy": "local-dp+secure-aggregation", "privacy.epsilon": 4.0}
STEPS = ("query.advertise_keys", "query.share_keys", "query.mask", "query.unmask")

#: Five clients, of which four must stay for a secure sum.
FIVE: dict[str, object] = {"num-clients": 5, "cycles": 2, "rounds": 1}

Handler = Callable[[Message, Context], Message]


class Watch:
    """Everything that the server sees, by client and in order, and what goes wrong."""

    def __init__(self, spoil: Mapping[tuple[str, int], Handler] | None = None) -> None:
        self.answers: list[tuple[str, int, RecordDict]] = []
        self._spoil = dict(spoil or {})

    def __call__(self, message: Message, context: Context) -> Message:
        kind, client = message.metadata.message_type, int(context.node_config["partition-id"])
        reply = self._spoil.get((kind, client), client_app)(message, context)
        self.answers.append((kind, client, reply.content))
        return reply

    def of(self, kind: str) -> list[tuple[int, RecordDict]]:
        return [(client, content) for seen, client, content in self.answers if seen == kind]


def _raising(message: Message, context: Context) -> Message:
    raise RuntimeError("power cut")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Simulation:
    return Simulation(tmp_path_factory.mktemp("runs"), data_dir)


@pytest.fixture(scope="module")
def plain(runs: Simulation) -> tuple[Outcome, Watch]:
    watch = Watch()
    return runs(handler=watch), watch


@pytest.fixture(scope="module")
def five(runs: Simulation) -> Outcome:
    return runs(FIVE)


@pytest.fixture(scope="module")
def secure(runs: Simulation) -> tuple[Outcome, Watch]:
    watch = Watch()
    return runs(SECURE, handler=watch), watch


# --- what the server sees --------------------------------------------------------------------


def _histograms(watch: Watch) -> list[np.ndarray]:
    """Return each client's class counts in each cycle, from a run that tells them."""
    return [
        np.array(content.metric_records["metrics"]["counts"])
        for _, content in watch.of("query.histogram")
    ]


def _numbers(content: RecordDict) -> Iterator[np.ndarray]:
    """Return every list of numbers in an answer, and every number by itself."""
    for record in (*content.metric_records.values(), *content.config_records.values()):
        for value in record.values():
            values = value if isinstance(value, list) else [value]
            if values and all(isinstance(item, int | float) for item in values):
                yield np.array(values, dtype=np.float64)


def _bytes(content: RecordDict) -> bytes:
    """Return all bytes in an answer."""
    parts = []
    for record in content.config_records.values():
        for value in record.values():
            values = value if isinstance(value, list) else [value]
            parts += [item for item in values if isinstance(item, bytes)]
    for arrays in content.array_records.values():
        parts += [bytes(array.data) for array in arrays.values()]
    return b"|".join(parts)


def _traces(content: RecordDict, counts_C: np.ndarray) -> list[str]:
    """Return how a client's histogram shows in an answer."""
    p_C = class_proportions(counts_C)
    found = []
    for values in _numbers(content):
        for name, row in (("counts", counts_C), ("proportions", p_C), ("squares", p_C**2)):
            windows = max(0, len(values) - len(row) + 1)
            if any(np.allclose(values[i : i + len(row)], row, atol=1e-9) for i in range(windows)):
                found.append(name)
    quantised = [np.rint(row * UNITS) for row in (p_C, p_C**2)]
    for row in (counts_C, *quantised):
        for kind in ("<i4", "<i8", ">i8", "<f4", "<f8"):
            encoded = row.astype(np.int64 if "i" in kind else np.float64)
            if kind.endswith("4") and np.abs(encoded).max() > 2**31:
                continue
            if encoded.astype(kind).tobytes() in _bytes(content):
                found.append(f"{kind} bytes")
    for value in np.unique(np.concatenate(quantised)):
        if value and int(value).to_bytes(8, "little") in _bytes(content):
            found.append("a quantised value")
    for kind in ("<f4", "<f8"):
        if p_C.astype(kind).tobytes() in _bytes(content):
            found.append(f"proportions as {kind}")
    return found


@pytest.mark.slow
def test_server_sees_no_clients_histogram(
    plain: tuple[Outcome, Watch], secure: tuple[Outcome, Watch]
):
    """Every answer to every message, against every histogram of every client."""
    histograms = _histograms(plain[1])
    assert len(histograms) == 6
    assert all(len(np.unique(counts_C)) > 2 for counts_C in histograms)
    kinds = {kind for kind, _, _ in secure[1].answers}
    assert kinds == {"query.join", "train", "query.select", *STEPS}
    for kind, client, content in secure[1].answers:
        for counts_C in histograms:
            assert not _traces(content, counts_C), f"{kind} of client {client}"


@pytest.mark.slow
def test_the_inspection_would_see_a_histogram(plain: tuple[Outcome, Watch]):
    histograms = _histograms(plain[1])
    contents = [content for _, content in plain[1].of("query.histogram")]
    for content, counts_C in zip(contents, histograms, strict=True):
        assert "counts" in _traces(content, counts_C)
    p_C = class_proportions(histograms[0])
    for record in (
        ConfigRecord({"x": p_C.tolist()}),
        ConfigRecord({"x": [0.5, *(p_C**2).tolist()]}),
        ConfigRecord({"x": np.rint(p_C * UNITS).astype("<u8").tobytes()}),
        ConfigRecord({"x": [b"a", p_C.tobytes()]}),
        ConfigRecord({"x": b"\0" + round(p_C.max() * UNITS).to_bytes(8, "little")}),
    ):
        assert _traces(RecordDict({"any": record}), histograms[0])


@pytest.mark.slow
def test_server_sees_no_exact_histogram_with_local_dp(
    runs: Simulation, plain: tuple[Outcome, Watch]
):
    watch = Watch()
    runs({"privacy": "local-dp", "privacy.epsilon": 0.1}, handler=watch)
    for (_, content), counts_C in zip(
        watch.of("query.histogram"), _histograms(plain[1]), strict=True
    ):
        assert not _traces(content, counts_C)


@pytest.mark.slow
def test_what_travels_is_known(secure: tuple[Outcome, Watch]):
    expected = {
        "query.advertise_keys": {"cipher-key", "mask-key", "has-labels", "epsilon-spent"},
        "query.share_keys": {"peers", "ciphertexts"},
        "query.mask": {"masked"},
        "query.unmask": {"survivors", "seed-shares"},
    }
    for kind, keys in expected.items():
        answers = secure[1].of(kind)
        assert len(answers) == 6  # Three clients, two purchases.
        for _, content in answers:
            assert set(content) == {"secure-aggregation"}
            assert set(content["secure-aggregation"]) == keys


# --- what comes of it ------------------------------------------------------------------------


@pytest.mark.slow
def test_secure_sum_gives_the_plain_runs_selections(
    plain: tuple[Outcome, Watch], secure: tuple[Outcome, Watch]
):
    expected, outcome = plain[0], secure[0]
    assert outcome.selections == expected.selections
    for ours, theirs in zip(outcome.metrics.cycles, expected.metrics.cycles, strict=True):
        assert ours.low == theirs.low
        assert ours.accuracy == theirs.accuracy
        if ours.deviation is not None:
            np.testing.assert_allclose(ours.mean, theirs.mean, atol=1e-9)
            np.testing.assert_allclose(ours.deviation, theirs.deviation, atol=2e-6)
    assert outcome.summary["privacy"] == {
        "mode": "secure-aggregation",
        "secure_aggregation_threshold": 0.65,
    }


@pytest.mark.slow
def test_spent_budget_is_in_records_summary_and_report(runs: Simulation):
    outcome = runs(DP)
    assert [cycle.epsilon_spent for cycle in outcome.metrics.cycles] == [2.0, 4.0, None]
    privacy = outcome.summary["privacy"]
    assert privacy["epsilon_spent"] == privacy["epsilon"] == 4.0
    assert privacy["epsilon_per_release"] == 2.0
    assert privacy["releases"] == 2
    assert privacy["sensitivity"] == 2
    report = render_report(read_run(outcome.folder))
    for words in ("Privacy of the class histograms", "4 of 4, over 2 histograms", "Not covered"):
        assert words in report


@pytest.mark.slow
def test_both_together(runs: Simulation, plain: tuple[Outcome, Watch]):
    watch = Watch()
    outcome = runs(BOTH, handler=watch)
    assert [cycle.epsilon_spent for cycle in outcome.metrics.cycles] == [2.0, 4.0, None]
    assert not watch.of("query.histogram")
    first, exact = outcome.metrics.cycles[0], plain[0].metrics.cycles[0]
    assert first.mean is not None
    assert sum(first.mean) == pytest.approx(1)
    # The noise is in the sum, too.
    assert not np.allclose(first.mean, exact.mean, atol=1e-6)


@pytest.mark.slow
def test_much_budget_gives_the_plain_runs_result(runs: Simulation, plain: tuple[Outcome, Watch]):
    for mode in ("local-dp", "local-dp+secure-aggregation"):
        outcome = runs({"privacy": mode, "privacy.epsilon": 1e6})
        assert outcome.selections == plain[0].selections


def test_report_of_a_run_without_privacy_promises_none(plain: tuple[Outcome, Watch]):
    assert plain[0].summary["privacy"] == {"mode": "none"}
    assert "Privacy of the class histograms" not in render_report(read_run(plain[0].folder))


# --- drop-outs -------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS)
def test_drop_out_at_any_step_is_survived_and_named(runs: Simulation, step: str):
    outcome = runs(FIVE, **SECURE, handler=Watch({(step, 3): _raising}))
    first = outcome.metrics.cycles[0]
    assert [(f.client, "power cut" in f.reason) for f in first.failed] == [(3, True)]
    # Whoever sent a vector is in the sum, also if it goes away after that.
    lost = {} if step == "query.unmask" else {("query.histogram", 3): _raising}
    expected = runs(FIVE, handler=Watch(lost)).metrics.cycles[0]
    np.testing.assert_allclose(first.mean, expected.mean, atol=1e-9)
    np.testing.assert_allclose(first.deviation, expected.deviation, atol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS)
def test_below_the_threshold_the_run_stops_and_can_be_resumed(
    runs: Simulation, five: Outcome, step: str
):
    spoil = {(step, client): _raising for client in (1, 3)}
    name = f"stopped-{step}"
    with pytest.raises(SecureAggregationFailed, match=f"{step}.*client 1, client 3.*power cut"):
        runs(FIVE, **SECURE, handler=Watch(spoil), name=name)
    folder = Path(str(runs.base["output-dir"])) / name
    assert "SecureAggregationFailed" in Outcome(folder, "").summary["stopped"]
    assert runs.resume(folder).selections == five.selections


def test_tampered_shares_are_named(runs: Simulation):
    def tamper(message: Message, context: Context) -> Message:
        record = message.content.config_records["secure-aggregation"]
        ciphertexts = list(record["ciphertexts"])
        ciphertexts[1] = ciphertexts[1][:-1] + bytes([ciphertexts[1][-1] ^ 1])
        changed = RecordDict(dict(message.content))
        changed["secure-aggregation"] = ConfigRecord({**record, "ciphertexts": ciphertexts})
        message.content = changed
        return client_app(message, context)

    outcome = runs(FIVE, **SECURE, handler=Watch({("query.mask", 0): tamper}))
    (failure,) = outcome.metrics.cycles[0].failed
    assert failure.client == 0
    assert "SecureAggregationFailed: the shares of client 2 for client 0" in failure.reason


@pytest.mark.parametrize(
    ("step", "key", "value", "reason"),
    [
        ("query.advertise_keys", "cipher-key", b"short", "cipher-key: allowed are 32 bytes"),
        ("query.advertise_keys", "has-labels", 3, "has-labels=3"),
        ("query.advertise_keys", "epsilon-spent", -1.0, "epsilon-spent=-1.0"),
        ("query.share_keys", "peers", [1, 1, 2, 3], "a client is there twice"),
        ("query.share_keys", "ciphertexts", [b"x"], "a list as long as peers"),
        ("query.mask", "masked", b"12345678", "masked: allowed are 168 bytes"),
        ("query.unmask", "survivors", [0, 1, 2, 3, 9], "of other clients"),
        ("query.unmask", "seed-shares", [b"x"] * 5, "seed-shares: allowed are 16 bytes"),
    ],
)
def test_nonsense_in_a_step_is_named_and_left_out(
    runs: Simulation, step: str, key: str, value: object, reason: str
):
    def nonsense(message: Message, context: Context) -> Message:
        reply = client_app(message, context)
        reply.content.config_records["secure-aggregation"][key] = value  # type: ignore[assignment]
        return reply

    outcome = runs(FIVE, **SECURE, handler=Watch({(step, 4): nonsense}))
    (failure,) = outcome.metrics.cycles[0].failed
    assert failure.client == 4
    assert reason in failure.reason


def test_wrong_vector_stops_the_run(runs: Simulation):
    """Not caught by any single message: the sum is impossible."""

    def wrong(message: Message, context: Context) -> Message:
        reply = client_app(message, context)
        record = reply.content.config_records["secure-aggregation"]
        record["masked"] = bytes(len(record["masked"]))  # type: ignore[arg-type]
        return reply

    with pytest.raises(SecureAggregationFailed, match="no sum over 5 clients"):
        runs(FIVE, **SECURE, handler=Watch({("query.mask", 2): wrong}))


def test_quorum_holds_for_the_sum_too(runs: Simulation):
    watch = Watch({("query.mask", 2): _raising})
    with pytest.raises(QuorumNotReached, match="histogram: 4 of 5 clients"):
        runs(FIVE, **SECURE, quorum=1.0, handler=watch)
    # Nothing was unmasked, so that a resumed run may have the sum over all.
    assert not watch.of("query.unmask")


# --- refusals --------------------------------------------------------------------------------


def test_two_clients_are_refused_before_training(runs: Simulation):
    with pytest.raises(ConfigError, match="num-clients=2: allowed is at least 3"):
        prepare({**TINY, **runs.base, **SECURE, "num-clients": 2})


def test_two_clients_are_refused_when_they_join(runs: Simulation):
    watch = Watch()
    start = prepare({**TINY, **runs.base, **SECURE, "num-clients": 0})
    with (
        InProcessGrid(watch, 2) as grid,  # type: ignore[arg-type]
        pytest.raises(ConfigError, match="num-clients=2: allowed is at least 3"),
    ):
        execute(start, grid, Progress(Console(file=io.StringIO())))
    assert {kind for kind, _, _ in watch.answers} == {"query.join"}


def _asking_again(kind: str, change: Mapping[str, object], refused: list[str]) -> Handler:
    """Return a handler that first asks for a plain histogram, under other settings."""

    def handler(message: Message, context: Context) -> Message:
        if message.metadata.message_type == kind:
            record = message.content.config_records["config"]
            values = Settings().to_flat() | json.loads(str(record["settings"])) | change
            content = RecordDict(
                {"config": ConfigRecord({**record, "settings": json.dumps(values)})}
            )
            again = Message(content, context.node_id, "query.histogram")
            with pytest.raises(PrivacyRefused) as error:
                client_app(again, context)
            refused.append(str(error.value))
        return client_app(message, context)

    return handler


@pytest.mark.parametrize(
    ("settings", "change", "reason"),
    [
        (SECURE, {}, "a single client's histogram is not told"),
        (SECURE, {"privacy": "none"}, "privacy='none' instead of 'secure-aggregation'"),
        (DP, {"privacy": "none", "privacy.epsilon": 0.0}, "privacy='none' instead of 'local-dp'"),
        (DP, {"privacy.epsilon": 1000.0}, "privacy.epsilon=1000.0 instead of 4.0"),
    ],
)
def test_server_that_asks_in_another_way_is_refused(
    runs: Simulation, settings: dict[str, object], change: dict[str, object], reason: str
):
    refused: list[str] = []
    kind = "query.select"
    runs(settings, cycles=2, handler=_asking_again(kind, {**change}, refused))
    assert len(refused) == 3
    assert all(reason in words for words in refused)


@pytest.mark.slow
def test_server_that_asks_again_gets_the_same_noise_and_then_nothing(runs: Simulation):
    def ask(message: Message, context: Context, cycle: int) -> list[int]:
        record = message.content.config_records["config"]
        content = RecordDict({"config": ConfigRecord({**record, "cycle": cycle})})
        reply = client_app(Message(content, context.node_id, "query.histogram"), context)
        counts = reply.content.metric_records["metrics"]["counts"]
        assert isinstance(counts, list)
        return [int(value) for value in counts]

    exceeded = 0

    def handler(message: Message, context: Context) -> Message:
        nonlocal exceeded
        reply = client_app(message, context)
        if message.metadata.message_type == "query.histogram":
            cycle = int(message.content.config_records["config"]["cycle"])  # type: ignore[arg-type]
            told = reply.content.metric_records["metrics"]["counts"]
            assert all(ask(message, context, cycle) == told for _ in range(3))
            if cycle == 1:
                with pytest.raises(PrivacyBudgetExceeded):
                    ask(message, context, 2)
                exceeded += 1
        return reply

    outcome = runs({"privacy": "local-dp", "privacy.epsilon": 0.2}, handler=handler)
    assert exceeded == 3
    assert outcome.summary["privacy"]["epsilon_spent"] == 0.2


# --- resumed ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_resumed_run_uses_the_sum_that_was_unmasked(runs: Simulation, five: Outcome):
    """The server dies in the selection, and a client that was in the sum is gone for good."""
    spoil = {("query.select", client): _raising for client in range(5)}
    with pytest.raises(QuorumNotReached, match="selection"):
        runs(FIVE, **SECURE, handler=Watch(spoil), name="died")
    watch = Watch({("query.advertise_keys", 2): _raising})
    outcome = runs.resume(Path(str(runs.base["output-dir"])) / "died", watch)
    assert not watch.of("query.advertise_keys")
    assert outcome.selections == five.selections


@pytest.mark.slow
def test_damaged_sum_is_named(runs: Simulation):
    spoil = {("query.select", client): _raising for client in range(5)}
    with pytest.raises(QuorumNotReached):
        runs(FIVE, **SECURE, handler=Watch(spoil), name="damaged")
    folder = Path(str(runs.base["output-dir"])) / "damaged"
    (folder / "secure-aggregation" / "cycle-0.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"cycle-0\.json is damaged"):
        runs.resume(folder)


@pytest.mark.slow
def test_sum_that_some_have_unmasked_is_over_the_same_clients_or_none(
    runs: Simulation, five: Outcome
):
    """Three of five unmask over all five; then two are gone, and come back."""
    spoil = {("query.unmask", client): _raising for client in (1, 3)}
    with pytest.raises(SecureAggregationFailed):
        runs(FIVE, **SECURE, handler=Watch(spoil), name="begun")
    folder = Path(str(runs.base["output-dir"])) / "begun"
    for step in ("query.advertise_keys", "query.mask"):
        gone = Watch({(step, 3): _raising})
        with pytest.raises(SecureAggregationFailed, match="client 3"):
            runs.resume(folder, gone)
        assert not gone.of("query.unmask")
    assert runs.resume(folder).selections == five.selections


@pytest.mark.slow
def test_client_that_was_not_in_the_begun_sum_is_left_out_of_it(runs: Simulation):
    """Client 4 is away when the sum is begun, and there when it is begun again."""
    spoil = {("query.mask", 4): _raising, ("query.unmask", 0): _raising}
    with pytest.raises(SecureAggregationFailed):
        runs(FIVE, **SECURE, handler=Watch(spoil), name="without")
    outcome = runs.resume(Path(str(runs.base["output-dir"])) / "without")
    first = outcome.metrics.cycles[0]
    assert [(f.client, f.reason) for f in first.failed] == [(4, "the sum was begun without it")]
    expected = runs(FIVE, handler=Watch({("query.histogram", 4): _raising})).metrics.cycles[0]
    np.testing.assert_allclose(first.mean, expected.mean, atol=1e-9)


def test_traffic_of_the_protocol_is_counted(
    plain: tuple[Outcome, Watch], secure: tuple[Outcome, Watch]
):
    more = secure[0].metrics.cycles[0].bytes_up - plain[0].metrics.cycles[0].bytes_up
    # Per client: two keys, two ciphertexts, the vector and three shares, at the least.
    assert more > 3 * (2 * 32 + 2 * 77 + 168 + 3 * 16) - 3 * 10 * 8


@pytest.mark.slow
@pytest.mark.parametrize("bound_to", [[0, 1, 2], [0, 1, 2, 3, 99], [1], [2, 3]])
def test_a_client_that_lies_about_a_begun_sum_holds_up_nobody(
    runs: Simulation, five: Outcome, bound_to: list[int]
):
    """Nor can it say who is in the sum: it is left out, and the others are summed."""

    def lying(message: Message, context: Context) -> Message:
        reply = client_app(message, context)
        reply.content.config_records["secure-aggregation"]["bound-to"] = bound_to
        return reply

    watch = Watch({("query.advertise_keys", 1): lying})
    outcome = runs(FIVE, **SECURE, handler=watch)
    for cycle in outcome.metrics.cycles[:-1]:
        (failure,) = cycle.failed
        assert failure.client == 1
        assert "it says that it has begun to unmask another sum" in failure.reason
    asked = {client for client, _ in watch.of("query.share_keys")}
    assert asked == {0, 2, 3, 4}
    assert five.metrics.cycles[0].mean != outcome.metrics.cycles[0].mean
