"""Clients that train together against the same clients trained alone, and their meeting."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Context, Message, RecordDict
from numpy.typing import NDArray
from rich.console import Console
from support.simulation import TINY, Simulation
from torch import Tensor
from torch.nn.functional import cross_entropy

from ahfal_app.data.augmentation import Augmentation
from ahfal_app.data.device import DeviceImages
from ahfal_app.data.images import Images
from ahfal_app.engine import in_process
from ahfal_app.engine.in_process import InProcessGrid
from ahfal_app.engine.local import simulate
from ahfal_app.errors import ConfigError, DeviceMemoryExhausted
from ahfal_app.messages.protocol import TRAIN
from ahfal_app.models import Classifier, build_model, model_names, network_facts
from ahfal_app.models.core.batch_norm import BatchNorm2d
from ahfal_app.query import TrainingContext, make_strategy
from ahfal_app.results.progress import Progress
from ahfal_app.results.reading import read_run
from ahfal_app.training.local_updates.core.base import Objective
from ahfal_app.training.local_updates.kcfu import BalancedSoftmax, Compensation, CompensatoryLoss
from ahfal_app.training.proximal import ProximalTerm
from ahfal_app.training.sgd import (
    LocalUpdate,
    Recipe,
    TrainingResult,
    TrainingState,
    train_locally,
)
from ahfal_app.training.together import trainer
from ahfal_app.training.together.choice import resolve_client_batching
from ahfal_app.training.together.cuda_graphs import CudaGraphs, Recording, Replayed
from ahfal_app.training.together.gathering import Gathering
from ahfal_app.training.together.schedule import schedules
from ahfal_app.training.together.stacked_network import StackedNetwork
from ahfal_app.training.together.steps import Batch, MixedBatch
from ahfal_app.training.together.trainer import TogetherTrainer
from ahfal_app.training.update import carry_out, trained_by

CPU = torch.device("cpu")
# Where it is compared; on a GPU recorded steps are.
DEVICE = torch.device(os.environ.get("AHFAL_TEST_DEVICE", "cpu"))
GRAPHS = DEVICE.type == "cuda"
NUM_CLASSES = 5
# Of 8: full batches alone, fewer than a batch, a remainder, a remainder of one, and no one's twin.
SIZES = (16, 5, 20, 9)
# Its gradients are so steep on tiny images that rounding errors grow with every step.
GENTLE = {"mobilenet-v2": {"learning_rate": 1e-4, "local_epochs": 1}}
# Where a step takes long, an epoch a round; momentum, and the rate that drops, are there as well.
SHORT = {name: {"local_epochs": 1, "lr_decay_epochs": 1} for name in ("resnet8", "preact-resnet8")}
RECIPE = Recipe(
    local_epochs=2,
    batch_size=8,
    learning_rate=0.05,
    momentum=0.9,
    weight_decay=5e-4,
    lr_decay_epochs=3,
    lr_decay_factor=0.1,
    augmentation=Augmentation(2, True),
    precision="fp32",
    compile=False,
)


def make_images(side: int = 8) -> DeviceImages:
    """Return images that are normalised in double precision, where rounding does not matter."""
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 256, (200, side, side, 3)).astype(np.uint8)
    labels = draw.integers(0, NUM_CLASSES, 200)
    images = DeviceImages(Images(pixels, labels), (0.5,) * 3, (0.25,) * 3, DEVICE)
    images.scale_C, images.shift_C = images.scale_C.double(), images.shift_C.double()
    return images


class Federation:
    """Clients of different size that train the same global model, round after round."""

    def __init__(self, network: str, update: str, recipe: Recipe, side: int = 8) -> None:
        self.images = make_images(side)
        self.update, self.recipe = update, recipe
        self.model = build_model(network, (side, side, 3), NUM_CLASSES, 0).double().to(DEVICE)
        self.model = self.model.to(memory_format=torch.channels_last)
        self.states: list[TrainingState | None] = [None] * len(SIZES)

    def updates(self, round_: int) -> list[LocalUpdate]:
        return [self._update(client, size, round_) for client, size in enumerate(SIZES)]

    def _update(self, client: int, size: int, round_: int) -> LocalUpdate:
        rows = torch.arange(40 * client, 40 * client + size)
        labels = self.images.labels_N.cpu()[rows]
        counts = np.bincount(labels, minlength=NUM_CLASSES)
        objective = self._own(counts, round_)
        # The second client has no unlabelled samples, the third a single one.
        pool = torch.arange(40 * client + size, 40 * client + 40)[: (13, 0, 1, 17)[client]]
        key = 10 * round_ + client
        if self.update.startswith("kcfu"):
            penalty = CompensatoryLoss(
                copy.deepcopy(self.model),
                self.images,
                pool,
                counts,
                Compensation(
                    "permutation" if self.update == "kcfu" else "single-partner",
                    "eval" if self.update == "kcfu" else "train",
                    8,
                    self.recipe.augmentation,
                    "fp32",
                ),
                np.random.default_rng(key),
                torch.Generator().manual_seed(key),
            )
            objective = Objective(BalancedSoftmax(counts, DEVICE), penalty if len(pool) else None)
        return LocalUpdate(
            copy.deepcopy(self.model),
            self.images,
            rows,
            labels,
            self.recipe,
            self.states[client],
            torch.Generator().manual_seed(key),
            objective,
        )

    def _own(self, counts_C: NDArray[np.int64], round_: int) -> Objective:
        """Return FEAL's loss, FedProx's term, both, or plain cross-entropy."""
        loss, near = None, None
        if "evidential" in self.update:
            context = TrainingContext(NUM_CLASSES, counts_C, 3 + round_)
            loss = make_strategy("feal", {"kl-weight": 0.5}).training_loss(context)
        if "near" in self.update:
            # Where no client is when its first round begins: a term from the first step on.
            anchors = {name: 0.9 * w.detach() for name, w in self.model.named_parameters()}
            near = ProximalTerm(0.3, anchors, DEVICE)
        return Objective(loss or cross_entropy, near)


def assert_same_models(one: Classifier, other: Classifier, tolerance: float) -> None:
    for name, value in other.state_dict().items():
        # torch's own batch norm moves running statistics with its momentum in single precision.
        limit = max(tolerance, 1e-6) if "running" in name else tolerance
        torch.testing.assert_close(
            one.state_dict()[name], value, rtol=limit, atol=limit, msg=lambda m, n=name: f"{n}: {m}"
        )


def cases() -> list[Any]:
    """Return networks and updates; the network that takes longest is slow."""
    return [
        pytest.param(
            network,
            update,
            marks=[pytest.mark.slow] if network in GENTLE else [],
        )
        for network in model_names()
        if network_facts(network).stackable
        for update in ("plain", "kcfu", "kcfu as published", "evidential and near")
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("network", "update"), cases())
def test_together_as_alone(network: str, update: str) -> None:
    """Weights, batch-norm statistics, momentum, losses; the rate drops in the second round."""
    recipe = dataclasses.replace(RECIPE, **GENTLE.get(network, {}), **SHORT.get(network, {}))
    federation = Federation(network, update, recipe)
    train_together = TogetherTrainer(GRAPHS)
    # It has so many layers that two clients and a round take as long as all others together.
    rounds, clients = (1, 2) if network in GENTLE else (2, len(SIZES))
    for round_ in range(rounds):
        alone, together = (federation.updates(round_)[:clients] for _ in range(2))
        expected = [train_locally(each) for each in alone]
        results = train_together(together)
        for one, other in zip(together, alone, strict=True):
            assert_same_models(one.model, other.model, 1e-5 if network in GENTLE else 1e-7)
        for result, wanted in zip(results, expected, strict=True):
            assert result.num_examples == wanted.num_examples
            assert result.loss == pytest.approx(wanted.loss, rel=1e-7)
            assert result.state.epochs == wanted.state.epochs
            assert result.state.momentum.keys() == wanted.state.momentum.keys()
            for name, value in wanted.state.momentum.items():
                distance = float((result.state.momentum[name] - value.cpu()).norm())
                assert distance <= 1e-5 * max(1e-3, float(value.norm())), name
        federation.states = [result.state for result in expected]
        federation.model = alone[0].model


@pytest.mark.slow
def test_half_precision_stays_near() -> None:
    recipe = dataclasses.replace(RECIPE, precision="bf16", learning_rate=0.01)
    federation = Federation("resnet8", "kcfu", recipe)
    alone, together = federation.updates(0), federation.updates(0)
    expected = [train_locally(each).loss for each in alone]
    losses = [result.loss for result in TogetherTrainer(GRAPHS)(together)]
    assert losses == pytest.approx(expected, rel=0.05)


def test_the_results_come_in_the_order_of_the_updates() -> None:
    federation = Federation("small-cnn", "plain", RECIPE)
    results = TogetherTrainer(graphs=False)(federation.updates(0))
    assert [result.num_examples for result in results] == list(SIZES)


def test_losses_that_cannot_be_stacked_are_trained_one_after_the_other() -> None:
    """They are trained with their own loss all the same."""

    def doubled(logits: Tensor, labels: Tensor) -> Tensor:
        return 2 * cross_entropy(logits, labels)

    federation = Federation("small-cnn", "plain", RECIPE)
    alone, together = (
        [dataclasses.replace(each, objective=Objective(doubled)) for each in federation.updates(0)]
        for _ in range(2)
    )
    for each in alone:
        train_locally(each)
    TogetherTrainer(graphs=False)(together)
    for one, other in zip(together, alone, strict=True):
        assert_same_models(one.model, other.model, 0.0)


class TestTooLittleMemory:
    """A device that has room for steps of some clients at a time."""

    @pytest.fixture
    def room(self, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        """Return how many have room, first; then how many were tried."""
        room = [2]
        logits, alone = StackedNetwork.logits, trainer.train_locally

        def limited(self: StackedNetwork, *arguments: Any) -> Tensor:
            room.append(arguments[3])
            if arguments[3] > room[0]:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return logits(self, *arguments)

        def limited_alone(update: LocalUpdate) -> TrainingResult:
            if room[0] < 1:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return alone(update)

        monkeypatch.setattr(StackedNetwork, "logits", limited)
        monkeypatch.setattr(trainer, "train_locally", limited_alone)
        return room

    @pytest.mark.slow
    @pytest.mark.parametrize("update", ["plain", "kcfu", "evidential and near"])
    def test_groups_of_half_as_many_see_what_they_would_see_alone(
        self, update: str, room: list[int]
    ) -> None:
        federation = Federation("small-cnn", update, RECIPE)
        train_together = TogetherTrainer(graphs=False)
        for round_ in range(2):
            alone, together = federation.updates(round_), federation.updates(round_)
            expected = [train_locally(each).loss for each in alone]
            losses = [result.loss for result in train_together(together)]
            assert losses == pytest.approx(expected, rel=1e-7)
            for one, other in zip(together, alone, strict=True):
                assert_same_models(one.model, other.model, 1e-7)
            # Only the first round tries more than there is room for.
            assert max(room[1:]) == (4 if round_ == 0 else 2)
            del room[1:]

    def test_the_step_after_which_it_runs_out_does_not_matter(
        self, room: list[int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        steps = []
        logits = StackedNetwork.logits

        def later(self: StackedNetwork, *arguments: Any) -> Tensor:
            steps.append(arguments[3])
            room[0] = 4 if len(steps) < 4 else 2
            return logits(self, *arguments)

        monkeypatch.setattr(StackedNetwork, "logits", later)
        federation = Federation("small-cnn", "kcfu", RECIPE)
        alone, together = federation.updates(0), federation.updates(0)
        for each in alone:
            train_locally(each)
        TogetherTrainer(graphs=False)(together)
        for one, other in zip(together, alone, strict=True):
            assert_same_models(one.model, other.model, 1e-7)

    def test_a_single_client_that_needs_more_ends_the_run(self, room: list[int]) -> None:
        room[0] = 0
        with pytest.raises(DeviceMemoryExhausted, match="a smaller batch-size"):
            TogetherTrainer(graphs=False)(Federation("small-cnn", "plain", RECIPE).updates(0))


@pytest.mark.slow
def test_a_program_serves_other_clients_of_the_same_shapes() -> None:
    """Nothing of the last round's clients is left in it."""
    train_together = TogetherTrainer(graphs=False)
    train_together(Federation("small-cnn", "kcfu", RECIPE).updates(5))
    federation = Federation("small-cnn", "kcfu", RECIPE)
    alone, together = federation.updates(0), federation.updates(0)
    for each in alone:
        train_locally(each)
    train_together(together)
    for one, other in zip(together, alone, strict=True):
        assert_same_models(one.model, other.model, 1e-7)


@pytest.mark.parametrize(
    ("sizes", "widths"),
    [
        ((45, 45), [20, 20, 5]),  # All of them count.
        ((45, 42), [20, 20, 16]),
        ((45, 38), [20, 20, 5]),
        ((44, 29), [20, 20, 4]),
    ],
)
def test_batches_are_cut_to_what_a_step_needs(sizes: tuple[int, int], widths: list[int]) -> None:
    update = update_of(1)
    recipe = dataclasses.replace(RECIPE, batch_size=20, local_epochs=1)
    each = [
        dataclasses.replace(update, recipe=recipe, rows_N=torch.arange(n), labels_N=torch.arange(n))
        for n in sizes
    ]
    (schedule,) = schedules(each)
    assert schedule.labelled.widths() == widths


class TestBatchNorm:
    def test_padding_does_not_count(self) -> None:
        values = torch.randn(6, 3, 4, 4, generator=torch.Generator().manual_seed(0)).double()
        padded, plain = BatchNorm2d(3).double(), BatchNorm2d(3).double()
        padded.counting_B = torch.tensor([True] * 4 + [False] * 2)
        torch.testing.assert_close(padded(values)[:4], plain(values[:4]))
        torch.testing.assert_close(padded.running_mean, plain.running_mean, rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(padded.running_var, plain.running_var, rtol=1e-6, atol=1e-8)
        assert padded.num_batches_tracked == 1

    def test_a_single_value_is_normalised_by_the_running_statistics(self) -> None:
        values = torch.randn(3, 2, 1, 1, generator=torch.Generator().manual_seed(0))
        padded, plain = BatchNorm2d(2), BatchNorm2d(2)
        padded.counting_B = torch.tensor([True, False, False])
        torch.testing.assert_close(padded(values)[:1], plain(values[:1]))
        assert padded.num_batches_tracked == plain.num_batches_tracked == 0
        assert torch.equal(padded.running_mean, torch.zeros(2))

    def test_a_second_pass_does_not_change_the_first_ones_gradient(self) -> None:
        """As KCFU has one; statistics that normalise a single value move in it."""
        values = torch.randn(9, 2, 1, 1, generator=torch.Generator().manual_seed(0))
        gradients = []
        for passes in (1, 2):
            norm = BatchNorm2d(2)
            norm.running_mean.add_(0.5)
            loss = norm(values[:1]).square().sum()
            if passes == 2:
                norm(values[1:])
            (gradient,) = torch.autograd.grad(loss, [norm.weight])
            gradients.append(gradient)
        torch.testing.assert_close(*gradients)

    def test_no_value_at_all_gives_finite_gradients(self) -> None:
        values = torch.randn(2, 2, 3, 3, generator=torch.Generator().manual_seed(0))
        values.requires_grad_()
        norm = BatchNorm2d(2)
        norm.counting_B = torch.tensor([False, False])
        norm(values).sum().backward()
        assert values.grad is not None
        assert values.grad.isfinite().all()
        assert norm.weight.grad is not None
        assert norm.weight.grad.isfinite().all()


def result_of(update: LocalUpdate) -> TrainingResult:
    return TrainingResult(len(update.rows_N), 0.5, TrainingState({}, 1))


def update_of(size: int) -> LocalUpdate:
    update = Federation("small-cnn", "plain", RECIPE).updates(0)[0]
    return dataclasses.replace(update, rows_N=torch.arange(size))


class TestGathering:
    def test_all_are_carried_out_at_once_in_the_order_of_the_clients(self) -> None:
        calls: list[list[int]] = []

        def train_together(updates: Sequence[LocalUpdate]) -> list[TrainingResult]:
            calls.append([len(update.rows_N) for update in updates])
            return [result_of(update) for update in updates]

        gathering = Gathering([7, 3, 9], train_together)
        turns = {client: threading.Event() for client in (9, 3)}

        def bring(client: int) -> int:
            if client in turns:
                turns[client].wait(10)
            return gathering.train(client, update_of(client)).num_examples

        with ThreadPoolExecutor(3) as threads:
            futures = {client: threads.submit(bring, client) for client in (9, 3, 7)}
            turns[3].set()
            turns[9].set()
            assert {client: future.result(30) for client, future in futures.items()} == {
                9: 9,
                3: 3,
                7: 7,
            }
        assert calls == [[7, 3, 9]]

    def test_who_leaves_is_not_waited_for(self) -> None:
        gathering = Gathering([1, 2], lambda updates: [result_of(each) for each in updates])
        gathering.leave(2)
        gathering.leave(2)
        assert gathering.train(1, update_of(4)).num_examples == 4
        gathering.leave(1)

    def test_the_last_to_leave_lets_the_others_train(self) -> None:
        gathering = Gathering([1, 2], lambda updates: [result_of(each) for each in updates])
        with ThreadPoolExecutor(1) as threads:
            waiting = threads.submit(gathering.train, 1, update_of(4))
            gathering.leave(2)
            assert waiting.result(30).num_examples == 4

    def test_an_error_reaches_everyone(self) -> None:
        def train_together(updates: Sequence[LocalUpdate]) -> list[TrainingResult]:
            raise RuntimeError("no memory")

        gathering = Gathering([1, 2], train_together)
        with ThreadPoolExecutor(2) as threads:
            futures = [threads.submit(gathering.train, client, update_of(4)) for client in (1, 2)]
            for future in futures:
                with pytest.raises(RuntimeError, match="no memory"):
                    future.result(30)


def test_updates_are_carried_out_alone_unless_an_engine_says_otherwise() -> None:
    update = Federation("small-cnn", "plain", RECIPE).updates(0)[0]
    with trained_by(result_of):
        assert carry_out(update).loss == 0.5
    assert carry_out(update).loss != 0.5


class FakeGraphs:
    """Records a step by keeping it, and replays it on the places that it was recorded with."""

    def __init__(self, works: bool = True) -> None:
        self.works = works
        self.recorded: list[tuple[torch.Size, bool]] = []

    def __call__(self, step, rates: Tensor, batch: Batch, mixed: MixedBatch | None) -> Recording:  # type: ignore[no-untyped-def]
        step(rates, batch, mixed)
        if not self.works:
            raise RuntimeError("operation not permitted when stream is capturing")
        self.recorded.append((batch.rows_kB.shape, batch.counting_kB is None))
        losses = torch.zeros_like(step(rates, batch, mixed))

        def replay() -> None:
            losses.copy_(step(rates, batch, mixed))

        return Recording(rates, batch, mixed, replay, losses)


@pytest.mark.slow
@pytest.mark.parametrize("update", ["plain", "kcfu", "evidential and near"])
def test_recorded_steps_train_as_they_are(update: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What recording changes is undone, inputs reach their places, each shape is recorded once."""
    graphs = FakeGraphs()
    monkeypatch.setattr("ahfal_app.training.together.cuda_graphs.CudaGraphs", lambda: graphs)
    federation = Federation("small-cnn", update, RECIPE)
    replayed, plain = TogetherTrainer(graphs=True), TogetherTrainer(graphs=False)
    for round_ in range(2):
        one, other = federation.updates(round_), federation.updates(round_)
        losses = [[result.loss for result in t(u)] for t, u in ((replayed, one), (plain, other))]
        assert losses[0] == losses[1]
        for first, second in zip(one, other, strict=True):
            assert_same_models(first.model, second.model, 0.0)
    assert len(graphs.recorded) == len(set(graphs.recorded)) > 1


def test_what_cannot_be_recorded_is_trained_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = FakeGraphs(works=False)
    monkeypatch.setattr("ahfal_app.training.together.cuda_graphs.CudaGraphs", lambda: graphs)
    federation = Federation("small-cnn", "plain", RECIPE)
    one, other = federation.updates(0), federation.updates(0)
    with pytest.warns(UserWarning, match="cannot be recorded"):
        TogetherTrainer(graphs=True)(one)
    TogetherTrainer(graphs=False)(other)
    for first, second in zip(one, other, strict=True):
        assert_same_models(first.model, second.model, 0.0)


def test_recording_gives_way_to_errors_of_another_kind() -> None:
    def step(rates: Tensor, batch: Batch, mixed: MixedBatch | None) -> Tensor:
        raise ValueError("a defect")

    zeros = torch.zeros(1, 2, dtype=torch.int64)
    batch = Batch(zeros, None, None, None, zeros, None)
    with pytest.raises(ValueError, match="a defect"):
        Replayed(step, [], FakeGraphs())(torch.ones(1), batch, None)


def test_graphs_are_recorded_where_their_tensors_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """On that GPU, in one pool, and whatever other threads do on it."""
    current, recorded, pools = [torch.device("cuda", 0)], [], iter(["a pool", "another"])

    @contextmanager
    def device(index: torch.device) -> Iterator[None]:
        current.append(index)
        yield
        current.pop()

    @contextmanager
    def graph(graph: object, pool: object, capture_error_mode: str) -> Iterator[None]:
        recorded.append((current[-1], pool, capture_error_mode))
        yield

    stream = SimpleNamespace(wait_stream=lambda other: None)
    fakes = {
        "device": device,
        "graph": graph,
        "graph_pool_handle": lambda: next(pools),
        "current_stream": lambda: stream,
        "Stream": lambda: stream,
        "stream": lambda stream: nullcontext(),
        "CUDAGraph": lambda: SimpleNamespace(replay=None),
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    second = torch.device("cuda", 1)
    steps: list[torch.device] = []
    graphs = CudaGraphs()
    for _ in range(2):
        rates: Any = SimpleNamespace(device=second)
        graphs(lambda *_: steps.append(current[-1]), rates, None, None)  # type: ignore[arg-type, func-returns-value]
    assert recorded == [(second, "a pool", "thread_local")] * 2
    assert set(steps) == {second}


def test_a_recording_that_runs_out_of_memory_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of the capture fails, too, and hides why."""

    def recorder(*arguments: object) -> Recording:
        try:
            raise torch.OutOfMemoryError("CUDA out of memory")
        except torch.OutOfMemoryError:
            raise RuntimeError("capture is invalid")  # noqa: B904

    zeros = torch.zeros(1, 2, dtype=torch.int64)
    batch = Batch(zeros, None, None, None, zeros, None)
    with pytest.raises(torch.OutOfMemoryError):
        Replayed(lambda *_: zeros, [], recorder)(torch.ones(1), batch, None)


def test_groups_are_carried_out_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second group may be complete before the first one is done."""
    at_work, most = [0], [0]

    def alone(update: LocalUpdate) -> TrainingResult:
        at_work[0] += 1
        most[0] = max(most[0], at_work[0])
        both.wait(0.2)
        at_work[0] -= 1
        return result_of(update)

    both = threading.Event()
    monkeypatch.setattr(trainer, "train_locally", alone)
    train_together = TogetherTrainer(graphs=False)
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(lambda size: train_together([update_of(size)]), (4, 5)))
    assert most[0] == 1


def losses_of(simulation: Simulation, **given: object) -> list[float]:
    """Run in this process as `ahfal run` does; return the training loss of each round."""
    network = {"model": "small-cnn", "precision": "fp32"}
    values = {**TINY, **simulation.base, **network, "cycles": 2, "max-train-samples": 600, **given}
    folder = simulate(values, Progress(Console(quiet=True)))
    environment = json.loads((folder / "environment.json").read_text())
    together = given["client-batching"] == "always"
    assert environment["engine"] == {"name": "in-process", "client_batching": together}
    return [record.train_loss for record in read_run(folder).metrics.rounds]


@pytest.mark.slow
@pytest.mark.parametrize("update", ["plain", "kcfu"])
def test_a_run_together_is_a_run_alone(
    simulation: Simulation, update: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with more clients than one group holds."""
    given = {"local-update": update}
    calls: list[int] = []
    train = TogetherTrainer.__call__

    def counting(self: TogetherTrainer, updates: Sequence[LocalUpdate]) -> list[TrainingResult]:
        calls.append(len(updates))
        return train(self, updates)

    monkeypatch.setattr(TogetherTrainer, "__call__", counting)
    alone = losses_of(simulation, **given, **{"client-batching": "never"})
    assert not calls
    together = losses_of(simulation, **given, **{"client-batching": "always"})
    assert together == pytest.approx(alone, rel=1e-3)
    assert set(calls) == {TINY["num-clients"]}
    monkeypatch.setattr(in_process, "MOST_TOGETHER", 2)
    in_groups = losses_of(simulation, **given, **{"client-batching": "always"})
    assert in_groups == pytest.approx(alone, rel=1e-3)
    assert 2 in calls


def test_a_closed_grid_leaves_nobody_waiting() -> None:
    """Messages that have not begun are answered, so that no group waits for their clients."""
    begun, go_on = threading.Event(), threading.Event()

    def client_app(message: Message, context: Context) -> Message:
        begun.set()
        go_on.wait(30)
        carry_out(update_of(4))
        return Message(RecordDict(), reply_to=message)

    grid = InProcessGrid(
        client_app,  # type: ignore[arg-type]
        2,
        train_together=lambda updates: [result_of(each) for each in updates],
    )
    group = [grid.create_message(RecordDict(), TRAIN, node, "") for node in (1, 2)]
    ids = grid.push_messages(group)
    assert begun.wait(30)
    go_on.set()
    grid.__exit__(None, None, None)
    assert len(list(grid.pull_messages(ids))) == 2


class TestChoice:
    def test_a_cpu_trains_in_turns_and_a_gpu_together(self) -> None:
        assert not resolve_client_batching("auto", CPU, "resnet8").together
        assert resolve_client_batching("auto", torch.device("cuda"), "resnet8").together
        assert not resolve_client_batching("never", torch.device("cuda"), "resnet8").together
        assert resolve_client_batching("always", CPU, "resnet8").together

    def test_a_network_that_cannot_be_stacked(self) -> None:
        choice = resolve_client_batching("auto", torch.device("cuda"), "torchvision/resnet18")
        assert not choice.together
        assert "torchvision/resnet18" in choice.reason
        with pytest.raises(ConfigError, match="client-batching='always' with model='torchvision"):
            resolve_client_batching("always", CPU, "torchvision/resnet18")
