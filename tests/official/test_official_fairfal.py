"""FairFAL's choice of a model and of samples, given the local-only model."""

from __future__ import annotations

import copy
from collections import Counter, defaultdict
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support import official as code
from support.official import Agreement, Looked, Rows, official
from support.official_cases import Case, chosen
from support.strategy_cases import pool_of
from torch import Tensor, nn
from torch.nn import functional

from ahfal_app.query import LocalOnlyTraining, Outputs, PoolView, Signal
from ahfal_app.query.fairfal import balanced_prior, imbalance, prior_divergence

pytestmark = [pytest.mark.official, pytest.mark.usefixtures("_cpu", "_double")]

SIZE, BUDGET = 200, 40

#: Mean imbalances of the clients, below and above where the other head is taken.
MEANS = (0.05, 0.3, 0.6, 0.9)


class LocalOnly:
    """The local-only model's outputs of the pool, then of the labelled set."""

    def __init__(self, logits: Tensor, embeddings: Tensor) -> None:
        self.outputs = logits, embeddings

    def perturbed(self, perturb: Any) -> Outputs:
        raise AssertionError("not asked for")

    def local_only(self, training: LocalOnlyTraining) -> Outputs:
        return Outputs(*(values[:SIZE] for values in self.outputs))

    def local_only_labelled(self, training: LocalOnlyTraining) -> Outputs:
        return Outputs(*(values[SIZE:] for values in self.outputs))

    def local_only_embeddings(self, training: LocalOnlyTraining) -> tuple[Tensor, Tensor]:
        pool, labelled = self.local_only(training), self.local_only_labelled(training)
        return pool.embeddings_ND, labelled.embeddings_ND


class Client:
    """A client's pool, then its labelled set, in the outputs of two models."""

    def __init__(self, seed: int, counts: NDArray[np.int64]) -> None:
        self.case = Case(seed, size=SIZE)
        self.labels = np.repeat(np.arange(self.case.classes), counts)
        drawn = self.case.random.choice(self.case.classes, SIZE, p=self.case.shares)
        both = np.concatenate([drawn, self.labels])
        self.embeddings = torch.from_numpy(self.case.embeddings_of(both)).double()
        # The less certain ones with odd numbers, so that either model is asked by some.
        self.global_, self.local = (
            torch.from_numpy(self.case.logits(self.embeddings.numpy())).double() / temperature
            for temperature in ((3.0, 4.0) if seed % 2 else (12.0, 3.0))
        )

    def pool(self) -> PoolView:
        return pool_of(
            {
                Signal.GLOBAL_LOGITS: self.global_[:SIZE],
                Signal.GLOBAL_EMBEDDINGS: self.embeddings[:SIZE],
                Signal.LABELLED_GLOBAL_LOGITS: self.global_[SIZE:],
                Signal.LABELLED_GLOBAL_EMBEDDINGS: self.embeddings[SIZE:],
            },
            LocalOnly(self.local, self.embeddings),
        )

    def ours(self, mean: float) -> list[int]:
        context = self.case.context(BUDGET, labels=self.labels)
        return sorted(chosen("fairfal", {"mean-imbalance": mean}, self.pool(), context))

    def our_quantities(self) -> tuple[float, float]:
        """Return γ and d."""
        labels = torch.from_numpy(self.labels)
        priors = [balanced_prior(logits[SIZE:], labels) for logits in (self.global_, self.local)]
        return imbalance(priors[0], labels), prior_divergence(priors[0], priors[1])

    def theirs(self, mean: float) -> tuple[list[int], float, float]:
        """Return the picks, γ and d."""
        strategy = strategy_of(self)
        labelled = list(range(SIZE, SIZE + len(self.labels)))
        counts = Counter(self.labels.tolist())
        ratio = strategy.query_model_selection(0, labelled, list(range(SIZE)), counts)
        picks, _, _ = strategy.query(
            0, labelled, list(range(SIZE)), [0], counts, mean, n_query=BUDGET
        )
        return sorted(int(i) for i in picks), float(ratio), float(strategy.ratio_dict[0])


def strategy_of(client: Client) -> Any:
    given: dict[str, Any] = {
        "copy": copy,
        "deepcopy": copy.deepcopy,
        "np": np,
        "torch": torch,
        "nn": nn,
        "F": functional,
        "Variable": lambda values: values,
        "DataLoader": code.loader,
        "Dataset": torch.utils.data.Dataset,
        "Subset": torch.utils.data.Subset,
        "defaultdict": defaultdict,
        "print": lambda *arguments: None,
    }
    base = official(
        "FairFAL",
        "query_strategies/strategy.py",
        ["make_balanced_indices", "DatasetSplit", "Strategy"],
        **given,
    )
    names = [
        "proto_probs_from_embeddings",
        "FairFALSampling",
        "balanced_sample_by_pred_kmeans_maxscore",
    ]
    path = "query_strategies/fairfal_sampling.py"
    module = official("FairFAL", path, names, Strategy=base.Strategy, **given)
    rows = Rows(SIZE + len(client.labels), client.labels.tolist())
    arguments = SimpleNamespace(
        num_classes=client.case.classes, device="cpu", gpu=-1, dataset="none"
    )
    global_ = Looked(client.global_, client.embeddings)
    made = module.FairFALSampling(rows, rows, rows, global_, arguments)
    made.training_local_only = lambda label_idxs: Looked(client.local, client.embeddings)
    return made


def test_fairfal(agreement: Agreement) -> None:
    """As many labels of each labelled class, so that the authors' code balances without a draw."""
    equal, worst, ways = 0, 0.0, set()
    for seed in range(40):
        counts = np.random.default_rng(seed).permutation([4, 4, 4, 4, 4, 4, 4, 0, 0, 0])
        client, mean = Client(seed, counts), MEANS[seed // 2 % len(MEANS)]
        theirs, ratio, distance = client.theirs(mean)
        our_ratio, our_distance = client.our_quantities()
        worst = max(worst, abs(ratio - our_ratio), abs(distance - our_distance))
        equal += client.ours(mean) == theirs
        ways.add((1 - (distance + mean) / 2 > 0.75, mean < 0.5))
    agreement.add(
        "fairfal",
        "FairFAL: `query_model_selection`, `query`",
        "γ and d; set of 40 of 200, equally many labels of 7 classes",
        f"{equal} of 40 equal; γ and d to {worst:.0e}",
    )
    assert ways == {(False, False), (False, True), (True, True)}
    assert equal == 40
    assert worst < 1e-6


def test_fairfal_of_unequal_classes(agreement: Agreement) -> None:
    """The authors' code draws samples of the smaller classes again; we take the expectation."""
    equal, worst = 0, 0.0
    for seed in range(40):
        counts = np.random.default_rng(seed).integers(0, 8, 10)
        client, mean = Client(seed, counts), MEANS[seed // 2 % len(MEANS)]
        theirs, ratio, distance = client.theirs(mean)
        our_ratio, our_distance = client.our_quantities()
        worst = max(worst, abs(ratio - our_ratio), abs(distance - our_distance))
        equal += client.ours(mean) == theirs
    agreement.add(
        "fairfal",
        "FairFAL: `query_model_selection`, `query`",
        "γ and d; set of 40 of 200, 0 to 7 labels of each class",
        f"{equal} of 40 equal; γ and d to {worst:.2f}, which the authors' code draws for",
    )
    assert equal == 40
    assert worst < 0.2
