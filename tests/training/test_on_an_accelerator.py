"""What runs on a GPU, on a stand-in for one: the CPU's results, and few transfers and waits."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from support.accelerator import DEVICE, Accelerator, AcceleratorGrid
from support.simulation import Outcome, SharedRuns, Simulation
from support.small_training import CPU, RECIPE, ROWS, generator, make_images, make_model
from support.strategy_cases import NEEDED
from torch import Tensor

from ahfal_app.data.augmentation import Augmentation
from ahfal_app.data.device import DeviceImages
from ahfal_app.engine.in_process import InProcessGrid
from ahfal_app.query import strategy_names
from ahfal_app.training import resources
from ahfal_app.training.local_updates.core.base import Objective
from ahfal_app.training.local_updates.kcfu import BalancedSoftmax, Compensation, CompensatoryLoss
from ahfal_app.training.sgd import LocalUpdate, TrainingResult, train_locally
from ahfal_app.training.together.cuda_graphs import Recording, Step
from ahfal_app.training.together.steps import Batch, MixedBatch
from ahfal_app.training.together.trainer import TogetherTrainer

AUGMENTED = dataclasses.replace(RECIPE, augmentation=Augmentation(1, True))
SIZES = (20, 13, 9)


@pytest.fixture
def accelerator() -> Iterator[Accelerator]:
    made = Accelerator()
    with made.entered():
        yield made


class TestTheStandIn:
    def test_what_a_gpu_refuses_is_refused(self, accelerator: Accelerator) -> None:
        near, far = torch.ones(3).to(DEVICE), torch.ones(3)
        with pytest.raises(RuntimeError, match="beside the device's"):
            near + far
        with pytest.raises(TypeError, match=r"Tensor\.cpu"):
            near.numpy()
        with pytest.raises(RuntimeError, match="indexed by one of the device"):
            far[torch.tensor([0], device=DEVICE)]

    def test_what_waits_is_counted(self, accelerator: Accelerator) -> None:
        near = torch.arange(4.0).to(DEVICE)
        assert (accelerator.count("upload"), accelerator.count("wait")) == (1, 1)
        assert float(near.sum()) == 6.0
        assert near[near > 1].tolist() == [2.0, 3.0]
        assert accelerator.count("wait") == 4
        torch.ones(3).pin_memory().to(DEVICE, non_blocking=True)
        assert (accelerator.count("upload"), accelerator.count("wait")) == (2, 4)

    def test_a_capture_refuses_all_of_it(self, accelerator: Accelerator) -> None:
        near = torch.ones(3).to(DEVICE)
        with accelerator.capturing(), pytest.raises(RuntimeError, match="not permitted"):
            float(near.sum())


def updates(images: DeviceImages, on_host: bool, kcfu: bool = False) -> list[LocalUpdate]:
    """Return three clients of one network, with KCFU's losses or without."""
    made = []
    place = CPU if on_host else images.device
    for client, size in enumerate(SIZES):
        labels_N = torch.from_numpy(np.arange(size) % 3)
        objective = Objective(torch.nn.functional.cross_entropy)
        if kcfu:
            counts_C = np.bincount(labels_N, minlength=3)
            penalty = CompensatoryLoss(
                make_model(seed=1).to(place),
                images,
                torch.arange(30, 40),
                counts_C,
                Compensation("permutation", "eval", 8, AUGMENTED.augmentation, "fp32"),
                np.random.default_rng(client),
                generator(10 + client),
            )
            objective = Objective(BalancedSoftmax(counts_C, images.device), penalty)
        made.append(
            LocalUpdate(
                make_model().to(place),
                images,
                ROWS[:size].roll(client),
                labels_N,
                AUGMENTED,
                None,
                generator(client),
                objective,
            )
        )
    return made


def trained(each: list[LocalUpdate], results: list[TrainingResult]) -> list[Any]:
    """Return everything that training gives, on the CPU."""
    return [
        (
            result.loss,
            {name: value.cpu().tolist() for name, value in update.model.state_dict().items()},
            {name: value.cpu().tolist() for name, value in result.state.momentum.items()},
        )
        for update, result in zip(each, results, strict=True)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("kcfu", [False, True])
@pytest.mark.parametrize("together", [False, True])
def test_clients_train_as_on_the_cpu(kcfu: bool, together: bool, accelerator: Accelerator) -> None:
    def carried_out(each: list[LocalUpdate]) -> list[TrainingResult]:
        if together:
            return TogetherTrainer(graphs=False)(each)
        return [train_locally(update) for update in each]

    far = updates(make_images(), on_host=True, kcfu=kcfu)
    near = updates(make_images(device=DEVICE), on_host=together, kcfu=kcfu)
    assert trained(near, carried_out(near)) == trained(far, carried_out(far))


@pytest.mark.slow
def test_a_client_trained_alone_comes_back_to_the_cpu(accelerator: Accelerator) -> None:
    """As in a group whose losses cannot be stacked."""
    far = updates(make_images(), on_host=True, kcfu=True)[:1]
    near = updates(make_images(device=DEVICE), on_host=True, kcfu=True)[:1]
    results = [TogetherTrainer(graphs=False)(each) for each in (near, far)]
    assert trained(near, results[0]) == trained(far, results[1])


def test_in_turns_no_step_waits(accelerator: Accelerator) -> None:
    """The only wait is for the loss, at the end."""
    images = make_images(device=DEVICE)
    for size in (16, 2):
        update = updates(images, on_host=False)[0]
        recipe = dataclasses.replace(AUGMENTED, batch_size=size)
        accelerator.events.clear()
        train_locally(dataclasses.replace(update, recipe=recipe))
        assert accelerator.count("wait") == 1
        # Labels; order twice and two kinds of draws for each epoch.
        assert accelerator.count("upload") == 1 + 4 * recipe.local_epochs


@pytest.mark.slow
def test_a_round_together_waits_twice(accelerator: Accelerator) -> None:
    """For what was trained, and for the losses; momentum that it left is not sent again."""
    images = make_images(device=DEVICE)
    train_together = TogetherTrainer(graphs=False)
    results = train_together(updates(images, on_host=True))
    for keeps in (True, False):
        states = [result.state for result in results]
        if not keeps:
            states = [dataclasses.replace(state) for state in states]
        each = updates(images, on_host=True)
        each = [dataclasses.replace(u, state=s) for u, s in zip(each, states, strict=True)]
        accelerator.events.clear()
        results = train_together(each)
        assert accelerator.count("wait") == 2
        # Weights, statistics, counters, two constants; six tensors of each epoch.
        assert accelerator.count("upload") == 5 + 6 * AUGMENTED.local_epochs + (not keeps)


@pytest.mark.slow
@pytest.mark.parametrize("kcfu", [False, True])
def test_a_captured_step_neither_transfers_nor_waits(
    kcfu: bool, accelerator: Accelerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    captured = []

    class Captures:
        def __call__(
            self, step: Step, rates_k: Tensor, batch: Batch, mixed: MixedBatch | None
        ) -> Recording:
            with accelerator.capturing():
                losses_k = step(rates_k, batch, mixed).clone()
            captured.append(batch.rows_kB.shape)

            def replay() -> None:
                with accelerator.capturing():
                    losses_k.copy_(step(rates_k, batch, mixed))

            return Recording(rates_k, batch, mixed, replay, losses_k)

    monkeypatch.setattr("ahfal_app.training.together.cuda_graphs.CudaGraphs", Captures)
    far = updates(make_images(), on_host=True, kcfu=kcfu)
    near = updates(make_images(device=DEVICE), on_host=True, kcfu=kcfu)
    results = TogetherTrainer(graphs=True)(near)
    assert len(captured) > 1
    assert trained(near, results) == trained(far, TogetherTrainer(graphs=False)(far))


def on_the_accelerator(
    simulation: Simulation,
    monkeypatch: pytest.MonkeyPatch,
    accelerator: Accelerator,
    settings: dict[str, object],
    together: bool = False,
) -> Outcome:
    """Run with all that clients and server compute on the accelerator."""
    trainer = TogetherTrainer(graphs=False) if together else None

    class Grid(AcceleratorGrid):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, trainer)

    Grid.accelerator = accelerator
    monkeypatch.setattr(resources, "resolve_device", lambda device: DEVICE)
    monkeypatch.setattr(resources, "_memo", {})
    return simulation(settings, grid=Grid)


#: Of what a strategy repeats many times, a few will do as well.
FEW: dict[str, dict[str, object]] = {
    "coordinated-fairfal": {"strategy.epochs": 2},
    "fairfal": {"strategy.epochs": 2},
    "ifal": {"strategy.epochs": 2},
    "logo": {"strategy.epochs": 2},
    "noise-stability": {"strategy.draws": 3},
}


def settings_of(strategy: str) -> dict[str, object]:
    return {
        **FEW.get(strategy, {}),
        **NEEDED.get(strategy, {}),
        "strategy": strategy,
        "model": "small-cnn",
        "client-batching": "auto",
        "precision": "fp32",
        "rounds": 1,
        "target-fraction": 0.1,
        "max-train-samples": 240,
        "max-test-samples": 60,
    }


@pytest.mark.parametrize(
    "strategy",
    [
        pytest.param(name, marks=[] if name == "ahfal" else [pytest.mark.slow])
        for name in strategy_names()
    ],
)
def test_a_run_is_the_run_on_the_cpu(
    strategy: str,
    simulation: Simulation,
    shared_runs: SharedRuns,
    accelerator: Accelerator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Training, FEAL's loss, evaluation and selection."""
    expected = shared_runs(settings_of(strategy))
    run = on_the_accelerator(simulation, monkeypatch, accelerator, settings_of(strategy))
    assert run.result == expected.result
    assert accelerator.count("upload")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "given"),
    [
        ("kafal", {"local-update": "kcfu"}),
        ("kafal", {"local-update": "kcfu", "model": "resnet8"}),
        # These look at models during training, which wait on the CPU here.
        ("chase", {}),
        ("temporal", {}),
    ],
    ids=str,
)
def test_a_run_together_is_the_run_on_the_cpu(
    strategy: str,
    given: dict[str, object],
    simulation: Simulation,
    accelerator: Accelerator,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Together(InProcessGrid):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, TogetherTrainer(graphs=False))

    settings = settings_of(strategy) | given
    expected = simulation(settings, grid=Together)
    run = on_the_accelerator(simulation, monkeypatch, accelerator, settings, together=True)
    assert run.result == expected.result
    assert "has watched nothing" not in caplog.text
