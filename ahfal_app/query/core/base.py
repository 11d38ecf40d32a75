"""The contract of a query strategy, and the one function that calls it.

Shape suffixes: N samples in the pool, C classes, B selected samples.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ahfal_app.class_statistics import ClassStatistics
from ahfal_app.errors import InvalidSelection
from ahfal_app.flat import ArrayForm
from ahfal_app.parameters import Parameters as NoParameters
from ahfal_app.query.core.picking import top_scores
from ahfal_app.query.core.pool import PoolView, Signal
from ahfal_app.query.core.questions import Part
from ahfal_app.query.core.reveals import Reveal
from ahfal_app.query.core.server_side import Arrays, RowsForm, ServerSide, Task
from ahfal_app.seeds import numpy_generator
from ahfal_app.settings import Settings

#: Maps float32 logits (B, C) and labels (B,) to a scalar.
TrainingLoss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class TrainingContext:
    """What a query strategy knows when its client trains.

    Attributes
    ----------
    num_classes : int
        Number of classes C.
    class_counts_C : NDArray[np.int64]
        Class counts of the labelled set that is trained on. Shape (C,).
    round : int
        Round within the cycle, from 1.
    """

    num_classes: int
    class_counts_C: NDArray[np.int64]
    round: int


@dataclass(frozen=True, eq=False)
class QueryContext:
    """What a query strategy knows besides the pool.

    Attributes
    ----------
    budget : int
        Number of labels to buy, at least 0.
    num_classes : int
        Number of classes C.
    class_counts_C : NDArray[np.int64]
        True class counts of the client's labelled set. Shape (C,).
    statistics : ClassStatistics
        Class statistics over all clients.
    seed, client, cycle : int
        Key of everything random in this selection.
    labels_L : NDArray[np.int64]
        Labels of the client's labelled set, in the order of the signals of it. Shape (L,).
    weighted_counts_C : NDArray[np.float64] | None
        Class counts in which older labels count less, for class budgets to go by; None where these
        go by `class_counts_C`. Shape (C,).
    coordinated : Part | None
        What the clients have coordinated before they choose, where they have.
    policy : Mapping[str, Tensor] | None
        What the strategy's half at the server has told all clients; None where there is none, or
        it has told nothing yet.
    history : Mapping[int, Arrays]
        This client's own earlier reports, by the cycle that labels were bought for, oldest first;
        as far back as the strategy `remembers`.

    Raises
    ------
    ValueError
        The budget is negative, counts or statistics are not one for each class, or labels are
        not classes.
    """

    budget: int
    num_classes: int
    class_counts_C: NDArray[np.int64]
    statistics: ClassStatistics
    seed: int
    client: int
    cycle: int
    labels_L: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    weighted_counts_C: NDArray[np.float64] | None = None
    coordinated: Part | None = None
    policy: Mapping[str, Tensor] | None = None
    history: Mapping[int, Arrays] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse a context that no strategy could use."""
        if self.budget < 0:
            raise ValueError(f"budget is {self.budget}; at least 0 is needed")
        expected = (self.num_classes,)
        for name, shape in (
            ("class_counts_C", self.class_counts_C.shape),
            ("weighted_counts_C", np.shape(self.budget_counts_C)),
            ("statistics.mean_C", self.statistics.mean_C.shape),
            ("statistics.low_C", self.statistics.low_C.shape),
        ):
            if shape != expected:
                raise ValueError(f"{name} has shape {shape}; {expected} is needed")
        labels_L = self.labels_L
        if labels_L.ndim != 1 or ((labels_L < 0) | (labels_L >= self.num_classes)).any():
            raise ValueError(f"labels_L: a vector of classes 0 to {self.num_classes - 1} is needed")

    @property
    def budget_counts_C(self) -> NDArray[np.int64] | NDArray[np.float64]:
        """The class counts that class budgets go by. Shape (C,)."""
        return self.class_counts_C if self.weighted_counts_C is None else self.weighted_counts_C

    def generator(self, purpose: str) -> np.random.Generator:
        """Return the generator of a purpose: the same for a retry of the same selection."""
        return numpy_generator(self.seed, f"query.{purpose}", self.client, self.cycle)


class QueryStrategy(ABC):
    """Decides which samples of a client's pool to label.

    The first line of a subclass's docstring describes it in tables.

    Parameters
    ----------
    parameters : Parameters, optional
        The strategy's parameters; all defaults if left out.
    """

    name: ClassVar[str]
    """Name in settings: the module's name with hyphens."""
    paper: ClassVar[str]
    """Citation of what defines the algorithm."""
    signals: ClassVar[frozenset[Signal]]
    """Everything that `select` may ask the pool for."""
    needs_labels: ClassVar[bool] = True
    """Whether the choice means something only once there are labels, and a model trained on them.

    Where it is false, `select` also chooses a client's first labels: from embeddings of any
    fixed network, with a labelled set and class counts that are empty."""
    is_coordinated: ClassVar[bool] = False
    """Whether the clients choose together: `coordination.CoordinatedStrategy`."""
    tells: ClassVar[bool] = False
    """Whether clients tell a half at the server of what they chose: `report`."""

    class Parameters(NoParameters):
        """Parameters of the strategy; each has a default and a description."""

    parameters: Parameters

    def __init__(self, parameters: Parameters | None = None) -> None:
        self.parameters = self.Parameters() if parameters is None else parameters

    @property
    def reveals(self) -> frozenset[Reveal]:
        """What the server learns of a single client's samples, besides how many were chosen."""
        return frozenset()

    @property
    def has_training_loss(self) -> bool:
        """Whether the method, as its parameters are, trains with a loss of its own."""
        return False

    def training_loss(self, context: TrainingContext) -> TrainingLoss | None:
        """Return the loss of local training; None where `has_training_loss` is false."""
        return None

    @property
    def remembers(self) -> int:
        """From how many cycles before it `select` wants the client's own reports."""
        return 0

    def server_side(self, task: Task) -> ServerSide | None:
        """Return the half at the server, as a run begins; None where there is none."""
        return None

    def policy_forms(self, task: Task) -> Mapping[str, ArrayForm]:
        """Return what the server may tell clients before they choose; empty: nothing."""
        return {}

    def report_forms(self, task: Task) -> Mapping[str, RowsForm]:
        """Return what clients tell once they have chosen; empty: nothing.

        It is about single samples, so that `reveals` must name it; of a strategy that `tells`.
        """
        return {}

    def report(self, pool: PoolView, context: QueryContext, ids_B: NDArray[np.int64]) -> Arrays:
        """Return what the server is told of a choice, in `report_forms`.

        Called by `checked_report` alone, where something was chosen.

        Parameters
        ----------
        pool, context : PoolView, QueryContext
            As of `select`, with the same signals.
        ids_B : NDArray[np.int64]
            What was chosen. Shape (B,).
        """
        return {}

    def problems(self, settings: Settings) -> list[str]:
        """Return a line for each setting of a run that does not go with the strategy."""
        return []

    @abstractmethod
    def select(self, pool: PoolView, context: QueryContext) -> NDArray[np.int64]:
        """Return `context.budget` distinct ids of the pool, the most worth labelling first.

        Called by `checked_select` alone, with 0 < budget < N.

        Parameters
        ----------
        pool : PoolView
            The ids and the declared signals, which must not be changed.
        context : QueryContext
            Budget, class counts, class statistics and random generators.

        Returns
        -------
        NDArray[np.int64]
            Ids. Shape (B,).
        """


class ScoringStrategy(QueryStrategy):
    """A query strategy that scores each sample by itself and takes the highest scores."""

    @property
    def comparable_scores(self) -> bool:
        """Whether a score means the same at all clients: of the global model's logits alone."""
        return False

    def score_range(self, num_classes: int) -> tuple[float, float]:
        """Return the lowest and the highest score there can be, where scores are comparable."""
        return 0.0, 1.0

    @abstractmethod
    def scores(self, pool: PoolView, context: QueryContext) -> Tensor:
        """Return how much each sample is worth labelling: finite float64. Shape (N,)."""

    def select(self, pool: PoolView, context: QueryContext) -> NDArray[np.int64]:
        """Return the ids with the highest scores; among equals the smallest ids."""
        return top_scores(self.scores(pool, context), pool.ids_N, context.budget)


def checked_select(
    strategy: QueryStrategy, pool: PoolView, context: QueryContext
) -> NDArray[np.int64]:
    """Run a query strategy and hold it to its contract; the only caller of `select`.

    Parameters
    ----------
    strategy : QueryStrategy
        The strategy to run.
    pool : PoolView
        The client's unlabelled samples.
    context : QueryContext
        Budget and statistics.

    Returns
    -------
    NDArray[np.int64]
        Exactly min(budget, N) distinct ids, in the strategy's order. Where the budget
        covers the pool, all its ids in increasing order, without running the strategy.

    Raises
    ------
    InvalidSelection
        The strategy returned the wrong type or count, duplicates or foreign ids, used a
        signal that it did not declare, or changed one.
    NonFiniteSignal
        A signal that the strategy used, or its scores, contain NaN or infinity.
    """
    count = min(context.budget, len(pool))
    if count == 0:
        return np.empty(0, dtype=np.int64)
    if count == len(pool):
        return pool.ids_N.copy()
    view = pool.declaring(strategy.signals)
    with torch.no_grad():
        ids_B = strategy.select(view, context)
    problem = _selection_problem(ids_B, pool.ids_N, count)
    changed = ", ".join(signal.value for signal in view.changed_signals())
    if changed:
        problem = f"changed the pool's {changed}"
    if problem:
        raise InvalidSelection(f"strategy {strategy.name!r} {problem}")
    return ids_B


def checked_report(
    strategy: QueryStrategy,
    task: Task,
    pool: PoolView,
    context: QueryContext,
    ids_B: NDArray[np.int64],
) -> dict[str, NDArray[np.generic]]:
    """Return what a query strategy tells of a choice, held to its forms; the only caller.

    Parameters
    ----------
    strategy : QueryStrategy
        The strategy that has chosen.
    task : Task
        The run.
    pool, context : PoolView, QueryContext
        As they were for `checked_select`.
    ids_B : NDArray[np.int64]
        What was chosen. Shape (B,).

    Returns
    -------
    dict[str, NDArray[np.generic]]
        The report; empty where the strategy tells nothing, or nothing was chosen.

    Raises
    ------
    InvalidSelection
        The strategy tells something else than it has declared, or changed a signal.
    """
    if not strategy.tells or not len(ids_B):
        return {}
    forms = strategy.report_forms(task)
    view = pool.declaring(strategy.signals)
    with torch.no_grad():
        report = dict(strategy.report(view, context, ids_B))
    rows = {len(values) for values in report.values() if values.ndim}
    given = {name: ArrayForm(v.shape, str(v.dtype)) for name, v in report.items()}
    if len(rows) != 1 or given != {name: form.of(*rows) for name, form in forms.items()}:
        told = ", ".join(f"{name} {form.dtype} {form.shape}" for name, form in given.items())
        raise InvalidSelection(
            f"strategy {strategy.name!r} reported {told or 'nothing'}; needed are rows of "
            + ", ".join(f"{name} {form.dtype} {form.columns}" for name, form in forms.items())
        )
    if changed := ", ".join(signal.value for signal in view.changed_signals()):
        raise InvalidSelection(f"strategy {strategy.name!r} changed the pool's {changed}")
    return report


def _selection_problem(ids_B: object, ids_N: NDArray[np.int64], count: int) -> str:
    """Return in words how a selection breaks the contract, or nothing."""
    if not isinstance(ids_B, np.ndarray) or ids_B.dtype != np.int64 or ids_B.ndim != 1:
        kind = f"{type(ids_B).__name__} of dtype {getattr(ids_B, 'dtype', None)}"
        return f"returned a {kind}; a vector of int64 ids is needed"
    if len(ids_B) != count:
        return f"selected {len(ids_B)} samples; exactly {count} are needed"
    if len(np.unique(ids_B)) != count:
        return f"selected {count - len(np.unique(ids_B))} samples more than once"
    foreign = int((~np.isin(ids_B, ids_N, assume_unique=True)).sum())
    return f"selected {foreign} ids that are not in the pool" if foreign else ""
