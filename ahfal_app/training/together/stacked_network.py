"""Several copies of a network whose numbers lie in flat tensors, with SGD on all of them.

Shapes: K copies, k of them at a step, n trainable numbers of all copies, m others, B samples,
c channels, H height, W width, C classes, F = k c.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import functional_call

from ahfal_app.data.device import downloaded, page_locked
from ahfal_app.models import Classifier
from ahfal_app.models.core.vectors import VectorInput
from ahfal_app.training.sgd import Recipe, TrainingState, at_least_float32
from ahfal_app.training.together.arrangement import Arrangement
from ahfal_app.training.together.stacked_layers import stack_layers

# Momentum's keys in a client's state are the parameters' names; so are the weights' here.
Tensors = Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class _Numbers:
    """All numbers of the copies, in one place.

    Attributes
    ----------
    weights_n : Tensor
        Trainable weights.
    statistics_m : Tensor
        Of batch normalisation.
    counters_m : Tensor
        Integers: how many batches statistics are made of.
    momentum_n : Tensor
        Of the weights.
    """

    weights_n: Tensor
    statistics_m: Tensor
    counters_m: Tensor
    momentum_n: Tensor

    def of_models(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return what state dictionaries have."""
        return self.weights_n, self.statistics_m, self.counters_m

    def all(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return all of it."""
        return *self.of_models(), self.momentum_n


class StackedNetwork:
    """K copies of a network, trained with SGD as `torch.optim.SGD` does.

    Parameters
    ----------
    model : Classifier
        Gives the structure; its weights are not used.
    copies : int
        How many.
    device : torch.device
        Where they are trained.
    ready : bool
        Whether samples come as the network's first layer, on vectors, has returned them before.

    Raises
    ------
    TypeError
        The network has a layer whose copies cannot be trained together.
    """

    def __init__(
        self, model: Classifier, copies: int, device: torch.device, ready: bool = False
    ) -> None:
        self._skeleton = copy.deepcopy(model).to(device).train()
        first = getattr(self._skeleton, "vectors", None)
        if isinstance(first, VectorInput):
            first.is_done = ready
        self._copies = copies
        parameters = dict(self._skeleton.named_parameters())
        buffers = dict(self._skeleton.named_buffers())
        floating = {n: b for n, b in buffers.items() if b.is_floating_point()}
        counters = {n: b for n, b in buffers.items() if n not in floating}
        self._weights = Arrangement({n: p.shape for n, p in parameters.items()}, copies)
        self._statistics = Arrangement({n: b.shape for n, b in floating.items()}, copies)
        self._counters = Arrangement({n: b.shape for n, b in counters.items()}, copies)
        first = next(iter(parameters.values()))
        self._numbers = _Numbers(
            torch.zeros(self._weights.size, dtype=first.dtype, device=device),
            torch.zeros(self._statistics.size, dtype=first.dtype, device=device),
            torch.zeros(self._counters.size, dtype=torch.int64, device=device),
            torch.zeros(self._weights.size, dtype=first.dtype, device=device),
        )
        self._copy_n = self._weights.copy_of_each(device)
        self._counting = stack_layers(self._skeleton)
        self._left: list[TrainingState | None] = []

    @property
    def weights_n(self) -> Tensor:
        """Trainable weights of all copies."""
        return self._numbers.weights_n

    @property
    def changing(self) -> tuple[Tensor, ...]:
        """What steps change."""
        return self._numbers.all()

    def trained_by_copy(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return views of the trainable weights and of their momentum by name, shape (K, *shape).

        They stay where they are, whatever is loaded.
        """
        return (
            self._weights.by_copy(self._numbers.weights_n),
            self._weights.by_copy(self._numbers.momentum_n),
        )

    def by_copy(self, values_n: Tensor) -> dict[str, Tensor]:
        """Return views by name, shape (K, *shape), of numbers that lie as the weights do."""
        return self._weights.by_copy(values_n)

    def sums_by_copy(self, values_n: Tensor) -> Tensor:
        """Return each copy's sum of numbers that lie as the weights do. Shape (K,)."""
        return self._weights.sums(values_n)

    def load(self, models: Sequence[Tensors], states: Sequence[TrainingState | None] = ()) -> None:
        """Take over the first copies' state dictionaries and what the rounds before have left.

        In as many transfers as there are kinds of numbers. Momentum that `save` gave last has never
        left the device, and stays there.

        Parameters
        ----------
        models : Sequence[Tensors]
            State dictionaries, all on the CPU or all on the device.
        states : Sequence[TrainingState | None]
            With their momentum; None: there is none yet. None at all where nothing is trained.
        """
        own = self._numbers.of_models()
        is_here = next(iter(models[0].values())).device == own[0].device
        staged = own if is_here else tuple(page_locked(each) for each in own)
        targets = self._model_tensors(*staged)
        for position, model in enumerate(models):
            for name, target_K in targets.items():
                target_K[position].copy_(model[name])
        if not is_here:
            for target, source in zip(own, staged, strict=True):
                target.copy_(source, non_blocking=True)
        if not self._has_left(states):
            self._load_momentum(states)

    def save(self, models: Sequence[Tensors], epochs: Sequence[int]) -> list[TrainingState]:
        """Write the first copies into state dictionaries; return their momentum, on the CPU.

        Parameters
        ----------
        models : Sequence[Tensors]
            State dictionaries, all on the CPU or all on the device.
        epochs : Sequence[int]
            How many each has done in the cycle.
        """
        copied = _Numbers(*downloaded(self._numbers.all()))
        on_cpu = next(iter(models[0].values())).device.type == "cpu"
        numbers = copied if on_cpu else self._numbers
        sources = self._model_tensors(*numbers.of_models())
        for position, model in enumerate(models):
            for name, source_K in sources.items():
                model[name].copy_(source_K[position])
        momentum = self._weights.by_copy(copied.momentum_n)
        states = [
            TrainingState({name: each_K[position] for name, each_K in momentum.items()}, done)
            for position, done in enumerate(epochs)
        ]
        self._left = list(states)
        return states

    def logits(
        self,
        weights_n: Tensor,
        inputs_BFHW: Tensor,
        counting_kB: Tensor | None,
        count: int,
        precision: str,
    ) -> Tensor:
        """Return the logits of the first k copies in training mode. Shape (k, B, C).

        Running statistics of batch normalisation move.

        Parameters
        ----------
        weights_n : Tensor
            Weights of all copies; gradients flow to them.
        inputs_BFHW : Tensor
            Normalised images, those of the k copies side by side in the channels; or vectors,
            (B, F).
        counting_kB : Tensor | None
            Which samples count for batch normalisation and steps of dropout, bool; None: all.
        count : int
            k.
        precision : str
            `fp32` or `bf16`.
        """
        # A copy, since KCFU's second pass moves it before the first one's gradient is known.
        statistics_m = self._numbers.statistics_m.clone()
        tensors = {
            **self._weights.merged(weights_n, count),
            **self._statistics.merged(statistics_m, count),
            **self._counters.merged(self._numbers.counters_m, count),
        }
        for layer in self._counting:
            layer.counting_kB = counting_kB
        # Weights are used once in a step: autocast's cache of converted ones is of no use.
        with torch.autocast(
            inputs_BFHW.device.type,
            torch.bfloat16,
            enabled=precision == "bf16",
            cache_enabled=False,
        ):
            logits_BF: Tensor = functional_call(self._skeleton, tensors, (inputs_BFHW,))
        with torch.no_grad():
            self._numbers.statistics_m.copy_(statistics_m)
        logits_BkC = at_least_float32(logits_BF).view(len(logits_BF), count, -1)
        return logits_BkC.transpose(0, 1)

    def descend(self, gradient_n: Tensor, rates_k: Tensor, recipe: Recipe) -> None:
        """Take a step of SGD with momentum and weight decay for the first k copies."""
        weights_n, momentum_n = self.weights_n, self._numbers.momentum_n
        gradient_n = gradient_n.add(weights_n, alpha=recipe.weight_decay)
        rates_K = rates_k.to(momentum_n.dtype)
        if len(rates_k) == self._copies:
            momentum_n.mul_(recipe.momentum).add_(gradient_n)
        else:
            rates_K = torch.cat((rates_K, rates_K.new_zeros(self._copies - len(rates_k))))
            moved_n = momentum_n * recipe.momentum + gradient_n
            takes_part_n = self._copy_n < len(rates_k)
            momentum_n.copy_(torch.where(takes_part_n, moved_n, momentum_n))
        weights_n.addcmul_(momentum_n, rates_K.index_select(0, self._copy_n), value=-1)

    # --- inside -------------------------------------------------------------------------

    def _model_tensors(
        self, weights_n: Tensor, statistics_m: Tensor, counters_m: Tensor
    ) -> dict[str, Tensor]:
        """Return views of what a state dictionary has by name, shape (K, *shape)."""
        return {
            **self._weights.by_copy(weights_n),
            **self._statistics.by_copy(statistics_m),
            **self._counters.by_copy(counters_m),
        }

    def _has_left(self, states: Sequence[TrainingState | None]) -> bool:
        """Return whether the momentum of these states is what lies here already."""
        known = self._left[: len(states)]
        return len(known) == len(states) and all(
            one is not None and one is other for one, other in zip(states, known, strict=True)
        )

    def _load_momentum(self, states: Sequence[TrainingState | None]) -> None:
        momentum_n = self._numbers.momentum_n
        staged_n = momentum_n if momentum_n.device.type == "cpu" else page_locked(momentum_n)
        staged_n.zero_()
        targets = self._weights.by_copy(staged_n)
        for position, state in enumerate(states):
            for name, value in (state.momentum if state else {}).items():
                targets[name][position].copy_(value)
        if staged_n is not momentum_n:
            momentum_n.copy_(staged_n, non_blocking=True)
