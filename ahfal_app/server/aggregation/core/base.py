"""The contract of an aggregation: which of Flower's strategies computes it, and how."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated, Any, ClassVar

from flwr.serverapp.strategy import FedAvg
from pydantic import Field

from ahfal_app.messages.keys import ARRAYS_KEY, WEIGHT_KEY
from ahfal_app.parameters import Parameters as NoParameters

#: What each of Flower's strategies is made with. With no share to train, their `configure_train`
#: takes over the global model and samples no nodes: who trains is not theirs to say.
COMMON: dict[str, Any] = {
    "fraction_train": 0.0,
    "weighted_by_key": WEIGHT_KEY,
    "arrayrecord_key": ARRAYS_KEY,
}


class AggregationMethod(ABC):
    """Makes the next global model of the clients' models, by one of Flower's strategies.

    The first line of a subclass's docstring describes it in tables.

    Parameters
    ----------
    parameters : Parameters, optional
        The method's parameters; all defaults if left out.
    """

    name: ClassVar[str]
    """Name in settings: the module's name with hyphens."""
    paper: ClassVar[str]
    """Citation of what defines the method."""
    trainable_only: ClassVar[bool] = False
    """Whether it acts on trainable parameters alone, and FedAvg on everything else floating."""
    in_float64: ClassVar[bool] = False
    """Whether it is given the models in float64."""
    by_mean: ClassVar[bool] = False
    """Whether it needs no more of the models than their weighted mean."""

    class Parameters(NoParameters):
        """Parameters of the method; each has a default and a description."""

    parameters: Parameters

    def __init__(self, parameters: Parameters | None = None) -> None:
        self.parameters = self.Parameters() if parameters is None else parameters

    @abstractmethod
    def make(self) -> FedAvg:
        """Return Flower's strategy, fresh; made with `COMMON`."""

    @property
    def proximal_mu(self) -> float:
        """Weight of the proximal term in the clients' loss; 0: there is none."""
        return 0.0

    def shortage(self, clients: int) -> str | None:
        """Return why so many clients in a round are too few, or None."""
        return None


#: The median of two is their mean: one of them decides as much as it likes.
FEWEST_FOR_A_MEDIAN = 3


def too_few_for_a_median(aggregation: str, clients: int) -> str | None:
    """Return why so many clients in a round are too few for a median to withstand one, or None."""
    if clients >= FEWEST_FOR_A_MEDIAN:
        return None
    return (
        f"aggregation={aggregation!r} needs at least {FEWEST_FOR_A_MEDIAN} clients in a round, "
        f"there are {clients}: a median of fewer withstands nobody"
    )


class AmongMalicious(AggregationMethod):
    """A method that withstands a number of malicious clients, if enough others are there."""

    in_float64 = True
    clients_per_malicious: ClassVar[int]
    """Clients needed for each malicious one, besides 3."""

    class Parameters(AggregationMethod.Parameters):
        """How many are withstood."""

        malicious_clients: int = Field(
            default=1, ge=0, description="How many clients of a round may answer anything."
        )

    parameters: Parameters

    def shortage(self, clients: int) -> str | None:
        """Return why so many clients are too few for this many malicious ones, or None."""
        malicious, factor = self.parameters.malicious_clients, self.clients_per_malicious
        needed = factor * malicious + 3
        if clients >= needed:
            return None
        return (
            f"aggregation.malicious-clients={malicious}: aggregation={self.name!r} needs at least "
            f"{factor}·{malicious} + 3 = {needed} clients in a round, there are {clients}"
        )


class ServerOptimiser(AggregationMethod):
    """A method by which the server steps on trainable parameters, as an optimiser does."""

    trainable_only = True
    by_mean = True


#: Settings that server optimisers share, apart from their defaults.
LearningRate = Annotated[float, Field(gt=0, le=100, description="Server's step.")]
FirstMoment = Annotated[float, Field(ge=0, lt=1, description="Decay of the first moment.")]
SecondMoment = Annotated[float, Field(ge=0, lt=1, description="Decay of the second moment.")]
Adaptivity = Annotated[
    float,
    Field(ge=1e-12, le=1e3, description="Added to the second moment's root; small adapts more."),
]
