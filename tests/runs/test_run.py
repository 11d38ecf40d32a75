"""Whole runs in this process: what they leave, and that equal seeds give equal results."""

from __future__ import annotations

import html
import json
import math
import random
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Context, Message
from safetensors.numpy import load_file
from support.image_files import noise, png
from support.simulation import TINY, SharedRuns, Simulation
from support.site_images import write_images
from support.strategy_cases import NEEDED

from ahfal_app.class_statistics import otsu_threshold
from ahfal_app.client.state import ClientState
from ahfal_app.client_app import app as client_app
from ahfal_app.config import parse_settings
from ahfal_app.engine.in_process import InProcessGrid
from ahfal_app.labels.store import LabelStore
from ahfal_app.query import strategy_names


@pytest.mark.slow
@pytest.mark.usefixtures("charts")
def test_a_run_leaves_everything_that_its_folder_promises(simulation: Simulation):
    outcome = simulation()
    names = {path.name for path in outcome.folder.iterdir()}
    assert names >= {
        "config.yaml",
        "environment.json",
        "metrics.jsonl",
        "selections.parquet",
        "checkpoint",
        "model.safetensors",
        "summary.json",
        "report.html",
        "partition.json",
    }
    assert outcome.folder.is_absolute()
    summary = outcome.summary
    assert len(summary["accuracy_per_cycle"]) == 3
    assert summary["final_accuracy"] == summary["accuracy_per_cycle"][-1]
    assert all(0 <= accuracy <= 1 for accuracy in summary["accuracy_per_cycle"])
    assert summary["complete"]
    environment = json.loads((outcome.folder / "environment.json").read_text())
    assert len(environment["data"]["partition_fingerprint"]) == 64
    assert "cycle 3/3" in outcome.log
    assert (outcome.folder / "report.html").read_text().count('role="img"') == 8


@pytest.mark.slow
def test_a_run_on_images_of_ones_own_says_what_was_done_with_them(
    simulation: Simulation, shared_runs: SharedRuns, tmp_path: Path
):
    folder = tmp_path / "photographs"
    truth = write_images(tmp_path / "all", range(400))
    for name, label in truth.items():
        (folder / label).mkdir(parents=True, exist_ok=True)
        (tmp_path / "all" / name).rename(folder / label / f"test {Path(name).name}")
    (folder / "README.txt").write_text("Photographs")
    (folder / "two" / "deep.png").write_bytes(png(noise(8, 8, 1, deepest=4095)))
    outcome = simulation(dataset=str(folder))
    environment = json.loads((outcome.folder / "environment.json").read_text())
    assert environment["resolved"]["augmentation"] == {"padding": 1, "flip": False, "views": 0}
    assert environment["data"]["train"] + environment["data"]["test"] == 400
    assert [line["such_as"] for line in environment["data"]["not_used"]] == [
        "README.txt",
        "two/deep.png",
    ]
    report = (outcome.folder / "report.html").read_text()
    assert "in training, images are moved by up to 1 pixel at random; 2 found and" in report
    assert "Found with the data set and not used" in report
    assert "16 bits for each channel" in report
    plain = (shared_runs().folder / "report.html").read_text()
    assert "images are not augmented" in plain
    assert "not used" not in plain


def test_the_load_of_the_machine_is_kept_with_the_seconds(
    simulation: Simulation, monkeypatch: pytest.MonkeyPatch
):
    loads = iter([0.5, 3.0, 2.0, 2.5])
    monkeypatch.setattr("os.getloadavg", lambda: (next(loads), 9.0, 9.0))
    outcome = simulation(cycles=2)
    assert [record.load for record in outcome.metrics.rounds] == [0.5, 3.0, 2.0, 2.5]
    assert outcome.summary["load"] == {"median": 2.25, "most": 3.0}
    monkeypatch.delattr("os.getloadavg")
    assert simulation(cycles=1).summary["load"] is None


def test_labels_bought_are_exactly_those_due(shared_runs: SharedRuns):
    outcome = shared_runs()
    settings = parse_settings(TINY)
    counts = json.loads((outcome.folder / "partition.json").read_text())["counts"]
    sizes = [sum(client) for client in counts]
    for cycle in outcome.metrics.cycles:
        due = tuple(settings.labels_due(cycle.cycle, size) for size in sizes)
        assert cycle.labels_per_client == due
        ledger = cycle.ledger
        assert ledger.allotted == ledger.spent + ledger.reserved + ledger.free
        assert ledger.reserved == ledger.free == 0
    chosen = [(row["client"], row["sample"]) for row in outcome.selections]
    assert len(set(chosen)) == len(chosen) == sum(c.bought for c in outcome.metrics.cycles)


#: A selection in each run, from pools as small as will do.
_ONE_CHOICE: dict[str, object] = {"cycles": 2, "max-train-samples": 450}

#: Of what a strategy repeats many times, a few will do as well.
_FEW: dict[str, dict[str, object]] = {
    "chase": {"strategy.window": "cycle"},
    "coordinated-fairfal": {"strategy.epochs": 3},
    "fairfal": {"strategy.epochs": 3},
    "ifal": {"strategy.epochs": 3, "strategy.neighbours": 20},
    "logo": {"strategy.epochs": 2},
    "noise-stability": {"strategy.draws": 5},
    "temporal": {"strategy.step": 1},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", strategy_names())
def test_equal_seeds_give_equal_runs_for_every_strategy(
    simulation: Simulation, shared_runs: SharedRuns, name: str
):
    """However many clients are served at a time, and whatever was drawn before."""
    settings = {**_ONE_CHOICE, **_FEW.get(name, {}), **NEEDED.get(name, {}), "strategy": name}
    first = shared_runs(settings)
    torch.rand(3), np.random.random(3), random.random()  # noqa: NPY002
    second = simulation(settings, workers=3)
    assert first.result == second.result
    assert first.selections


@pytest.mark.slow
def test_another_seed_gives_another_run_and_the_same_one_the_same_convolutions(
    simulation: Simulation,
):
    settings = {**_ONE_CHOICE, "model": "small-cnn"}
    first = simulation(settings)
    assert simulation(settings, name="again").result == first.result
    assert simulation(settings, seed=1).result != first.result


@pytest.mark.slow
def test_strategies_choose_differently(shared_runs: SharedRuns):
    chosen = {
        name: tuple(row["sample"] for row in shared_runs(_ONE_CHOICE, strategy=name).selections)
        for name in ("ahfal", "entropy", "random")
    }
    assert len(set(chosen.values())) == 3


class ShuffledGrid(InProcessGrid):
    """Nodes come and answer in another order, under other ids."""

    def get_node_ids(self):
        return reversed(list(super().get_node_ids()))

    def pull_messages(self, message_ids):
        return reversed(list(super().pull_messages(message_ids)))


class RelabelledGrid(ShuffledGrid):
    def __init__(self, app, num_clients: int, workers: int = 1) -> None:
        super().__init__(app, num_clients, workers)
        contexts = list(self._contexts.values())
        ids = [2**63 + 17, 5, 2**40][: len(contexts)]
        self._contexts = dict(zip(ids, reversed(contexts), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("grid", [ShuffledGrid, RelabelledGrid])
def test_order_and_ids_of_nodes_do_not_matter(
    simulation: Simulation, shared_runs: SharedRuns, grid: type[InProcessGrid]
):
    assert simulation(grid=grid, **{"client-fraction": 0.5}).result == (
        shared_runs(**{"client-fraction": 0.5}).result
    )


def test_clients_at_the_same_time_give_the_same_result(
    simulation: Simulation, shared_runs: SharedRuns
):
    assert simulation(workers=3).result == shared_runs().result


def test_labels_and_momentum_in_memory_give_the_same_result(
    simulation: Simulation, shared_runs: SharedRuns
):
    memory = simulation(**{"client-state": "memory"})
    assert memory.result == shared_runs().result
    assert not list(memory.folder.glob("clients/*/*.sqlite"))


def test_records_survive_being_sent_over_a_wire(simulation: Simulation, shared_runs: SharedRuns):
    def over_the_wire(message: Message, context: Context) -> Message:
        message.content = type(message.content).inflate(
            message.content.deflate(), children=message.content.children
        )
        return client_app(message, context)

    assert simulation(handler=over_the_wire).result == shared_runs().result


def test_raw_data_labels_and_ids_stay_with_the_client(simulation: Simulation):
    """Inspect every answer: only models, counts and metrics of fixed size leave a client."""
    seen: dict[str, set[str]] = {}

    def inspect(message: Message, context: Context) -> Message:
        reply = client_app(message, context)
        kind = message.metadata.message_type
        for name, record in reply.content.items():
            for key, value in record.items():
                seen.setdefault(kind, set()).add(f"{name}.{key}")
                if isinstance(value, list):
                    assert key == "counts"
                    assert len(value) == 10
        return reply

    simulation(handler=inspect)
    ledger = {"metrics.allotted", "metrics.spent", "metrics.reserved", "metrics.free"}
    assert seen["query.join"] == ledger | {
        "config.client",
        "config.num-clients",
        "config.code",
        "config.device",
        "config.data",
        "config.partition",
        "config.version",
        "metrics.num-samples",
        "metrics.labelled",
        "metrics.held-out",
        "metrics.purchases",
    }
    assert seen["query.histogram"] == {
        "metrics.counts",
        "metrics.has-labels",
        "metrics.epsilon-spent",
    }
    assert seen["query.select"] == ledger | {
        "metrics.selected",
        "metrics.labelled",
        "metrics.held-out",
        "metrics.pending",
        "metrics.longest",
        "metrics.longest-seconds",
        "metrics.fine-tuned",
        "metrics.seconds",
    }
    arrays = {key for key in seen["train"] if key.startswith("arrays.")}
    assert seen["train"] - arrays == {"metrics.num-examples", "metrics.loss", "metrics.seconds"}


@pytest.mark.slow
def test_model_starts_anew_each_cycle_or_goes_on(simulation: Simulation):
    """What round 1 of the second cycle is sent: the fresh model, or the first cycle's."""

    def first_arrays(reset: bool) -> dict[int, bytes]:
        sent: dict[int, bytes] = {}

        def keep(message: Message, context: Context) -> Message:
            if message.metadata.message_type == "train":
                order = message.content.config_records["config"]
                if order["server-round"] == 1:
                    arrays = message.content.array_records["arrays"]
                    sent[int(order["cycle"])] = arrays["head.weight"].data
            return client_app(message, context)

        outcome = simulation(handler=keep, **{"reset-model": reset, "cycles": 2})
        model = load_file(outcome.folder / "model.safetensors")
        assert all(np.isfinite(value).all() for value in model.values())
        return sent

    anew, going_on = first_arrays(True), first_arrays(False)
    assert anew[0] == going_on[0]
    assert anew[0] != anew[1] != going_on[1]


def test_momentum_and_schedule_are_settings(simulation: Simulation, shared_runs: SharedRuns):
    base = shared_runs(cycles=1)
    assert simulation(cycles=1, **{"optimizer-state": "reset"}).result != base.result
    # After one local epoch the rate drops, so the second round differs and the first does not.
    dropped = simulation(cycles=1, **{"lr-decay-epochs": 1}).metrics.rounds
    plain = base.metrics.rounds
    assert dropped[0].train_loss == plain[0].train_loss
    assert dropped[1].train_loss == plain[1].train_loss or not math.isclose(
        dropped[1].train_loss or 0, plain[1].train_loss or 0
    )


def test_only_sampled_clients_train_but_all_in_the_last_round(simulation: Simulation):
    rounds = simulation(rounds=4, cycles=1, **{"client-fraction": 0.3}).metrics.rounds
    assert [record.clients for record in rounds] == [1, 1, 1, 3]


@pytest.mark.parametrize("seed", range(3))
def test_who_has_no_labels_yet_is_not_sampled(seed: int, simulation: Simulation):
    """A round of these alone would stop the run, and at the same place each time it goes on."""
    labels = {"initial-labels": 3, "query-labels": 3, "target-labels": 6, "budget": "global"}
    settings = {**labels, "num-clients": 8, "client-fraction": 0.25, "rounds": 4, "seed": seed}
    outcome = simulation(settings)
    able = [sum(count > 0 for count in c.labels_per_client) for c in outcome.metrics.cycles]
    clients = [record.clients for record in outcome.metrics.rounds]
    assert clients == [2, 2, 2, able[0], 2, 2, 2, able[1]]
    assert able[0] == 3


def test_global_model_is_tested_every_so_many_rounds(simulation: Simulation):
    rounds = simulation(rounds=4, cycles=1, **{"evaluate-every": 2}).metrics.rounds
    assert [record.test_accuracy is not None for record in rounds] == [False, True, False, False]


def test_fewer_cycles_by_setting(shared_runs: SharedRuns):
    assert len(shared_runs(cycles=2).metrics.cycles) == 2


@pytest.mark.slow
@pytest.mark.parametrize("num_clients", [1, 2, 7])
def test_any_number_of_clients(simulation: Simulation, num_clients: int):
    outcome = simulation(cycles=2, **{"num-clients": num_clients})
    assert len(outcome.metrics.cycles[0].labels_per_client) == num_clients


@pytest.mark.usefixtures("charts")
def test_a_threshold_that_follows_the_deviations_is_recorded_and_drawn(
    simulation: Simulation,
) -> None:
    settings = {"tau-rule": "otsu", "initial-fraction": 0.1, "target-fraction": 0.3}
    outcome = simulation(settings, **{"query-fraction": 0.1})
    chose = [cycle for cycle in outcome.metrics.cycles if cycle.deviation is not None]
    assert len(chose) == 2
    for cycle in chose:
        threshold = otsu_threshold(100 * np.array(cycle.deviation))
        assert cycle.tau == threshold != 12
        assert cycle.low == tuple(100 * value < threshold for value in cycle.deviation or ())
    page = (outcome.folder / "report.html").read_text()
    words = ", ".join(f"{cycle.tau:.1f}" for cycle in chose)
    assert f"below the threshold of {words} percentage points" in page
    assert "by Otsu's method in each cycle" in html.unescape(page)


@pytest.mark.parametrize(
    ("more", "openings"),
    # As it joins alone; or, without labels until it has a grant, then as it begins and trains, too.
    [({}, 1), ({"budget": "global"}, 3)],
)
def test_a_simulated_clients_labels_are_read_once_until_it_buys_more(
    more: dict[str, object],
    openings: int,
    simulation: Simulation,
    monkeypatch: pytest.MonkeyPatch,
):
    opened: list[ClientState] = []
    real = ClientState.labels

    def counted(self: ClientState, *given: Any) -> AbstractContextManager[LabelStore]:
        opened.append(self)
        return real(self, *given)

    monkeypatch.setattr(ClientState, "labels", counted)
    outcome = simulation({"num-clients": 3, "rounds": 3, "cycles": 1, **more})
    assert len(opened) == 3 * openings
    (cycle,) = outcome.metrics.cycles
    # Nobody is left without the labels that it has paid for.
    assert cycle.labels == cycle.ledger.spent > 0
    assert [record.num_examples for record in outcome.metrics.rounds] == 3 * [cycle.labels]
