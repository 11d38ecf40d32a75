"""AHFAL with the weight of the local model estimated for each class (equation 8).

Shape suffixes: N samples in the pool, C classes.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from ahfal_app.query.core.balance import ClassBalanced, pseudo_labels
from ahfal_app.query.core.base import QueryContext
from ahfal_app.query.core.pool import PoolView, Signal
from ahfal_app.query.core.scores import entropy

# Two models that agree to rounding on a class leave nothing to weigh.
_SMALLEST_GAP = 1e-12


class AhfalLambda(ClassBalanced):
    """AHFAL with the estimated optimal weight of local and global entropy for each class.

    Appendix C.2 of the paper derives the weight λ of the local entropy, and 1 - λ of the
    global one, that has the least mean squared error (equation 8):

        λ = (V_G - ρ + β (β - b)) / (V_L + V_G - 2ρ + (b - β)²), clipped to [0, 1],

    with the variances V and the covariance ρ of the two entropies over a class, and the
    biases b of the local and β of the global one. The paper stops there and uses a
    threshold on the deviation over clients instead; this strategy estimates λ.

    What a client sees: both entropies on its pool. They give V_G - ρ = Cov(H_G, H_G - H_L),
    V_L + V_G - 2ρ = Var(H_L - H_G), and the gap b - β = E[H_L - H_G] =: d. Of the biases
    only their difference is seen, so that with β = -s d what is left to say is the share s of
    the gap that is the global model's fault; then β (β - b) = s d². After the appendix's
    assumptions, that |β| grows with the deviation σ_c over clients and |b| shrinks with the
    client's own labels n_c,

        s = w_G / (w_G + w_L),  w_G = CV² / (1 + CV²),  w_L = 1 / (1 + n_c / n),

    where CV = σ_c / p̄_c, so that 1 / (1 + CV²) is the share of clients that effectively hold
    the class, and n is the client's mean number of labels of a class. So a client rich in a
    concentrated class trusts itself (λ towards 1), a client poor in it borrows from the global
    model although the class is concentrated, and for an evenly spread class s = 0.

    Classes are the local model's pseudo-labels. A class with fewer than 2 samples in the
    pool takes the moments of the whole pool; where both models agree, λ = 1/2.
    """

    name: ClassVar[str] = "ahfal-lambda"
    paper: ClassVar[str] = (
        "Federated active learning via class-adaptive local-global balancing (AHFAL), "
        "under double-blind review; appendix C.2, estimated as described here"
    )
    signals: ClassVar[frozenset[Signal]] = frozenset({Signal.LOCAL_LOGITS, Signal.GLOBAL_LOGITS})

    class Parameters(ClassBalanced.Parameters):
        """How the gap between the models is explained."""

        bias: Literal["by-evidence", "global"] = Field(
            default="by-evidence",
            description="Whose bias the gap is: shared by counts and σ, or global (equation 9).",
        )

    parameters: Parameters

    def scores(self, pool: PoolView, context: QueryContext) -> Tensor:
        """Return λ H_L + (1 - λ) H_G, in nats, with λ of each pseudo-class. Shape (N,)."""
        local_N = entropy(pool.signal(Signal.LOCAL_LOGITS))
        global_N = entropy(pool.signal(Signal.GLOBAL_LOGITS))
        classes_N = pseudo_labels(pool)
        share_C = torch.from_numpy(self._share_of_global_bias(context)).to(local_N.device)
        weight_N = local_weights(local_N, global_N, classes_N, share_C)[classes_N]
        return weight_N * local_N + (1 - weight_N) * global_N

    def _share_of_global_bias(self, context: QueryContext) -> NDArray[np.float64]:
        if self.parameters.bias == "global":
            return np.ones(context.num_classes)
        statistics = context.statistics
        return share_of_global_bias(
            context.class_counts_C, statistics.mean_C, statistics.deviation_C
        )


def share_of_global_bias(
    class_counts_C: NDArray[np.int64],
    mean_C: NDArray[np.float64],
    deviation_C: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Return the share s of the models' gap that is put down to the global one.

    Parameters
    ----------
    class_counts_C : NDArray[np.int64]
        The client's labels of each class. Shape (C,).
    mean_C, deviation_C : NDArray[np.float64]
        Mean and deviation over clients of each class's proportion. Shape (C,).

    Returns
    -------
    NDArray[np.float64]
        In [0, 1]; does not fall with the deviation, nor with the count. Shape (C,).
    """
    # CV² / (1 + CV²), without the division by a mean of 0.
    power_C = mean_C**2 + deviation_C**2
    concentration_C = np.divide(
        deviation_C**2, power_C, out=np.zeros_like(mean_C), where=power_C > 0
    )
    mean_count = max(float(class_counts_C.mean()), 1.0)
    poverty_C = 1.0 / (1.0 + class_counts_C / mean_count)
    share_C: NDArray[np.float64] = concentration_C / (concentration_C + poverty_C)
    return share_C


def local_weights(
    local_N: Tensor, global_N: Tensor, classes_N: Tensor, share_of_global_C: Tensor
) -> Tensor:
    """Return the estimate of equation 8 for each class.

    Parameters
    ----------
    local_N, global_N : Tensor
        Entropies of both models, float64. Shape (N,), N > 0.
    classes_N : Tensor
        Pseudo-labels, int64. Shape (N,).
    share_of_global_C : Tensor
        Share of the gap between the models that is the global one's bias. Shape (C,).

    Returns
    -------
    Tensor
        Weight λ of the local entropy, float64 in [0, 1]. Shape (C,).
    """
    num_classes = len(share_of_global_C)
    size_C = torch.bincount(classes_N, minlength=num_classes)
    pool_size = torch.full_like(size_C, len(local_N))

    def mean(values_N: Tensor) -> Tensor:
        """Return the mean over each class; over the pool where a class has too few samples."""
        sums_C = torch.zeros(num_classes, dtype=values_N.dtype, device=values_N.device)
        sums_C.scatter_add_(0, classes_N, values_N)
        is_small_C = size_C < 2
        sums_C = torch.where(is_small_C, values_N.sum(), sums_C)
        return sums_C / torch.where(is_small_C, pool_size, size_C)

    gap_N = local_N - global_N
    gap_C = mean(gap_N)
    covariance_C = mean(global_N) * gap_C - mean(global_N * gap_N)
    numerator_C = covariance_C + share_of_global_C * gap_C**2
    denominator_C = mean(gap_N**2)
    is_equal_C = denominator_C < _SMALLEST_GAP
    weight_C = numerator_C / torch.where(is_equal_C, 1.0, denominator_C)
    return torch.where(is_equal_C, 0.5, weight_C).clamp(0.0, 1.0)
