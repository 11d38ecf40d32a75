"""LoGo: clusters in a local model's gradient space, and of each the global model's choice.

Shape suffixes: N samples in the pool, C classes, D embedding width, B selected samples.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from ahfal_app.query.core.base import QueryContext, QueryStrategy
from ahfal_app.query.core.clustering import lloyd
from ahfal_app.query.core.picking import falling
from ahfal_app.query.core.pool import LocalOnlyTraining, Outputs, PoolView, Signal
from ahfal_app.query.core.scores import entropy


class Logo(QueryStrategy):
    """Clusters of the local gradient space, and of each the sample most uncertain globally.

    Macro step: k-means with as many clusters as labels are to be bought, on the embeddings of
    a model trained on the client's labels alone, each times 1 - p of its predicted class (the
    predicted class's row of the last layer's gradient, up to sign). Micro step: of each
    cluster the sample with the highest entropy of the global model.

    K-means runs to convergence on all samples, its seeding is k-means++. The best of 10 runs
    counts (`starts`): the published code leaves the number to scikit-learn, whose default was 10
    in the version that it names (1.0.1), and is 1 since version 1.4. Where there are fewer
    distinct embeddings than labels to buy, clusters are gone round again, each giving its next
    sample; the published code tops up in an order that is not reproducible.

    The local-only model starts from weights of its own, the same for all clients of a cycle.
    The published code steps its schedule, made for epochs, once a batch (`decay-unit=step`).
    """

    name: ClassVar[str] = "logo"
    paper: ClassVar[str] = (
        "Kim, Bae, Song and Yun, Re-thinking federated active learning based on inter-class "
        "diversity, CVPR 2023"
    )
    signals: ClassVar[frozenset[Signal]] = frozenset(
        {
            Signal.LOCAL_ONLY_MODEL,
            Signal.LOCAL_LOGITS,
            Signal.LOCAL_EMBEDDINGS,
            Signal.GLOBAL_LOGITS,
        }
    )

    class Parameters(QueryStrategy.Parameters):
        """The model of the macro step, and how it is trained."""

        macro: Literal["local-only", "client"] = Field(
            default="local-only",
            description="Model of the macro step: trained on the client's labels alone, or the "
            "client's model of the federated run (no extra training).",
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
            default="epoch",
            description="Whether that many epochs are waited for, or (published code) steps.",
        )
        stop_accuracy: float = Field(
            default=0.99, gt=0, description="Training accuracy that ends the training early."
        )
        starts: int = Field(
            default=10, ge=1, description="Runs of k-means of which the best counts."
        )

    parameters: Parameters

    def select(self, pool: PoolView, context: QueryContext) -> NDArray[np.int64]:
        """Return the highest global entropy of each cluster, highest first."""
        outputs = self._macro_outputs(pool)
        clusters_N = lloyd(
            gradient_embeddings(outputs),
            context.budget,
            self.parameters.starts,
            context.generator("logo.k-means"),
        )
        positions_B = best_of_each(
            entropy(pool.signal(Signal.GLOBAL_LOGITS)), clusters_N, context.budget
        )
        chosen_B: NDArray[np.int64] = pool.ids_N[positions_B]
        return chosen_B

    def _macro_outputs(self, pool: PoolView) -> Outputs:
        if self.parameters.macro == "client":
            return Outputs(pool.signal(Signal.LOCAL_LOGITS), pool.signal(Signal.LOCAL_EMBEDDINGS))
        parameters = self.parameters
        return pool.local_only(
            LocalOnlyTraining(
                epochs=parameters.epochs,
                batch_size=parameters.batch_size,
                learning_rate=parameters.learning_rate,
                momentum=parameters.momentum,
                weight_decay=parameters.weight_decay,
                decay_after=int(parameters.decay_at * parameters.epochs),
                decay_counts_steps=parameters.decay_unit == "step",
                stop_accuracy=parameters.stop_accuracy,
            )
        )


def gradient_embeddings(outputs: Outputs) -> Tensor:
    """Return embeddings times 1 - p of the predicted class, float64. Shape (N, D)."""
    log_p_N1 = torch.log_softmax(outputs.logits_NC.double(), dim=1).amax(dim=1, keepdim=True)
    # Not 1 - exp(log p), which is 0 for all confident samples.
    return outputs.embeddings_ND.double() * -torch.expm1(log_p_N1)


def best_of_each(scores_N: Tensor, clusters_N: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Return the best position of each cluster, then the second best of each, and so on.

    Parameters
    ----------
    scores_N : Tensor
        Shape (N,).
    clusters_N : NDArray[np.int64]
        Each sample's cluster. Shape (N,).
    count : int
        Number of positions, at most N.

    Returns
    -------
    NDArray[np.int64]
        Distinct positions; clusters follow each other by their best score, falling, and among
        equals the lowest position comes first. Shape (count,).
    """
    order_N = falling(scores_N).cpu().numpy()
    _, first_K, which_N = np.unique(clusters_N[order_N], return_index=True, return_inverse=True)
    # Clusters are numbered by where their best sample stands.
    cluster_N = np.argsort(np.argsort(first_K))[which_N]
    by_cluster_N = np.argsort(cluster_N, kind="stable")
    sizes_K = np.bincount(cluster_N)
    starts_K = np.cumsum(sizes_K) - sizes_K
    rank_N = np.empty_like(cluster_N)
    rank_N[by_cluster_N] = np.arange(len(cluster_N)) - starts_K[cluster_N[by_cluster_N]]
    chosen: NDArray[np.int64] = order_N[np.lexsort((cluster_N, rank_N))[:count]]
    return chosen
