"""A client whose labels are gone is told so before anybody is asked for them again."""

from __future__ import annotations

import io
import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Message
from rich.console import Console
from support.killing import Killed
from support.simulation import TINY, Simulation

from ahfal_app.client_app import app as client_app
from ahfal_app.engine.in_process import InProcessGrid
from ahfal_app.errors import ResumeError
from ahfal_app.labels.store import STORE_FILE, LabelStore
from ahfal_app.results.progress import Progress
from ahfal_app.results.reading import read_metrics
from ahfal_app.server import loop
from ahfal_app.server.run import execute
from ahfal_app.server.start import prepare

#: The client that loses its labels, and the node that serves it.
LOST, NODE = 1, 2


def folder_of(run: str | Path) -> Path:
    return Path(run) / "clients" / str(LOST)


def last_purchase(run: Path) -> int:
    """Return the newest cycle that a client's store has a request of, or -1."""
    with closing(LabelStore.open_existing(folder_of(run) / STORE_FILE)) as store:
        return store.last_cycle()


def killed_before(kind: str, cycle: int, simulation: Simulation, **settings: object) -> Path:
    """Run until the first message of a kind in a cycle; return the run's folder."""

    def handler(message: Message, context: Context) -> Message:
        said = message.content.config_records["config"]["cycle"]
        if message.metadata.message_type == kind and said == cycle:
            raise Killed
        return client_app(message, context)

    with pytest.raises(Killed):
        simulation(settings, handler=handler, name="killed")
    return Path(str(simulation.base["output-dir"])) / "killed"


# With a budget that all share the first labels are bought by another message.
@pytest.mark.parametrize("budget", ["client", "global"])
@pytest.mark.parametrize(("kind", "cycle"), [("train", 0), ("query.select", 0), ("train", 1)])
def test_a_lost_store_is_missed_before_anybody_is_asked_again(
    kind: str, cycle: int, budget: str, simulation: Simulation
) -> None:
    run = killed_before(kind, cycle, simulation, budget=budget)
    shutil.rmtree(folder_of(run))
    bought = 1 if (kind, cycle) == ("train", 1) else 0
    with pytest.raises(ResumeError) as error:
        simulation.resume(run)
    assert (
        "1 clients have lost labels, such as client 1: it holds none, it had bought for cycle "
        f"{bought}; nothing was bought" in str(error.value)
    )
    assert last_purchase(run) == -1


def test_a_store_lost_while_people_label_the_first_images_is_missed(
    simulation: Simulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wait(*_: object) -> Any:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(loop, "wait_for_labels", wait)
        with pytest.raises(Killed):
            simulation(name="killed")
    run = Path(str(simulation.base["output-dir"])) / "killed"
    assert last_purchase(run) == 0
    shutil.rmtree(folder_of(run))
    with pytest.raises(ResumeError, match="client 1: it holds none, it had bought for cycle 0"):
        simulation.resume(run)
    assert last_purchase(run) == -1


def test_the_others_go_on_without_it(simulation: Simulation) -> None:
    run = killed_before("train", 1, simulation)
    shutil.rmtree(folder_of(run))

    def without(message: Message, context: Context) -> Message:
        if context.node_config["partition-id"] == LOST:
            raise RuntimeError("switched off")
        return client_app(message, context)

    outcome = simulation.resume(run, without)
    assert outcome.summary["complete"]
    assert [c.labels_per_client[LOST] > 0 for c in outcome.metrics.cycles] == [True, False, False]


def test_a_client_that_comes_to_a_resumed_run_buys_its_first_labels(
    simulation: Simulation,
) -> None:
    """It had never joined, so that nothing of it can be lost."""

    def late(message: Message, context: Context) -> Message:
        cycle = message.content.config_records["config"]["cycle"]
        if context.node_config["partition-id"] == LOST and cycle == 0:
            raise RuntimeError("not set up yet")
        return client_app(message, context)

    straight = simulation(handler=late, name="straight", **{"target-fraction": 0.15})
    folder = simulation(handler=late, name="short", **{"target-fraction": 0.05}).folder
    outcome = simulation.resume(folder, late, **{"target-fraction": 0.15})
    assert [c.labels_per_client[LOST] > 0 for c in straight.metrics.cycles] == [False, True, True]
    assert outcome.result == straight.result
    # A run that is over buys nothing, whoever comes.
    over = simulation(handler=late, name="over", **{"target-fraction": 0.05}).folder
    simulation.resume(over)
    assert last_purchase(over) == -1


class Away(InProcessGrid):
    """A site's folder is lost while the first purchase is made, and back one cycle later.

    Its node comes back at once, under another id or under its own.
    """

    other_id = True

    def __init__(self, app: Any, num_clients: int, workers: int = 1) -> None:
        def watched(message: Message, context: Context) -> Message:
            order = message.content.config_records["config"]
            kind, cycle = message.metadata.message_type, int(str(order["cycle"]))
            folder = folder_of(str(order["run-folder"]))
            backup = folder.with_name("backup")
            if kind == "train" and cycle == 0 and order["server-round"] == 2 and folder.exists():
                reply = app(message, context)
                if context.node_config["partition-id"] == LOST:
                    folder.rename(backup)
                    if self.other_id:
                        self._contexts[77] = self._contexts.pop(NODE)
                return reply
            if kind == "train" and cycle == 1 and order["server-round"] == 2:
                self.purchases.append(last_purchase(Path(str(order["run-folder"]))))
            reply = app(message, context)
            if kind == "query.select" and cycle == 1 and backup.exists():
                self.purchases.append(last_purchase(Path(str(order["run-folder"]))))
                shutil.rmtree(folder)
                backup.rename(folder)
            return reply

        self.purchases: list[int] = []
        super().__init__(watched, num_clients, workers)


class UnderItsOwnId(Away):
    """It comes back as the node that it was."""

    other_id = False


@pytest.mark.parametrize("grid", [Away, UnderItsOwnId])
def test_a_site_that_comes_back_without_its_labels_buys_none(
    grid: type[Away], simulation: Simulation, caplog: pytest.LogCaptureFixture
) -> None:
    start = prepare({**TINY, **simulation.base, "target-fraction": 0.2, "round-timeout": 30.0})
    with grid(client_app, 3) as nodes:
        run = execute(start, nodes, Progress(Console(file=io.StringIO())))
    assert nodes.purchases
    assert set(nodes.purchases) == {-1}
    cycles = read_metrics(run).cycles
    if grid.other_id:
        assert (
            "node 77, partition-id=1, is left out: it has lost labels: it holds none" in caplog.text
        )
    else:
        (reason,) = [f.reason for f in cycles[0].failed if f.client == LOST]
        assert "it holds no purchase, and this client has bought labels for cycle 0" in reason
    # With its folder it is one of them again.
    trained = [record.clients for record in read_metrics(run).rounds]
    assert trained == [3, 3, 2, 2, 3, 3, 3, 3]
    assert last_purchase(run) == 3
