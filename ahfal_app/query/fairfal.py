"""FairFAL: equal quotas for classes, from the model that fits the client's imbalance.

Shape suffixes: N samples in the pool, M of one class, L labelled samples, C classes, D embedding
width, K candidates.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from ahfal_app.query.core.base import QueryContext, QueryStrategy
from ahfal_app.query.core.k_center import greedy_k_center
from ahfal_app.query.core.picking import falling
from ahfal_app.query.core.points import OuterProductPoints, directions
from ahfal_app.query.core.pool import LocalOnlyTraining, Outputs, PoolView, Signal
from ahfal_app.query.core.scores import entropy

#: Below this imbalance the global model's head describes diversity.
_IMBALANCED = 0.5


class EqualClasses(QueryStrategy):
    """What the methods that split a budget in equal parts over classes have in common."""

    paper: ClassVar[str] = (
        "Zong and Huang, Federated active learning under extreme non-IID and global class "
        "imbalance, CVPR 2026"
    )
    signals: ClassVar[frozenset[Signal]] = frozenset(
        {
            Signal.GLOBAL_LOGITS,
            Signal.GLOBAL_EMBEDDINGS,
            Signal.LABELLED_GLOBAL_LOGITS,
            Signal.LABELLED_GLOBAL_EMBEDDINGS,
            Signal.LOCAL_ONLY_MODEL,
        }
    )

    class Parameters(QueryStrategy.Parameters):
        """Which model is asked, quotas, and how the local-only model is trained."""

        model: Literal["adaptive", "global", "local-only"] = Field(
            default="adaptive", description="Whose entropy counts: by imbalance, or always one's."
        )
        diversity_model: Literal["by-imbalance", "global"] = Field(
            default="by-imbalance",
            description="Whose predictions the gradients have: the global model's where γ < 0.5 "
            "and the local-only one's otherwise (as in the published code), or the former.",
        )
        threshold: float = Field(
            default=0.75, ge=0, le=1, description="Above it the global model is asked."
        )
        oversample: float = Field(
            default=4.0, ge=1, description="Candidates for each label of a class's quota."
        )
        epochs: int = Field(default=50, ge=1, description="Most epochs of the local-only model.")
        batch_size: int = Field(default=64, ge=2, description="Samples in a batch.")
        learning_rate: float = Field(default=0.01, gt=0, description="Learning rate of SGD.")
        momentum: float = Field(default=0.9, ge=0, lt=1, description="Momentum of SGD.")
        weight_decay: float = Field(default=1e-5, ge=0, description="Weight decay of SGD.")
        decay_at: float = Field(
            default=0.75,
            ge=0,
            le=1,
            description="Share of the epochs after which the learning rate is a tenth.",
        )
        decay_unit: Literal["epoch", "step"] = Field(
            default="step",
            description="Whether that many epochs are waited for, or (published code) steps.",
        )
        stop_accuracy: float = Field(
            default=0.99, gt=0, description="Training accuracy that ends the training early."
        )

    parameters: Parameters

    def picked(
        self, pool: PoolView, context: QueryContext, mean_imbalance: float | None
    ) -> NDArray[np.int64]:
        """Return the classes' picks, one of each class after the other.

        Parameters
        ----------
        pool, context : PoolView, QueryContext
            As of `select`.
        mean_imbalance : float | None
            γ, from 0 to 1; None: the client's own.
        """
        client = _Client(self, pool, context, mean_imbalance)
        scores_N = client.scores_N()
        classes_N = client.classes_N()
        sizes_C = torch.bincount(classes_N, minlength=context.num_classes).tolist()
        quotas_C = equal_quotas(sizes_C, context.budget)
        picks = [
            client.picks((classes_N == c).nonzero()[:, 0], scores_N, c, quota)
            for c, quota in enumerate(quotas_C)
            if quota
        ]
        rounds = [(turn, c, p) for c, each in enumerate(picks) for turn, p in enumerate(each)]
        return pool.ids_N[[position for _, _, position in sorted(rounds)]]

    def training(self) -> LocalOnlyTraining:
        """Return how the local-only model is trained."""
        parameters = self.parameters
        return LocalOnlyTraining(
            epochs=parameters.epochs,
            batch_size=parameters.batch_size,
            learning_rate=parameters.learning_rate,
            momentum=parameters.momentum,
            weight_decay=parameters.weight_decay,
            decay_after=int(parameters.decay_at * parameters.epochs),
            decay_counts_steps=parameters.decay_unit == "step",
            stop_accuracy=parameters.stop_accuracy,
        )


class Fairfal(EqualClasses):
    """Uncertain and various samples of each class, classes in equal parts.

    With π a model's *balanced prior*, the mean over the client's labelled classes of the mean
    prediction for samples of a class:

    1. γ = min π / max π of the global model, over labelled classes, tells how balanced it is;
       d = mean over classes of |π_G - π_L| / (π_G + π_L) how far the local-only model, trained on
       the client's labels alone, is from it. If 1 - (d + γ) / 2 exceeds `threshold`, the
       global model is asked, otherwise the local-only one; by their normalised entropy.
    2. A sample's class is that of the nearest prototype, the mean direction of the global
       model's embeddings of a labelled class.
    3. All classes get the same quota, the remainder goes to those with most samples, and
       what a class has no samples for goes round the others.
    4. Of a class's `oversample` times its quota most uncertain samples, greedy k-center on
       gradient embeddings, begun from the class's labelled samples, takes the quota.

    A class that the client has no label of gets no sample by its prototype, and its quota goes
    to the others: this is the published rule.

    The published γ is the mean over clients, for which these must be asked before they choose:
    `coordinated-fairfal` does that. Here each chooses alone, by its own γ of each selection, which
    is 1 with labels of a single class, so that such a client always asks the local-only model;
    `mean-imbalance` sets the federation's, where it is known. The published code draws
    to balance classes; its expectation, the mean of class means, needs no draw. Where both priors
    of a class are 0 the code has NaN, here they do not differ. A client without labels asks the
    global model and takes its predictions for classes. Samples come round by class, as they were
    picked within it.
    """

    name: ClassVar[str] = "fairfal"

    class Parameters(EqualClasses.Parameters):
        """The federation's imbalance besides."""

        mean_imbalance: float = Field(
            default=0.0, ge=0, le=1, description="Mean γ of the clients; 0: each takes its own."
        )

    parameters: Parameters

    def select(self, pool: PoolView, context: QueryContext) -> NDArray[np.int64]:
        """Return the classes' picks, one of each class after the other."""
        return self.picked(pool, context, self.parameters.mean_imbalance or None)


class _Client:
    """What a client's two models say of its samples."""

    def __init__(
        self,
        strategy: EqualClasses,
        pool: PoolView,
        context: QueryContext,
        mean_imbalance: float | None,
    ) -> None:
        self._parameters, self._training = strategy.parameters, strategy.training()
        self._pool, self._context = pool, context
        self._embeddings_ND = pool.signal(Signal.GLOBAL_EMBEDDINGS)
        self._labelled_LD = pool.signal(Signal.LABELLED_GLOBAL_EMBEDDINGS)
        self._labels_L = torch.from_numpy(context.labels_L).to(self._embeddings_ND.device)
        if len(self._labels_L) != len(self._labelled_LD):
            raise ValueError(
                f"{len(self._labels_L)} labels for {len(self._labelled_LD)} labelled samples"
            )
        global_LC = pool.signal(Signal.LABELLED_GLOBAL_LOGITS)
        self._prior_C = balanced_prior(global_LC, self._labels_L)
        own = imbalance(self._prior_C, self._labels_L)
        self._imbalance = own if mean_imbalance is None else mean_imbalance

    def scores_N(self) -> Tensor:
        """Return the normalised entropy of the model that is asked. Shape (N,)."""
        if self._asks_global_model():
            logits_NC = self._pool.signal(Signal.GLOBAL_LOGITS)
        else:
            logits_NC = self._pool.local_only(self._training).logits_NC
        return entropy(logits_NC) / math.log(self._context.num_classes)

    def classes_N(self) -> Tensor:
        """Return the class of the nearest prototype, int64. Shape (N,)."""
        if not len(self._labels_L):
            return self._pool.signal(Signal.GLOBAL_LOGITS).argmax(dim=1)
        known_K = torch.unique(self._labels_L)
        labelled_LD = directions(self._labelled_LD)
        prototypes_KD = directions(
            torch.stack([labelled_LD[self._labels_L == c].mean(dim=0) for c in known_K])
        )
        cosines_NK = directions(self._embeddings_ND) @ prototypes_KD.T
        highest_N1 = cosines_NK.amax(dim=1, keepdim=True)
        # Cosines that differ by rounding are equal, and the lowest class decides.
        classes_N: Tensor = known_K[(cosines_NK >= highest_N1 - 1e-12).int().argmax(dim=1)]
        return classes_N

    def picks(self, members_M: Tensor, scores_N: Tensor, label: int, quota: int) -> list[int]:
        """Return positions of a class's samples in the order in which k-center took them."""
        falling_M = members_M[falling(scores_N[members_M])]
        number = min(len(falling_M), max(1, math.floor(self._parameters.oversample * quota)))
        candidates_K = falling_M[:number]
        anchors_L = (self._labels_L == label).nonzero()[:, 0]
        pool_side, labelled_side = self._diversity_outputs()
        probabilities = torch.softmax(pool_side.logits_NC[candidates_K].double(), dim=1)
        predicted = probabilities.argmax(dim=1)
        left = [_gradients(probabilities, predicted)]
        right = [self._embeddings_ND[candidates_K].double()]
        if len(anchors_L):
            known = torch.softmax(labelled_side.logits_NC[anchors_L].double(), dim=1)
            left.append(_gradients(known, torch.full_like(anchors_L, label)))
            right.append(self._labelled_LD[anchors_L].double())
        points = OuterProductPoints(torch.cat(left), torch.cat(right))
        order_B = anchored_k_center(points, number, quota)
        return [int(p) for p in candidates_K.cpu().numpy()[order_B]]

    def _diversity_outputs(self) -> tuple[Outputs, Outputs]:
        by_imbalance = self._parameters.diversity_model == "by-imbalance"
        if by_imbalance and self._imbalance >= _IMBALANCED and len(self._labels_L):
            pool_side = self._pool.local_only(self._training)
            return pool_side, self._pool.local_only_labelled(self._training)
        labelled = Outputs(self._pool.signal(Signal.LABELLED_GLOBAL_LOGITS), self._labelled_LD)
        return Outputs(self._pool.signal(Signal.GLOBAL_LOGITS), self._embeddings_ND), labelled

    def _asks_global_model(self) -> bool:
        if self._parameters.model != "adaptive":
            return self._parameters.model == "global"
        if not len(self._labels_L):
            return True
        local_LC = self._pool.local_only_labelled(self._training).logits_NC
        divergence = prior_divergence(self._prior_C, balanced_prior(local_LC, self._labels_L))
        return 1 - (divergence + self._imbalance) / 2 > self._parameters.threshold


def balanced_prior(logits_LC: Tensor, labels_L: Tensor) -> Tensor:
    """Return the mean over labelled classes of the mean prediction for a class. Shape (C,).

    Zeros where there are no labels.
    """
    probabilities_LC = torch.softmax(logits_LC.double(), dim=1)
    classes = torch.unique(labels_L)
    if not len(classes):
        return probabilities_LC.new_zeros(probabilities_LC.shape[1])
    return torch.stack([probabilities_LC[labels_L == c].mean(dim=0) for c in classes]).mean(dim=0)


def imbalance(prior_C: Tensor, labels_L: Tensor) -> float:
    """Return γ, the smallest over the largest prior of labelled classes; 1 without labels."""
    if not len(labels_L):
        return 1.0
    prior_K = prior_C[torch.unique(labels_L)]
    highest = float(prior_K.max())
    return float(prior_K.min()) / highest if highest > 0 else 1.0


def prior_divergence(first_C: Tensor, second_C: Tensor) -> float:
    """Return d, the mean over classes of |a - b| / (a + b), where 0/0 counts as 0."""
    total_C = first_C + second_C
    return float(((first_C - second_C).abs() / torch.where(total_C > 0, total_C, 1.0)).mean())


def equal_quotas(sizes_C: list[int], budget: int) -> list[int]:
    """Split a budget in equal parts over classes that have only so many samples.

    The remainder of the division goes to the largest classes, among equals to the lowest; what
    a class cannot take goes one each to those that can, in the same order, again and again.

    Parameters
    ----------
    sizes_C : list[int]
        Samples of each class. Shape (C,).
    budget : int
        Number to split, at most the sum of the sizes.
    """
    base, rest = divmod(budget, len(sizes_C))
    largest_first = sorted(range(len(sizes_C)), key=lambda c: (-sizes_C[c], c))
    quotas_C = [base] * len(sizes_C)
    for c in largest_first[:rest]:
        quotas_C[c] += 1
    quotas_C = [min(quota, size) for quota, size in zip(quotas_C, sizes_C, strict=True)]
    left = budget - sum(quotas_C)
    while left:
        for c in [c for c in largest_first if quotas_C[c] < sizes_C[c]][:left]:
            quotas_C[c] += 1
            left -= 1
    return quotas_C


def anchored_k_center(points: OuterProductPoints, size: int, count: int) -> NDArray[np.int64]:
    """Return picks among the first points, from the others, or else from the first point.

    Parameters
    ----------
    points : OuterProductPoints
        Candidates by falling score, then anchors.
    size : int
        Number of candidates.
    count : int
        Number of picks.
    """
    nothing_near = torch.finfo(torch.float64).max
    nearest = torch.full_like(points.squared_norms_N[:size], nothing_near)
    if len(points) > size:
        points.lower(nearest, torch.arange(size, len(points), device=nearest.device))
    else:
        nearest[0] = torch.inf
    return greedy_k_center(points, nearest, count)


def _gradients(probabilities_KC: Tensor, classes_K: Tensor) -> Tensor:
    """Return e_y - p, float64. Shape (K, C)."""
    gradients_KC = -probabilities_KC
    rows = torch.arange(len(classes_K), device=classes_K.device)
    gradients_KC[rows, classes_K] = 0.0
    # 1 - p would round to 0 where the others are small, and their sum does not.
    gradients_KC[rows, classes_K] = -gradients_KC.sum(dim=1)
    return gradients_KC
