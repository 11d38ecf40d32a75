"""Which of Flower's strategies a name stands for, and how it is set up."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from flwr.app import ArrayRecord, Message, MetricRecord
from flwr.serverapp.strategy import (
    Bulyan,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedProx,
    FedTrimmedAvg,
    FedYogi,
    Krum,
    MultiKrum,
)

from ahfal_app.config import AggregationName, Settings
from ahfal_app.messages.keys import ARRAYS_KEY, WEIGHT_KEY

# With no share to train, their `configure_train` takes over the global model and samples no
# nodes: who trains is not theirs to say.
_COMMON: dict[str, Any] = {
    "fraction_train": 0.0,
    "weighted_by_key": WEIGHT_KEY,
    "arrayrecord_key": ARRAYS_KEY,
}


@dataclass(frozen=True)
class Method:
    """An aggregation.

    Attributes
    ----------
    make : Callable[[Settings], FedAvg]
        Returns Flower's strategy, fresh.
    trainable_only : bool
        Whether it acts on trainable parameters alone, and FedAvg on everything else floating.
    in_float64 : bool
        Whether it is given the models in float64.
    by_mean : bool
        Whether it needs no more of the models than their weighted mean.
    """

    make: Callable[[Settings], FedAvg]
    trainable_only: bool = False
    in_float64: bool = False
    by_mean: bool = False


class _MultiKrum(MultiKrum):
    """Multi-Krum that averages all but the malicious, unless it is told how many."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(num_malicious_nodes=settings.malicious_clients, **_COMMON)
        self._wanted = settings.multikrum_clients

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Aggregate what is left after the selection."""
        replies = list(replies)
        self.num_nodes_to_select = self._wanted or len(replies) - self.num_malicious_nodes
        return super().aggregate_train(server_round, replies)


def average() -> FedAvg:
    """Return plain federated averaging."""
    return FedAvg(**_COMMON)


def _fedprox(settings: Settings) -> FedAvg:
    return FedProx(proximal_mu=settings.proximal_mu, **_COMMON)


def _fedavgm(settings: Settings) -> FedAvg:
    rate = _given(server_learning_rate=settings.server_learning_rate)
    return FedAvgM(server_momentum=settings.server_momentum, **rate, **_COMMON)


def _fedadagrad(settings: Settings) -> FedAvg:
    rate = _given(eta=settings.server_learning_rate)
    return FedAdagrad(tau=settings.server_adaptivity, **rate, **_COMMON)


def _fedadam(settings: Settings) -> FedAvg:
    return FedAdam(**_moments(settings), **_COMMON)


def _fedyogi(settings: Settings) -> FedAvg:
    return FedYogi(**_moments(settings), **_COMMON)


def _moments(settings: Settings) -> dict[str, Any]:
    return {
        "beta_1": settings.server_momentum,
        "beta_2": settings.server_second_moment,
        "tau": settings.server_adaptivity,
        **_given(eta=settings.server_learning_rate),
    }


def _given(**rate: float) -> dict[str, Any]:
    """Return a learning rate that is set; 0 leaves it to Flower's default of the method."""
    return {name: value for name, value in rate.items() if value}


def _fedmedian(settings: Settings) -> FedAvg:
    return FedMedian(**_COMMON)


def _fedtrimmedavg(settings: Settings) -> FedAvg:
    return FedTrimmedAvg(beta=settings.trimmed_share, **_COMMON)


def _krum(settings: Settings) -> FedAvg:
    return Krum(num_malicious_nodes=settings.malicious_clients, **_COMMON)


def _bulyan(settings: Settings) -> FedAvg:
    return Bulyan(num_malicious_nodes=settings.malicious_clients, **_COMMON)


METHODS: dict[AggregationName, Method] = {
    "fedavg": Method(lambda settings: average(), by_mean=True),
    "fedprox": Method(_fedprox, by_mean=True),
    "fedavgm": Method(_fedavgm, trainable_only=True, by_mean=True),
    "fedadam": Method(_fedadam, trainable_only=True, by_mean=True),
    "fedadagrad": Method(_fedadagrad, trainable_only=True, by_mean=True),
    "fedyogi": Method(_fedyogi, trainable_only=True, by_mean=True),
    "fedmedian": Method(_fedmedian, in_float64=True),
    "fedtrimmedavg": Method(_fedtrimmedavg, in_float64=True),
    "krum": Method(_krum, in_float64=True),
    "multikrum": Method(_MultiKrum, in_float64=True),
    "bulyan": Method(_bulyan, in_float64=True),
}
