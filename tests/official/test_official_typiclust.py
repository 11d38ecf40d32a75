"""TypiClust's choice within clusters and their turns."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from support import official as code
from support.official import Agreement, official
from support.official_cases import Case, chosen
from support.strategy_cases import pool_of

from ahfal_app.query import Signal

pytestmark = [pytest.mark.official, pytest.mark.usefixtures("_cpu")]


BUDGET = 20


def published_selection(
    both: NDArray[np.float32], clusters: NDArray[np.int32], size: int
) -> list[int]:
    """Return what the authors' code selects of the first rows, given clusters of all."""
    module = official(
        "TypiClust",
        "deep-al/pycls/al/typiclust.py",
        ["get_nn", "get_mean_nn_dist", "calculate_typicality", "kmeans", "TypiClust"],
        np=np,
        pd=pd,
        faiss=code.ExactSearch,
        KMeans=lambda n_clusters: SimpleNamespace(fit_predict=lambda x: None, labels_=clusters),
        MiniBatchKMeans=None,
        ds_utils=SimpleNamespace(load_features=lambda name, seed: both),
        print=lambda *arguments: None,
    )
    rows = np.arange(len(both))
    settings = {"DATASET": {"NAME": "none"}, "RNG_SEED": 0}
    theirs = module.TypiClust(settings, rows[size:], rows[:size], BUDGET)
    return [int(i) for i in theirs.select_samples()[0]]


@pytest.mark.parametrize("labelled", [0, 12])
def test_typicality(labelled: int, agreement: Agreement, monkeypatch: pytest.MonkeyPatch) -> None:
    """With equal clusters, which both have from scikit-learn, and squared distances."""
    equal = 0
    for seed in range(48):
        case = Case(seed)
        both = case.embeddings(case.size + labelled)
        both /= np.linalg.norm(both, axis=1, keepdims=True)
        k_means = KMeans(labelled + BUDGET, n_init=1, random_state=seed)
        clusters = k_means.fit_predict(both)
        monkeypatch.setattr(
            "ahfal_app.query.typicality.k_means", lambda *arguments, found=clusters: found
        )
        pool = pool_of(
            {
                Signal.LOCAL_EMBEDDINGS: both[: case.size],
                Signal.LABELLED_LOCAL_EMBEDDINGS: both[case.size :],
            }
        )
        parameters = {"distance": "squared", "normalise": False}
        ours = chosen("typicality", parameters, pool, case.context(BUDGET))
        equal += ours == published_selection(both, clusters, case.size)
    agreement.add(
        "typicality",
        "TypiClust: `TypiClust.select_samples`",
        f"{BUDGET} of 200, in order, equal clusters, {labelled} labelled",
        f"{equal} of 48 equal",
    )
    assert equal == 48
