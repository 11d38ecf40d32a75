"""IFAL: samples on whose surroundings differently trained models disagree.

Shape suffixes: N samples in the pool, L labelled samples, V voters, R voters looked at together,
K neighbours, M candidates, C classes, D embedding width.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from ahfal_app.otsu import otsu_neighbours
from ahfal_app.query.core.base import QueryContext, QueryStrategy, ScoringStrategy
from ahfal_app.query.core.clustering import representatives
from ahfal_app.query.core.picking import falling, top_scores
from ahfal_app.query.core.points import directions
from ahfal_app.query.core.pool import LocalOnlyTraining, PoolView, Signal
from ahfal_app.query.core.undecided import decided

#: Similarities of one block of voters: 32 MiB.
_BLOCK = 2**22

#: Keeps the ratio of two distances finite.
_SMOOTHING = 1e-5


class Ifal(ScoringStrategy):
    """Samples whose neighbours' votes differ between global, local and distilled model.

    Labelled samples vote for their class, those of the pool for a model's prediction. Each
    votes on the `neighbours` samples of the pool that are most similar to it in a model's
    embeddings; one vote for each class is there from the beginning, and a sample's votes over
    their sum are its distribution q: q_G and q_L by global predictions and global or local
    embeddings, q_D by global predictions and those of a model distilled from the global one on the
    client's labels, q_LL by local predictions and local embeddings. With W a distance of
    distributions, D1 = W(q_L, q_D) and D2 = W(q_G, q_D), the uncertainty is U = U1 U2 with

        U1 = max(D2 / (D1 + 10⁻⁵), D1 / (D2 + 10⁻⁵)) (D1 + D2),    U2 = W(q_LL, softmax of f^L).

    Candidates are the samples above Otsu's threshold; k-means on their local embeddings makes as
    many clusters as labels are to be bought, and the sample nearest to each centre is taken.
    Where the candidates are too few, those of U1 alone stand in, and where these are, too, the
    largest U (`shortage=extend`: the candidates first).

    The published distance is SciPy's `wasserstein_distance` of the probabilities taken as
    samples: it compares them in sorted order, so that which class is which does not count
    (`distance=sorted`). `ordered` is the earth mover's distance over class numbers,
    `total-variation` half the sum of differences. Otsu's threshold is exact, where the published
    code's is that of 256 bins. To be linear in the pool, at most `voters` vote: all labelled
    samples, and of the pool a random share. Where U is the same everywhere the order is random;
    so it is with a linear head on a frozen backbone, whose embeddings are the features for all
    models: D1 and D2 are 0.
    """

    name: ClassVar[str] = "ifal"
    paper: ClassVar[str] = (
        "Zong, Jin and Huang, Inconsistency-based federated active learning, IJCAI 2025"
    )
    signals: ClassVar[frozenset[Signal]] = frozenset(
        {
            Signal.GLOBAL_LOGITS,
            Signal.LOCAL_LOGITS,
            Signal.GLOBAL_EMBEDDINGS,
            Signal.LOCAL_EMBEDDINGS,
            Signal.LABELLED_GLOBAL_EMBEDDINGS,
            Signal.LABELLED_LOCAL_EMBEDDINGS,
            Signal.LOCAL_ONLY_MODEL,
        }
    )

    class Parameters(QueryStrategy.Parameters):
        """The votes, the distance, and how the distilled model is trained."""

        distance: Literal["sorted", "total-variation", "ordered"] = Field(
            default="sorted",
            description="W: of sorted probabilities (published code), total variation, or earth "
            "mover's over class numbers.",
        )
        shortage: Literal["restart", "extend"] = Field(
            default="restart",
            description="Where candidates are too few: forget them (published code), or add to "
            "them.",
        )
        neighbours: int = Field(default=250, ge=1, description="Samples that each voter votes on.")
        voters: int = Field(
            default=10_000, ge=1, description="Most voters; all labelled samples in any case."
        )
        epochs: int = Field(default=500, ge=1, description="Most epochs of the distilled model.")
        patience: int = Field(
            default=5, ge=1, description="Epochs without a lower loss that end its training."
        )
        distil_weight: float = Field(
            default=0.9, gt=0, le=1, description="Weight of the distillation in its loss."
        )
        temperature: float = Field(default=4.0, gt=0, description="Of the distillation.")
        batch_size: int = Field(default=64, ge=2, description="Samples in a batch.")
        learning_rate: float = Field(default=0.001, gt=0, description="Learning rate of SGD.")
        momentum: float = Field(default=0.9, ge=0, lt=1, description="Momentum of SGD.")
        weight_decay: float = Field(default=1e-5, ge=0, description="Weight decay of SGD.")

    parameters: Parameters

    def scores(self, pool: PoolView, context: QueryContext) -> Tensor:
        """Return the uncertainty U, float64. Shape (N,)."""
        return self._uncertainties(pool, context)[0]

    def select(self, pool: PoolView, context: QueryContext) -> NDArray[np.int64]:
        """Return representatives of the candidates, or the largest uncertainties."""
        whole_N, first_N = self._uncertainties(pool, context)
        generator = context.generator(f"{self.name}.k-means")
        for values_N in (whole_N, first_N):
            candidates_M = above_otsu(values_N)
            if len(candidates_M) >= context.budget:
                points_MD = directions(pool.signal(Signal.LOCAL_EMBEDDINGS)[candidates_M])
                chosen = representatives(points_MD, context.budget, generator)
                chosen_B: NDArray[np.int64] = pool.ids_N[candidates_M.cpu().numpy()[chosen]]
                return chosen_B
        ranked_N = decided(whole_N, context, self.name, "all models see the same in the pool")
        if self.parameters.shortage == "extend":
            order_N = _in_groups(ranked_N, [above_otsu(whole_N), above_otsu(first_N)])
            extended_B: NDArray[np.int64] = pool.ids_N[order_N[: context.budget].cpu().numpy()]
            return extended_B
        return top_scores(ranked_N, pool.ids_N, context.budget)

    def _uncertainties(self, pool: PoolView, context: QueryContext) -> tuple[Tensor, Tensor]:
        """Return U and U1, float64. Shapes (N,)."""
        key = (self.name, self.parameters, context.seed, context.client, context.cycle)
        return pool.once(key, lambda: self._computed_uncertainties(pool, context))

    def _computed_uncertainties(
        self, pool: PoolView, context: QueryContext
    ) -> tuple[Tensor, Tensor]:
        distance = _DISTANCES[self.parameters.distance]
        local_NC = pool.signal(Signal.LOCAL_LOGITS)
        by_global = pool.signal(Signal.GLOBAL_LOGITS).argmax(dim=1)
        by_local = local_NC.argmax(dim=1)
        labels_L = torch.from_numpy(context.labels_L).to(by_global.device)
        voting = _Voting(
            labels_L,
            self._drawn_voters(len(pool), len(labels_L), context).to(by_global.device),
            context.num_classes,
            self.parameters.neighbours,
        )
        global_, local = [by_global], [by_global, by_local]
        q_g, q_l, q_ll, q_d = voting.of_models(
            [
                (
                    pool.signal(Signal.GLOBAL_EMBEDDINGS),
                    pool.signal(Signal.LABELLED_GLOBAL_EMBEDDINGS),
                    global_,
                ),
                (
                    pool.signal(Signal.LOCAL_EMBEDDINGS),
                    pool.signal(Signal.LABELLED_LOCAL_EMBEDDINGS),
                    local,
                ),
                (*pool.local_only_embeddings(self._training()), global_),
            ]
        )
        first_N = inconsistency(distance(q_l, q_d), distance(q_g, q_d))
        second_N = distance(q_ll, torch.softmax(local_NC.double(), dim=1))
        return first_N * second_N, first_N

    def _drawn_voters(self, size: int, num_labelled: int, context: QueryContext) -> Tensor:
        """Return the positions in the pool of those that vote besides the labelled samples."""
        most = max(0, self.parameters.voters - num_labelled)
        if size <= most:
            return torch.arange(size)
        drawn = context.generator(f"{self.name}.voters").choice(size, most, replace=False)
        return torch.from_numpy(np.sort(drawn))

    def _training(self) -> LocalOnlyTraining:
        parameters = self.parameters
        return LocalOnlyTraining(
            epochs=parameters.epochs,
            batch_size=parameters.batch_size,
            learning_rate=parameters.learning_rate,
            momentum=parameters.momentum,
            weight_decay=parameters.weight_decay,
            decay_after=parameters.epochs,
            decay_counts_steps=False,
            stop_accuracy=1.0,
            distil_weight=parameters.distil_weight,
            distil_temperature=parameters.temperature,
            patience=parameters.patience,
        )


class _Voting:
    """Who votes, on how many samples.

    Parameters
    ----------
    labels_L : Tensor
        Votes of the labelled samples, int64. Shape (L,).
    voters_V : Tensor
        Positions in the pool of the other voters, int64. Shape (V,).
    num_classes : int
        Number of classes C.
    neighbours : int
        Samples that each voter votes on, of at most all others.
    """

    def __init__(
        self, labels_L: Tensor, voters_V: Tensor, num_classes: int, neighbours: int
    ) -> None:
        self._labels_L, self._voters_V = labels_L, voters_V
        self._num_classes, self._neighbours = num_classes, neighbours

    def of_models(self, models: list[tuple[Tensor, Tensor, list[Tensor]]]) -> list[Tensor]:
        """Return what share of votes each class has for all predictions of several models.

        Models with the same embeddings, as heads on a frozen backbone are, share one search.

        Parameters
        ----------
        models : list[tuple[Tensor, Tensor, list[Tensor]]]
            Embeddings of the pool (N, D) and of the labelled set (L, D), and predictions (N,).

        Returns
        -------
        list[Tensor]
            One after the other for each model's predictions. Shapes (N, C).
        """
        shares: list[list[Tensor]] = [[] for _ in models]
        for number, (pool_ND, labelled_LD, _) in enumerate(models):
            if shares[number]:
                continue
            alike = [
                other
                for other in range(number, len(models))
                if torch.equal(models[other][0], pool_ND)
                and torch.equal(models[other][1], labelled_LD)
            ]
            predictions = [each for other in alike for each in models[other][2]]
            found = iter(self.shares(pool_ND, labelled_LD, predictions))
            for other in alike:
                shares[other] = [next(found) for _ in models[other][2]]
        return [each for of_model in shares for each in of_model]

    def shares(
        self, pool_ND: Tensor, labelled_LD: Tensor, predictions: list[Tensor]
    ) -> list[Tensor]:
        """Return for each model's predictions (N,) what share of votes each class has. (N, C).

        One search for neighbours serves them all; it takes time V N D.
        """
        if len(labelled_LD) != len(self._labels_L):
            raise ValueError(f"{len(self._labels_L)} labels for {len(labelled_LD)} samples")
        pool_ND, labelled_LD = directions(pool_ND), directions(labelled_LD)
        voters_VD = torch.cat([labelled_LD, pool_ND[self._voters_V]])
        itself_V = torch.cat([torch.full_like(self._labels_L, -1), self._voters_V])
        votes = [torch.cat([self._labels_L, each[self._voters_V]]) for each in predictions]
        size = len(pool_ND)
        tables = [pool_ND.new_ones(size * self._num_classes) for _ in votes]
        number = min(self._neighbours, size - 1)
        rows = max(1, _BLOCK // size)
        for start in range(0, len(voters_VD), rows):
            block = slice(start, start + rows)
            named_RK = _most_similar(voters_VD[block] @ pool_ND.T, itself_V[block], number)
            for table, votes_V in zip(tables, votes, strict=True):
                cells = named_RK * self._num_classes + votes_V[block][:, None]
                table += torch.bincount(cells.flatten(), minlength=len(table))
        counts = [table.view(size, self._num_classes) for table in tables]
        return [each / each.sum(dim=1, keepdim=True) for each in counts]


def _most_similar(similar_RN: Tensor, itself_R: Tensor, number: int) -> Tensor:
    """Return the positions of the highest of each row, ties to the lowest, int64. Shape (R, K)."""
    own = (itself_R >= 0).nonzero()[:, 0]
    similar_RN[own, itself_R[own]] = -torch.inf
    # What differs by rounding is equal; then the position decides.
    rounded = (similar_RN * 2**32).round_()
    rounded -= torch.arange(rounded.shape[1], device=rounded.device) / (2 * rounded.shape[1])
    return rounded.topk(number, dim=1).indices


def sorted_distance(first_NC: Tensor, second_NC: Tensor) -> Tensor:
    """Return the mean difference of sorted entries. Shape (N,)."""
    return (first_NC.sort(dim=1).values - second_NC.sort(dim=1).values).abs().mean(dim=1)


def total_variation(first_NC: Tensor, second_NC: Tensor) -> Tensor:
    """Return half the sum of differences. Shape (N,)."""
    return (first_NC - second_NC).abs().sum(dim=1) / 2


def ordered_distance(first_NC: Tensor, second_NC: Tensor) -> Tensor:
    """Return the earth mover's distance over class numbers. Shape (N,)."""
    return (first_NC - second_NC).cumsum(dim=1)[:, :-1].abs().sum(dim=1)


_DISTANCES = {
    "sorted": sorted_distance,
    "total-variation": total_variation,
    "ordered": ordered_distance,
}


def _in_groups(values_N: Tensor, groups: list[Tensor]) -> Tensor:
    """Return positions: the first group's, then the next one's, then all others. Shape (N,).

    Within each by falling value; who is in several groups counts for the first.
    """
    rank_N = torch.full_like(values_N, len(groups), dtype=torch.int64)
    for number in reversed(range(len(groups))):
        rank_N[groups[number]] = number
    order_N = falling(values_N)
    return order_N[torch.argsort(rank_N[order_N], stable=True)]


def inconsistency(first_N: Tensor, second_N: Tensor) -> Tensor:
    """Return U1 of the distances D1 and D2, float64. Shape (N,)."""
    ratio_N = torch.maximum(second_N / (first_N + _SMOOTHING), first_N / (second_N + _SMOOTHING))
    return ratio_N * (first_N + second_N)


def above_otsu(values_N: Tensor) -> Tensor:
    """Return the positions of values above Otsu's threshold, int64; none of equal values.

    Parameters
    ----------
    values_N : Tensor
        Float64. Shape (N,).
    """
    neighbours = otsu_neighbours(values_N.cpu().numpy())
    if neighbours is None:
        return values_N.new_empty(0, dtype=torch.int64)
    return (values_N > neighbours[0]).nonzero()[:, 0]
