"""DCoM's radii and its greedy choice."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from sklearn.preprocessing import MinMaxScaler
from support import official as code
from support.official import Agreement, Looked, Rows, Settings, official
from support.official_cases import Case, chosen
from support.strategy_cases import pool_of
from torch import Tensor

from ahfal_app.query import PoolView, QueryContext, Signal
from ahfal_app.query.core.balls import Balls
from ahfal_app.query.core.points import EmbeddingPoints
from ahfal_app.query.dcom import Dcom

pytestmark = [pytest.mark.official, pytest.mark.usefixtures("_cpu", "_double")]

#: Rows of a block of the authors' graph: all samples.
BLOCK = 700
INITIAL, LARGEST = 0.75, 1.1
CLASSES = 5


class Client:
    """Embeddings of length 1 and logits of a pool, then of a labelled set."""

    def __init__(self, seed: int, labelled: int, spread: float, budget: int = 1) -> None:
        self.budget = budget
        self.case = Case(seed, size=BLOCK - labelled, width=8, classes=CLASSES)
        self.labelled = labelled
        classes = self.case.random.choice(CLASSES, BLOCK, p=self.case.shares)
        self.labels = classes[self.case.size :]
        noise = self.case.random.normal(size=(BLOCK, 8)) * spread
        both = self.case.centres[classes] + noise
        self.embeddings = both / np.linalg.norm(both, axis=1, keepdims=True)
        gaps = self.case.random.normal(size=(BLOCK, CLASSES))
        self.logits = torch.from_numpy(4 * self.embeddings @ self.case.centres.T + gaps)

    @property
    def context(self) -> QueryContext:
        return self.case.context(self.budget, labels=self.labels)

    def pool(self) -> PoolView:
        size = self.case.size
        return pool_of(
            {
                Signal.LOCAL_EMBEDDINGS: self.embeddings[:size],
                Signal.LABELLED_LOCAL_EMBEDDINGS: self.embeddings[size:],
                Signal.LOCAL_LOGITS: self.logits[:size],
                Signal.LABELLED_LOCAL_LOGITS: self.logits[size:],
            }
        )

    def ours(self) -> list[int]:
        parameters = {"normalise": False, "exhausted": "id"}
        return chosen("dcom", parameters, self.pool(), self.context)

    def published(self, radii: list[float]) -> Any:
        """Return the authors' strategy, with a radius for each labelled sample."""
        module = official(
            "TypiClust",
            "deep-al/pycls/al/DCoM.py",
            ["DCoM"],
            np=code.Replaced(np, float=float, argsort=_rising),
            pd=pd,
            torch=torch,
            MinMaxScaler=MinMaxScaler,
            ds_utils=SimpleNamespace(load_features=lambda name, seed: self.embeddings),
            tqdm=lambda batches, **options: batches,
            print=lambda *arguments: None,
        )
        active = Settings(K_LOGISTIC=50, A_LOGISTIC=0.8, DELTA_RESOLUTION=0.05)
        configuration = Settings(
            DATASET={"NAME": "none"},
            RNG_SEED=0,
            ACTIVE_LEARNING=active,
            TRAIN=Settings(BATCH_SIZE=512),
        )
        labelled = np.arange(self.case.size, self.case.size + len(radii))
        others = np.setdiff1d(np.arange(BLOCK), labelled)
        return module.DCoM(configuration, labelled, others, self.budget, radii, LARGEST)

    def published_radii(
        self, kept: Sequence[float] = (), count: int = 0, logits: Tensor | None = None
    ) -> list[float]:
        """Return the authors' radii of labelled samples: some are kept, and the others new.

        `count` are labelled, all where it is 0.
        """
        count = count or self.labelled
        before = float(np.mean(kept).round(2)) if kept else INITIAL
        made = self.published([*kept, *[before] * (count - len(kept))])
        logits = self.logits if logits is None else logits
        predicted = logits.argmax(dim=1).numpy()[made.relevant_indices]
        new = made.new_centroids_deltas(
            self.labels[:count],
            predicted,
            count - len(kept),
            batch_size=BLOCK,
            all_labels=predicted,
        )
        return [*kept, *[float(radius) for radius in new]]

    def theirs(self, radii: list[float]) -> list[int]:
        made = self.published(radii)
        loaders = SimpleNamespace(getSequentialDataLoader=self.loader)
        picks, _ = made.select_samples(Logits(self.logits), Rows(BLOCK), loaders)
        return [int(i) for i in picks]

    def loader(self, indexes: NDArray[np.int64], batch_size: int, data: Rows) -> Any:
        return code.loader(torch.utils.data.Subset(data, indexes.tolist()), batch_size=batch_size)


class Logits(Looked):
    """Gives logits alone."""

    def forward(self, rows: Tensor) -> Any:
        return super().forward(rows)[0]


def _rising(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return positions by rising value, the last ones by level the earliest: ties to the first."""
    reversed_ = np.argsort(-np.round(values, 10), kind="stable")
    return reversed_[::-1]


@pytest.mark.parametrize(("labelled", "spread"), [(12, 1.5), (60, 0.6), (200, 1.0)])
def test_radii(labelled: int, spread: float, agreement: Agreement) -> None:
    equal, every = 0, set()
    for seed in range(10):
        client = Client(seed, labelled, spread)
        theirs = client.published_radii()
        points = EmbeddingPoints(torch.from_numpy(client.embeddings))
        balls = Balls(points, torch.arange(client.case.size, BLOCK), torch.arange(BLOCK))
        first = torch.full((labelled,), INITIAL)
        least = 0.2 * float(balls.covered(first).double().mean()) + 0.4
        labels = torch.from_numpy(client.labels)
        radii = balls.pure_radii(labels, client.logits.argmax(dim=1), least, LARGEST, 0.05)
        equal += int(np.isclose(radii.round(decimals=2).numpy(), theirs).sum())
        every |= set(theirs)
    agreement.add(
        "dcom",
        "TypiClust: `DCoM.new_centroids_deltas`",
        f"radii of {labelled} new labelled samples among {BLOCK}, 10 times",
        f"{equal} of {10 * labelled} equal",
    )
    assert equal == 10 * labelled
    assert len(every) > 1


@pytest.mark.parametrize(
    ("labelled", "spread", "budget"), [(3, 1.0, 4), (12, 1.5, 30), (60, 0.6, 60)]
)
def test_dcom(
    labelled: int,
    spread: float,
    budget: int,
    agreement: Agreement,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the authors' radii of samples that are all new, and ties to the first."""
    found: list[float] = []
    competence = Dcom.competence

    def recorded(self: Dcom, covered: float) -> float:
        found.append(competence(self, covered))
        return found[-1]

    monkeypatch.setattr(Dcom, "competence", recorded)
    equal = 0
    for seed in range(20):
        client = Client(seed, labelled, spread, budget)
        equal += client.ours() == client.theirs(client.published_radii())
    agreement.add(
        "dcom",
        "TypiClust: `DCoM.new_centroids_deltas`, `select_samples`",
        f"{budget} of {BLOCK - labelled}, in order, {labelled} new labelled samples",
        f"{equal} of 20 equal, with a competence of {min(found):g} to {max(found):g}",
    )
    assert equal == 20


def test_dcom_of_a_later_cycle(agreement: Agreement) -> None:
    """The authors' code keeps the radii of 30 samples from when a worse model was asked."""
    equal, shared = 0, 0
    for seed in range(20):
        client = Client(seed, 60, 1.5, 30)
        noise = torch.from_numpy(client.case.random.normal(size=client.logits.shape))
        kept = client.published_radii(count=30, logits=client.logits + noise)
        theirs, ours = client.theirs(client.published_radii(kept)), client.ours()
        equal += ours == theirs
        shared += len(set(ours) & set(theirs))
    agreement.add(
        "dcom",
        "TypiClust: `DCoM.new_centroids_deltas`, `select_samples`",
        f"30 of {BLOCK - 60}, in order, 30 labelled samples with radii of the cycle before, 30 new",
        f"{equal} of 20 equal; {shared} of 600 picks in both",
    )
    assert equal < 20
    assert shared > 300
