"""Noise stability: the samples whose output moves most when the weights are disturbed.

Shape suffixes: N samples in the pool, C classes, D embedding width, K draws of noise,
V numbers that describe a sample, B selected samples.
"""

from __future__ import annotations

import functools
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from ahfal_app.query.core.base import QueryContext, QueryStrategy, ScoringStrategy
from ahfal_app.query.core.k_center import greedy_k_center
from ahfal_app.query.core.picking import top_scores
from ahfal_app.query.core.points import EmbeddingPoints, row_blocks
from ahfal_app.query.core.pool import Outputs, PoolView, Signal
from ahfal_app.query.core.undecided import decided

#: What a vanishing feature vector moves by, relative to its length, may exceed what is kept.
_LARGEST = torch.finfo(torch.float32).max


class NoiseStability(ScoringStrategy):
    """Samples whose outputs move most, and differently, under noise on the weights.

    Noise of a relative norm is added K times to every tensor named `weight` (of convolutions,
    linear layers and normalisation; never to biases). A sample is described by its K relative
    deviations s_k(x) - s_0(x) over |s_0(x)|, side by side, where s are the softmax outputs.
    Greedy k-center on these vectors, from the origin, takes the least stable sample first and
    then trades instability against diversity.

    The published code looks at no more than 25,000 samples of the pool at random; here all
    take part. Its default is 50 draws; the commands that it is published with use 30.
    """

    name: ClassVar[str] = "noise-stability"
    paper: ClassVar[str] = (
        "Li, Yang, Gu, Zhan, Wang, Xu and Xu, Deep active learning with noise stability, AAAI 2024"
    )
    signals: ClassVar[frozenset[Signal]] = frozenset(
        {Signal.LOCAL_LOGITS, Signal.LOCAL_EMBEDDINGS, Signal.PERTURBED_LOCAL_MODEL}
    )

    class Parameters(QueryStrategy.Parameters):
        """The noise, and what is made of the deviations."""

        draws: int = Field(
            default=50, ge=1, description="Draws of noise; each is a forward pass over the pool."
        )
        noise_scale: float = Field(
            default=1e-3, ge=0, le=1, description="Norm of the noise over that of the weights."
        )
        selection: Literal["k-center", "top-k"] = Field(
            default="k-center",
            description="Greedy k-center from the origin, or simply the largest deviations.",
        )
        target: Literal["softmax", "feature"] = Field(
            default="softmax", description="The output whose deviations count."
        )

    parameters: Parameters

    def scores(self, pool: PoolView, context: QueryContext) -> Tensor:
        """Return the squared length of each sample's deviations, float64. Shape (N,)."""
        return EmbeddingPoints(self._deviations(pool, context)).squared_norms_N

    def select(self, pool: PoolView, context: QueryContext) -> NDArray[np.int64]:
        """Return what k-center takes in its order, or the largest deviations."""
        scores_N = self.scores(pool, context)
        ranked_N = decided(scores_N, context, self.name, "noise moves no output")
        if ranked_N is not scores_N:
            return top_scores(ranked_N, pool.ids_N, context.budget)
        if self.parameters.selection == "top-k":
            return top_scores(scores_N, pool.ids_N, context.budget)
        points = EmbeddingPoints(self._deviations(pool, context))
        return pool.ids_N[greedy_k_center(points, scores_N, context.budget)]

    def _deviations(self, pool: PoolView, context: QueryContext) -> Tensor:
        """Return the deviations of all draws side by side, float32. Shape (N, V).

        In float32, which reaches down to 10⁻⁴⁵: half precision made all samples equal whose
        deviations are ten million times smaller than the pool's largest, and there are many.
        """
        key = (self.name, self.parameters, context.seed, context.client, context.cycle)
        return pool.once(key, lambda: self._computed_deviations(pool, context))

    def _computed_deviations(self, pool: PoolView, context: QueryContext) -> Tensor:
        clean = Outputs(pool.signal(Signal.LOCAL_LOGITS), pool.signal(Signal.LOCAL_EMBEDDINGS))
        size, width = len(pool.ids_N), self._target(clean, slice(0, 1)).shape[1]
        shape = (size, self.parameters.draws * width)
        deviations_NV = clean.logits_NC.new_empty(shape, dtype=torch.float32)
        for draw in range(self.parameters.draws):
            perturb = functools.partial(
                add_weight_noise,
                scale=self.parameters.noise_scale,
                generator=context.generator(f"noise-stability.{draw}"),
            )
            noisy = pool.perturbed(perturb)
            columns = slice(draw * width, (draw + 1) * width)
            for rows in row_blocks(size):
                moved_RV = self._moved(clean, noisy, rows)
                deviations_NV[rows, columns] = moved_RV.clamp_(-_LARGEST, _LARGEST).float()
        return deviations_NV

    def _moved(self, clean: Outputs, noisy: Outputs, rows: slice) -> Tensor:
        """Return how far rows' outputs have moved, relative to their length, float64."""
        output_RV = self._target(clean, rows)
        moved_RV = self._target(noisy, rows) - output_RV
        if self.parameters.target == "softmax":
            # The likeliest class moves against all others; near 1 a difference would not tell.
            likeliest_R1 = output_RV.argmax(dim=1, keepdim=True)
            moved_RV.scatter_(1, likeliest_R1, 0.0)
            moved_RV.scatter_(1, likeliest_R1, -moved_RV.sum(dim=1, keepdim=True))
        norm_R1 = output_RV.norm(dim=1, keepdim=True)
        # A vanishing feature vector has no relative deviation; the plain one stands in.
        return moved_RV / torch.where(norm_R1 > 0, norm_R1, 1.0)

    def _target(self, outputs: Outputs, rows: slice) -> Tensor:
        """Return the output of some rows that is watched, float64."""
        if self.parameters.target == "feature":
            return outputs.embeddings_ND[rows].double()
        return torch.softmax(outputs.logits_NC[rows].double(), dim=1)


def add_weight_noise(model: nn.Module, scale: float, generator: np.random.Generator) -> None:
    """Add Gaussian noise to each tensor named `weight`, of a norm relative to the tensor's.

    Parameters
    ----------
    model : nn.Module
        Changed in place.
    scale : float
        Norm of the noise over the norm of the tensor.
    generator : np.random.Generator
        What the noise is drawn from, on the CPU, so that all devices draw the same.
    """
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.rpartition(".")[2] != "weight":
                continue
            drawn = generator.standard_normal(tuple(weight.shape), dtype=np.float32)
            noise = torch.from_numpy(drawn).to(weight.device)
            weight.add_(noise * (scale * weight.norm() / noise.norm()))
