"""What Flower's server optimisers carry from round to round, as named arrays and back.

The global model that they keep, too, is the one that is sent out next, so it is in every
checkpoint already.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from flwr.serverapp.strategy import FedAvg, FedAvgM
from flwr.serverapp.strategy.fedopt import FedOpt
from numpy.typing import NDArray

ServerState = dict[str, NDArray[np.generic]]

_FIRST_MOMENT, _SECOND_MOMENT, _VELOCITY = "first-moment/", "second-moment/", "velocity/"


def read_state(aggregator: FedAvg, names: Sequence[str]) -> ServerState:
    """Return the state of Flower's strategy, by `<kind>/<array>`; empty where it has none so far.

    Parameters
    ----------
    aggregator : FedAvg
        One of Flower's.
    names : Sequence[str]
        The arrays that it acts on, in the order in which it gets them, which is sorted.
    """
    if isinstance(aggregator, FedOpt):
        first, second = aggregator.m_t or {}, aggregator.v_t or {}
        return _prefixed(_FIRST_MOMENT, first) | _prefixed(_SECOND_MOMENT, second)
    if isinstance(aggregator, FedAvgM) and aggregator.momentum_vector is not None:
        return _prefixed(_VELOCITY, dict(zip(names, aggregator.momentum_vector, strict=True)))
    return {}


def restore_state(aggregator: FedAvg, state: Mapping[str, NDArray[np.generic]]) -> None:
    """Give a fresh strategy of Flower's a state that was read before.

    Parameters
    ----------
    aggregator : FedAvg
        One of the kind that the state was read from.
    state : Mapping[str, NDArray]
        What `read_state` returned, in any order; may be empty.
    """
    if not state:
        return
    if isinstance(aggregator, FedOpt):
        aggregator.m_t = _without_prefix(_FIRST_MOMENT, state)
        aggregator.v_t = _without_prefix(_SECOND_MOMENT, state)
    elif isinstance(aggregator, FedAvgM):
        aggregator.momentum_vector = list(_without_prefix(_VELOCITY, state).values())


def _prefixed(prefix: str, arrays: Mapping[str, NDArray[np.generic]]) -> ServerState:
    return {prefix + name: array for name, array in arrays.items()}


def _without_prefix(prefix: str, state: Mapping[str, NDArray[np.generic]]) -> ServerState:
    # Sorted, as Flower gets all arrays: FedAvgM knows them by position only.
    return {
        name.removeprefix(prefix): array
        for name, array in sorted(state.items())
        if name.startswith(prefix)
    }
