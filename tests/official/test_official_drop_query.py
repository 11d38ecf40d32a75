"""DropQuery's candidates and their representatives, and the centroids of the first labels."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support import official as code
from support.official import Agreement, official
from support.official_cases import Case, chosen
from support.strategy_cases import pool_of
from torch import Tensor, nn
from torch.nn import functional

from ahfal_app.query import PoolView, QueryContext, Signal

pytestmark = [pytest.mark.official, pytest.mark.usefixtures("_cpu", "_double")]

SIZE = 300
REPOSITORY = "AL-foundation-models"


@pytest.fixture(autouse=True)
def _no_float(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the authors' classifier answer in double precision, without ties by rounding."""
    monkeypatch.setattr(torch.Tensor, "float", lambda self: self)


class OurDropout(nn.Module):
    """Dropout with the masks that our strategy draws, one after the other."""

    def __init__(self, share: float, context: QueryContext) -> None:
        super().__init__()
        self.share, self.context, self.number = share, context, 0

    def forward(self, values: Tensor) -> Tensor:
        if not self.training:
            return values
        generator = self.context.generator(f"drop-query.mask.{self.number}")
        self.number += 1
        drawn = generator.random(tuple(values.shape), dtype=np.float32)
        return values * torch.from_numpy(drawn >= np.float32(self.share)) / (1 - self.share)


class Wrapper:
    """Asks the authors' classifier, as their wrapper does."""

    def __init__(self, classifier: Any) -> None:
        self.classifier = classifier

    def get_probs(self, features: NDArray[np.float64], dropout: bool) -> Tensor:
        return self._outputs(features, dropout)["probs"]

    def get_probs_and_embedding(self, features: NDArray[np.float64]) -> tuple[Tensor, Tensor]:
        outputs = self._outputs(features, False)
        return outputs["probs"], outputs["embed"]

    def _outputs(self, features: NDArray[np.float64], dropout: bool) -> dict[str, Tensor]:
        self.classifier.set_pred_mode(["probs", "embed"])
        self.classifier.set_dropout(dropout)
        outputs: dict[str, Tensor] = self.classifier.predict_step(
            (torch.from_numpy(features), None), 0
        )
        return outputs


class FaissOf:
    """faiss, whose k-means ends with the clusters of ours."""

    def __init__(self, generator: Callable[[], np.random.Generator]) -> None:
        self._generator = generator

    def Kmeans(self, width: int, number: int, **options: Any) -> Any:
        clusters = code.OurClusters(number, self._generator())
        index = code.ExactSearch(width, np.float64)

        def train(rows: NDArray[Any], **options: Any) -> None:
            clusters.fit(rows)
            index.add(clusters.cluster_centers_)

        return SimpleNamespace(train=train, index=index)


def clustering(generator: Callable[[], np.random.Generator]) -> Any:
    return official(
        REPOSITORY,
        "ALFM/src/clustering/kmeans.py",
        ["torch_pd", "kmeans_plus_plus_init", "cluster_features"],
        faiss=FaissOf(generator),
        np=np,
        torch=torch,
        track=lambda steps, **options: steps,
    ).cluster_features


class Client:
    """Embeddings of a pool, and the last layer on top of them."""

    def __init__(self, seed: int) -> None:
        self.case = Case(seed, size=SIZE)
        self.embeddings = self.case.embeddings(SIZE).astype(np.float64) + 0.01
        weight = torch.from_numpy(self.case.centres) / 4
        bias = torch.from_numpy(self.case.random.normal(size=(10, 1)))
        self.head = torch.cat([weight, bias], dim=1)

    def pool(self) -> PoolView:
        return pool_of({Signal.LOCAL_EMBEDDINGS: self.embeddings, Signal.LOCAL_HEAD: self.head})

    def classifier(self, dropout: float, context: QueryContext) -> Any:
        module = official(
            REPOSITORY,
            "ALFM/src/classifiers/base_classifier.py",
            ["BaseClassifier"],
            LightningModule=nn.Module,
            nn=nn,
            torch=torch,
            F=functional,
        )
        made = module.BaseClassifier(self.case.width, 10, dropout, 0.0, 0.0, [])
        # What comes after the dropout of their frozen features is left out.
        made.feature_extractor = nn.Identity()
        made.dropout = OurDropout(dropout, context)
        made.linear.load_state_dict({"weight": self.head[:, :-1], "bias": self.head[:, -1]})
        return made.eval()

    def theirs(self, context: QueryContext, dropout: float) -> tuple[list[int], int]:
        """Return the picks, and the number of candidates."""
        numbers: list[int] = []
        cluster = clustering(lambda: context.generator("drop-query.k-means"))

        def recorded(vectors: NDArray[Any], number: int) -> Any:
            numbers.append(len(vectors))
            return cluster(vectors, number)

        module = official(
            REPOSITORY,
            "ALFM/src/query_strategies/dropout.py",
            ["Dropout"],
            BaseQuery=object,
            cluster_features=recorded,
            logging=logging,
            np=np,
            # Its table of frequencies fails where no prediction changes in all passes.
            torch=code.Replaced(torch, bincount=functools.partial(torch.bincount, minlength=4)),
            F=functional,
        )
        made = module.Dropout.__new__(module.Dropout)
        made.num_iter, made.features = 3, self.embeddings
        made.labeled_pool = np.zeros(SIZE, dtype=bool)
        made.model = Wrapper(self.classifier(dropout, context))
        picks = np.flatnonzero(made.query(context.budget))
        return picks.tolist(), numbers[0] if numbers else 0

    def changes(self, context: QueryContext, dropout: float) -> list[int]:
        """Return in how many of three passes each sample's prediction changes."""
        asked = Wrapper(self.classifier(dropout, context))
        plain = asked.get_probs(self.embeddings, False).argmax(dim=1)
        passes = [asked.get_probs(self.embeddings, True).argmax(dim=1) for _ in range(3)]
        changed: list[int] = (torch.stack(passes) != plain).sum(dim=0).tolist()
        return changed


@pytest.mark.parametrize(("budget", "dropout"), [(2, 0.75), (20, 0.75), (20, 0.3)])
def test_drop_query(budget: int, dropout: float, agreement: Agreement) -> None:
    """Equal masks and clusters; the threshold is 1 for few labels, and 0 for many."""
    equal, candidates = 0, []
    for seed in range(20):
        client = Client(seed)
        context = client.case.context(budget)
        picks, number = client.theirs(context, dropout)
        own = chosen("drop-query", {"dropout": dropout}, client.pool(), context)
        equal += sorted(own) == picks
        candidates.append(number)
    agreement.add(
        "drop-query",
        f"{REPOSITORY}: `Dropout.query`, `BaseClassifier.predict_step`, `cluster_features`",
        f"set of {budget} of {SIZE}, p = {dropout:g}, equal masks and clusters",
        f"{equal} of 20 equal, of {min(candidates)} to {max(candidates)} candidates",
    )
    assert equal == 20


def test_too_few_candidates(agreement: Agreement) -> None:
    """All candidates are taken, and the rest is drawn: by both, and not the same."""
    equal = 0
    for seed in range(20):
        client = Client(seed)
        context = client.case.context(60)
        picks, clustered = client.theirs(context, 0.03)
        own = chosen("drop-query", {"dropout": 0.03}, client.pool(), context)
        assert not clustered
        assert len(picks) == len(own) == 60
        candidates = {i for i, n in enumerate(client.changes(context, 0.03)) if n}
        equal += candidates <= set(picks) & set(own)
    agreement.add(
        "drop-query",
        f"{REPOSITORY}: `Dropout.query`, `BaseClassifier.predict_step`",
        "candidates, of which there are fewer than 60",
        f"{equal} of 20 times all of them in both; the others are drawn",
    )
    assert equal == 20


def test_centroids(agreement: Agreement) -> None:
    equal = 0
    for seed in range(20):
        client = Client(seed)
        context = client.case.context(20)
        module = official(
            REPOSITORY,
            "ALFM/src/init_strategies/centroid_init.py",
            ["CentroidInit"],
            BaseInit=object,
            cluster_features=clustering(lambda context=context: context.generator("centroids")),
            np=np,
            torch=torch,
            F=functional,
        )
        made = module.CentroidInit.__new__(module.CentroidInit)
        made.features = client.embeddings
        picks = np.flatnonzero(made.query(20)).tolist()
        equal += sorted(chosen("centroids", {}, client.pool(), context)) == picks
    agreement.add(
        "centroids",
        f"{REPOSITORY}: `CentroidInit.query`, `cluster_features`",
        f"set of 20 of {SIZE}, equal clusters",
        f"{equal} of 20 equal",
    )
    assert equal == 20
