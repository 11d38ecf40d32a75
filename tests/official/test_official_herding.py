"""MaxHerding and UHerding: kernels, greedy choice, radius and temperature."""

from __future__ import annotations

import copy
import os
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support import official as code
from support.official import Agreement, Looked, Rows, Settings, official
from support.official_cases import Case, chosen
from support.strategy_cases import pool_of
from torch import Tensor, nn
from torch.nn import functional

from ahfal_app.query import PoolView, Signal
from ahfal_app.query.core.coverage import gaussian, laplace, student, top_hat
from ahfal_app.query.uncertainty_herding import calibrated_temperature, calibration_error

pytestmark = [pytest.mark.official, pytest.mark.usefixtures("_cpu", "_double")]

SIZE, LABELLED, BUDGET = 200, 25, 40

KERNELS = {
    "gaussian": ("rbf", "RBFKernel", gaussian),
    "laplace": ("laplace", "LaplaceKernel", laplace),
    "student": ("student", "StudentTKernel", student),
    "top-hat": ("tophat", "TopHatKernel", top_hat),
}
CLASSES = [
    "compute_norm",
    "NegNormKernel",
    "TopHatKernel",
    "RBFKernel",
    "StudentTKernel",
    "LaplaceKernel",
    "CauchyKernel",
    "RationalQuadKernel",
]


class Predictor(Looked):
    """Gives logits by name."""

    def forward(self, rows: Tensor, labels: Tensor | None = None) -> Any:
        return {"preds": super().forward(rows)[0]}


class Client:
    """Embeddings and logits of a pool, then of a labelled set."""

    def __init__(self, seed: int, labelled: int) -> None:
        self.case, self.labelled = Case(seed, size=SIZE), labelled
        classes = self.case.random.choice(10, SIZE + labelled, p=self.case.shares)
        self.labels = classes[SIZE:]
        embeddings = self.case.embeddings_of(classes) + np.float32(0.01)
        self.embeddings = embeddings.astype(np.float64)
        self.logits = torch.from_numpy(self.case.logits(embeddings)).double()

    def pool(self) -> PoolView:
        return pool_of(
            {
                Signal.LOCAL_EMBEDDINGS: self.embeddings[:SIZE],
                Signal.LABELLED_LOCAL_EMBEDDINGS: self.embeddings[SIZE:],
                Signal.LOCAL_LOGITS: self.logits[:SIZE],
                Signal.LABELLED_LOCAL_LOGITS: self.logits[SIZE:],
            }
        )

    def ours(self, name: str, **parameters: Any) -> list[int]:
        context = self.case.context(BUDGET, labels=self.labels)
        return chosen(name, parameters, self.pool(), context)

    def getSequentialDataLoader(
        self, indexes: NDArray[np.int64], batch_size: int, data: Any
    ) -> Any:
        rows = torch.utils.data.Subset(Rows(SIZE + self.labelled), indexes.tolist())
        return code.loader(rows, batch_size=batch_size)


def module_of(path: str, name: str, client: Client) -> Any:
    cand_size = official("uherding", "deep-al/pycls/utils/io.py", ["compute_cand_size"])
    return official(
        "uherding",
        f"deep-al/pycls/al/{path}",
        [*CLASSES, name],
        np=np,
        # Two samples that only improve each other are level, and rounding decides there.
        torch=code.Replaced(torch, argmax=code.first_of_level),
        copy=copy,
        time=time,
        os=os,
        pickle=pickle,
        tqdm=lambda batches, **options: batches,
        ds_utils=Settings(load_features=lambda *arguments, **options: client.embeddings),
        compute_cand_size=cand_size.compute_cand_size,
        # Only printed; it has no radius, which one of the kernels needs.
        compute_coverage=lambda *arguments: None,
        identity_fn=None,
        print=lambda *arguments: None,
    )


def max_herding(client: Client, kernel: str, radius: float) -> list[int]:
    rows = np.arange(SIZE + client.labelled)
    made = module_of("herding.py", "Herding", client).Herding(
        settings(), rows[SIZE:], rows[:SIZE], BUDGET, radius, None, client, client, kernel,
        permute=False,
    )  # fmt: skip
    return [int(i) for i in made.select_samples()[0]]


def settings(folder: Path | None = None, **active: Any) -> Settings:
    paths = ("EXP_DIR", "COVERAGE_PATH", "UNCERTAINTY_PATH", "INDICES_PATH", "LOGIT_PATH")
    return Settings(
        DATASET=Settings(NAME="none"),
        RNG_SEED=0,
        ACTIVE_LEARNING=Settings(UNC_FEATURE="given", FEATURE="given", **active),
        **{name: str(folder / name) if folder else "" for name in paths},
    )


def uherding(
    client: Client, folder: Path, uncertainty: str, adaptive: bool, temperature: float = 1.0
) -> list[int]:
    rows = np.arange(SIZE + client.labelled)
    configuration = settings(
        folder,
        UNC_TRANS_FN="identity",
        SAMPLING_FN=f"uherding_{uncertainty}",
        NORMALIZE=False,
        ADAPTIVE_DELTA=adaptive,
        TEMP=temperature,
    )
    made = module_of("uherding.py", "UHerding", client).UHerding(
        configuration, rows[SIZE:], rows[:SIZE], BUDGET, 1.0, Predictor(client.logits),
        dataObj=client, dataset=client, permute=False,
    )  # fmt: skip
    return [int(i) for i in made.select_samples()[0]]


@pytest.mark.parametrize("name", sorted(KERNELS))
def test_kernels(name: str, agreement: Agreement) -> None:
    _, theirs, ours = KERNELS[name]
    client, worst = Client(0, LABELLED), 0.0
    kernel = getattr(module_of("herding.py", "Herding", client), theirs)("cuda")
    points = torch.from_numpy(client.embeddings)
    points = functional.normalize(points, dim=1)
    squared = torch.cdist(points, points).square()
    for radius in (0.3, 1.0, 1.7):
        published = kernel.compute_kernel(points, points, radius).double()
        worst = max(worst, float((ours(radius)(squared) - published).abs().max()))
    agreement.add(
        "max-herding", f"uherding: `{theirs}`", "values, h = .3, 1, 1.7", f"to {worst:.0e}"
    )
    assert worst < 1e-12


@pytest.mark.parametrize("labelled", [0, LABELLED])
@pytest.mark.parametrize("name", sorted(KERNELS))
def test_max_herding(name: str, labelled: int, agreement: Agreement) -> None:
    published, equal, radius = KERNELS[name][0], 0, 1.0
    compared = f"{BUDGET} of {SIZE}, in order, {name}, {labelled} labelled"
    function = "uherding: `Herding.select_samples`"
    if name == "top-hat":
        with pytest.raises(RuntimeError, match="bool"):
            max_herding(Client(0, labelled), published, radius)
        agreement.add("max-herding", function, compared, "fails there: it subtracts truth values")
        return
    for seed in range(20):
        client = Client(seed, labelled)
        own = client.ours("max-herding", kernel=name, radius=radius)
        equal += own == max_herding(client, published, radius)
    agreement.add("max-herding", function, compared, f"{equal} of 20 equal")
    assert equal == 20


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [("margin", "margin"), ("entropy", "entropy"), ("least-confidence", "conf")],
)
def test_uncertainty_herding(
    ours: str, theirs: str, adaptive: bool, agreement: Agreement, tmp_path: Path
) -> None:
    equal = 0
    for seed in range(20):
        client = Client(seed, LABELLED)
        radius = "adaptive" if adaptive else "fixed"
        own = client.ours("uncertainty-herding", uncertainty=ours, radius=radius)
        equal += own == uherding(client, tmp_path, theirs, adaptive)
    agreement.add(
        "uncertainty-herding",
        "uherding: `UHerding.select_samples`",
        f"{BUDGET} of {SIZE}, in order, {ours}, {radius} radius, {LABELLED} labelled",
        f"{equal} of 20 equal",
    )
    assert equal == 20


def test_uncertainty_herding_without_labels(agreement: Agreement, tmp_path: Path) -> None:
    equal = 0
    for seed in range(20):
        client = Client(seed, 0)
        equal += client.ours("uncertainty-herding") == uherding(client, tmp_path, "margin", True)
    agreement.add(
        "uncertainty-herding",
        "uherding: `UHerding.select_samples`",
        f"{BUDGET} of {SIZE}, in order, margin, 0 labelled",
        f"{equal} of 20 equal",
    )
    assert equal == 20


def test_temperature(agreement: Agreement, tmp_path: Path) -> None:
    """On the labelled samples, as ours; the authors' program keeps some of them for it."""
    same, equal, worst, temperatures = 0, 0, 0.0, set()
    for seed in range(20):
        client = Client(seed, LABELLED)
        logits, labels = client.logits[SIZE:], torch.from_numpy(client.labels)
        theirs, error = published_temperature(logits, labels)
        own = calibrated_temperature(logits, labels)
        worst = max(
            worst, abs(float(error(logits / 3, labels)) - calibration_error(logits / 3, labels))
        )
        same += abs(theirs - own) < 1e-9
        temperatures.add(own)
        picks = client.ours("uncertainty-herding", calibration="labelled")
        equal += picks == uherding(client, tmp_path, "margin", True, theirs)
    agreement.add(
        "uncertainty-herding",
        "uherding: `obtain_temperature`, `ECELoss`",
        f"temperature, error; then {BUDGET} of {SIZE}, in order",
        f"{same} of 20 temperatures; error to {worst:.0e}; {equal} of 20 equal",
    )
    assert same == equal == 20
    assert worst < 1e-6
    assert len(temperatures) > 2


def published_temperature(logits: Tensor, labels: Tensor) -> tuple[float, Callable[..., Tensor]]:
    """Return the temperature that the authors' search finds, and their calibration error."""
    losses = official(
        "uherding", "deep-al/pycls/calibration/metrics.py", ["ECELoss"],
        torch=torch, nn=nn, F=functional,
    )  # fmt: skip
    search = official(
        "uherding",
        "deep-al/pycls/calibration/temperature_scaling.py",
        ["obtain_temperature"],
        np=np,
        torch=torch,
        tqdm=lambda batches, **options: batches,
        ECELoss=losses.ECELoss,
    ).obtain_temperature
    model = Settings(LOSS_FUN="ce", NUM_CLASSES=logits.shape[1])
    batches = [(torch.arange(len(logits)), labels)]
    found = search(Settings(MODEL=model), Predictor(logits), batches, [], verbose=False)
    return float(found), losses.ECELoss(logits.shape[1])
