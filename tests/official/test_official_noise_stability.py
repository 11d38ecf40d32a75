"""Noise stability with equal noise."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support import official as code
from support.official import Agreement, official
from support.official_cases import Case, chosen
from support.strategy_cases import pool_of
from torch import Tensor, nn
from torch.nn import functional

from ahfal_app.query import Outputs, QueryContext, Signal

pytestmark = [pytest.mark.official, pytest.mark.usefixtures("_cpu")]


class Perturbed:
    """A network's outputs for a pool, perturbed in place and restored."""

    def __init__(self, model: nn.Module, images: Tensor) -> None:
        self.model, self.images = model, images

    def outputs(self) -> Outputs:
        with torch.no_grad():
            logits, features, _ = self.model(self.images)
        return Outputs(logits, features)

    def perturbed(self, perturb: Any) -> Outputs:
        before = copy.deepcopy(self.model.state_dict())
        perturb(self.model)
        outputs = self.outputs()
        self.model.load_state_dict(before)
        return outputs

    def local_only(self, training: Any) -> Outputs:
        raise AssertionError("not asked for")


class SmallNetwork(nn.Module):
    """Two layers and a normalisation; in double precision, so that ties are none."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        torch.manual_seed(case.seed)
        self.first = nn.Linear(case.width, 24)
        self.norm = nn.BatchNorm1d(24)
        self.second = nn.Linear(24, case.classes)
        self.double().eval()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, None]:
        features = torch.relu(self.norm(self.first(images)))
        return self.second(features), features, None


@pytest.mark.parametrize("gain", [1.0, 12.0])
def test_noise_stability(gain: float, agreement: Agreement) -> None:
    """Equal noise; with a gain of 12 nearly all predictions are certain."""
    equal = 0
    for seed in range(30):
        case = Case(seed)
        network = SmallNetwork(case)
        with torch.no_grad():
            network.second.weight.mul_(gain)
        images = torch.from_numpy(case.embeddings(case.size)).double()
        models, context = Perturbed(network, images), case.context(25)
        clean = models.outputs()
        pool = pool_of(
            {Signal.LOCAL_LOGITS: clean.logits_NC, Signal.LOCAL_EMBEDDINGS: clean.embeddings_ND},
            models,
        )
        ours = chosen("noise-stability", {"draws": 5}, pool, context)
        equal += ours == noise_selection(network, images, context, 5, 25)
    agreement.add(
        "noise-stability",
        "AL-noise-stability: `noise_stability_sampling`",
        f"25 of 200, in order, equal noise, logits times {gain:g}",
        f"{equal} of 30 equal",
    )
    assert equal == 30


def noise_selection(
    network: nn.Module, images: Tensor, context: QueryContext, draws: int, count: int
) -> list[int]:
    noisy_torch, drawn = code.WithOurNoise(), iter(range(draws))

    def copied(model: nn.Module) -> nn.Module:
        noisy_torch.generator = context.generator(f"noise-stability.{next(drawn)}")
        return copy.deepcopy(model)

    picked: list[Tensor] = []
    names = [
        "add_noise_to_weights",
        "noise_stability_sampling",
        "get_all_outputs",
        "kcenter_greedy",
    ]
    functions = official(
        "AL-noise-stability",
        "noise_stability.py",
        names,
        torch=noisy_torch,
        F=functional,
        copy=SimpleNamespace(deepcopy=copied),
        NOISE_SCALE=1e-3,
        SUBSET=len(images),
        ADDENDUM=count,
    )
    scope = functions.noise_stability_sampling.__globals__
    scope["kcenter_greedy"] = recording(scope["kcenter_greedy"], picked)
    arguments = SimpleNamespace(dataset="cifar10", n_sampling=draws)
    functions.noise_stability_sampling({"backbone": network}, [(images, None, None)], arguments)
    return [int(i) for i in picked[0]]


def recording(function: Any, picked: list[Tensor]) -> Any:
    """Return a function that remembers the picks of the authors' k-center."""

    def called(deviations: Tensor, count: int) -> Any:
        result = function(deviations, count)
        picked.append(result[0])
        return result

    return called
