"""Federated active learning: cycles of rounds, each ending in a purchase.

Flower's `Strategy.start` knows no cycles, no checkpoints and no resume, so the loop is ours. It
reaches clients through Flower's `Grid` alone, and what they answer is aggregated by one of
Flower's strategies (`aggregation/`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
from flwr.app import ArrayRecord
from numpy.typing import NDArray

from ahfal_app.config import Settings
from ahfal_app.data.images import DataFormat
from ahfal_app.ledger import ArrivalFigures, AuditFigures
from ahfal_app.messages.answers import QueryAnswer
from ahfal_app.messages.protocol import Order
from ahfal_app.query.core.splitting import make_split
from ahfal_app.results.drift import drift_words
from ahfal_app.results.environment import load_average
from ahfal_app.results.progress import Progress
from ahfal_app.results.records import (
    ArrivalsRecord,
    CycleRecord,
    Failure,
    GrantsRecord,
    Joined,
    RoundRecord,
    SiteTest,
)
from ahfal_app.results.status import Phase
from ahfal_app.server.aggregation import (
    Aggregation,
)
from ahfal_app.server.beginning import begin
from ahfal_app.server.delivery import deliver
from ahfal_app.server.drift import Judged, judge_drift
from ahfal_app.server.federation import Federation
from ahfal_app.server.known_labels import KnownLabels
from ahfal_app.server.membership import Membership, check_resumable, join, join_again
from ahfal_app.server.purchase import Purchase, buy, total, wait_for_labels
from ahfal_app.server.rounds import Rounds, require_quorum
from ahfal_app.server.shared_budget import Parts, SharedBudget
from ahfal_app.server.splitting import Splitting, split_by_samples
from ahfal_app.server.standardising import is_asked_of_sites, standardised
from ahfal_app.server.stop_set import Observed, observe_stop_set
from ahfal_app.server.strategy_side import StrategySide
from ahfal_app.server.testing import Tested, evaluate_everywhere, without_matrices
from ahfal_app.server.watch import Watch
from ahfal_app.stop_set import Observation
from ahfal_app.training.prediction import Evaluation

#: Fields of `ArrivalsRecord` that are known in simulation alone.
ArrivalFacts = Mapping[str, object]

#: Called with the global model; returns how it does on the server's test set.
Evaluate = Callable[[ArrayRecord], Evaluation]


@dataclass(frozen=True)
class Hooks:
    """What is called as a run goes on.

    Attributes
    ----------
    new_arrays : Callable[[int], ArrayRecord]
        Returns the freshly initialised model of a cycle.
    evaluate : Callable[[ArrayRecord], Evaluation]
        Tests the global model.
    record : Callable[[RoundRecord | CycleRecord], None]
        Keeps a record; it must be durable when this returns.
    checkpoint : Callable[[int, int, ArrayRecord, dict[int, int], bool], None]
        Keeps the state after `round` rounds of `cycle`, with the newest cycle that each
        client has bought labels for, and whether the run ends there; durable when this returns.
    joined : Callable[[Membership], None]
        Called whenever clients have joined, before they train.
    standardised : Callable[[DataFormat], None]
        Called with what all sites' samples are standardised by.
    stops : Callable[[int, Evaluation, Observation | None], str]
        Called with a cycle's labels, its test and what it predicts of the stop set; returns why the
        run ends there, or nothing.
    tested : Callable[[RoundRecord | CycleRecord, ArrayRecord], None]
        Called with each record before it is kept, and with the global model that it is about.
    watch : Watch
        Told what is being done.
    arrived : Callable[[int, int, int], int]
        Returns how many of a client's samples are there by a cycle, of so many.
    arrivals : Callable[[int, ArrayRecord], ArrivalFacts]
        Called with a cycle and its model; returns what a simulation knows of the cycle's arrivals.
    reference : Callable[[int], ArrayRecord | None]
        Returns the model with which what arrived in the windows that end with a cycle is predicted.
    """

    new_arrays: Callable[[int], ArrayRecord]
    evaluate: Evaluate
    record: Callable[[RoundRecord | CycleRecord], None]
    checkpoint: Callable[[int, int, ArrayRecord, dict[int, int], bool], None]
    joined: Callable[[Membership], None]
    standardised: Callable[[DataFormat], None] = lambda _: None
    stops: Callable[[int, Evaluation, Observation | None], str] = lambda *_: ""
    tested: Callable[[RoundRecord | CycleRecord, ArrayRecord], None] = lambda _record, _arrays: None
    watch: Watch = field(default_factory=Watch)
    arrived: Callable[[int, int, int], int] = lambda _client, samples, _cycle: samples
    arrivals: Callable[[int, ArrayRecord], ArrivalFacts] = lambda _cycle, _arrays: {}
    reference: Callable[[int], ArrayRecord | None] = lambda _cycle: None


class FederatedActiveLearning:
    """Federated training with a purchase of labels after each cycle of rounds.

    Parameters
    ----------
    order : Order
        Settings and identity of the run; what every message says.
    hooks : Hooks
        What to call on the way.
    progress : Progress
        Tells people how far the run is.
    federation : Federation
        The clients.
    aggregation : Aggregation
        Makes the next global model of the clients' answers.
    num_classes : int
        Number of classes.
    first_cycle, first_round : int
        Rounds done by an interrupted run: `first_round` of `first_cycle`.
    bought : Mapping[int, int]
        The newest cycle that each client of it had bought labels for.
    global_counts : Callable[[int], NDArray[np.int64]] | None
        Returns the true class counts of all clients' samples by a cycle, where they are known; only
        for the experiment `align=true-global`. Shape (C,).
    shared_budget : SharedBudget | None
        The budget that all clients share, if they do.
    side : StrategySide | None
        The query strategy's half at the server; None: one that has measured nothing yet.
    """

    def __init__(
        self,
        order: Order,
        hooks: Hooks,
        progress: Progress,
        federation: Federation,
        aggregation: Aggregation,
        num_classes: int,
        first_cycle: int = 0,
        first_round: int = 0,
        bought: Mapping[int, int] | None = None,
        global_counts: Callable[[int], NDArray[np.int64]] | None = None,
        shared_budget: SharedBudget | None = None,
        side: StrategySide | None = None,
    ) -> None:
        self._order = replace(order, cycle=first_cycle)
        self._hooks = hooks
        self._progress = progress
        self._federation = federation
        self._aggregation = aggregation
        self._num_classes = num_classes
        self._first = (first_cycle, first_round)
        self._global_counts = global_counts
        self._shared_budget = shared_budget
        self._side = side or StrategySide()
        self._stopped_by = ""
        self._came: list[Joined] = []
        self._splitting: Splitting | None = None
        self._membership = Membership(order.settings)
        self._labels = KnownLabels(bought or {})
        self._rounds = Rounds(federation, aggregation, self._labels)

    def run(self, arrays: ArrayRecord) -> ArrayRecord:
        """Run all cycles that are left.

        Parameters
        ----------
        arrays : ArrayRecord
            The model to go on from: a fresh one, or an interrupted run's.

        Returns
        -------
        ArrayRecord
            The last cycle's model; the one to go on from where no cycle is left.

        Raises
        ------
        QuorumNotReached
            Too few clients gave a usable answer.
        NonFiniteModel
            The clients' models are too far apart to be aggregated.
        """
        known = dict(self._labels.bought)
        self._join()
        self._note_purchases(known, *self._first, arrays)
        if self._first == (0, 0):
            self._wait_for_initial_labels()
        self._announce()
        settings = self._order.settings
        model = arrays
        for cycle in range(self._first[0], settings.num_cycles):
            self._order = replace(self._order, cycle=cycle)
            if cycle > self._first[0]:
                known = dict(self._labels.bought)
                self._join_again()
                self._note_purchases(known, cycle, 0, arrays)
            done = self._first[1] if cycle == self._first[0] else 0
            for round_ in range(done + 1, settings.rounds + 1):
                arrays = self._round(round_, arrays)
            model = arrays
            arrays = self._close_cycle(model)
            if self._stopped_by:
                self._progress.note(f"stopping={settings.stopping!r}: {self._stopped_by}")
                break
        self._progress.run_done()
        return model

    def deliver(self, arrays: ArrayRecord, metadata: str) -> None:
        """Send all sites the model that the run leaves, once it has run."""
        cycle = min(self._order.cycle, self._order.settings.num_cycles - 1)
        self._hooks.watch.phase(Phase.SENDING, cycle, self._order.settings.rounds)
        order, absent = replace(self._order, round=0), self._membership.failures
        deliver(self._federation, order, arrays, metadata, absent, self._progress)

    def _announce(self) -> None:
        """Tell what is about to be run."""
        settings, (cycle, round_) = self._order.settings, self._first
        self._progress.note(
            f"{settings.strategy} on {settings.data_name}: {settings.num_clients} clients, "
            f"{settings.num_cycles} cycles of {settings.rounds} rounds, run folder "
            f"{self._order.run_folder}"
        )
        self._progress.run_started(
            settings.num_cycles, settings.rounds, cycle * settings.rounds + round_
        )

    def _join(self) -> None:
        self._hooks.watch.phase(Phase.JOINING, *self._first)
        begins = self._first == (0, 0) and not self._labels.bought
        self._membership = join(self._federation, self._order, begins)
        check_resumable(self._membership, self._labels.bought)
        self._order = replace(self._order, settings=self._membership.settings)
        self._side.begin(self._order.settings, self._num_classes)
        self._welcome(list(self._membership.members))
        for client, reason in self._membership.failures.items():
            self._progress.warn(f"{self._federation.name(client)} {reason}")
        self._standardise()
        self._begin(is_start=self._first == (0, 0))

    def _join_again(self) -> None:
        """Let clients take part that were away, or came back under another node id."""
        self._came = []
        found = join_again(self._federation, self._order, self._membership, self._labels.bought)
        for client in found:
            name, is_back = self._federation.name(client), client in self._labels.bought
            samples = self._membership.members[client].num_samples
            site = self._federation.site(client)
            self._came.append(Joined(client=client, site=site, samples=samples, is_back=is_back))
            self._progress.note(
                f"{name} {'is back' if is_back else 'joins'}, with {samples} samples, in cycle "
                f"{self._order.cycle + 1}"
            )
        self._welcome(found)
        self._begin(is_start=False)

    def _note_purchases(
        self, known: Mapping[int, int], cycle: int, round_: int, arrays: ArrayRecord
    ) -> None:
        """Write a checkpoint where labels were bought that the last one does not know of.

        People may take days for the first ones, and a store that is lost meanwhile must be missed.
        """
        bought = self._labels.bought
        if cycle < self._order.settings.num_cycles and any(
            last >= 0 and known.get(client, -1) < last for client, last in bought.items()
        ):
            self._hooks.checkpoint(cycle, round_, arrays, bought, False)

    def _welcome(self, clients: list[int]) -> None:
        """Take over what clients that joined tell about their labels."""
        if clients:
            self._hooks.joined(self._membership)
            self._labels.joined(self._membership.members[client] for client in clients)

    def _standardise(self) -> None:
        """Learn what all sites' samples are standardised by, and tell it from now on."""
        order = self._order
        if not is_asked_of_sites(order):
            return
        require = partial(require_quorum, self._federation, order)
        data = standardised(self._federation, order, require, self._progress.note)
        self._order = replace(order, data=data)
        self._hooks.standardised(data)

    def _begin(self, is_start: bool) -> None:
        """Have first labels bought by the clients that did not buy any as they joined."""
        order = replace(self._order, round=0)
        if order.cycle >= order.settings.num_cycles:
            return  # A run that has ended buys nothing.
        clients = [c for c in self._membership.members if self._labels.bought[c] < 0]
        if not clients:
            return
        due = self._due(order.cycle)
        answers, replies = begin(self._federation, order, clients, due)
        # Where some have labels already, the rounds tell whether they are enough.
        if is_start and len(clients) == len(self._membership.members):
            require_quorum(self._federation, order, replies, len(clients), "first labels")
        for client, reason in replies.failures.items():
            self._progress.warn(f"{self._federation.name(client)} has no first labels: {reason}")
        self._labels.purchased(answers, replies.failures, 0, due)

    def _due(self, cycle: int, arrays: ArrayRecord | None = None) -> dict[int, int]:
        """Return how many labels each client may have had by a cycle.

        With f^G clients are asked, where all share a budget that goes by their samples.
        """
        members, settings = self._membership.members, self._order.settings
        sizes = {
            client: self._hooks.arrived(client, member.num_samples, cycle)
            for client, member in members.items()
        }
        if self._shared_budget is not None:
            used = self._labels.used
            ask = None if arrays is None else partial(self._parts, arrays)
            return self._shared_budget.granted(cycle, sizes, used, ask)
        return {client: settings.labels_due(cycle, size) for client, size in sizes.items()}

    def _parts(self, arrays: ArrayRecord, labels: int) -> Parts:
        """Ask the clients how labels are to be split."""
        order = replace(self._order, round=0)
        split = make_split(order.settings)
        if split is None:
            raise ValueError(f"budget-split={order.settings.budget_split!r}: nobody is to be asked")
        self._splitting = split_by_samples(
            self._federation,
            order,
            split,
            labels,
            list(self._membership.members),
            arrays,
            self._num_classes,
            partial(require_quorum, self._federation, order),
        )
        return self._splitting.parts

    def _wait_for_initial_labels(self) -> None:
        """Wait for the labels that were bought when the clients joined."""
        standing, _ = wait_for_labels(
            self._federation,
            self._order,
            0,
            self._labels.standing(),
            self._progress.note,
            self._hooks.watch,
        )
        self._labels.told(standing)

    def _round(self, round_: int, arrays: ArrayRecord) -> ArrayRecord:
        """Run one round, record it and write a checkpoint."""
        self._hooks.watch.phase(Phase.TRAINING, self._order.cycle, round_)
        sent = self._federation.traffic
        trained = self._rounds.run(replace(self._order, round=round_), arrays)
        seconds = dict(trained.seconds)
        tested = self._tested_between(round_, trained.arrays, seconds)
        down, up = self._traffic_since(sent)
        record = RoundRecord(
            cycle=self._order.cycle,
            round=round_,
            clients=trained.replies.count,
            failed=self._failed(self._membership.failures | trained.replies.failures),
            num_examples=trained.answer.num_examples,
            train_loss=trained.answer.loss,
            test_accuracy=tested.evaluation.accuracy if tested else None,
            metrics=tested.evaluation.figures.metrics if tested else {},
            tests=tuple(map(without_matrices, tested.records)) if tested else (),
            seconds=seconds,
            bytes_down=down,
            bytes_up=up,
            load=load_average(),
        )
        self._hooks.tested(record, trained.arrays)
        self._hooks.record(record)
        self._federation.settle()
        bought = self._labels.bought
        self._hooks.checkpoint(self._order.cycle, round_, trained.arrays, bought, False)
        self._progress.round_done(record)
        return trained.arrays

    def _tested_between(
        self, round_: int, arrays: ArrayRecord, seconds: dict[str, float]
    ) -> Tested | None:
        if not self._order.settings.tests_between(round_):
            return None
        tested = self._test(arrays, round_)
        seconds |= tested.seconds
        return tested

    def _test(self, arrays: ArrayRecord, round_: int) -> Tested:
        """Test the global model, on the server, at the sites, or both."""
        order = replace(self._order, round=round_)
        return evaluate_everywhere(
            self._federation,
            order,
            arrays,
            self._num_classes,
            self._hooks.evaluate,
            partial(require_quorum, self._federation, order),
        )

    @property
    def _held_out(self) -> int:
        """Labels of all clients that are held out for testing."""
        return sum(self._labels.held_out.values())

    def _close_cycle(self, arrays: ArrayRecord) -> ArrayRecord:
        """Test the model, buy labels, record the cycle; return what the next one starts from."""
        settings, cycle = self._order.settings, self._order.cycle
        self._hooks.watch.phase(Phase.TESTING, cycle, settings.rounds)
        sent = self._federation.traffic
        tested = self._test(arrays, settings.rounds)
        evaluation, seconds = tested.evaluation, dict(tested.seconds)
        trained_on, held_out = dict(self._labels.labelled), self._held_out
        arrivals = self._arrivals(arrays)
        observed = self._observe(arrays)
        judged = self._judge()
        is_last = cycle + 1 == settings.num_cycles
        if not is_last:
            self._stopped_by = self._hooks.stops(
                sum(trained_on.values()), evaluation, observed.values
            )
            is_last = bool(self._stopped_by)
        purchase = None if is_last else self._buy(arrays)
        down, up = self._traffic_since(sent)
        record = self._cycle_record(
            tested, observed, judged, trained_on, held_out, arrivals, purchase, seconds, (down, up)
        )
        self._hooks.tested(record, arrays)
        self._hooks.record(record)
        self._progress.cycle_done(record)
        following = arrays
        if settings.reset_model and not is_last:
            following = self._hooks.new_arrays(cycle + 1)
            self._aggregation.reset()
        self._hooks.checkpoint(cycle + 1, 0, following, self._labels.bought, is_last)
        return following

    def _arrivals(self, arrays: ArrayRecord) -> ArrivalsRecord | None:
        """Return what had come and gone when this cycle's labels had been asked for."""
        if not self._order.settings.tells_arrivals:
            return None
        told, clients = self._labels.arrivals, range(self._order.settings.num_clients)
        return ArrivalsRecord(
            figures=ArrivalFigures.total(told.values()),
            clients=tuple(told[c].arrived if c in told else 0 for c in clients),
            **self._hooks.arrivals(self._order.cycle, arrays),
        )

    def _observe(self, arrays: ArrayRecord) -> Observed:
        """Have clients predict the stop set, where the settings say so."""
        samples = {c: member.num_samples for c, member in self._membership.members.items()}
        order = replace(self._order, round=0)
        return observe_stop_set(
            self._federation, order, arrays, self._num_classes, samples, self._progress.note
        )

    def _judge(self) -> Judged:
        """Have clients compare two windows of cycles, where the settings say so, and tell of it."""
        order = replace(self._order, round=0)
        judged = judge_drift(
            self._federation,
            order,
            self._num_classes,
            self._hooks.reference,
            self._progress.note,
        )
        if judged.record is not None:
            tell = self._progress.warn if judged.record.is_drift else self._progress.note
            tell(drift_words(judged.record))
        return judged

    def _buy(self, arrays: ArrayRecord) -> Purchase:
        order = replace(self._order, round=0)
        self._hooks.watch.phase(Phase.CHOOSING, order.cycle, order.settings.rounds)
        self._splitting = None
        due = self._due(order.cycle + 1, arrays)
        self._side.trained(order.cycle, arrays)
        purchase = buy(
            self._federation,
            order,
            arrays,
            self._num_classes,
            self._global_counts(order.cycle + 1) if self._global_counts else None,
            due,
            self._labels.bought,
            self._labels.most,
            partial(require_quorum, self._federation, order),
            self._progress.note,
            self._hooks.watch,
            self._side,
        )
        self._labels.purchased(purchase.answers, purchase.failures, order.cycle + 1, due)
        if self._splitting is not None:
            purchase.failures = self._splitting.failures | purchase.failures
            purchase.seconds = self._splitting.seconds | purchase.seconds
        for client, answer in purchase.answers.items():
            if answer.fine_tuned:
                self._progress.note(
                    f"{self._federation.name(client)} missed the cycle's last round; its local "
                    "model is the global one, trained on its labels"
                )
        return purchase

    def _cycle_record(
        self,
        tested: Tested,
        observed: Observed,
        judged: Judged,
        trained_on: Mapping[int, int],
        held_out: int,
        arrivals: ArrivalsRecord | None,
        purchase: Purchase | None,
        seconds: dict[str, float],
        traffic: tuple[int, int],
    ) -> CycleRecord:
        settings = self._order.settings
        statistics = purchase.statistics if purchase else None
        evaluation, name = tested.evaluation, self._federation.site
        labelled = sum(self._labels.labelled.values()) + self._held_out
        return CycleRecord(
            cycle=self._order.cycle,
            labels=sum(trained_on.values()),
            labels_per_client=tuple(trained_on.get(c, 0) for c in range(settings.num_clients)),
            accuracy=evaluation.accuracy,
            class_accuracy=evaluation.class_accuracy_C,
            loss=evaluation.loss,
            metrics=evaluation.figures.metrics,
            held_out=held_out,
            tests=tested.records,
            sites=tuple(
                SiteTest(client=client, site=name(client), test=test)
                for client, test in tested.sites.items()
            ),
            untested=self._failed(tested.untested),
            joined=tuple(self._came),
            mean=tuple(statistics.mean_C.tolist()) if statistics else None,
            deviation=tuple(statistics.deviation_C.tolist()) if statistics else None,
            low=tuple(statistics.low_C.tolist()) if statistics else None,
            tau=_tau(settings, purchase),
            epsilon_spent=purchase.epsilon_spent if purchase else None,
            budget=total(purchase.answers, "selected") if purchase else 0,
            bought=max(0, labelled - held_out - sum(trained_on.values())),
            pending=purchase.pending if purchase else 0,
            stopped_by=self._stopped_by,
            stop_set=observed.values,
            arrivals=arrivals,
            forgetting=purchase.forgetting if purchase else None,
            drift=judged.record,
            audit=_audit(purchase.answers) if purchase and settings.tells_audit else None,
            policy=self._side.figures if purchase else {},
            grants=self._grants() if purchase else None,
            ledger=self._labels.ledger,
            failed=self._failed(
                self._membership.failures
                | (purchase.failures if purchase else {})
                | observed.failures
                | judged.failures
            ),
            seconds=seconds
            | observed.seconds
            | judged.seconds
            | (purchase.seconds if purchase else {}),
            bytes_down=traffic[0],
            bytes_up=traffic[1],
        )

    def _grants(self) -> GrantsRecord | None:
        """Return how the labels were split that are bought after this cycle."""
        if self._shared_budget is None:
            return None
        name = self._federation.site
        return self._shared_budget.told(self._order.cycle + 1, name)

    def _traffic_since(self, before: tuple[int, int]) -> tuple[int, int]:
        """Return the bytes sent down and up since then."""
        down, up = self._federation.traffic
        return down - before[0], up - before[1]

    def _failed(self, failures: Mapping[int, str]) -> tuple[Failure, ...]:
        return tuple(
            Failure(client=client, site=self._federation.site(client), reason=reason)
            for client, reason in failures.items()
        )


def _audit(answers: Mapping[int, QueryAnswer]) -> AuditFigures | None:
    told = [answer.audit for answer in answers.values() if answer.audit is not None]
    return AuditFigures.total(told) if told else None


def _tau(settings: Settings, purchase: Purchase | None) -> float:
    """Return the threshold that a cycle's classes were split by, or would have been."""
    found = purchase.statistics.tau if purchase else None
    return settings.tau if found is None else found
