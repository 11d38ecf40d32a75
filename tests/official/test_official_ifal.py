"""IFAL's choice, given the distilled model."""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import wasserstein_distance
from support import official as code
from support.official import Agreement, Looked, Rows, official
from support.official_cases import Case, chosen
from support.strategy_cases import pool_of
from torch import Tensor, nn
from torch.nn import functional

from ahfal_app.query import LocalOnlyTraining, Outputs, PoolView, Signal
from ahfal_app.query.ifal import Ifal, above_otsu

pytestmark = [pytest.mark.official, pytest.mark.usefixtures("_cpu", "_double")]

SIZE, LABELLED = 500, 40

Matrices = tuple[Tensor, Tensor]


class Client:
    """Outputs of the global, the local and the distilled model; the pool, then the labelled set."""

    def __init__(self, seed: int) -> None:
        self.case = Case(seed, size=SIZE)
        classes = self.case.random.choice(10, SIZE + LABELLED, p=self.case.shares)
        self.labels = classes[SIZE:]
        self.models: list[Matrices] = []
        for temperature in (2.0, 4.0, 4.0):
            # No two of them orthogonal: those would be equally similar to a third.
            embeddings = self.case.embeddings_of(classes) + np.float32(0.01)
            logits = torch.from_numpy(self.case.logits(embeddings)).double() / temperature
            self.models.append((logits, torch.from_numpy(embeddings).double()))

    def perturbed(self, perturb: Any) -> Outputs:
        raise AssertionError("not asked for")

    def local_only(self, training: LocalOnlyTraining) -> Outputs:
        return Outputs(*(values[:SIZE] for values in self.models[2]))

    def local_only_labelled(self, training: LocalOnlyTraining) -> Outputs:
        return Outputs(*(values[SIZE:] for values in self.models[2]))

    def local_only_embeddings(self, training: LocalOnlyTraining) -> tuple[Tensor, Tensor]:
        pool, labelled = self.local_only(training), self.local_only_labelled(training)
        return pool.embeddings_ND, labelled.embeddings_ND

    def pool(self) -> PoolView:
        (global_, by_global), (local, by_local), _ = self.models
        return pool_of(
            {
                Signal.GLOBAL_LOGITS: global_[:SIZE],
                Signal.LOCAL_LOGITS: local[:SIZE],
                Signal.GLOBAL_EMBEDDINGS: by_global[:SIZE],
                Signal.LOCAL_EMBEDDINGS: by_local[:SIZE],
                Signal.LABELLED_GLOBAL_EMBEDDINGS: by_global[SIZE:],
                Signal.LABELLED_LOCAL_EMBEDDINGS: by_local[SIZE:],
            },
            self,
        )


def theirs(
    client: Client, budget: int, otsu: Any, generator: Callable[[], np.random.Generator]
) -> tuple[list[int], list[NDArray[np.float64]]]:
    """Return the authors' picks, and the scores of which a threshold was asked for."""
    scores: list[NDArray[np.float64]] = []

    def threshold(values: NDArray[np.float64]) -> float:
        scores.append(values[:, 0])
        return float(otsu(values))

    given: dict[str, Any] = {
        "copy": copy,
        "deepcopy": copy.deepcopy,
        "np": np,
        "os": os,
        "torch": torch,
        "nn": nn,
        "F": functional,
        "Variable": lambda values: values,
        "DataLoader": code.loader,
        "Dataset": torch.utils.data.Dataset,
        "print": lambda *arguments: None,
    }
    base = official("IFAL", "query_strategies/strategy.py", ["DatasetSplit", "Strategy"], **given)
    module = official(
        "IFAL",
        "query_strategies/fal/ifal.py",
        ["IFAL"],
        Strategy=base.Strategy,
        KMeans=lambda n_clusters: code.OurClusters(n_clusters, generator()),
        wasserstein_distance=wasserstein_distance,
        threshold_otsu=threshold,
        **given,
    )
    Path("temp").mkdir(exist_ok=True)
    torch.save(Looked(*client.models[1]).state_dict(), Path("temp", "user0.pt"))
    rows = Rows(SIZE + LABELLED, client.labels.tolist())
    arguments = SimpleNamespace(num_classes=client.case.classes, device="cpu")
    made = module.IFAL(rows, rows, Looked(*client.models[0]), arguments)
    made.training_local_only_KD = lambda label_idxs: Looked(*client.models[2])
    labelled = list(range(SIZE, SIZE + LABELLED))
    picks = made.query(0, labelled, list(range(SIZE)), n_query=budget)
    return sorted(int(i) for i in picks), scores


def exact_otsu(values: NDArray[np.float64]) -> float:
    """Return the value whose cut has the largest variance between classes, without bins."""
    ordered = np.unique(values)
    spreads = []
    for cut in ordered[:-1]:
        low, high = values[values <= cut], values[values > cut]
        spreads.append(len(low) * len(high) * (low.mean() - high.mean()) ** 2)
    return float(ordered[int(np.argmax(spreads))])


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The authors' code reads the local model from a folder below."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("budget", [10, 40])
def test_ifal(budget: int, agreement: Agreement) -> None:
    """With an exact threshold and equal clusters."""
    equal, worst, ways = 0, 0.0, set()
    for seed in range(12):
        client = Client(seed)
        context = client.case.context(budget, labels=client.labels)
        k_means = functools.partial(context.generator, "ifal.k-means")
        picks, scores = theirs(client, budget, exact_otsu, k_means)
        whole = Ifal().scores(client.pool(), context).numpy()
        worst = max(worst, float(np.abs(whole - scores[0]).max() / scores[0].max()))
        equal += sorted(chosen("ifal", {}, client.pool(), context)) == picks
        ways.add(len(scores))
    agreement.add(
        "ifal",
        "IFAL: `IFAL.query`",
        f"U; set of {budget} of 500, exact threshold, equal clusters",
        f"{equal} of 12 equal; U to {worst:.0e} of the largest",
    )
    assert equal == 12
    assert worst < 1e-12
    # The candidates of U were enough for some, and for others those of U1 stood in.
    assert ways == {1, 2}


def test_ifal_with_binned_threshold(agreement: Agreement) -> None:
    """scikit-image's threshold, which the authors' code has, is that of 256 bins."""
    filters = pytest.importorskip("skimage.filters")
    equal, differ, candidates = 0, 0, 0
    for seed in range(12):
        client = Client(seed)
        context = client.case.context(10, labels=client.labels)
        k_means = functools.partial(context.generator, "ifal.k-means")
        picks, scores = theirs(client, 10, filters.threshold_otsu, k_means)
        binned = set(np.flatnonzero(scores[0] > filters.threshold_otsu(scores[0][:, None])))
        exact = set(above_otsu(torch.from_numpy(scores[0])).tolist())
        differ += len(binned ^ exact)
        candidates += len(exact)
        equal += sorted(chosen("ifal", {}, client.pool(), context)) == picks
    agreement.add(
        "ifal",
        "IFAL: `IFAL.query` with scikit-image",
        "set of 10 of 500, threshold of 256 bins, equal clusters",
        f"{equal} of 12 equal; {differ} candidates of {candidates} differ",
    )
    assert differ <= candidates / 20
