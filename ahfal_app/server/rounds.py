"""One federated round: clients train the global model, and their answers become the next one."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from flwr.app import ArrayRecord, Message, RecordDict

from ahfal_app.config import share_of
from ahfal_app.errors import QuorumNotReached
from ahfal_app.messages.answers import TrainAnswer
from ahfal_app.messages.fields import metrics_of
from ahfal_app.messages.keys import ARRAYS_KEY, CONFIG_KEY
from ahfal_app.messages.protocol import TRAIN, Order
from ahfal_app.seeds import numpy_generator
from ahfal_app.server.aggregation import NO_LABELS, Aggregation, Limits, problem_with
from ahfal_app.server.federation import Federation, Replies
from ahfal_app.server.known_labels import KnownLabels


@dataclass(frozen=True)
class Trained:
    """What a round came to.

    Attributes
    ----------
    arrays : ArrayRecord
        The next global model.
    answer : TrainAnswer
        Examples of all usable answers, and their mean loss.
    replies : Replies
        Usable answers, and why the others are not.
    seconds : dict[str, float]
        Wall time of each step.
    """

    arrays: ArrayRecord
    answer: TrainAnswer
    replies: Replies
    seconds: dict[str, float]


class Rounds:
    """Runs rounds on the clients of a run.

    Parameters
    ----------
    federation : Federation
        The clients.
    aggregation : Aggregation
        Makes the next global model of their answers.
    labels : KnownLabels
        What is known of their labels; takes note of what they were trained on.
    """

    def __init__(
        self, federation: Federation, aggregation: Aggregation, labels: KnownLabels
    ) -> None:
        self._federation = federation
        self._aggregation = aggregation
        self._labels = labels

    def run(self, order: Order, arrays: ArrayRecord) -> Trained:
        """Run a round.

        Parameters
        ----------
        order : Order
            With the cycle and the round.
        arrays : ArrayRecord
            The global model.

        Raises
        ------
        QuorumNotReached
            Too few clients gave a usable answer.
        NonFiniteModel
            The clients' models are too far apart to be aggregated.
        """
        messages = self._messages(order, arrays)
        replies, idle = self._train(messages, arrays)
        start = time.monotonic()
        require_quorum(
            self._federation, order, replies, len(messages) - idle, f"round {order.round}"
        )
        usable = list(replies.messages.values())
        following = self._aggregation.aggregate_train(order.cycle, order.round, usable)
        seconds = {"train": replies.seconds, "aggregate": time.monotonic() - start}
        return Trained(following, _together(usable), replies, seconds)

    def _messages(self, order: Order, arrays: ArrayRecord) -> list[Message]:
        """Return one message for each client that trains in a round.

        A list and not a generator: in deployment Flower sends nothing of the latter.
        """
        self._aggregation.configure_train(order.round, arrays, self._federation.grid)
        content = RecordDict({ARRAYS_KEY: arrays, CONFIG_KEY: order.to_record()})
        group = f"cycle {order.cycle} round {order.round}"
        return [
            self._federation.message(client, TRAIN, content, group)
            for client in _participants(order, self._federation.clients, self._labels.labelled)
        ]

    def _train(self, messages: list[Message], arrays: ArrayRecord) -> tuple[Replies, int]:
        """Have clients train; return usable answers, and how many had nothing to train on.

        A grid may want no more than some messages at once. Then the answers to these are
        merged where the aggregation allows it, or memory would grow with clients times model.
        """
        size = len(messages)
        if self._aggregation.can_merge:
            size = self._federation.most_at_once or size
        replies, idle = Replies(), 0
        for start in range(0, len(messages), size):
            part = self._federation.exchange(messages[start : start + size])
            idle += self._reject_unusable(part, arrays)
            if len(messages) > size:
                part.merge(self._aggregation.merged)
            replies.add(part)
        return replies, idle

    def _reject_unusable(self, replies: Replies, sent: ArrayRecord) -> int:
        """Reject answers that cannot be averaged; return how many had nothing to train on.

        A site whose people have not labelled yet is left out, but it has not failed.
        """
        idle, limits = 0, Limits(sent)
        for client in list(replies.messages):
            content = replies.messages[client].content
            problem = problem_with(content, sent, self._labels.most[client], limits)
            if problem is None:
                # The count of what it was trained on, even where an answer got lost before.
                metrics = metrics_of(content)
                self._labels.labelled[client] = TrainAnswer.from_metrics(metrics).num_examples
            else:
                replies.reject(client, problem)
                idle += problem == NO_LABELS
        return idle


def require_quorum(
    federation: Federation, order: Order, replies: Replies, asked: int, what: str
) -> None:
    """Stop the run where too few clients answered usefully.

    Raises
    ------
    QuorumNotReached
        Fewer than `quorum` of those that were asked.
    """
    quorum = order.settings.quorum
    needed = share_of(quorum, asked)
    if replies.count < needed:
        raise QuorumNotReached(
            f"cycle {order.cycle}, {what}: {replies.count} of {asked} clients answered usefully, "
            f"{needed} are needed (quorum={quorum}); {federation.describe(replies.failures)}"
        )


def _participants(order: Order, clients: tuple[int, ...], labelled: Mapping[int, int]) -> list[int]:
    """Return who trains; in a cycle's last round everyone, so that each has a new f^L.

    In other rounds a share of all is drawn among those that are known to have labels: a round in
    which nobody has any to train on would be lost.
    """
    settings = order.settings
    if settings.client_fraction == 1 or order.round == settings.rounds:
        return list(clients)
    generator = numpy_generator(settings.seed, "participants", order.cycle, order.round)
    able = [client for client in clients if labelled.get(client)] or list(clients)
    size = min(share_of(settings.client_fraction, len(clients)), len(able))
    return sorted(generator.choice(able, size=size, replace=False).tolist())


def _together(replies: Iterable[Message]) -> TrainAnswer:
    """Return the number of examples of all usable answers, and their mean loss."""
    answers = [TrainAnswer.from_metrics(metrics_of(reply.content)) for reply in replies]
    examples = sum(answer.num_examples for answer in answers)
    weighted = sum(answer.num_examples * answer.loss for answer in answers)
    return TrainAnswer(examples, weighted / examples)
