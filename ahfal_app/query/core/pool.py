"""What a query strategy sees of a client's pool: ids, and signals computed when asked for.

Shape suffixes: N samples in the pool, C classes, D embedding width, L labelled samples.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from ahfal_app.errors import InvalidSelection, NonFiniteSignal

Result = TypeVar("Result")


class Signal(Enum):
    """Model outputs that a query strategy may ask for.

    "Local" is a client's model after its last training and before aggregation, "global"
    the aggregated model. Embeddings are the inputs of the last linear layer. The last two
    take arguments and have methods of their own on `PoolView`.
    """

    LOCAL_LOGITS = "local-logits"
    """Shape (N, C)."""
    GLOBAL_LOGITS = "global-logits"
    """Shape (N, C)."""
    LOCAL_EMBEDDINGS = "local-embeddings"
    """Shape (N, D)."""
    GLOBAL_EMBEDDINGS = "global-embeddings"
    """Shape (N, D)."""
    LABELLED_LOCAL_EMBEDDINGS = "labelled-local-embeddings"
    """Shape (L, D): of the client's labelled set, not of its pool."""
    LABELLED_GLOBAL_EMBEDDINGS = "labelled-global-embeddings"
    """Shape (L, D): of the client's labelled set, not of its pool."""
    LABELLED_LOCAL_LOGITS = "labelled-local-logits"
    """Shape (L, C): of the client's labelled set, not of its pool."""
    LABELLED_GLOBAL_LOGITS = "labelled-global-logits"
    """Shape (L, C): of the client's labelled set, not of its pool."""
    LOCAL_HEAD = "local-head"
    """Shape (C, D + 1): weights of the last linear layer, and its bias as the last column."""
    GLOBAL_HEAD = "global-head"
    """Shape (C, D + 1): weights of the last linear layer, and its bias as the last column."""
    LOCAL_FEATURE_MAPS = "local-feature-maps"
    """Shape (N, 9 c): the last feature map of c channels, averaged to 3x3 and flattened."""
    LOCAL_FLIPS = "local-flips"
    """Shape (N, 1): how often the local model's prediction changed from epoch to epoch."""
    TEMPORAL_SPREAD = "temporal-spread"
    """Shape (N, 1): how much a cycle's models differ in their embeddings of a sample."""
    TEMPORAL_PROBABILITIES = "temporal-probabilities"
    """Shape (N, C): mean of the probabilities that a cycle's models give."""
    PERTURBED_LOCAL_MODEL = "perturbed-local-model"
    """Outputs of changed copies of the local model: `PoolView.perturbed`."""
    LOCAL_ONLY_MODEL = "local-only-model"
    """Outputs of a model trained on this client's labels alone: `PoolView.local_only`."""


#: What has a row for each labelled sample or each class, and not for each sample of the pool.
_NOT_OF_POOL = frozenset(
    {
        Signal.LABELLED_LOCAL_EMBEDDINGS,
        Signal.LABELLED_GLOBAL_EMBEDDINGS,
        Signal.LABELLED_LOCAL_LOGITS,
        Signal.LABELLED_GLOBAL_LOGITS,
        Signal.LOCAL_HEAD,
        Signal.GLOBAL_HEAD,
    }
)

#: What a view's models give, where it has models.
_FROM_MODELS = frozenset({Signal.PERTURBED_LOCAL_MODEL, Signal.LOCAL_ONLY_MODEL})


@dataclass(frozen=True, eq=False)
class Outputs:
    """What a model gives for a pool.

    Attributes
    ----------
    logits_NC, embeddings_ND : Tensor
        Float32.
    has_fixed_embeddings : bool
        Whether the embeddings are the same for each model of the run, as they are where it is
        nothing but a layer on vectors.
    """

    logits_NC: Tensor
    embeddings_ND: Tensor
    has_fixed_embeddings: bool = False


@dataclass(frozen=True)
class LocalOnlyTraining:
    """How to train a fresh model on a client's labels alone, by SGD with cross-entropy.

    Attributes
    ----------
    epochs : int
        Most epochs.
    batch_size : int
        Samples in a batch.
    learning_rate, momentum, weight_decay : float
        Of SGD.
    decay_after : int
        Epochs after which the learning rate is a tenth; steps, where `decay_counts_steps`.
    decay_counts_steps : bool
        Whether `decay_after` counts steps.
    stop_accuracy : float
        Accuracy on the augmented labelled set that ends training early.
    distil_weight, distil_temperature : float
        Weight w and temperature T of distillation from the global model: the loss is
        (1 - w) CE + w T² KL(softmax(t / T) ‖ softmax(z / T)) for its logits t; with w = 0 none.
    patience : int
        Epochs without a lower mean loss that end training; 0: any number, and the accuracy decides.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    momentum: float
    weight_decay: float
    decay_after: int
    decay_counts_steps: bool
    stop_accuracy: float
    distil_weight: float = 0.0
    distil_temperature: float = 1.0
    patience: int = 0


class PoolModels(Protocol):
    """Outputs that depend on more than a model and the pool; a client provides them."""

    def perturbed(self, perturb: Callable[[nn.Module], None]) -> Outputs:
        """Return the pool's outputs of a copy of the local model that `perturb` changed."""

    def local_only(self, training: LocalOnlyTraining) -> Outputs:
        """Return the pool's outputs of a fresh model trained on the labelled set alone.

        Its initial weights are the same for all clients of a cycle. It is trained once for
        equal arguments; where there are no labels, it is the model as it was initialised.
        """

    def local_only_labelled(self, training: LocalOnlyTraining) -> Outputs:
        """Return the labelled set's outputs of the model of `local_only`."""

    def local_only_embeddings(self, training: LocalOnlyTraining) -> tuple[Tensor, Tensor]:
        """Return the pool's and the labelled set's embeddings of the model of `local_only`."""


class PoolView:
    """A client's unlabelled samples: their ids, and the signals a strategy declared.

    A signal is computed at its first use and kept, so a strategy that does not touch one
    costs no forward pass for it.

    Parameters
    ----------
    ids_N : ArrayLike
        Ids of the samples, integers, strictly increasing.
    sources : Mapping[Signal, Callable[[], Tensor]]
        What computes each signal: a finite floating-point matrix whose rows follow `ids_N`
        (but for those of the labelled set and of a model's last layer).
    models : PoolModels, optional
        What computes the signals that take arguments.

    Raises
    ------
    ValueError
        The ids are not a vector of strictly increasing integers.
    """

    def __init__(
        self,
        ids_N: ArrayLike,
        sources: Mapping[Signal, Callable[[], Tensor]],
        models: PoolModels | None = None,
    ) -> None:
        ids = np.array(ids_N)
        if ids.ndim != 1 or (ids.size and not np.issubdtype(ids.dtype, np.integer)):
            raise ValueError(f"ids have shape {ids.shape}, dtype {ids.dtype}; integers (N,) needed")
        if (np.diff(ids) <= 0).any():
            raise ValueError("ids must be strictly increasing")
        self._ids_N = ids.astype(np.int64)
        self._ids_N.flags.writeable = False
        self._sources = dict(sources)
        self._models = models
        self._cache: dict[Signal, Tensor] = {}
        self._checksums: dict[Signal, int] = {}
        self._results: dict[Hashable, Any] = {}
        self._declared = frozenset(sources) | (_FROM_MODELS if models is not None else frozenset())

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self._ids_N)

    @property
    def ids_N(self) -> NDArray[np.int64]:
        """Ids of the samples: read-only, int64, strictly increasing. Shape (N,)."""
        return self._ids_N

    def declaring(self, signals: Iterable[Signal]) -> PoolView:
        """Return a view of the same pool and the same cache that gives only these signals."""
        view = PoolView(self._ids_N, self._sources, self._models)
        view._cache = self._cache
        view._checksums = self._checksums
        view._results = self._results
        view._declared = frozenset(signals)
        return view

    def signal(self, signal: Signal) -> Tensor:
        """Return a signal, computed at the first call; it must not be changed.

        Raises
        ------
        InvalidSelection
            The strategy did not declare this signal.
        NonFiniteSignal
            Some rows contain NaN or infinity.
        ValueError
            The client provides no such signal, or one of a wrong shape or type.
        """
        self._require_declared(signal)
        if signal not in self._cache:
            if signal not in self._sources:
                raise ValueError(f"no source for the signal {signal.value!r}")
            values = self._sources[signal]().detach()
            self._check(signal, values)
            self._cache[signal] = values
            self._checksums[signal] = _checksum(values)
        return self._cache[signal]

    def perturbed(self, perturb: Callable[[nn.Module], None]) -> Outputs:
        """Return the pool's outputs of a copy of the local model that `perturb` changed.

        Nothing is kept: each call costs a forward pass over the pool (see `once`).

        Parameters
        ----------
        perturb : Callable[[nn.Module], None]
            Changes the copy's parameters in place.

        Raises
        ------
        InvalidSelection, NonFiniteSignal, ValueError
            As for `signal`, with `Signal.PERTURBED_LOCAL_MODEL`.
        """
        models = self._models_for(Signal.PERTURBED_LOCAL_MODEL)
        return self._checked(Signal.PERTURBED_LOCAL_MODEL, models.perturbed(perturb))

    def local_only(self, training: LocalOnlyTraining) -> Outputs:
        """Return the pool's outputs of a fresh model trained on the labelled set alone.

        Raises
        ------
        InvalidSelection, NonFiniteSignal, ValueError
            As for `signal`, with `Signal.LOCAL_ONLY_MODEL`.
        """
        models = self._models_for(Signal.LOCAL_ONLY_MODEL)
        return self._checked(Signal.LOCAL_ONLY_MODEL, models.local_only(training))

    def local_only_labelled(self, training: LocalOnlyTraining) -> Outputs:
        """Return the labelled set's outputs of the model of `local_only`: (L, C) and (L, D).

        Raises
        ------
        InvalidSelection, NonFiniteSignal, ValueError
            As for `signal`, with `Signal.LOCAL_ONLY_MODEL`.
        """
        outputs = self._models_for(Signal.LOCAL_ONLY_MODEL).local_only_labelled(training)
        return self._checked(Signal.LOCAL_ONLY_MODEL, outputs, of_pool=False)

    def local_only_embeddings(self, training: LocalOnlyTraining) -> tuple[Tensor, Tensor]:
        """Return the pool's and the labelled set's embeddings of the model of `local_only`.

        For strategies that need no logits of it: where training does not change the embeddings,
        as of a layer on a frozen backbone's features, nothing is trained. Shapes (N, D), (L, D).

        Raises
        ------
        InvalidSelection, NonFiniteSignal, ValueError
            As for `signal`, with `Signal.LOCAL_ONLY_MODEL`.
        """
        models = self._models_for(Signal.LOCAL_ONLY_MODEL)
        pool_ND, labelled_LD = models.local_only_embeddings(training)
        self._check(Signal.LOCAL_ONLY_MODEL, pool_ND)
        self._check(Signal.LOCAL_ONLY_MODEL, labelled_LD, of_pool=False)
        return pool_ND, labelled_LD

    def once(self, key: Hashable, compute: Callable[[], Result]) -> Result:
        """Return what `compute` gave when it was first called with this key.

        For what a strategy derives from calls that keep nothing, such as `perturbed`, and needs
        again: to score and to select, or for the record of what was selected.

        Parameters
        ----------
        key : Hashable
            Everything besides the pool that the result depends on, and the strategy's name.
        compute : Callable[[], Result]
            Computes the result, which must not be changed.
        """
        if key not in self._results:
            self._results[key] = compute()
        result: Result = self._results[key]
        return result

    def changed_signals(self) -> tuple[Signal, ...]:
        """Return the signals whose values differ from those first computed."""
        return tuple(
            signal
            for signal, values in self._cache.items()
            if _checksum(values) != self._checksums[signal]
        )

    def _require_declared(self, signal: Signal) -> None:
        if signal not in self._declared:
            raise InvalidSelection(f"signal {signal.value!r} is not among the strategy's `signals`")

    def _models_for(self, signal: Signal) -> PoolModels:
        self._require_declared(signal)
        if self._models is None:
            raise ValueError(f"no source for the signal {signal.value!r}")
        return self._models

    def _checked(self, signal: Signal, outputs: Outputs, of_pool: bool = True) -> Outputs:
        self._check(signal, outputs.logits_NC, of_pool)
        self._check(signal, outputs.embeddings_ND, of_pool)
        return outputs

    def _check(self, signal: Signal, values: Tensor, of_pool: bool = True) -> None:
        if values.ndim != 2 or not values.is_floating_point():
            raise ValueError(
                f"signal {signal.value!r} has shape {tuple(values.shape)}, dtype {values.dtype}; "
                "a floating-point matrix is needed"
            )
        if of_pool and signal not in _NOT_OF_POOL and len(values) != len(self):
            raise ValueError(f"signal {signal.value!r} has {len(values)} rows for {len(self)} ids")
        if not _is_finite(values):
            bad_rows = int((~torch.isfinite(values)).any(dim=1).sum())
            raise NonFiniteSignal(
                f"signal {signal.value!r}: {bad_rows} of {len(values)} rows contain NaN or infinity"
            )


def _is_finite(values: Tensor) -> bool:
    """Return whether there is neither NaN nor infinity, without a matrix of answers."""
    if values.numel() == 0:
        return True
    lowest, highest = values.aminmax()  # NaN if any value is.
    return bool(lowest.isfinite() & highest.isfinite())


def _checksum(values: Tensor) -> int:
    # Torch's version counter misses writes through NumPy and is absent in inference mode.
    # As a vector, whose stride is 1 even where a matrix without rows has none.
    return zlib.crc32(values.flatten().view(torch.uint8).cpu().numpy().data)
