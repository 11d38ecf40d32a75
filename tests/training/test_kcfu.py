"""KCFU against cases by hand and one step written out in loops; whole runs with it."""

from __future__ import annotations

import copy
import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support.killing import Uninterrupted, killed_at, uninterrupted
from support.simulation import Simulation
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ahfal_app.config import Settings
from ahfal_app.data.augmentation import Augmentation
from ahfal_app.data.device import DeviceImages
from ahfal_app.errors import ConfigError
from ahfal_app.models import Classifier
from ahfal_app.query import make_strategy
from ahfal_app.seeds import numpy_generator, torch_generator
from ahfal_app.server.preflight import check_settings
from ahfal_app.training.local_updates.core.base import LocalSituation, Objective
from ahfal_app.training.local_updates.kcfu import KCFU as KCFU_METHOD
from ahfal_app.training.local_updates.kcfu import (
    BalancedSoftmax,
    Compensation,
    CompensatoryLoss,
    rarity_weights,
    weighted_divergence,
)
from ahfal_app.training.objectives import make_local_update, make_objective
from ahfal_app.training.resources import Resources, resources
from ahfal_app.training.sgd import LocalUpdate, Recipe, train_locally

CPU = torch.device("cpu")
KCFU = {"local-update": "kcfu", "strategy": "entropy"}


def counts(*values: int) -> NDArray[np.int64]:
    return np.array(values, dtype=np.int64)


class TestBalancedSoftmax:
    def test_case_by_hand(self) -> None:
        """Without evidence the probabilities are the shares 0.8, 0.2 and 0."""
        loss = BalancedSoftmax(counts(8, 2, 0), CPU)
        for label, expected in ((0, 0.223144), (1, 1.609438), (2, math.inf)):
            value = loss(torch.zeros(1, 3), torch.tensor([label]))
            assert float(value) == pytest.approx(expected, abs=1e-6)

    def test_absent_classes_get_no_gradient_and_the_others_theirs(self) -> None:
        logits = torch.zeros(1, 3, requires_grad=True)
        BalancedSoftmax(counts(8, 2, 0), CPU)(logits, torch.tensor([0])).backward()
        assert logits.grad is not None
        assert logits.grad[0].tolist() == pytest.approx([-0.2, 0.2, 0.0])

    def test_equal_counts_are_plain_cross_entropy(self) -> None:
        logits = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
        labels = torch.arange(9) % 4
        balanced = BalancedSoftmax(counts(6, 6, 6, 6), CPU)(logits, labels)
        torch.testing.assert_close(balanced, cross_entropy(logits, labels))


class TestFormulas:
    def test_weights_by_hand(self) -> None:
        assert rarity_weights(counts(8, 2, 0)).tolist() == pytest.approx([0.2, 0.8, 0.0], abs=1e-6)
        assert rarity_weights(counts(0, 5, 0)).tolist() == pytest.approx([0, 1, 0])

    def test_divergence_by_hand(self) -> None:
        """Its terms for q = (1/2, 1/4, 1/4) against the uniform sum to 0.0588915."""
        teacher = torch.tensor([[0.5, 0.25, 0.25]]).log()
        value = weighted_divergence(teacher, torch.zeros(1, 3), torch.ones(1))
        assert float(value) == pytest.approx(0.0196305, abs=1e-7)
        assert float(weighted_divergence(teacher, torch.zeros(1, 3), torch.tensor([0.65]))) == (
            pytest.approx(0.65 * 0.0196305, abs=1e-7)
        )
        assert float(weighted_divergence(teacher, teacher + 3, torch.ones(1))) == (
            pytest.approx(0, abs=1e-7)
        )

    def test_certain_teachers_give_finite_terms(self) -> None:
        teacher = torch.tensor([[1e30, 0.0]])
        value = weighted_divergence(teacher, torch.zeros(1, 2), torch.ones(1))
        assert float(value) == pytest.approx(math.log(2) / 2)


class Situation:
    """What a client of a digits run has in a round, and a plain network to train."""

    def __init__(self, data_dir: Path, **changes: object) -> None:
        settings = check_settings(
            {
                "data-dir": str(data_dir),
                "num-clients": 3,
                "augment": "none",
                "precision": "fp32",
                "batch-size": 16,
                "local-epochs": 1,
                "learning-rate": 0.05,
                **KCFU,
                **changes,
            }
        )
        self.settings: Settings = settings
        self.loaded: Resources = resources(settings)
        self.rows = np.arange(0, 40)
        self.labels = self.loaded.dataset.train.labels_N[self.rows].astype(np.int64)
        # Classes 8 and 9 are absent from the labelled set.
        self.rows = self.rows[self.labels < 8]
        self.labels = self.labels[self.labels < 8]
        self.pool = np.arange(200, 250)
        self.teacher = self.trained_teacher()

    def trained_teacher(self) -> dict[str, Tensor]:
        """Return a global model that knows classes, or all pseudo-labels might be absent ones."""
        model, rows = self.loaded.new_model(8), torch.arange(300, 400)
        labels = self.loaded.train_images.labels_N[rows]
        recipe = dataclasses.replace(self.recipe, local_epochs=5, batch_size=16)
        generator = torch.Generator().manual_seed(0)
        images = self.loaded.train_images
        train_locally(LocalUpdate(model, images, rows, labels, recipe, None, generator))
        return model.state_dict()

    @property
    def recipe(self) -> Recipe:
        return self.loaded.recipe(self.settings)

    def situation(self, round_: int = 2) -> LocalSituation:
        return LocalSituation(
            seed=self.settings.seed,
            client=1,
            cycle=3,
            round=round_,
            class_counts_C=np.bincount(self.labels, minlength=10),
            rows_N=np.union1d(self.pool, self.rows),
            labelled_N=np.sort(self.rows),
            initially_labelled_N=np.sort(self.rows),
            global_tensors=self.teacher,
            is_fresh=round_ == 1,
        )

    def objective(self, round_: int = 2) -> Objective:
        strategy = make_strategy(self.settings.strategy, self.settings.parameters_of("strategy"))
        return make_objective(
            make_local_update(self.settings),
            self.loaded,
            strategy,
            self.recipe,
            self.situation(round_),
        )

    def student(self) -> Classifier:
        """Return a model whose batch-norm statistics are not those of a fresh one."""
        return self.loaded.new_model(9).to(memory_format=torch.channels_last)

    def train(self, model: nn.Module, objective: Objective) -> float:
        assert isinstance(model, Classifier)
        update = LocalUpdate(
            model,
            self.loaded.train_images,
            torch.from_numpy(self.rows),
            torch.from_numpy(self.labels),
            self.recipe,
            None,
            torch.Generator().manual_seed(4),
            objective,
        )
        return train_locally(update).loss


def softmax(row: list[float]) -> list[float]:
    exponentials = [math.exp(value - max(row)) for value in row]
    return [value / sum(exponentials) for value in exponentials]


class SlowKcfu:
    """The local update from its description: one number after the other, its draws replayed."""

    def __init__(self, case: Situation) -> None:
        self.case = case
        self.teacher = case.loaded.new_model(0)
        self.teacher.load_state_dict(case.situation().global_tensors)
        self.teacher.train(case.settings.parameters_of("local-update").get("teacher") == "train")
        self.draws = numpy_generator(case.settings.seed, "kcfu", 1, 3, 2)
        self.queue: list[int] = []
        self.counts = np.bincount(case.labels, minlength=10).tolist()

    def next_batch(self) -> Tensor:
        size = self.case.settings.batch_size
        if not self.queue:
            self.queue = self.case.pool[self.draws.permutation(len(self.case.pool))].tolist()
        # Of 50 samples the batches are 16, 16, 16 and 2.
        batch, self.queue = self.queue[:size], self.queue[size:]
        return self.case.loaded.train_images.batch(torch.tensor(batch))

    def compensation(self, student: nn.Module) -> Tensor:
        images = self.next_batch()
        size = len(images)
        betas = self.draws.beta(2, 2, size).tolist()
        if self.case.settings.parameters_of("local-update").get("mixing") != "single-partner":
            partners = self.draws.permutation(size).tolist()
        else:
            partners = [int(self.draws.integers(size))] * size
        mixed = torch.stack(
            [b * images[j] + (1 - b) * images[partners[j]] for j, b in enumerate(betas)]
        )
        with torch.no_grad():
            teacher = [softmax(row) for row in self.teacher(mixed).tolist()]
        student_logs = torch.log(torch.softmax(student(mixed).double(), dim=1))
        inverse = [sum(self.counts) / n if n else 0.0 for n in self.counts]
        gamma = [value / sum(inverse) for value in inverse]
        pseudo = [row.index(max(row)) for row in teacher]
        total = torch.zeros((), dtype=torch.float64)
        for j, beta in enumerate(betas):
            weight = beta * gamma[pseudo[j]] + (1 - beta) * gamma[pseudo[partners[j]]]
            for k, q in enumerate(teacher[j]):
                total = total + weight * q * (math.log(q) - student_logs[j, k]) / 10
        return total / size

    def balanced(self, student: nn.Module, images: Tensor, labels: list[int]) -> Tensor:
        logits = student(images).double()
        total = torch.zeros((), dtype=torch.float64)
        for row, label in zip(logits, labels, strict=True):
            weighted = torch.stack([n * z.exp() for n, z in zip(self.counts, row, strict=True)])
            total = total - torch.log(weighted[label] / weighted.sum())
        return total / len(labels)

    def train(self, student: nn.Module) -> float:
        case = self.case
        order = torch.randperm(len(case.rows), generator=torch.Generator().manual_seed(4)).tolist()
        optimizer = torch.optim.SGD(
            student.parameters(),
            lr=case.settings.learning_rate,
            momentum=case.settings.momentum,
            weight_decay=case.settings.weight_decay,
        )
        student.train()
        losses: list[float] = []
        for start in range(0, len(order), case.settings.batch_size):
            chosen = order[start : start + case.settings.batch_size]
            images = case.loaded.train_images.batch(torch.from_numpy(case.rows[chosen]))
            loss = self.balanced(student, images, case.labels[chosen].tolist())
            loss = loss + self.compensation(student)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses += [loss.item()] * len(chosen)
        return sum(losses) / len(losses)


def assert_close_models(model: nn.Module, other: nn.Module) -> None:
    for name, value in other.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-4, atol=1e-5, msg=name)


class TestUpdate:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        "changes",
        [
            {},
            {"local-update.mixing": "single-partner"},
            {"local-update.teacher": "train"},
            # Four labelled batches, and a pool of six.
            {"batch-size": 9},
            # Seventeen labelled batches, so that the pool is gone through again.
            {"batch-size": 2},
        ],
        ids=str,
    )
    def test_equals_loops(self, data_dir: Path, changes: dict[str, object]) -> None:
        case = Situation(data_dir, **changes)
        model, plain = case.student(), case.student()
        loss = case.train(model, case.objective())
        assert loss == pytest.approx(SlowKcfu(case).train(plain), rel=1e-5)
        assert_close_models(model, plain)
        without = dataclasses.replace(case.objective(), penalty=None)
        assert loss > case.train(case.student(), without) * 1.001

    @pytest.mark.slow
    def test_the_variants_differ(self, data_dir: Path) -> None:
        cases = [
            Situation(data_dir),
            Situation(data_dir, **{"local-update.mixing": "single-partner"}),
            Situation(data_dir, **{"local-update.teacher": "train"}),
            Situation(data_dir, **{"local-update": "plain"}),
        ]
        losses = {case.train(case.student(), case.objective()) for case in cases}
        assert len(losses) == 4

    def test_first_round_and_empty_pool_have_no_compensation(self, data_dir: Path) -> None:
        """A fresh global model has learnt nothing yet."""
        case = Situation(data_dir)
        assert case.objective(1).penalty is None
        assert case.objective(2).penalty is not None
        case.pool = case.pool[:0]
        assert case.objective(2).penalty is None
        assert isinstance(case.objective(2).loss, BalancedSoftmax)

    @pytest.mark.parametrize("size", [1, 17])
    def test_a_single_image_that_is_left_over_is_not_normalised_by_itself(
        self, size: int, data_dir: Path
    ) -> None:
        case = Situation(data_dir)
        case.pool = case.pool[:size]
        sizes = []

        class Spy(nn.Module):
            def forward(self, images: Tensor) -> Tensor:
                sizes.append(len(images))
                return images.flatten(1)[:, :10]

        penalty = case.objective().penalty
        assert penalty is not None
        for _ in range(3):
            assert math.isfinite(float(penalty(Spy())))  # type: ignore[arg-type]
        assert sizes == [max(size, 2)] * 3

    def test_the_teacher_neither_learns_nor_changes(self, data_dir: Path) -> None:
        for mode in ("eval", "train"):
            case = Situation(data_dir, **{"local-update.teacher": mode})
            situation = case.situation()
            before = copy.deepcopy(situation.global_tensors)
            case.train(case.student(), case.objective())
            for name, value in situation.global_tensors.items():
                assert torch.equal(value, before[name])

    def test_pseudo_labels_are_those_of_the_mixed_image(self, data_dir: Path) -> None:
        """Two images, black and white, that the teacher tells apart only unmixed."""
        case = Situation(data_dir)
        images = case.loaded.train_images
        seen: list[Tensor] = []

        class Teacher(nn.Module):
            def forward(self, mixed: Tensor) -> Tensor:
                seen.append(mixed)
                return torch.zeros(len(mixed), 10)

        draws = numpy_generator(1, "test")
        how = Compensation("permutation", "eval", 8, Augmentation(0, False), "fp32")
        loss = CompensatoryLoss(
            Teacher(),  # type: ignore[arg-type]
            images,
            torch.arange(8),
            case.situation().class_counts_C,
            how,
            draws,
            torch_generator(1, "test"),
        )
        student = Teacher()
        loss(student)  # type: ignore[arg-type]
        by_teacher, by_student = seen
        assert torch.equal(by_teacher, by_student)
        replay = numpy_generator(1, "test")
        batch = images.batch(torch.from_numpy(replay.permutation(8)))
        beta = torch.from_numpy(replay.beta(2, 2, 8)).float()[:, None, None, None]
        partners = replay.permutation(8)
        torch.testing.assert_close(by_teacher, beta * batch + (1 - beta) * batch[partners])

    def test_images_are_augmented_before_they_are_mixed(self, data_dir: Path) -> None:
        calls: list[Augmentation] = []
        transformed = DeviceImages.transformed

        def spying(self, rows, augmentation, draws):  # type: ignore[no-untyped-def]
            calls.append(augmentation)
            return transformed(self, rows, augmentation, draws)

        case = Situation(data_dir, augment="crop")
        penalty = case.objective().penalty
        assert penalty is not None
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(DeviceImages, "transformed", spying)
            penalty(case.student())
        assert calls == [case.recipe.augmentation]
        assert calls[0].padding > 0

    def test_other_rounds_cycles_and_clients_draw_anew(self, data_dir: Path) -> None:
        case = Situation(data_dir)
        values = set()
        for key in ({}, {}, {"round": 3}, {"cycle": 4}, {"client": 2}):
            situation = dataclasses.replace(case.situation(), **key)
            strategy = make_strategy("entropy")
            objective = make_objective(
                make_local_update(case.settings), case.loaded, strategy, case.recipe, situation
            )
            assert objective.penalty is not None
            values.add(float(objective.penalty(case.student()).detach()))
        assert len(values) == 4


#: By client, cycle and round: the pool that is distilled on, and all else that the client had.
Pools = dict[tuple[int, int, int], tuple[np.ndarray, LocalSituation]]


@pytest.fixture
def pools(monkeypatch: pytest.MonkeyPatch) -> Pools:
    """What each client had in each round of the runs of this test."""
    seen: Pools = {}
    objective = KCFU_METHOD.objective

    def spying(self, strategy, loaded, recipe, situation):  # type: ignore[no-untyped-def]
        initial = self.parameters.pool == "initial"
        pool = situation.initial_pool_N if initial else situation.pool_N
        seen[situation.client, situation.cycle, situation.round] = (pool, situation)
        return objective(self, strategy, loaded, recipe, situation)

    monkeypatch.setattr(KCFU_METHOD, "objective", spying)
    return seen


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Uninterrupted:
    return uninterrupted(Simulation(tmp_path_factory.mktemp("straight"), data_dir), **KCFU)


class TestRun:
    def test_distils_on_what_is_unlabelled_now(self, simulation: Simulation, pools: Pools) -> None:
        simulation(KCFU)
        (first_pool, first), (last_pool, last) = pools[0, 0, 2], pools[0, 2, 2]
        bought = int(last.class_counts_C.sum() - first.class_counts_C.sum())
        assert bought > 0
        assert len(first_pool) - len(last_pool) == bought
        assert set(last_pool) < set(first_pool)

    def test_distils_on_what_was_unlabelled_at_the_start(
        self, simulation: Simulation, pools: Pools
    ) -> None:
        simulation(KCFU, **{"local-update.pool": "initial"})
        (first_pool, first), (last_pool, last) = pools[0, 0, 2], pools[0, 2, 2]
        assert first_pool.tolist() == last_pool.tolist()
        assert last.class_counts_C.sum() > first.class_counts_C.sum()

    def test_a_model_that_is_not_reset_teaches_from_the_first_round_on(
        self, simulation: Simulation, pools: Pools
    ) -> None:
        """With one round a cycle, nothing would ever be distilled otherwise."""
        base = {**KCFU, "rounds": 1, "cycles": 2}
        outcome = simulation(base, **{"reset-model": False})
        fresh = {cycle: pools[0, cycle, 1][1].is_fresh for cycle in range(2)}
        assert fresh == {0: True, 1: False}
        pools.clear()
        simulation(base)
        assert {pools[0, cycle, 1][1].is_fresh for cycle in range(2)} == {True}
        pools.clear()
        simulation(base, **{"initial-model": str(outcome.folder)})
        assert {pools[0, cycle, 1][1].is_fresh for cycle in range(2)} == {False}

    def test_the_pool_and_the_labels_are_the_clients(
        self, simulation: Simulation, pools: Pools
    ) -> None:
        simulation(KCFU, cycles=1)
        for client in range(3):
            pool, situation = pools[client, 0, 1]
            assert len(pool) > 10 * situation.class_counts_C.sum()
        rows = [set(pools[client, 0, 1][0]) for client in range(3)]
        assert not (rows[0] & rows[1] | rows[1] & rows[2] | rows[0] & rows[2])

    @pytest.mark.slow
    def test_learns(self, simulation: Simulation) -> None:
        outcome = simulation(
            {"initial-fraction": 0.3, "target-fraction": 0.3, "local-epochs": 4, "batch-size": 32},
            **KCFU,
            model="small-cnn",
            partition="iid",
            rounds=5,
        )
        assert outcome.summary["final_accuracy"] > 0.85

    def test_goes_with_any_strategy_that_leaves_the_loss_alone(self) -> None:
        assert check_settings({**KCFU, "strategy": "feal", "strategy.loss": "ce"})
        with pytest.raises(ConfigError, match=r"local-update='kcfu': allowed is 'plain', since"):
            check_settings({**KCFU, "strategy": "feal"})

    @pytest.mark.slow
    @pytest.mark.parametrize("share", [0.3, 0.55, 0.8])
    def test_resumed_run_equals_an_uninterrupted_one(
        self, share: float, straight: Uninterrupted, simulation: Simulation
    ) -> None:
        folder = killed_at(round(share * straight.events), simulation, **KCFU)
        assert simulation.resume(folder).result == straight.result
