"""What a client selects for labelling: its budget, its pool, and the query strategy's choice."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load as load_arrays
from torch import Tensor

from ahfal_app.class_statistics import ClassStatistics
from ahfal_app.client.arriving import Arriving
from ahfal_app.client.auditing import Auditing
from ahfal_app.client.features import pool_of_features
from ahfal_app.client.pool import PoolSituation, make_pool
from ahfal_app.config import Settings
from ahfal_app.errors import MessageRefused
from ahfal_app.forgetting import forgotten_counts
from ahfal_app.labels.store import LabelStore
from ahfal_app.ledger import Ledger
from ahfal_app.query import (
    Aligned,
    PoolView,
    QueryContext,
    QueryStrategy,
    ScoringStrategy,
    Signal,
    checked_select,
    make_strategy,
)
from ahfal_app.query.core.base import checked_report
from ahfal_app.query.core.coordination import Coordination
from ahfal_app.query.core.server_side import Arrays, Task
from ahfal_app.results.arrival_rows import write_asked
from ahfal_app.results.selections import write_client_selection
from ahfal_app.training.prediction import predict
from ahfal_app.training.resources import Resources

#: How many labels may be asked for at once, as the ledger stands.
Allowance = Callable[[Ledger], int]


def granted(ledger: Ledger) -> int:
    """Return all that is free: no site has a say in it."""
    return ledger.free


@dataclass(frozen=True, eq=False)
class Selected:
    """What was selected, and what the query strategy and the client's model make of it.

    Attributes
    ----------
    strategy : str
        Name of the query strategy.
    samples_B : NDArray[np.int64]
        Sample ids. Shape (B,).
    scores_B : NDArray[np.floating] | None
        Acquisition scores, where the strategy gives any. Shape (B,).
    guesses_B : NDArray[np.int64] | None
        Class indices that the local model f^L says, where the strategy has it. Shape (B,).
    report : Arrays
        What the server is told of the choice; empty where the strategy tells nothing.
    """

    strategy: str
    samples_B: NDArray[np.int64]
    scores_B: NDArray[np.floating] | None = None
    guesses_B: NDArray[np.int64] | None = None
    report: Arrays = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Selection:
    """A client's choice of samples.

    Attributes
    ----------
    settings : Settings
        The run's settings.
    client : int
        The client's partition, from 0.
    loaded : Resources
        The client's data and its model.
    arriving : Arriving
        Which of its samples are there by now.
    auditing : Auditing
        What is asked for at random.
    run_folder : Path | None
        The run's folder, for the record of selections; only where the run is simulated.
    allowance : Allowance
        How many labels may be asked for at once.
    """

    settings: Settings
    client: int
    loaded: Resources
    arriving: Arriving
    auditing: Auditing
    run_folder: Path | None
    allowance: Allowance = granted

    def audited(
        self, store: LabelStore, cycle: int, granted: int | None, arrived_by: int
    ) -> NDArray[np.int64]:
        """Draw at random what is asked for before a cycle whatever the query strategy chooses.

        Parameters
        ----------
        store : LabelStore
            The client's labels.
        cycle : int
            The cycle that labels are bought for.
        granted : int | None
            How many labels the server grants in total; None: as many as the settings say.
        arrived_by : int
            The cycle by which samples have come.

        Returns
        -------
        NDArray[np.int64]
            Sample ids, increasing. Shape (A,).
        """
        if not self.settings.audit_share:
            return np.zeros(0, np.int64)
        budget = self._allotted(store, cycle, granted, self.arriving.count(arrived_by))
        return self.auditing.drawn(store, cycle, budget)

    def predicted(
        self, audit_A: NDArray[np.int64], tensors: Mapping[str, Tensor]
    ) -> NDArray[np.int64] | None:
        """Return what the global model says of what is drawn at random; None where none is asked.

        Parameters
        ----------
        audit_A : NDArray[np.int64]
            As `audited` returned it.
        tensors : Mapping[str, Tensor]
            The global model f^G.

        Returns
        -------
        NDArray[np.int64] | None
            Class indices. Shape (A,).
        """
        if not len(audit_A) or not self.settings.tells_audit:
            return None
        model, images = self.loaded.model_with(tensors), self.loaded.train_images
        logits_AC = predict(model, images, torch.from_numpy(audit_A)).logits_NC
        return logits_AC.argmax(dim=1).cpu().numpy()

    def first(self, store: LabelStore, granted: int | None = None, cycle: int = 0) -> Selected:
        """Select what is labelled before the first cycle.

        Parameters
        ----------
        store : LabelStore
            The client's labels.
        granted : int | None
            How many labels the server grants; None: as many as the settings say.
        cycle : int
            The cycle that is about to be trained, by which samples have come.
        """
        budget = self._allotted(store, 0, granted, self.arriving.count(cycle))
        name = self.settings.initial_strategy
        is_later_one = name == self.settings.strategy
        own = self.settings.parameters_of("strategy") if is_later_one else {}
        strategy = make_strategy(name, own)
        context = self._context(budget, 0, _no_statistics(self.loaded), store)
        samples_B = checked_select(strategy, pool_of_features(self.loaded, store), context)
        return Selected(strategy.name, samples_B)

    def by_strategy(
        self,
        store: LabelStore,
        local: Mapping[str, Tensor],
        tensors: Mapping[str, Tensor],
        cycle: int,
        statistics: ClassStatistics,
        granted: int | None = None,
        watched: Mapping[Signal, Tensor] | None = None,
        policy: Arrays | None = None,
    ) -> Selected:
        """Select what is labelled after a cycle.

        Parameters
        ----------
        store : LabelStore
            The client's labels.
        local, tensors : Mapping[str, Tensor]
            Local model f^L and global model f^G.
        cycle : int
            The cycle that was just trained.
        statistics : ClassStatistics
            Statistics of the labelled sets that it was trained on.
        granted : int | None
            How many labels the server grants in total; None: as many as the settings say.
        watched : Mapping[Signal, Tensor], optional
            What the query strategy has watched of the pool while the client trained.
        policy : Arrays, optional
            What the strategy's half at the server has told.
        """
        strategy = self.strategy(store.unlabelled(), statistics)
        pool = self.pool(store, strategy, local, tensors, cycle, watched)
        context = self.context(store, cycle, statistics, granted)
        if strategy.tells:
            context = dataclasses.replace(
                context,
                policy=_tensors(policy) if policy is not None else None,
                history=reported(store, cycle + 1 - strategy.remembers, cycle + 1),
            )
        samples_B = checked_select(strategy, pool, context)
        selected = self._judged(strategy, pool, context, samples_B)
        task = Task.of(self.settings, self.loaded.num_classes)
        report = checked_report(strategy, task, pool, context, samples_B)
        self._record(selected, cycle)
        return dataclasses.replace(selected, report=report)

    def coordinated(self, pool: PoolView, context: QueryContext, cycle: int) -> Selected:
        """Select what is labelled after a cycle as the clients have coordinated.

        Parameters
        ----------
        pool : PoolView
            The client's pool.
        context : QueryContext
            With what was coordinated.
        cycle : int
            The cycle that was just trained.

        Raises
        ------
        MessageRefused
            The decision is none that the strategy's coordinator makes.
        """
        strategy = make_strategy(self.settings.strategy, self.settings.parameters_of("strategy"))
        try:
            samples_B = checked_select(strategy, pool, context)
        except ValueError as error:
            raise MessageRefused(str(error)) from error
        selected = self._judged(strategy, pool, context, samples_B)
        self._record(selected, cycle)
        return selected

    def pool(
        self,
        store: LabelStore,
        strategy: QueryStrategy | Coordination,
        local: Mapping[str, Tensor],
        tensors: Mapping[str, Tensor],
        cycle: int,
        watched: Mapping[Signal, Tensor] | None = None,
    ) -> PoolView:
        """Return the client's pool after a cycle; parameters as of `by_strategy`."""
        situation = self._situation(store, local, tensors, cycle + 1)
        situation = dataclasses.replace(situation, watched=watched or {})
        return make_pool(self.settings, self.loaded, strategy, situation)

    def context(
        self, store: LabelStore, cycle: int, statistics: ClassStatistics, granted: int | None
    ) -> QueryContext:
        """Return what the client knows after a cycle besides its pool; its budget is allotted."""
        num_samples = self.arriving.count(cycle + 1)
        budget = self._allotted(store, cycle + 1, granted, num_samples)
        return self._context(budget, cycle + 1, statistics, store)

    def context_of_split(self, store: LabelStore, cycle: int) -> QueryContext:
        """Return what the client knows after a cycle before it is granted anything of it."""
        return self._context(0, cycle + 1, _no_statistics(self.loaded), store)

    def _allotted(
        self, store: LabelStore, cycle: int, granted: int | None, num_samples: int
    ) -> int:
        """Grant what is due by a cycle and return what may be asked for.

        This is what is free, B_i and what was missed before, or less where a site's policy says so;
        and without what is set aside of the pool, since that is asked for beside.
        """
        due = self.settings.labels_due(cycle, num_samples) if granted is None else granted
        store.allot(min(due, num_samples))
        return self.allowance(store.ledger()) - store.num_set_aside

    def strategy(self, ids_N: NDArray[np.int64], statistics: ClassStatistics) -> QueryStrategy:
        """Return the query strategy, aligned to a target where there is one."""
        strategy = make_strategy(self.settings.strategy, self.settings.parameters_of("strategy"))
        if statistics.target_C is None or not isinstance(strategy, ScoringStrategy):
            return strategy
        true_N = self.loaded.dataset.train.labels_N[ids_N]
        membership_N = true_N if self.settings.align_membership == "true" else None
        return Aligned(strategy, statistics.target_C.tolist(), membership_N)

    def _context(
        self, budget: int, for_cycle: int, statistics: ClassStatistics, store: LabelStore
    ) -> QueryContext:
        labelled, weighted_C = store.labelled(), None
        if self.settings.forget_budgets:
            # As of the cycle that was trained, as they are told to the server.
            counts_TC = store.counts_by_cycle(for_cycle - 1, self.loaded.num_classes)
            weighted_C = forgotten_counts(counts_TC, self.settings.forget)
        return QueryContext(
            budget=budget,
            num_classes=self.loaded.num_classes,
            class_counts_C=labelled.class_counts(self.loaded.num_classes),
            statistics=statistics,
            seed=self.settings.seed,
            client=self.client,
            cycle=for_cycle,
            labels_L=labelled.labels_N,
            weighted_counts_C=weighted_C,
        )

    def _situation(
        self,
        store: LabelStore,
        local: Mapping[str, Tensor],
        tensors: Mapping[str, Tensor],
        for_cycle: int,
    ) -> PoolSituation:
        labelled = store.labelled()
        return PoolSituation(
            client=self.client,
            cycle=for_cycle,
            ids_N=store.unlabelled(),
            labelled_ids_L=labelled.samples_N,
            labels_L=labelled.labels_N,
            local_tensors=local,
            global_tensors=tensors,
        )

    def _judged(
        self,
        strategy: QueryStrategy,
        pool: PoolView,
        context: QueryContext,
        samples_B: NDArray[np.int64],
    ) -> Selected:
        """Add scores and guesses, where figures are drawn of them or people see them."""
        if self.run_folder is None and self.settings.oracle == "simulated":
            return Selected(strategy.name, samples_B)
        positions_B = np.searchsorted(pool.ids_N, samples_B)
        scores_B = guesses_B = None
        if isinstance(strategy, ScoringStrategy) and len(pool.ids_N):
            scores_B = strategy.scores(pool, context).cpu().numpy()[positions_B]
        if Signal.LOCAL_LOGITS in strategy.signals and len(pool.ids_N):
            logits_NC = pool.signal(Signal.LOCAL_LOGITS)
            guesses_B = logits_NC.argmax(dim=1).cpu().numpy()[positions_B]
        return Selected(strategy.name, samples_B, scores_B, guesses_B)

    def record_asked(self, cycle: int, selected: Selected, audit_A: NDArray[np.int64]) -> None:
        """Write down what is about to be asked for, beside what arrives; only in simulation."""
        if self.run_folder is not None and self.settings.simulates_arrivals:
            write_asked(self.run_folder, cycle, self.client, selected.samples_B, audit_A)

    def _record(self, selected: Selected, cycle: int) -> None:
        """Write down what was selected, for figures; only where the run's folder is at hand."""
        if self.run_folder is None:
            return
        write_client_selection(
            self.run_folder,
            cycle=cycle,
            client=self.client,
            sample_ids=selected.samples_B,
            classes=self.loaded.dataset.train.labels_N[selected.samples_B],
            pseudo_classes=selected.guesses_B,
            scores=selected.scores_B,
        )


def reported(store: LabelStore, first: int, end: int) -> dict[int, Arrays]:
    """Return what the server was told of choices for the cycles from `first` on, before `end`."""
    return {cycle: load_arrays(each) for cycle, each in store.reports(first, end).items()}


def _tensors(arrays: Arrays) -> dict[str, Tensor]:
    # What came in is read-only, which tensors cannot be.
    return {name: torch.from_numpy(np.array(values)) for name, values in arrays.items()}


def _no_statistics(loaded: Resources) -> ClassStatistics:
    """Return what is known of the classes before anything is labelled: nothing."""
    zeros_C = np.zeros(loaded.num_classes)
    return ClassStatistics(zeros_C, zeros_C, zeros_C.astype(bool))
