"""ProbCover's graph and greedy choice, and the purity that gives a radius."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from support.official import Agreement, Replaced, official
from support.official_cases import Case, chosen
from support.strategy_cases import pool_of
from torch import Tensor
from torch.nn import functional

from ahfal_app.query import Signal
from ahfal_app.query.prob_cover import pure_radius

pytestmark = [pytest.mark.official, pytest.mark.usefixtures("_cpu", "_double")]

LABELLED, RADIUS = 20, 0.35

#: Rows of a block of the authors' graph.
BLOCK = 500


def features(case: Case) -> NDArray[np.float64]:
    """Return embeddings of length 1: the pool, then the labelled set."""
    both = case.embeddings(case.size + LABELLED).astype(np.float64) + 0.01
    normalised: NDArray[np.float64] = both / np.linalg.norm(both, axis=1, keepdims=True)
    return normalised


def published(
    both: NDArray[np.float64], labelled: int, budget: int, radius: float = RADIUS
) -> list[int]:
    """Return what the authors' code selects; a number from the pool's size on is a labelled one."""
    module = official(
        "TypiClust",
        "deep-al/pycls/al/prob_cover.py",
        ["ProbCover"],
        np=np,
        pd=pd,
        torch=torch,
        ds_utils=SimpleNamespace(load_features=lambda name, seed: both),
        print=lambda *arguments: None,
    )
    rows = np.arange(len(both))
    settings = {"DATASET": {"NAME": "none"}, "RNG_SEED": 0}
    size = len(both) - labelled
    made = module.ProbCover(settings, rows[size:], rows[:size], budget, radius)
    return [int(i) for i in made.select_samples()[0]]


def ours(both: NDArray[np.float64], labelled: int, budget: int, case: Case) -> list[int]:
    size = len(both) - labelled
    pool = pool_of(
        {
            Signal.LOCAL_EMBEDDINGS: both[:size],
            Signal.LABELLED_LOCAL_EMBEDDINGS: both[size:],
        }
    )
    parameters = {"radius": RADIUS, "normalise": False}
    return chosen("prob-cover", parameters, pool, case.context(budget))


def rises(both: NDArray[np.float64], labelled: int, picks: list[int]) -> int:
    """Return how many of the first picks cover something."""
    near = np.linalg.norm(both[:, None] - both[None], axis=2) < RADIUS
    covered = near[len(both) - labelled :].any(axis=0)
    for number, pick in enumerate(picks):
        if not (near[pick] & ~covered).any():
            return number
        covered |= near[pick]
    return len(picks)


@pytest.mark.parametrize("labelled", [0, LABELLED])
def test_prob_cover(labelled: int, agreement: Agreement) -> None:
    """As many samples as a block of the graph has rows; up to where all is covered."""
    equal, compared, repeated, after = 0, 0, 0, 0
    for seed in range(20):
        case = Case(seed, size=BLOCK - LABELLED, width=8)
        both = features(case)
        # The pool, without labels, is all of them.
        picks, own = published(both, labelled, 100), ours(both, labelled, 100, case)
        until = rises(both, labelled, own)
        equal += own[:until] == picks[:until]
        compared += until
        after += 100 - until
        repeated += 100 - len(set(picks) & set(range(BLOCK - labelled)))
        assert len(set(own)) == 100
    agreement.add(
        "prob-cover",
        "TypiClust: `ProbCover.select_samples`",
        f"100 of {BLOCK - labelled}, in order, {labelled} labelled",
        f"{equal} of 20 equal while something is covered, in {compared} picks; of the other "
        f"{after}, {repeated} were bought before there, none here",
    )
    assert equal == 20
    assert compared > 500
    assert repeated > 0


def test_prob_cover_of_other_sizes(agreement: Agreement) -> None:
    """Samples beyond the last whole block cover nothing in the authors' graph."""
    equal, beyond, own_beyond = 0, 0, 0
    for seed in range(20):
        case = Case(seed, size=BLOCK + 180, width=8)
        both = features(case)
        picks, own = published(both, 0, 40), ours(both, 0, 40, case)
        equal += own == picks
        beyond += sum(i >= BLOCK for i in picks)
        own_beyond += sum(i >= BLOCK for i in own)
    agreement.add(
        "prob-cover",
        "TypiClust: `ProbCover.select_samples`",
        "40 of 700, in order, 0 labelled",
        f"{equal} of 20 equal; of the last 200: {beyond} of 800 there, {own_beyond} here",
    )
    assert beyond == 0 < own_beyond


def test_radius(agreement: Agreement) -> None:
    """The purity of UHerding's repository, with equal clusters."""
    equal = 0
    for seed in range(20):
        case = Case(seed, size=150, width=8)
        both = features(case)
        clusters = KMeans(case.classes, n_init=1, random_state=seed).fit_predict(both)
        theirs = float(uherding_radius(both, clusters, 0.95))
        own = pure_radius(torch.from_numpy(both), torch.from_numpy(clusters).long(), 0.95)
        equal += abs(theirs - own) < 1e-12
    agreement.add(
        "prob-cover",
        "uherding: `compute_purity`, `blob_purity`",
        "radius, equal clusters",
        f"{equal} of 20 equal",
    )
    assert equal == 20


def test_radius_where_none_or_all_are_pure(agreement: Agreement) -> None:
    points = torch.tensor([[1.0, 0.0], [1.0, 1e-3], [0.0, 1.0], [1e-3, 1.0]])
    mixed, one = np.array([0, 1, 0, 1]), np.zeros(4, dtype=np.int64)
    theirs = [float(uherding_radius(points.numpy(), each, 0.95)) for each in (mixed, one)]
    own = [pure_radius(points, torch.from_numpy(each), 0.95) for each in (mixed, one)]
    agreement.add(
        "prob-cover",
        "uherding: `compute_purity`, `blob_purity`",
        "radius where not even the smallest is pure; where all are",
        f"{theirs[0]:g} and {theirs[1]:g} there, {own[0]:g} and {own[1]:g} here",
    )
    assert own == [0.05, 1.0]


def uherding_radius(
    points: NDArray[np.float64], clusters: NDArray[np.int64], purity: float
) -> float:
    def clustering(**options: int) -> SimpleNamespace:
        return SimpleNamespace(fit_predict=lambda rows: None, labels_=clusters)

    module = official(
        "uherding",
        "deep-al/pycls/utils/metrics.py",
        ["compute_norm", "blob_purity", "compute_purity"],
        # All points, in the order that they have.
        np=Replaced(np, random=SimpleNamespace(choice=lambda number, **options: np.arange(number))),
        torch=torch,
        F=functional,
        MiniBatchKMeans=clustering,
        print=lambda *arguments: None,
    )
    result: Tensor = module.compute_purity(
        torch.from_numpy(points), len(np.unique(clusters)), purity_threshold=purity
    )
    return float(result)
