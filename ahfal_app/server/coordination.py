"""The server's side of query strategies for which clients choose together.

A coordinator asks step by step, of the clients that have answered all steps so far. What came of a
step is kept in the run's folder before anything follows from it, so that a server that starts again
asks nothing a second time in another way: clients would refuse.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Message
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file
from safetensors.numpy import save as save_arrays

from ahfal_app.errors import CheckpointError, SecureAggregationFailed
from ahfal_app.messages.coordination import (
    OPENING,
    Opening,
    answer_from,
    asked_to,
)
from ahfal_app.messages.fields import metrics_of
from ahfal_app.messages.keys import ARRAYS_KEY, COORDINATION_KEY, QUESTIONS_KEY
from ahfal_app.messages.protocol import COORDINATE, Order
from ahfal_app.privacy.sessions import Topic
from ahfal_app.query import make_strategy
from ahfal_app.query.core.coordination import (
    DECISION,
    CoordinatedStrategy,
    Coordination,
    FederationFacts,
    conducted,
    gathered,
)
from ahfal_app.query.core.questions import (
    Answer,
    Answers,
    Question,
    Step,
    check_answer,
    check_sums,
    joined_size,
    parted,
)
from ahfal_app.server.federation import Federation, Records, Replies, ask
from ahfal_app.server.secure_sum import forget_sum, secure_sum
from ahfal_app.storage.files import sync_folder, write_bytes

#: Cycles of which steps are kept: as many as there are checkpoints to go on from.
_KEPT_CYCLES = 2

#: The weights of the last layer, in a model's state.
_HEAD = "head.weight"

Require = Callable[[Replies, int, str], None]


@dataclass(frozen=True, eq=False)
class Exchange:
    """What clients are asked in steps, and how.

    Attributes
    ----------
    coordination : Coordination
        Both halves of it.
    message : str
        Type of its messages.
    topic : Topic
        What its sums are of; its steps are kept in a folder of this name.
    shared : int
        Labels that are to be split over the clients, where they are asked for that.
    """

    coordination: Coordination
    message: str = COORDINATE
    topic: Topic = Topic.COORDINATION
    shared: int = 0


@dataclass
class Coordinated:
    """What came of a coordination.

    Attributes
    ----------
    clients : tuple[int, ...]
        Those that have answered all steps, and choose.
    failures : dict[int, str]
        Why the others do not.
    seconds : float
        Wall time.
    steps : int
        How many steps there were, the opening among them.
    """

    clients: tuple[int, ...]
    failures: dict[int, str] = field(default_factory=dict)
    seconds: float = 0.0
    steps: int = 0
    _questions: list[Question] = field(default_factory=list)
    _decisions: Mapping[int, Mapping[str, NDArray[Any]]] = field(default_factory=dict)

    @property
    def decisions(self) -> Mapping[int, Mapping[str, NDArray[Any]]]:
        """What was decided for each client."""
        return self._decisions

    def decision(self, client: int, whole: bool = False) -> Records:
        """Return what a client is told to choose by, with all steps before it or without."""
        question = Question(DECISION, self._decisions.get(client, {}))
        if not whole:
            return asked_to(len(self._questions), [question])
        return asked_to(0, [*self._questions, question])


def coordinate(
    federation: Federation,
    order: Order,
    clients: Sequence[int],
    records: Mapping[int, Records],
    granted: Mapping[int, int],
    num_classes: int,
    require: Require,
) -> Coordinated | None:
    """Have the clients' choice coordinated, if the run's strategy wants that.

    Parameters
    ----------
    federation : Federation
        The clients.
    order : Order
        With the cycle that was just trained.
    clients : Sequence[int]
        Those that take part in the purchase.
    records : Mapping[int, Records]
        What a selection says besides the order, by client: the model, statistics, grants.
    granted : Mapping[int, int]
        How many labels each client may have, where the server says so.
    num_classes : int
        Number of classes.
    require : Require
        As of `purchase.buy`; called with the answers to each step, and the clients of the first.

    Returns
    -------
    Coordinated | None
        None where each client chooses alone.

    Raises
    ------
    SecureAggregationFailed
        A secure sum was wanted, and cannot be had.
    CheckpointError
        A step that was kept cannot be read.
    """
    settings = order.settings
    strategy = make_strategy(settings.strategy, settings.parameters_of("strategy"))
    if not isinstance(strategy, CoordinatedStrategy):
        return None
    exchange = Exchange(strategy)
    steps = _Steps(federation, order, exchange, clients, records, granted, num_classes, require)
    return steps.run()


def exchanged(
    federation: Federation,
    order: Order,
    exchange: Exchange,
    clients: Sequence[int],
    records: Records,
    num_classes: int,
    require: Require,
) -> Coordinated:
    """Ask clients in steps about something that grants nothing; parameters as of `coordinate`.

    Parameters
    ----------
    exchange : Exchange
        What they are asked.
    records : Records
        What the first message says to each besides the order: the model.
    """
    asked = dict.fromkeys(clients, records)
    steps = _Steps(federation, order, exchange, clients, asked, {}, num_classes, require)
    return steps.run()


class _Steps:
    """The steps of one cycle's exchange."""

    def __init__(
        self,
        federation: Federation,
        order: Order,
        exchange: Exchange,
        clients: Sequence[int],
        records: Mapping[int, Records],
        granted: Mapping[int, int],
        num_classes: int,
        require: Require,
    ) -> None:
        self._federation = federation
        self._order = order
        self._exchange = exchange
        self._coordination = exchange.coordination
        self._clients = tuple(sorted(clients))
        self._records = records
        self._granted = granted
        self._num_classes = num_classes
        # Of all that began: of those that are left, a share of a share would do, step by step.
        began = len(self._clients)
        self._require: Require = lambda replies, _, what: require(replies, began, what)
        self._questions: list[Question] = []
        self._failures: dict[int, str] = {}
        self._kept = _Kept(order, exchange.topic)

    def run(self) -> Coordinated:
        """Go through all steps, and return what is decided."""
        start = time.monotonic()
        facts = self._open()
        decisions = conducted(self._coordination.coordinator(facts), self._ask, facts.most_steps)
        return Coordinated(
            self._clients,
            self._failures,
            time.monotonic() - start,
            len(self._questions),
            self._questions,
            decisions,
        )

    def _open(self) -> FederationFacts:
        """Ask how much there is to choose; clients compute their embeddings for it."""
        self._questions.append(Question(OPENING, {}))
        kept = self._kept.read(0)
        if kept is None:
            replies = self._sent_to_all()
            openings: dict[int, Opening] = {}
            for client in list(replies.messages):
                try:
                    opening = Opening.from_metrics(metrics_of(replies.messages[client].content))
                    self._check_opening(client, opening)
                    openings[client] = opening
                except ValueError as error:
                    replies.reject(client, str(error))
            self._require(replies, len(self._clients), self._exchange.topic.value)
            kept = _Outcome(
                tuple(sorted(openings)),
                replies.failures,
                facts={str(client): asdict(opening) for client, opening in openings.items()},
            )
            self._kept.write(0, kept)
        self._leave(kept)
        # Of all that were there, or kept answers of who is away now would be of nobody.
        opened = {c: Opening(**kept.facts[str(c)]) for c in kept.clients}
        head = self._model()[_HEAD]
        return FederationFacts(
            budgets={client: each.budget for client, each in opened.items()},
            labelled={client: each.labelled for client, each in opened.items()},
            pools={client: each.pool for client, each in opened.items()},
            num_classes=self._num_classes,
            width=int(head.shape[1]),
            seed=self._order.settings.seed,
            cycle=self._order.cycle + 1,
            most_steps=self._coordination.most_steps,
            shared=self._exchange.shared,
        )

    def _check_opening(self, client: int, opening: Opening) -> None:
        """Refuse what no client has, or may buy by now."""
        settings = self._order.settings
        most, samples = settings.max_client_samples, opening.labelled + opening.pool
        told = f"labelled={opening.labelled}, pool={opening.pool}"
        if samples > most:
            raise ValueError(f"{told}: allowed is at most max-client-samples={most} together")
        if samples > self._coordination.most_samples:
            raise ValueError(
                f"{told}: allowed are at most {self._coordination.most_samples} together with "
                f"strategy={self._coordination.name!r}, whose sums hold no more"
            )
        due = settings.labels_due(self._order.cycle + 1, most)
        if settings.has_global_budget:
            due = self._granted.get(client, 0)
        if opening.budget > due:
            raise ValueError(f"budget={opening.budget}: allowed are at most the {due} that are due")

    def _ask(self, step: Step) -> Answers:
        """Ask a step, and return what came of it over the clients that are still there."""
        if step.is_for_the_run and (sums := self._kept.earlier(step)) is not None:
            return Answers(self._clients, sums, {client: {} for client in self._clients})
        number = len(self._questions)
        self._questions.append(Question(step.name, dict(step.broadcast)))
        kept = self._kept.read(number)
        if kept is None:
            kept = self._asked(step, number)
            self._kept.write(number, kept)
            # What was unmasked is in what was kept; one file for each step is enough.
            forget_sum(self._order, self._exchange.topic, number)
        if step.is_for_the_run:
            self._kept.keep_for_the_run(step, kept)
        self._leave(kept)
        return Answers(kept.clients, kept.sums, kept.clear)

    def _asked(self, step: Step, number: int) -> _Outcome:
        is_secure = self._order.settings.uses_secure_aggregation
        replies = self._sent_to_all()
        told: dict[int, Answer] = {}
        for client in list(replies.messages):
            try:
                content = replies.messages[client].content
                arrays = content.array_records.get(QUESTIONS_KEY, ArrayRecord())
                answer = answer_from(arrays, step, with_sums=not is_secure)
                own = step if not is_secure else Step(step.name, clear=step.clear)
                check_answer(own, answer)
                told[client] = answer
            except ValueError as error:
                replies.reject(client, str(error))
        self._require(replies, len(self._clients), self._exchange.topic.value)
        if not (is_secure and step.sums):
            answers = gathered(step, told)
            return _Outcome(answers.clients, replies.failures, answers.sums, answers.clear)
        return self._summed(step, number, told, replies.failures)

    def _summed(
        self, step: Step, number: int, told: Mapping[int, Answer], failures: dict[int, str]
    ) -> _Outcome:
        """Return the outcome of a step whose sums are masked."""

        def check(sum_E: NDArray[np.uint64], clients: int) -> None:
            try:
                parted(sum_E.view(np.int64), step.sums, clients)
            except ValueError as error:
                raise SecureAggregationFailed(
                    f"what was unmasked is no sum over {clients} clients: {error}"
                ) from error

        total = secure_sum(
            self._federation,
            self._order,
            joined_size(step.sums),
            self._require,
            check,
            self._exchange.topic,
            step=number,
            clients=tuple(told),
        )
        sums = parted(total.sum_D.view(np.int64), step.sums, total.with_labels)
        # A client that left after its vector was taken in is in the sum, and in nothing else.
        clients = tuple(client for client in total.clients if client in told)
        clear = {client: told[client].clear for client in clients}
        return _Outcome(clients, failures | total.failures, sums, clear)

    def _sent_to_all(self) -> Replies:
        """Ask the last step, and all steps anew where a client has lost those before."""
        number = len(self._questions) - 1
        replies = self._sent(number, self._clients)
        lost = [c for c, message in replies.messages.items() if has_lost(message)]
        if lost:
            for client in lost:
                del replies.messages[client]
            replies.add(self._sent(0, lost))
            for client in [c for c in lost if c in replies.messages]:
                if has_lost(replies.messages[client]):
                    replies.reject(client, "it has lost what it was told just now")
        return replies

    def _sent(self, first: int, clients: Sequence[int]) -> Replies:
        asked = asked_to(first, self._questions[first:])
        records: dict[int, Records] = {}
        for client in clients:
            own = dict(self._records[client])
            if first > 0:
                # Its embeddings of the pool are there.
                del own[ARRAYS_KEY]
            records[client] = own | asked
        return ask(self._federation, self._order, self._exchange.message, records)

    def _leave(self, outcome: _Outcome) -> None:
        """Go on with the clients that are in a step's outcome."""
        gone = [client for client in self._clients if client not in outcome.clients]
        self._clients = tuple(client for client in self._clients if client in outcome.clients)
        # Who was not asked then is there only since the server has started again.
        self._failures |= dict.fromkeys(gone, "the choice was begun to be coordinated without it")
        self._failures |= outcome.failures

    def _model(self) -> ArrayRecord:
        model = next(iter(self._records.values()))[ARRAYS_KEY]
        if not isinstance(model, ArrayRecord):
            raise TypeError("a model is a record of arrays")
        return model


def has_lost(message: Message) -> bool:
    """Tell whether a client has lost the steps before the one that it was asked."""
    record = message.content.config_records.get(COORDINATION_KEY)
    return record is not None and record.get("lost") is True


@dataclass
class _Outcome:
    """What came of a step: who is still there, why others are not, sums, and what each told."""

    clients: tuple[int, ...]
    failures: dict[int, str]
    sums: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)
    clear: Mapping[int, Mapping[str, NDArray[np.float64]]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


class _Kept:
    """The outcomes of a cycle's steps, one file each; each is durable before the next is asked."""

    def __init__(self, order: Order, topic: Topic) -> None:
        folder = Path(order.run_folder) / topic.value
        self._folder = folder / f"cycle-{order.cycle}"
        self._cycle = order.cycle

    def read(self, number: int) -> _Outcome | None:
        """Return a step's outcome, or None where it is not there."""
        path = self._path(number)
        if not path.exists():
            return None
        try:
            with safe_open(path, "numpy") as file:
                about = json.loads(file.metadata()["about"])
            arrays = load_file(path)
            clear: dict[int, dict[str, NDArray[np.float64]]] = {}
            for key, values in arrays.items():
                kind, _, rest = key.partition(".")
                if kind == "clear":
                    client, _, name = rest.partition(".")
                    clear.setdefault(int(client), {})[name] = values
            return _Outcome(
                tuple(about["clients"]),
                {int(client): why for client, why in about["failures"].items()},
                {k.removeprefix("sum."): v for k, v in arrays.items() if k.startswith("sum.")},
                {client: clear.get(client, {}) for client in about["clients"]},
                about["facts"],
            )
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{path} is damaged: {error!r}; without the files of this folder the cycle is "
                "coordinated anew, where the clients still answer"
            ) from error

    def write(self, number: int, outcome: _Outcome) -> None:
        """Keep a step's outcome."""
        if number == 0:
            self._begin()
        arrays: dict[str, NDArray[Any]] = {f"sum.{n}": v for n, v in outcome.sums.items()}
        for client, told in outcome.clear.items():
            arrays |= {f"clear.{client}.{name}": values for name, values in told.items()}
        about = {
            "clients": outcome.clients,
            "failures": {str(client): why for client, why in outcome.failures.items()},
            "facts": outcome.facts,
        }
        arrays = {name: np.ascontiguousarray(values) for name, values in arrays.items()}
        write_bytes(self._path(number), save_arrays(arrays, {"about": json.dumps(about)}))

    def earlier(self, step: Step) -> dict[str, NDArray[Any]] | None:
        """Return the sums of a step that an earlier cycle asked for the whole run, if one did."""
        path = self._for_the_run(step)
        if not path.exists():
            return None
        try:
            with safe_open(path, "numpy") as file:
                about = file.metadata()
            if int(about["cycle"]) >= self._cycle:
                # Of this cycle, of which clients are held to the steps that they were asked.
                return None
            sums, clients = load_file(path), int(about["clients"])
            check_sums(step, sums, clients)
            return sums
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(
                f"{path} is damaged: {error!r}; without it clients are asked anew"
            ) from error

    def keep_for_the_run(self, step: Step, outcome: _Outcome) -> None:
        """Keep the sums of a step for all later cycles."""
        sums = {name: np.ascontiguousarray(values) for name, values in outcome.sums.items()}
        about = {"cycle": str(self._cycle), "clients": str(len(outcome.clients))}
        write_bytes(self._for_the_run(step), save_arrays(sums, about))

    def _for_the_run(self, step: Step) -> Path:
        return self._folder.parent / f"run-{step.name}.safetensors"

    def _begin(self) -> None:
        """Make the cycle's folder, and forget cycles that no checkpoint goes back to."""
        root = self._folder.parent
        self._folder.mkdir(parents=True, exist_ok=True)
        sync_folder(root)
        sync_folder(root.parent)
        for folder in root.glob("cycle-*"):
            if int(folder.name.removeprefix("cycle-")) <= self._cycle - _KEPT_CYCLES:
                shutil.rmtree(folder)

    def _path(self, number: int) -> Path:
        return self._folder / f"step-{number}.safetensors"
