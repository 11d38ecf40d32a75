"""Federated active learning: cycles of rounds, each ending in a purchase.

Flower's `Strategy.start` knows no cycles, no checkpoints and no resume, so the loop is ours. It
reaches clients through Flower's `Grid` alone, and what they answer is aggregated by one of
Flower's strategies (`aggregation/`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from flwr.app import ArrayRecord, Message, RecordDict
from flwr.serverapp import Grid
from numpy.typing import NDArray

from ahfal_app.config import share_of
from ahfal_app.errors import QuorumNotReached
from ahfal_app.ledger import Ledger
from ahfal_app.messages.answers import QueryAnswer, TrainAnswer
from ahfal_app.messages.keys import ARRAYS_KEY, CONFIG_KEY, METRICS_KEY
from ahfal_app.messages.protocol import TRAIN, Order
from ahfal_app.metrics import measure_all
from ahfal_app.results.progress import Progress
from ahfal_app.results.records import CycleRecord, Failure, RoundRecord
from ahfal_app.seeds import numpy_generator
from ahfal_app.server.aggregation import (
    NO_LABELS,
    Aggregation,
    problem_with,
)
from ahfal_app.server.federation import Federation, Replies
from ahfal_app.server.membership import Membership, check_resumable, join, join_again
from ahfal_app.server.plausibility import LabelBounds
from ahfal_app.server.purchase import Purchase, buy, total, wait_for_labels
from ahfal_app.training.prediction import Evaluation

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
    checkpoint : Callable[[int, int, ArrayRecord, dict[int, int]], None]
        Keeps the state after `round` rounds of `cycle`, with the newest cycle that each
        client has bought labels for; durable when this returns.
    joined : Callable[[Membership], None]
        Called whenever clients have joined, before they train.
    """

    new_arrays: Callable[[int], ArrayRecord]
    evaluate: Evaluate
    record: Callable[[RoundRecord | CycleRecord], None]
    checkpoint: Callable[[int, int, ArrayRecord, dict[int, int]], None]
    joined: Callable[[Membership], None]


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
    num_classes : int
        Number of classes.
    aggregation : Aggregation
        Makes the next global model of the clients' answers.
    first_cycle, first_round : int
        Rounds done by an interrupted run: `first_round` of `first_cycle`.
    bought : Mapping[int, int]
        The newest cycle that each client of it had bought labels for.
    global_counts_C : NDArray[np.int64] | None
        True class counts of all clients' samples, where they are known; only for the
        experiment `align=true-global`. Shape (C,).
    """

    def __init__(
        self,
        order: Order,
        hooks: Hooks,
        progress: Progress,
        num_classes: int,
        aggregation: Aggregation,
        first_cycle: int = 0,
        first_round: int = 0,
        bought: Mapping[int, int] | None = None,
        global_counts_C: NDArray[np.int64] | None = None,
    ) -> None:
        self._order = order
        self._hooks = hooks
        self._progress = progress
        self._num_classes = num_classes
        self._first = (first_cycle, first_round)
        self._bought = dict(bought or {})
        self._global_counts_C = global_counts_C
        self._aggregation = aggregation
        self._federation: Federation | None = None
        self._membership: Membership | None = None
        self._labelled: dict[int, int] = {}
        self._ledgers: dict[int, Ledger] = {}
        self._most_labels = LabelBounds()

    def run(self, grid: Grid, arrays: ArrayRecord, timeout: float) -> ArrayRecord:
        """Run all cycles that are left.

        Parameters
        ----------
        grid : Grid
            Flower's grid or the in-process one.
        arrays : ArrayRecord
            The model to go on from: a fresh one, or an interrupted run's.
        timeout : float
            Seconds to wait for the answers to one message.

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
        self._join(grid, timeout)
        self._announce()
        settings = self._order.settings
        model = arrays
        for cycle in range(self._first[0], settings.num_cycles):
            self._order = replace(self._order, cycle=cycle)
            if cycle > self._first[0]:
                self._join_again()
            done = self._first[1] if cycle == self._first[0] else 0
            for round_ in range(done + 1, settings.rounds + 1):
                arrays = self._round(round_, arrays)
            model = arrays
            arrays = self._close_cycle(model)
        self._progress.run_done()
        return model

    def _announce(self) -> None:
        """Tell what is about to be run."""
        settings, (cycle, round_) = self._order.settings, self._first
        self._progress.note(
            f"{settings.strategy} on {settings.dataset}: {settings.num_clients} clients, "
            f"{settings.num_cycles} cycles of {settings.rounds} rounds, run folder "
            f"{self._order.run_folder}"
        )
        self._progress.run_started(
            settings.num_cycles, settings.rounds, cycle * settings.rounds + round_
        )

    def _join(self, grid: Grid, timeout: float) -> None:
        # A message must outlive the slowest exchange, a site's labels any single message.
        time_to_live = timeout + 60.0
        self._federation = Federation(grid, timeout, time_to_live)
        order = replace(self._order, cycle=self._first[0])
        self._membership = join(self._federation, order)
        check_resumable(self._membership, self._bought)
        self._order = replace(self._order, settings=self._membership.settings)
        self._welcome(list(self._membership.members))
        for client, reason in self._membership.failures.items():
            self._progress.warn(f"{self._federation.name(client)} {reason}")
        if self._first == (0, 0):
            self._wait_for_initial_labels()

    def _join_again(self) -> None:
        """Let clients take part that were away, or came back under another node id."""
        if self._membership is not None:
            self._welcome(join_again(self._clients, self._order, self._membership))

    def _welcome(self, clients: list[int]) -> None:
        """Take over what clients that joined tell about their labels."""
        if self._membership is None or not clients:
            return
        self._hooks.joined(self._membership)
        members = [self._membership.members[client] for client in clients]
        self._labelled |= {member.client: member.labelled for member in members}
        self._ledgers |= {member.client: member.ledger for member in members}
        self._bought |= {member.client: member.last_cycle for member in members}
        for member in members:
            self._most_labels.told(member.client, member.labelled, member.ledger)

    def _failed(self, failures: Mapping[int, str]) -> tuple[Failure, ...]:
        return tuple(
            Failure(client=client, site=self._clients.site(client), reason=reason)
            for client, reason in failures.items()
        )

    def _absent(self) -> dict[int, str]:
        """Return the clients that are not part of the run at present, and why."""
        return self._membership.failures if self._membership is not None else {}

    def _wait_for_initial_labels(self) -> None:
        """Wait for the labels that were bought at random when the clients joined."""
        standing = {
            client: QueryAnswer(0, self._labelled[client], ledger.reserved, ledger)
            for client, ledger in self._ledgers.items()
        }
        standing, _ = wait_for_labels(self._clients, self._order, 0, standing, self._progress.note)
        self._labelled = {client: answer.labelled for client, answer in standing.items()}
        self._ledgers = {client: answer.ledger for client, answer in standing.items()}
        for client, answer in standing.items():
            self._most_labels.told(client, answer.labelled, answer.ledger)

    @property
    def _clients(self) -> Federation:
        if self._federation is None:
            raise RuntimeError("run() has not been called")
        return self._federation

    def _participants(self, round_: int) -> list[int]:
        """Return who trains; in a cycle's last round everyone, so that each has a new f^L."""
        settings, clients = self._order.settings, self._clients.clients
        if settings.client_fraction == 1 or round_ == settings.rounds:
            return list(clients)
        generator = numpy_generator(settings.seed, "participants", self._order.cycle, round_)
        size = share_of(settings.client_fraction, len(clients))
        return sorted(generator.choice(clients, size=size, replace=False).tolist())

    def _round(self, round_: int, arrays: ArrayRecord) -> ArrayRecord:
        """Run one round, record it and write a checkpoint."""
        sent = self._traffic()
        messages = self._training_messages(round_, arrays)
        replies, idle = self._train(messages, arrays)
        seconds = {"train": replies.seconds}
        start = time.monotonic()
        self._require(replies, len(messages) - idle, f"round {round_}")
        usable = list(replies.messages.values())
        arrays = self._aggregation.aggregate_train(self._order.cycle, round_, usable)
        seconds["aggregate"] = time.monotonic() - start
        accuracy = self._accuracy_between(round_, arrays, seconds)
        down, up = self._traffic(sent)
        trained = _trained(usable)
        record = RoundRecord(
            cycle=self._order.cycle,
            round=round_,
            clients=replies.count,
            failed=self._failed(self._absent() | replies.failures),
            num_examples=trained.num_examples,
            train_loss=trained.loss,
            test_accuracy=accuracy,
            seconds=seconds,
            bytes_down=down,
            bytes_up=up,
        )
        self._hooks.record(record)
        self._hooks.checkpoint(self._order.cycle, round_, arrays, self._bought)
        self._progress.round_done(record)
        return arrays

    def _training_messages(self, round_: int, arrays: ArrayRecord) -> list[Message]:
        """Return one message for each client that trains in a round.

        A list and not a generator: in deployment Flower sends nothing of the latter.
        """
        self._aggregation.configure_train(round_, arrays, self._clients.grid)
        config = replace(self._order, round=round_).to_record()
        content = RecordDict({ARRAYS_KEY: arrays, CONFIG_KEY: config})
        group = f"cycle {self._order.cycle} round {round_}"
        return [
            self._clients.message(client, TRAIN, content, group)
            for client in self._participants(round_)
        ]

    def _train(self, messages: list[Message], arrays: ArrayRecord) -> tuple[Replies, int]:
        """Have clients train; return usable answers, and how many had nothing to train on.

        A grid may want no more than some messages at once. Then the answers to these are
        merged where the aggregation allows it, or memory would grow with clients times model.
        """
        size = len(messages)
        if self._aggregation.can_merge:
            size = self._clients.most_at_once or size
        replies, idle = Replies(), 0
        for start in range(0, len(messages), size):
            part = self._clients.exchange(messages[start : start + size])
            idle += self._reject_unusable(part, arrays)
            if len(messages) > size:
                part.merge(self._aggregation.merged)
            replies.add(part)
        return replies, idle

    def _reject_unusable(self, replies: Replies, sent: ArrayRecord) -> int:
        """Reject answers that cannot be averaged; return how many had nothing to train on.

        A site whose people have not labelled yet is left out, but it has not failed.
        """
        idle = 0
        for client in list(replies.messages):
            content = replies.messages[client].content
            problem = problem_with(content, sent, self._most_labels[client])
            if problem is None:
                # The count of what it was trained on, even where an answer got lost before.
                metrics = content.metric_records[METRICS_KEY]
                self._labelled[client] = TrainAnswer.from_metrics(metrics).num_examples
            else:
                replies.reject(client, problem)
                idle += problem == NO_LABELS
        return idle

    def _accuracy_between(
        self, round_: int, arrays: ArrayRecord, seconds: dict[str, float]
    ) -> float | None:
        settings = self._order.settings
        every = settings.evaluate_every
        if not every or round_ % every or round_ == settings.rounds:
            return None
        start = time.monotonic()
        accuracy = self._hooks.evaluate(arrays).accuracy
        seconds["evaluate"] = time.monotonic() - start
        return accuracy

    def _close_cycle(self, arrays: ArrayRecord) -> ArrayRecord:
        """Test the model, buy labels, record the cycle; return what the next one starts from."""
        settings, cycle = self._order.settings, self._order.cycle
        sent = self._traffic()
        start = time.monotonic()
        evaluation = self._hooks.evaluate(arrays)
        seconds = {"evaluate": time.monotonic() - start}
        trained_on = dict(self._labelled)
        is_last = cycle + 1 == settings.num_cycles
        purchase = None if is_last else self._buy(arrays)
        down, up = self._traffic(sent)
        record = self._cycle_record(evaluation, trained_on, purchase, seconds, (down, up))
        self._hooks.record(record)
        self._progress.cycle_done(record)
        following = arrays
        if settings.reset_model and not is_last:
            following = self._hooks.new_arrays(cycle + 1)
            self._aggregation.reset()
        self._hooks.checkpoint(cycle + 1, 0, following, self._bought)
        return following

    def _buy(self, arrays: ArrayRecord) -> Purchase:
        purchase = buy(
            self._clients,
            replace(self._order, round=0),
            arrays,
            self._num_classes,
            self._global_counts_C,
            self._most_labels,
            self._require,
            self._progress.note,
        )
        self._bought |= dict.fromkeys(purchase.answers, self._order.cycle + 1)
        self._labelled |= {c: answer.labelled for c, answer in purchase.answers.items()}
        self._note_unheard(purchase)
        for client, answer in purchase.answers.items():
            self._most_labels.told(client, answer.labelled, answer.ledger)
            if answer.fine_tuned:
                self._progress.note(
                    f"{self._clients.name(client)} missed the cycle's last round; its local "
                    "model is the global one, trained on its labels"
                )
        return purchase

    def _note_unheard(self, purchase: Purchase) -> None:
        """Take note of clients that may have bought labels without being heard."""
        members = self._membership.members if self._membership is not None else {}
        for client in members.keys() & purchase.failures.keys() - purchase.answers.keys():
            due = self._order.settings.labels_due(
                self._order.cycle + 1, members[client].num_samples
            )
            self._most_labels.unheard(client, due)

    def _cycle_record(
        self,
        evaluation: Evaluation,
        trained_on: Mapping[int, int],
        purchase: Purchase | None,
        seconds: dict[str, float],
        traffic: tuple[int, int],
    ) -> CycleRecord:
        settings = self._order.settings
        statistics = purchase.statistics if purchase else None
        return CycleRecord(
            cycle=self._order.cycle,
            labels=sum(trained_on.values()),
            labels_per_client=tuple(trained_on.get(c, 0) for c in range(settings.num_clients)),
            accuracy=evaluation.accuracy,
            class_accuracy=evaluation.class_accuracy_C,
            loss=evaluation.loss,
            metrics=measure_all(evaluation.confusion_CC),
            mean=tuple(statistics.mean_C.tolist()) if statistics else None,
            deviation=tuple(statistics.deviation_C.tolist()) if statistics else None,
            low=tuple(statistics.low_C.tolist()) if statistics else None,
            tau=settings.tau,
            epsilon_spent=purchase.epsilon_spent if purchase else None,
            budget=total(purchase.answers, "selected") if purchase else 0,
            bought=max(0, sum(self._labelled.values()) - sum(trained_on.values())),
            pending=purchase.pending if purchase else 0,
            ledger=self._ledger(purchase),
            failed=self._failed(self._absent() | purchase.failures if purchase else {}),
            seconds=seconds | (purchase.seconds if purchase else {}),
            bytes_down=traffic[0],
            bytes_up=traffic[1],
        )

    def _ledger(self, purchase: Purchase | None) -> Ledger:
        """Return the clients' ledgers together, as last heard of."""
        if purchase is not None:
            self._ledgers |= {c: answer.ledger for c, answer in purchase.answers.items()}
        return Ledger.total(self._ledgers.values())

    def _traffic(self, before: tuple[int, int] = (0, 0)) -> tuple[int, int]:
        """Return the bytes sent down and up since then."""
        clients = self._clients
        return clients.bytes_down - before[0], clients.bytes_up - before[1]

    def _require(self, replies: Replies, asked: int, what: str) -> None:
        """Stop the run where too few clients answered usefully."""
        quorum = self._order.settings.quorum
        needed = share_of(quorum, asked)
        if replies.count < needed:
            raise QuorumNotReached(
                f"cycle {self._order.cycle}, {what}: {replies.count} of {asked} clients "
                f"answered usefully, {needed} are needed (quorum={quorum}); "
                f"{self._clients.describe(replies.failures)}"
            )


def _trained(replies: Iterable[Message]) -> TrainAnswer:
    """Return the number of examples of all usable answers, and their mean loss."""
    answers = [
        TrainAnswer.from_metrics(reply.content.metric_records[METRICS_KEY]) for reply in replies
    ]
    examples = sum(answer.num_examples for answer in answers)
    weighted = sum(answer.num_examples * answer.loss for answer in answers)
    return TrainAnswer(examples, weighted / examples)
