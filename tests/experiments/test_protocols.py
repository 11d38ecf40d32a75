"""The paper's protocols: section 7.1 and appendix H as files of settings, and their data."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from ahfal_app.data import catalog
from ahfal_app.data.augmentation import Augmentation
from ahfal_app.server.preflight import check_settings

CONF = Path(__file__).parents[2] / "conf"

#: What all of them have: appendix H, section 7.1, and the recipe of KAFAL for the rest.
COMMON = {
    "num-clients": 10,
    "partition": "dirichlet-balanced",
    "tau": 12.0,
    "learning-rate": 0.1,
    "momentum": 0.9,
    "weight-decay": 0.0005,
    "batch-size": 128,
    "initial-fraction": 0.1,
    "query-fraction": 0.05,
    "lr-decay-epochs": 260,
    "lr-decay-factor": 0.1,
    "optimizer-state": "persist",
    "reset-model": True,
    "client-fraction": 1.0,
    "augment": "auto",
    "aggregation": "fedavg",
    "local-update": "plain",
    "cycles": 0,
    "max-train-samples": 0,
    "max-test-samples": 0,
}

#: File, data set, network, α, rounds, local epochs, share labelled at the end, trainings.
PROTOCOLS = [
    ("cifar10", "uoft-cs/cifar10", "resnet8", 0.1, 100, 5, 0.35, 6),
    ("cifar100", "uoft-cs/cifar100", "resnet8", 1.0, 100, 5, 0.35, 6),
    ("svhn", "ufldl-stanford/svhn", "resnet8", 0.1, 100, 5, 0.4, 7),
    ("mnist", "ylecun/mnist", "resnet8", 0.1, 10, 10, 0.4, 7),
    ("cifar10-mobilenet", "uoft-cs/cifar10", "mobilenet-v2", 0.1, 100, 5, 0.35, 6),
]


@pytest.mark.parametrize(
    ("file", "dataset", "model", "alpha", "rounds", "epochs", "target", "trainings"), PROTOCOLS
)
def test_the_protocols_of_the_paper(
    file: str,
    dataset: str,
    model: str,
    alpha: float,
    rounds: int,
    epochs: int,
    target: float,
    trainings: int,
) -> None:
    settings = check_settings(yaml.safe_load((CONF / f"{file}.yaml").read_text(encoding="utf-8")))
    flat = settings.to_flat()
    assert {key: flat[key] for key in COMMON} == COMMON
    assert (settings.dataset, settings.model, settings.alpha) == (dataset, model, alpha)
    assert (settings.rounds, settings.local_epochs) == (rounds, epochs)
    assert settings.target_fraction == target
    assert settings.num_cycles == trainings
    assert settings.parameters_of("model").get("head-kernel", 3) == 3


def test_every_protocol_but_the_digits_is_the_papers() -> None:
    files = {path.stem for path in CONF.glob("*.yaml")}
    assert files == {protocol[0] for protocol in PROTOCOLS} | {"digits"}


@pytest.mark.parametrize(
    ("dataset", "shape", "num_classes", "mean", "std", "augmentation"),
    [
        (
            "uoft-cs/cifar10",
            (32, 32, 3),
            10,
            (0.4914, 0.4822, 0.4465),
            (0.2023, 0.1994, 0.2010),
            Augmentation(padding=4, flip=True),
        ),
        (
            "uoft-cs/cifar100",
            (32, 32, 3),
            100,
            (0.5071, 0.4867, 0.4408),
            (0.2675, 0.2565, 0.2761),
            Augmentation(padding=4, flip=True),
        ),
        (
            "ufldl-stanford/svhn",
            (32, 32, 3),
            10,
            (0.4377, 0.4438, 0.4728),
            (0.1980, 0.2010, 0.1970),
            Augmentation(padding=4, flip=False),
        ),
        ("ylecun/mnist", (28, 28, 1), 10, (0.1307,), (0.3081,), Augmentation(2, flip=False)),
    ],
)
def test_normalisation_and_augmentation_of_the_papers_data(
    dataset: str,
    shape: tuple[int, int, int],
    num_classes: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    augmentation: Augmentation,
) -> None:
    known = catalog.recognise(shape, num_classes, mean)
    assert known is not None
    assert known.hub == dataset
    assert (known.mean_C, known.std_C) == (mean, std)
    assert catalog.resolve_augmentation("auto", known) == augmentation
