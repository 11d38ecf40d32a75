"""Stands in for a client's models in tests: outputs follow from what a strategy asks for."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ahfal_app.query import LocalOnlyTraining, Outputs


class FakeModels:
    """Outputs for a pool by closed formulas; equal arguments give equal outputs.

    A perturbed model moves logits and embeddings by the change of its weights, sample by sample,
    so an unperturbed one gives the local model's outputs. The local-only model reverses them.
    """

    def __init__(
        self, logits: Tensor, embeddings: Tensor, labelled: tuple[Tensor, Tensor] | None = None
    ) -> None:
        self.logits, self.embeddings = logits, embeddings
        self.labelled = (logits[:0], embeddings[:0]) if labelled is None else labelled
        self.trainings: list[LocalOnlyTraining] = []
        self.perturbations = 0

    def perturbed(self, perturb: Callable[[nn.Module], None]) -> Outputs:
        self.perturbations += 1
        width = self.embeddings.shape[1]
        model = _linear(width, self.logits.shape[1])
        with torch.no_grad():
            for index, parameter in enumerate(model.parameters()):
                parameter.copy_(torch.linspace(-1, 2 + index, parameter.numel()).view_as(parameter))
            before = model.weight.clone()
            perturb(model)
            moved = model.weight - before
        # Not a matrix product: that may round equal rows differently.
        logits = self.logits + (self.embeddings[:, None, :] * moved).sum(dim=2)
        return Outputs(logits, self.embeddings * (1 + moved[0]))

    def local_only(self, training: LocalOnlyTraining) -> Outputs:
        self.trainings.append(training)
        return Outputs(self.logits.flip(1) * training.learning_rate, self.embeddings.flip(1))

    def local_only_labelled(self, training: LocalOnlyTraining) -> Outputs:
        logits, embeddings = self.labelled
        return Outputs(logits.flip(1) * training.learning_rate, embeddings.flip(1))

    def local_only_embeddings(self, training: LocalOnlyTraining) -> tuple[Tensor, Tensor]:
        pool, labelled = self.local_only(training), self.local_only_labelled(training)
        return pool.embeddings_ND, labelled.embeddings_ND


@functools.cache
def _linear(width: int, num_classes: int) -> nn.Linear:
    # Initialisation would draw from the global generator.
    return nn.utils.skip_init(nn.Linear, width, num_classes)


class NoModels:
    """Models that must not be run."""

    def perturbed(self, perturb: Callable[[nn.Module], None]) -> Outputs:
        raise AssertionError("no model must be run")

    def local_only(self, training: LocalOnlyTraining) -> Outputs:
        raise AssertionError("no model must be run")

    def local_only_labelled(self, training: LocalOnlyTraining) -> Outputs:
        raise AssertionError("no model must be run")

    def local_only_embeddings(self, training: LocalOnlyTraining) -> tuple[Tensor, Tensor]:
        raise AssertionError("no model must be run")
