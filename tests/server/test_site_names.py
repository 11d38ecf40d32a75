"""What the coordinator reads: sites by their names, what is missing there, when last seen."""

from __future__ import annotations

import io
import re
import shutil
from collections.abc import Iterable
from dataclasses import replace

import pytest
from flwr.app import Context, Message
from flwr.proto.node_pb2 import NodeInfo
from rich.console import Console
from support.simulation import Simulation

from ahfal_app import oracle as oracle_module
from ahfal_app.client_app import app as client_app
from ahfal_app.engine.in_process import InProcessGrid
from ahfal_app.errors import ConfigError, QuorumNotReached, ResumeError
from ahfal_app.labels.records import LabelReceipt, LabelRequest
from ahfal_app.results.progress import Progress
from ahfal_app.results.reading import read_run
from ahfal_app.results.records import Failure, parse_record
from ahfal_app.results.report import render_report
from ahfal_app.results.tables import failure_table
from ahfal_app.server.run import execute
from ahfal_app.server.start import prepare

SITES = {1: "charite", 2: "hospital-2"}


class NamedGrid(InProcessGrid):
    """Two of three nodes were registered under a name."""

    def get_nodes(self) -> Iterable[NodeInfo]:
        return [NodeInfo(node_id=n, name=SITES.get(n, "")) for n in self.get_node_ids()]


def failing(kind: str, client: int):
    def handler(message: Message, context: Context) -> Message:
        if message.metadata.message_type == kind and context.node_config["partition-id"] == client:
            raise RuntimeError("power cut")
        return client_app(message, context)

    return handler


def test_a_failure_has_the_name_of_its_site(simulation: Simulation):
    outcome = simulation(handler=failing("train", 1), grid=NamedGrid, cycles=1)
    assert "warning: cycle 1/1 round 1/2: hospital-2 (client 1): error 2: " in outcome.log
    (failure,) = outcome.metrics.rounds[0].failed
    assert (failure.client, failure.site) == (1, "hospital-2")
    table = failure_table(outcome.metrics)
    assert table is not None
    assert {row[2] for row in table.rows} == {"hospital-2"}
    assert "hospital-2" in render_report(read_run(outcome.folder))


def test_who_has_no_name_has_a_number(simulation: Simulation):
    outcome = simulation(handler=failing("train", 2), grid=NamedGrid, cycles=1)
    assert "round 1/2: client 2: error 2: " in outcome.log
    table = failure_table(outcome.metrics)
    assert table is not None
    assert {row[2] for row in table.rows} == {"2"}


def test_records_of_before_have_no_names():
    line = (
        b'{"kind":"round","cycle":0,"round":1,"clients":2,"num_examples":3,"train_loss":1.0,'
        b'"failed":[{"client":1,"reason":"power cut"}]}'
    )
    assert parse_record(line).failed == (Failure(client=1, reason="power cut"),)
    assert parse_record(line).failed[0].who == "client 1"


def test_who_could_not_join_is_named(simulation: Simulation):
    outcome = simulation(handler=failing("query.join", 1), grid=NamedGrid, cycles=1)
    assert re.search(r"client 1 did not join: hospital-2: error 2: .*power cut", outcome.log)
    # Also in the record of the last cycle, which buys nothing.
    assert [failure.client for failure in outcome.metrics.cycles[-1].failed] == [1]
    with pytest.raises(QuorumNotReached, match=r"2 of 3 clients joined .*hospital-2: error 2"):
        simulation(handler=failing("query.join", 1), grid=NamedGrid, quorum=1.0)
    with pytest.raises(QuorumNotReached, match=r"there: charite \(client 0\), client 2$"):
        simulation(handler=failing("query.join", 1), grid=NamedGrid, quorum=1.0)


def test_two_nodes_with_one_place_are_named(simulation: Simulation):
    def handler(message: Message, context: Context) -> Message:
        place = {**context.node_config, "partition-id": 0}
        return client_app(message, replace(context, node_config=place))

    with pytest.raises(
        ConfigError, match=r"partition-id=0: 3 nodes have it \(charite, hospital-2, node 3\)"
    ):
        simulation(handler=handler, grid=NamedGrid)


def test_a_site_that_has_lost_labels_is_named(simulation: Simulation):
    folder = simulation(grid=NamedGrid).folder
    shutil.rmtree(folder / "clients")
    start = prepare({"resume": str(folder)})
    with (
        NamedGrid(client_app, 3) as grid,
        pytest.raises(ResumeError, match=r"3 clients have lost labels, such as charite \(client 0"),
    ):
        execute(start, grid, Progress(Console(file=io.StringIO())))


@pytest.fixture
def people(monkeypatch: pytest.MonkeyPatch) -> dict[int, int]:
    """Every third time that they are asked, people at client 1 give a label; the others all."""
    real = oracle_module.make_oracle
    asked: dict[int, int] = {}

    class Slow:
        def __init__(self, site: oracle_module.Site) -> None:
            self._client = site.client
            self._inner = real("simulated", site)

        def submit(self, request: LabelRequest) -> None:
            self._inner.submit(request)

        def collect(self, request_id: str) -> list[LabelReceipt]:
            receipts = self._inner.collect(request_id)
            if self._client != 1:
                return receipts
            asked[self._client] = asked.get(self._client, 0) + 1
            return receipts[:1] if asked[self._client] % 3 == 0 else []

        def check(self) -> str:
            return ""

    monkeypatch.setattr(
        "ahfal_app.client.annotation.make_oracle", lambda name, site, *_: Slow(site)
    )
    monkeypatch.setattr("ahfal_app.server.purchase._FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr("ahfal_app.server.purchase._LONGEST_PAUSE_S", 0.001)
    return asked


def waiting(log: str) -> list[tuple[int, str]]:
    """Return how many labels were waited for, and where, line by line."""
    time = r"\d{4}-\d\d-\d\d \d\d:\d\d UTC"
    return [
        (int(total), re.sub(time, "TIME", where))
        for total, where in re.findall(rf"waiting for (\d+) labels since {time}: (.*)", log)
    ]


@pytest.mark.slow
def test_labels_that_are_waited_for_are_counted_by_site(
    simulation: Simulation, people: dict[int, int]
):
    outcome = simulation(grid=NamedGrid, cycles=1)
    told = waiting(outcome.log)
    # 5 % of 480 samples; a line where something has changed, and no line where nothing has.
    missing = [total for total, _ in told]
    assert missing == list(range(missing[0], 0, -1))
    assert missing[0] > 10
    assert [where for _, where in told] == [
        f"hospital-2 (client 1) {total} (last seen TIME)" for total in missing
    ]
    assert people[1] > 2 * len(told)


def test_at_the_deadline_what_is_missing_is_told_by_site(
    simulation: Simulation, people: dict[int, int]
):
    outcome = simulation(**{"label-deadline": 0.0}, grid=NamedGrid, cycles=1)
    assert people
    assert re.search(
        r"going on without (\d+) labels; .* come: hospital-2 \(client 1\) \1 \(last seen \d{4}-",
        outcome.log,
    )
