"""Whole small runs with each aggregation: failing and malicious clients, cycles, resuming."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, Context, Message
from rich.console import Console
from safetensors.numpy import load_file
from support.killing import Killed
from support.simulation import TINY, Outcome, Simulation

from ahfal_app.client_app import app as client_app
from ahfal_app.engine import in_process
from ahfal_app.engine.in_process import InProcessGrid
from ahfal_app.errors import ConfigError, QuorumNotReached
from ahfal_app.plugins import AGGREGATIONS
from ahfal_app.results.progress import Progress
from ahfal_app.server import run as run_module
from ahfal_app.server import start as start_module
from ahfal_app.server.aggregation import Aggregation
from ahfal_app.server.checkpoint import read_checkpoint
from ahfal_app.server.run import execute
from ahfal_app.server.start import prepare

NAMES = AGGREGATIONS.own_names()
ROBUST = ("fedmedian", "fedtrimmedavg", "krum", "multikrum", "bulyan")

#: As many clients as Bulyan needs against one that is malicious, and one that fails; two
#: epochs, since the first step of a round starts where FedProx holds it.
EIGHT = {
    "num-clients": 8,
    "cycles": 1,
    "rounds": 2,
    "local-epochs": 2,
    "model.normalise": "batch",
}


def _failing_once(message: Message, context: Context) -> Message:
    is_first = message.content.config_records["config"]["server-round"] == 1
    is_training = message.metadata.message_type == "train"
    if is_first and is_training and context.node_config["partition-id"] == 3:
        raise RuntimeError("power cut")
    return client_app(message, context)


@pytest.fixture(scope="module")
def averaged(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Outcome:
    simulation = Simulation(tmp_path_factory.mktemp("averaged"), data_dir)
    return simulation(EIGHT, handler=_failing_once)


def _floats(folder: Path) -> dict[str, np.ndarray]:
    arrays = load_file(folder / "model.safetensors")
    return {name: array for name, array in arrays.items() if array.dtype.kind == "f"}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_aggregation_runs_although_a_client_fails(
    name: str, simulation: Simulation, averaged: Outcome
):
    outcome = simulation(EIGHT, handler=_failing_once, aggregation=name)
    first, second = outcome.metrics.rounds
    assert [(f.client, f.reason) for f in first.failed] == [(3, "error 2: RuntimeError: power cut")]
    assert (first.clients, second.clients) == (7, 8)
    assert all(np.isfinite(array).all() for array in _floats(outcome.folder).values())
    assert all((v >= 0).all() for k, v in _floats(outcome.folder).items() if "var" in k)
    assert (outcome.result == averaged.result) is (name == "fedavg")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fedprox", "fedadam", "bulyan"])
def test_equal_seeds_give_equal_runs(name: str, simulation: Simulation):
    settings = {**EIGHT, "cycles": 2, "rounds": 1, "aggregation": name, "reset-model": False}
    one, other = (simulation(settings, workers=workers).result for workers in (1, 2))
    assert one == other


@pytest.mark.parametrize("name", [*ROBUST, "fedavg"])
def test_a_client_that_sends_huge_weights(name: str, simulation: Simulation):
    """Each robust value lies between those of honest clients; the mean's does not."""
    honest: list[dict[str, np.ndarray]] = []

    def handler(message: Message, context: Context) -> Message:
        reply = client_app(message, context)
        if message.metadata.message_type == "train":
            arrays = reply.content.array_records["arrays"]
            floats = {n: a.numpy() for n, a in arrays.items() if a.numpy().dtype.kind == "f"}
            if context.node_config["partition-id"] == 2:
                for key, value in floats.items():
                    arrays[key] = Array(np.asarray(1e5 * (1 + value), dtype=value.dtype))
            else:
                honest.append(floats)
        return reply

    outcome = simulation({**EIGHT, "rounds": 1}, handler=handler, aggregation=name)
    aggregate = _floats(outcome.folder)
    assert len(honest) == 7
    if name == "fedavg":
        assert all((np.abs(array) > 1e3).all() for array in aggregate.values())
        return
    for key, array in aggregate.items():
        values = np.stack([model[key] for model in honest])
        assert ((array >= values.min(axis=0)) & (array <= values.max(axis=0))).all(), key
    if name == "krum":
        assert any(all((model[k] == aggregate[k]).all() for k in aggregate) for model in honest)


@pytest.mark.slow
def test_too_few_answers_stop_the_run_by_name_and_it_can_go_on(simulation: Simulation):
    settings = {**EIGHT, "num-clients": 5, "aggregation": "krum"}
    needed = (
        r"cycle 0, round 1: too few usable answers: aggregation.malicious-clients=1: .* there are 4"
    )
    with pytest.raises(QuorumNotReached, match=needed):
        simulation(settings, handler=_failing_once, name="stopped")
    folder = Path(str(simulation.base["output-dir"])) / "stopped"
    assert simulation.resume(folder).result == simulation(settings).result


def test_too_few_clients_are_refused_once_they_are_known(simulation: Simulation):
    start = prepare({**TINY, **simulation.base, "num-clients": 0, "aggregation": "bulyan"})
    with (
        InProcessGrid(client_app, 3) as grid,
        pytest.raises(
            ConfigError, match=r"aggregation.malicious-clients=1: .* 7 clients in a round, .* 3"
        ),
    ):
        execute(start, grid, Progress(Console(file=io.StringIO())))


@pytest.mark.parametrize("name", ["fedavgm", "fedadam"])
@pytest.mark.parametrize("reset_model", [True, False])
def test_state_of_the_server_lives_as_long_as_its_model(
    name: str, reset_model: bool, simulation: Simulation, monkeypatch: pytest.MonkeyPatch
):
    has_state: dict[tuple[int, int], bool] = {}
    write = run_module.write_checkpoint

    def watched(folder: Path, checkpoint) -> None:
        write(folder, checkpoint)
        stored = read_checkpoint(folder)
        has_state[stored.position.cycle, stored.position.round] = bool(stored.aggregation)

    for module in (start_module, run_module):
        monkeypatch.setattr(module, "write_checkpoint", watched)
    simulation(cycles=2, rounds=1, aggregation=name, **{"reset-model": reset_model})
    at_start_of_second = has_state.pop((1, 0))
    assert at_start_of_second is not reset_model
    assert has_state == {(0, 0): False, (0, 1): True, (1, 1): True, (2, 0): True}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fedavgm", "fedadam"])
def test_killed_run_goes_on_with_the_servers_state(name: str, simulation: Simulation):
    """In the middle of a cycle, and between the last round of a cycle and its end."""
    settings = {"cycles": 2, "aggregation": name, "reset-model": False}
    straight = simulation(settings)
    for kind, cycle, round_ in (("train", 1, 2), ("query.histogram", 0, 0)):

        def handler(message: Message, context: Context) -> Message:
            order = message.content.config_records["config"]
            where = (message.metadata.message_type, order["cycle"], order["server-round"])
            if where == (kind, cycle, round_) and context.node_config["partition-id"] == 1:  # noqa: B023
                raise Killed
            return client_app(message, context)

        with pytest.raises(Killed):
            simulation(settings, handler=handler, name=kind)
        folder = straight.folder.parent / kind
        assert simulation.resume(folder).result == straight.result


@pytest.mark.slow
@pytest.mark.parametrize("aggregation", ["fedavg", "fedadam", "fedmedian"])
def test_clients_in_groups_give_the_model_of_all_at_once(
    simulation: Simulation, aggregation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers are merged group by group where a mean is all that counts, else kept."""
    merges: list[int] = []
    merged = Aggregation.merged

    def counting(self: Aggregation, replies: Sequence[Message]) -> Message:
        merges.append(len(replies))
        return merged(self, replies)

    monkeypatch.setattr(Aggregation, "merged", counting)
    given = {"aggregation": aggregation, "num-clients": 5, "rounds": 2, "cycles": 1}
    whole = simulation(**given)
    assert not merges
    monkeypatch.setattr(in_process, "MOST_AT_ONCE", 2)
    groups = simulation(**given)
    assert merges == ([] if aggregation == "fedmedian" else [2, 2] * 2)
    models = [load_file(outcome.folder / "model.safetensors") for outcome in (whole, groups)]
    for name, value in models[0].items():
        np.testing.assert_allclose(models[1][name], value, rtol=1e-3, atol=1e-5, err_msg=name)
    rounds = [outcome.metrics.rounds for outcome in (whole, groups)]
    for one, other in zip(*rounds, strict=True):
        assert (one.clients, one.num_examples) == (other.clients, other.num_examples)
        assert one.train_loss == pytest.approx(other.train_loss, rel=1e-3)
