"""KCFU, the local training of KAFAL: what a client minimises in a step, and its gradients."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support.official import Agreement, Replaced, official
from torch import Tensor, nn
from torch.nn import functional

from ahfal_app.data.augmentation import NO_AUGMENTATION
from ahfal_app.data.device import DeviceImages
from ahfal_app.data.images import Images
from ahfal_app.models.resnet8 import ResNet8
from ahfal_app.training.local_updates.kcfu import (
    BalancedSoftmax,
    Compensation,
    CompensatoryLoss,
    PoolBatch,
)

pytestmark = [pytest.mark.official, pytest.mark.usefixtures("_cpu")]

CLASSES, SIZE = 10, 32
CPU = torch.device("cpu")

#: Labels that a client has of each class.
COUNTS = {
    "labels of all classes": (31, 4, 120, 17, 1, 66, 9, 52, 240, 3),
    "equally many labels of all classes": (25,) * CLASSES,
    "no labels of a class": (31, 4, 120, 0, 1, 66, 9, 52, 240, 3),
    "no labels of six classes": (0, 180, 0, 0, 7, 0, 44, 0, 0, 1),
    "labels of one class": (0, 0, 0, 0, 0, 60, 0, 0, 0, 0),
}

Mixing = Literal["permutation", "single-partner"]
Teacher = Literal["eval", "train"]


class Precise(nn.Module):
    """A network that computes in double precision, whatever its images are."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.double()

    def forward(self, images_BcHW: Tensor) -> Any:
        return self.network(images_BcHW.double())


class WithFeatures(Precise):
    """The same, for the authors' code, which takes a second output that it does not use here."""

    def forward(self, images_BcHW: Tensor) -> Any:
        return super().forward(images_BcHW), None


@dataclass(frozen=True)
class Found:
    """A step's two losses, and the gradient of their sum by all weights."""

    labelled: float
    distilled: float
    gradient_W: Tensor


class Step:
    """A step's images, labels and networks, drawn by a number."""

    def __init__(self, seed: int, counts: tuple[int, ...]) -> None:
        self.seed = seed
        self.counts_C = np.array(counts, dtype=np.int64)
        random = np.random.default_rng(seed)
        images: NDArray[np.uint8] = random.integers(0, 256, (2 * SIZE, 8, 8, 3), dtype=np.uint8)
        labels = random.choice(CLASSES, 2 * SIZE, p=self.counts_C / self.counts_C.sum())
        split = Images(images, labels.astype(np.int64))
        self.images = DeviceImages(split, (0.5, 0.4, 0.5), (0.2, 0.2, 0.3), CPU)
        self.labels = self.images.labels_N[:SIZE]
        torch.manual_seed(seed)
        self.student, self.teacher = network(), network()

    def ours(self, mixing: Mixing, teacher: Teacher) -> tuple[Found, PoolBatch]:
        """Return our losses, and what was drawn for them."""
        how = Compensation(mixing, teacher, SIZE, NO_AUGMENTATION, "fp32")
        pool_N = torch.arange(SIZE, 2 * SIZE)
        model: Any = Precise(self.student)
        penalty = CompensatoryLoss(
            Precise(self.teacher),  # type: ignore[arg-type]
            self.images,
            pool_N,
            self.counts_C,
            how,
            np.random.default_rng(self.seed),
            torch.Generator(),
        )
        position = penalty.position()
        drawn = penalty.draw()
        penalty.return_to(position)
        logits_BC = model.train()(self.images.batch(torch.arange(SIZE)))
        labelled = BalancedSoftmax(self.counts_C, CPU)(logits_BC, self.labels)
        distilled = penalty(model)
        return found(labelled, distilled, self.student), drawn

    def theirs(self, drawn: PoolBatch, mixing: Mixing, teacher: Teacher, round_: int = 1) -> Found:
        """Return what the authors' function minimises, with the same draws."""
        told: list[Any] = []
        partner = drawn.partner_B if mixing == "permutation" else int(drawn.partner_B[0])
        module = official(
            "KAFAL",
            "main.py",
            ["read_data", "train_epoch_client_distil"],
            torch=torch,
            nn=nn,
            F=functional,
            np=Replaced(np, random=SimpleNamespace(choice=lambda size, replace: partner)),
            Beta=lambda *both: SimpleNamespace(sample=lambda sample_shape: drawn.weight_B),
            BETA=[2, 2],
            loss_weight_list=[torch.tensor(self.counts_C).float()],
            tqdm=lambda batches, **options: batches,
            # It tells its losses in each thousandth step.
            iters=999,
            print=lambda *words: told.extend(words),
        )
        steps = SimpleNamespace(zero_grad=self.student.zero_grad, step=lambda: None)
        labelled = (self.images.batch(torch.arange(SIZE)), self.labels)
        module.train_epoch_client_distil(
            [0],
            {
                "clients": [WithFeatures(self.student)],
                "server": WithFeatures(self.teacher).train(teacher == "train"),
            },
            nn.CrossEntropyLoss(reduction="none"),
            {"clients": [steps]},
            {
                "train-private": [[labelled]],
                "unlab-private": [[(self.images.batch(drawn.rows_B),)]],
            },
            round_,
        )
        assert told[::2] == ["loss: ", "distil loss: "]
        return Found(told[1], told[3], gradient_of(self.student))


def network() -> ResNet8:
    """Return a network whose predictions are of several classes."""
    result = ResNet8(3, CLASSES)
    with torch.no_grad():
        result.head.weight.mul_(20)
    return result


def gradient_of(model: nn.Module) -> Tensor:
    gradients = [weights.grad for weights in model.parameters()]
    return torch.cat([each.flatten() for each in gradients if each is not None])


def found(labelled: Tensor, distilled: Tensor, model: nn.Module) -> Found:
    model.zero_grad()
    (labelled + distilled).backward()  # type: ignore[no-untyped-call]
    return Found(float(labelled.detach()), float(distilled.detach()), gradient_of(model))


@pytest.mark.filterwarnings("ignore:reduction:UserWarning", "ignore:size_average")
@pytest.mark.parametrize("labels", COUNTS)
def test_kcfu(labels: str, agreement: Agreement) -> None:
    """With one partner for all, as drawn there, and one each, given to their function."""
    worst, worst_gradient, weighted, largest = 0.0, 0.0, 0, 0.0
    variants: list[tuple[Mixing, Teacher]] = [
        ("single-partner", "train"),
        ("single-partner", "eval"),
        ("permutation", "train"),
        ("permutation", "eval"),
    ]
    for seed in range(5):
        for mixing, teacher in variants:
            step = Step(seed, COUNTS[labels])
            ours, drawn = step.ours(mixing, teacher)
            theirs = step.theirs(drawn, mixing, teacher)
            worst = max(
                worst,
                abs(ours.labelled - theirs.labelled),
                abs(ours.distilled - theirs.distilled),
            )
            size = float(theirs.gradient_W.abs().max())
            difference = float((ours.gradient_W - theirs.gradient_W).abs().max())
            worst_gradient = max(worst_gradient, difference / (size or 1.0))
            weighted += theirs.distilled > 0
            largest = max(largest, theirs.labelled + theirs.distilled)
    agreement.add(
        "kcfu",
        "KAFAL: `train_epoch_client_distil`",
        f"losses of 20 batches of {SIZE}, up to {largest:.2g}, and gradients, {labels}",
        f"to {worst:.0e}; gradients to {worst_gradient:.0e} of the largest",
    )
    assert weighted >= 5
    assert worst < 1e-6
    assert worst_gradient < 1e-6


@pytest.mark.filterwarnings("ignore:reduction:UserWarning", "ignore:size_average")
def test_kcfu_in_the_first_round(agreement: Agreement) -> None:
    """Nothing is distilled from a fresh global model; ours has no such loss then."""
    step = Step(0, COUNTS["no labels of a class"])
    _, drawn = step.ours("single-partner", "train")
    theirs = step.theirs(drawn, "single-partner", "train", round_=0)
    logits_BC = Precise(step.student).train()(step.images.batch(torch.arange(SIZE)))
    labelled = BalancedSoftmax(step.counts_C, CPU)(logits_BC, step.labels)
    ours = found(labelled, torch.zeros(()), step.student)
    assert theirs.distilled == 0
    assert abs(ours.labelled - theirs.labelled) < 1e-6
    torch.testing.assert_close(ours.gradient_W, theirs.gradient_W, rtol=1e-6, atol=1e-7)
