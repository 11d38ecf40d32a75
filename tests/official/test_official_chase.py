"""CHASe's count of changed predictions, and what it takes by it."""

from __future__ import annotations

import copy
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support import official as code
from support.official import Agreement, Rows, official
from support.official_cases import Case, chosen
from support.strategy_cases import pool_of
from torch import Tensor, nn

from ahfal_app.query import Moment, Outputs, Signal, Watched
from ahfal_app.query.chase import Chase
from ahfal_app.query.core.scores import entropy

pytestmark = [pytest.mark.official, pytest.mark.usefixtures("_cpu", "_double")]

SIZE, EPOCHS, BUDGET = 200, 6, 40


class Trained(nn.Module):
    """A network that after each of its local epochs gives other logits, as logarithms."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits, self.epoch = logits, -1
        self.weight = nn.Parameter(torch.zeros(()))

    def train(self, mode: bool = True) -> Trained:
        self.epoch += mode
        return super().train(mode)

    def forward(self, rows: Tensor, return_all_layers: bool = False) -> Tensor:
        logits = self.logits[self.epoch][rows] + self.weight
        return nn.functional.log_softmax(logits.detach() + 0 * self.weight, dim=1)


def epochs_of(case: Case) -> tuple[Tensor, Tensor]:
    """Return logits after each epoch, and the global model's."""
    embeddings = case.embeddings(SIZE)
    every = [case.logits(embeddings) / 6 for _ in range(EPOCHS + 1)]
    both = torch.from_numpy(np.stack(every)).double()
    return both[:-1], both[-1]


def training(logits: Tensor) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return what the authors' training counts, and their entropies of the last epoch."""
    given = {"np": np, "torch": torch, "nn": nn, "copy": copy, "time": time}
    module = official(
        "CHASe",
        "localtraining.py",
        ["DatasetSplit", "LocalUpdate"],
        Dataset=torch.utils.data.Dataset,
        DataLoader=code.loader,
        print=lambda *arguments: None,
        **given,
    )
    arguments = SimpleNamespace(
        gpu="cpu",
        optimizer="sgd",
        lr=0.0,
        momentum=0.0,
        method="chase-subset",
        local_ep=EPOCHS,
        localloss="CE",
        local_bs=10,
        abla="Tloc",
    )
    update = module.LocalUpdate(arguments, None)
    rows = Rows(SIZE + 1)
    model = Trained(torch.cat([logits, logits[:, :1]], dim=1))
    _, _, flips, scores, _ = update.update_weights(0, model, [SIZE], np.arange(SIZE), rows, round=0)
    return flips, scores


def selection(
    flips: NDArray[np.int64], local: Any, global_: Any, score: str, sort: Any = np.argsort
) -> list[int]:
    """Return what the authors' code takes, without samples that it stops looking at."""
    numpy = code.Replaced(np, argsort=sort)
    made = official(
        "CHASe", "select_strategy.py", ["CHASe_EV"], np=numpy, print=lambda *arguments: None
    )
    arguments = SimpleNamespace(w=0, method="chase-subset", abla=score, Ta=0)
    everything = np.arange(SIZE)
    _, taken, _ = made.CHASe_EV(arguments).sample(
        0, 0, 1, BUDGET, local, global_, flips, list(range(SIZE)), [], everything, [], everything
    )
    return [int(i) for i in taken]


def watched(logits: Tensor) -> Tensor:
    """Return our count, as the signal. Shape (N, 1)."""
    strategy, seen = Chase(), None
    for epoch, each in enumerate(logits, start=1):
        seen = step(strategy, seen, each, Moment("local", 1, 1, epoch, EPOCHS))
    assert seen is not None
    return strategy.watched_signals(seen)[Signal.LOCAL_FLIPS]


def step(strategy: Chase, seen: Watched | None, logits: Tensor, moment: Moment) -> Watched:
    assert strategy.watches(moment)
    return strategy.watch(seen, Outputs(logits, logits), moment)


def stable(values: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.argsort(values, kind="stable")


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_chase(agreement: Agreement) -> None:
    """Flips have few values: the authors' order of equals is what an unstable sort leaves."""
    counts = as_many = equal = both_equal = 0
    for seed in range(40):
        case = Case(seed, size=SIZE)
        logits, global_ = epochs_of(case)
        flips, local_entropies = training(logits)
        ours = watched(logits)
        counts += ours[:, 0].tolist() == flips.tolist()
        pool = pool_of(
            {
                Signal.LOCAL_FLIPS: ours,
                Signal.LOCAL_LOGITS: logits[-1],
                Signal.GLOBAL_LOGITS: global_,
            }
        )
        context = case.context(BUDGET)
        own = chosen("chase", {"ties": "id"}, pool, context)
        given = flips, local_entropies, entropy(global_).numpy() / np.log(2)
        taken = selection(*given, "Tloc")
        as_many += sorted(flips[own]) == sorted(flips[taken])
        equal += own == selection(*given, "Tloc", stable)
        with_entropy = chosen("chase", {"score": "flips-and-entropy"}, pool, context)
        both_equal += with_entropy == selection(*given, "Tloc-ab")
    add = agreement.add
    update, sample = "CHASe: `LocalUpdate.update_weights`", "CHASe: `CHASe_EV.sample`"
    add("chase", update, "flips of 200 in 6 epochs", f"{counts} of 40 equal")
    add("chase", sample, "flips of 40 of 200", f"{as_many} of 40 equal")
    add("chase", f"{sample}, stable sort", "40 of 200, in order", f"{equal} of 40 equal")
    ablation = "40 of 200, in order, flips and entropies (`Tloc-ab`)"
    add("chase", sample, ablation, f"{both_equal} of 40 equal")
    assert counts == as_many == equal == both_equal == 40
