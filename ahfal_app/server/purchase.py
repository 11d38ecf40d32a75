"""The end of a cycle: histograms, class statistics, selection, and waiting for labels."""

from __future__ import annotations

import datetime as dt
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from flwr.app import ArrayRecord
from numpy.typing import NDArray

from ahfal_app.class_statistics import ClassStatistics
from ahfal_app.config import Settings
from ahfal_app.messages.answers import QueryAnswer
from ahfal_app.messages.fields import metrics_of
from ahfal_app.messages.keys import ARRAYS_KEY, BUDGET_KEY, PURCHASES_KEY, STATISTICS_KEY
from ahfal_app.messages.protocol import (
    COLLECT,
    SELECT,
    Order,
    grant_to_record,
    purchases_to_record,
    statistics_to_record,
)
from ahfal_app.results.records import Forgetting
from ahfal_app.server.coordination import Coordinated, coordinate, has_lost
from ahfal_app.server.federation import (
    NOTHING,
    Federation,
    Records,
    Replies,
    ask,
    utc_text,
)
from ahfal_app.server.histograms import collect_histograms
from ahfal_app.server.plausibility import LabelBounds, check_purchase
from ahfal_app.server.strategy_side import StrategySide
from ahfal_app.server.watch import Watch

# People take minutes to days: ask again soon at first, then less and less often.
_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 60.0

# How often people are told the same, and how many sites by name.
_TOLD_AGAIN_S = 600.0
_MOST_NAMED = 20

# How often a client may fail to tell about its labels before the others go on without it;
# with these pauses about five minutes, enough for a site to start again.
_PATIENCE = 10


@dataclass
class Purchase:
    """What a cycle's purchase came to.

    Attributes
    ----------
    statistics : ClassStatistics
        Of the labelled sets that the cycle was trained on.
    answers : dict[int, QueryAnswer]
        How it stands, by client.
    failures : dict[int, str]
        Clients that failed at one of the steps, and why.
    seconds : dict[str, float]
        Wall time of each step.
    epsilon_spent : float | None
        What the histograms have cost of a client's privacy budget, this one included.
    forgetting : Forgetting | None
        What forgetting changes of the statistics, where it is known.
    """

    statistics: ClassStatistics
    answers: dict[int, QueryAnswer]
    failures: dict[int, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    epsilon_spent: float | None = None
    forgetting: Forgetting | None = None

    @property
    def pending(self) -> int:
        """Samples that were asked for and are not answered."""
        return sum(answer.pending for answer in self.answers.values())


def buy(
    federation: Federation,
    order: Order,
    arrays: ArrayRecord,
    num_classes: int,
    global_counts_C: NDArray[np.int64] | None,
    granted: Mapping[int, int],
    bought: Mapping[int, int],
    most_labels: LabelBounds,
    require: Callable[[Replies, int, str], None],
    note: Callable[[str], None],
    watch: Watch,
    side: StrategySide,
) -> Purchase:
    """Run a cycle's purchase on all clients.

    Parameters
    ----------
    federation : Federation
        The clients.
    order : Order
        With the cycle that was just trained.
    arrays : ArrayRecord
        The global model f^G.
    num_classes : int
        Number of classes, as many counts as a histogram must have.
    global_counts_C : NDArray[np.int64] | None
        True class counts of all clients' samples, where they are known. Shape (C,).
    granted : Mapping[int, int]
        How many labels each client may have, where the server says so.
    bought : Mapping[int, int]
        The newest cycle that each client is known to have bought labels for; without these it does
        not choose, since it would ask for them once more.
    most_labels : LabelBounds
        Labels that a client may have, by client.
    require : Callable
        Called with the replies to each step, the number asked and the step's name; raises
        where too few answered.
    note : Callable
        Called with what people should know while they wait.
    watch : Watch
        Told how the purchase stands.
    side : StrategySide
        The query strategy's half here: tells a policy, and is told of choices.
    """
    histograms = collect_histograms(federation, order, num_classes, most_labels, require)
    target_C = _target(order, histograms.statistics, global_counts_C)
    statistics = replace(histograms.statistics, target_C=target_C)
    records: Records = {ARRAYS_KEY: arrays, STATISTICS_KEY: statistics_to_record(statistics)}
    records = {**records, **side.records()}
    asked = {c: {**records, **grants(order, granted, c)} for c in sorted(histograms.clients)}
    seconds, failures = {"histogram": histograms.seconds}, dict(histograms.failures)
    coordinated = coordinate(federation, order, tuple(asked), asked, granted, num_classes, require)
    if coordinated is not None:
        asked = {c: {**asked[c], **coordinated.decision(c)} for c in coordinated.clients}
        failures |= coordinated.failures
        seconds["coordinate"] = coordinated.seconds
    known = {c: {PURCHASES_KEY: purchases_to_record(bought.get(c, -1))} for c in asked}
    asked = {c: {**asked[c], **known[c]} for c in asked}
    replies = ask(federation, order, SELECT, asked)
    if coordinated is not None:
        _tell_again(federation, order, asked, coordinated, replies)
    reports = side.reports(replies)
    answers = read_answers(replies, order.settings)
    require(replies, len(histograms.clients), "selection")
    side.reported(order.cycle, {c: report for c, report in reports.items() if c in answers})
    purchase = Purchase(
        histograms.statistics,
        answers,
        failures | replies.failures,
        {**seconds, "select": replies.seconds, **side.seconds},
        histograms.epsilon_spent,
        histograms.forgetting,
    )
    start = time.monotonic()
    standing, failures = wait_for_labels(federation, order, order.cycle + 1, answers, note, watch)
    purchase.answers |= standing
    purchase.failures |= failures
    purchase.seconds["collect"] = time.monotonic() - start
    return purchase


def _tell_again(
    federation: Federation,
    order: Order,
    asked: Mapping[int, Records],
    coordinated: Coordinated,
    replies: Replies,
) -> None:
    """Let clients choose that have lost what was coordinated, after telling them all of it."""
    lost = [client for client, message in replies.messages.items() if has_lost(message)]
    for client in lost:
        del replies.messages[client]
    if lost:
        whole = {c: {**asked[c], **coordinated.decision(c, whole=True)} for c in lost}
        replies.add(ask(federation, order, SELECT, whole))


def wait_for_labels(
    federation: Federation,
    order: Order,
    cycle: int,
    answers: Mapping[int, QueryAnswer],
    note: Callable[[str], None],
    watch: Watch,
) -> tuple[dict[int, QueryAnswer], dict[int, str]]:
    """Ask the clients with pending labels, until all are in or the deadline has come.

    Clients that fail time after time are no longer waited for.

    Parameters
    ----------
    federation : Federation
        The clients.
    order : Order
        Settings and identity of the run.
    cycle : int
        The cycle that the labels were bought for.
    answers : Mapping[int, QueryAnswer]
        How the purchase stands, by client.
    note : Callable
        Called with what people should know while they wait.
    watch : Watch
        Told how the purchase stands.

    Returns
    -------
    dict[int, QueryAnswer]
        How it stands now.
    dict[int, str]
        Clients that are no longer waited for, and why.
    """
    waiting_room = _WaitingRoom(federation, note)
    standing = dict(answers)
    watch.standing(cycle, standing, {})
    misses: Counter[int] = Counter()
    gone: dict[int, str] = {}
    deadline = time.monotonic() + order.settings.label_deadline
    pause = _FIRST_PAUSE_S
    while time.monotonic() < deadline:
        waiting = {c for c, answer in standing.items() if answer.pending and c not in gone}
        if not waiting:
            break
        waiting_room.tell({client: standing[client].pending for client in waiting})
        time.sleep(min(pause, max(0.0, deadline - time.monotonic())))
        pause = min(2 * pause, _LONGEST_PAUSE_S)
        about = replace(order, cycle=cycle)
        replies = ask(federation, about, COLLECT, dict.fromkeys(waiting, NOTHING))
        answered = read_answers(replies, order.settings)
        standing |= answered
        watch.standing(cycle, answered, replies.failures)
        misses = Counter({c: misses[c] + 1 for c in replies.failures})
        gone |= {c: replies.failures[c] for c in misses if misses[c] >= _PATIENCE}
    if gone:
        note(f"no longer waiting for the labels of {federation.describe(gone)}")
    if pending := total(standing, "pending"):
        missing = {client: answer.pending for client, answer in standing.items() if answer.pending}
        where = waiting_room.where(missing)
        note(f"going on without {pending} labels; they will be used when they come: {where}")
    return standing, gone


class _WaitingRoom:
    """Tells people whose labels are waited for: where something changes, and now and then."""

    def __init__(self, federation: Federation, note: Callable[[str], None]) -> None:
        self._federation = federation
        self._note = note
        self._since = utc_text(dt.datetime.now(dt.UTC))
        self._told: dict[int, int] = {}
        self._told_at = float("-inf")

    def tell(self, missing: Mapping[int, int]) -> None:
        """Tell how many labels are missing at whose site, since when, and when it was last seen.

        Parameters
        ----------
        missing : Mapping[int, int]
            Labels by client.
        """
        now = time.monotonic()
        if missing == self._told and now - self._told_at < _TOLD_AGAIN_S:
            return
        self._told, self._told_at = dict(missing), now
        self._federation.look()
        self._note(
            f"waiting for {sum(missing.values())} labels since {self._since}: {self.where(missing)}"
        )

    def where(self, missing: Mapping[int, int]) -> str:
        """Return in words how many labels are missing at whose site, the most first."""
        ordered = sorted(missing, key=lambda client: (-missing[client], client))
        words = [
            f"{self._federation.name(client)} {missing[client]} "
            f"(last seen {self._federation.last_seen(client)})"
            for client in ordered[:_MOST_NAMED]
        ]
        more = len(ordered) - _MOST_NAMED
        return ", ".join(words + ([f"and {more} more sites"] if more > 0 else []))


def _target(
    order: Order, statistics: ClassStatistics, global_counts_C: NDArray[np.int64] | None
) -> NDArray[np.float64] | None:
    """Return the class distribution that the setting `align` means."""
    if order.settings.align == "estimated":
        return statistics.mean_C
    if order.settings.align == "true-global" and global_counts_C is not None:
        return global_counts_C.astype(np.float64)
    return None


def grants(order: Order, granted: Mapping[int, int], client: int) -> Records:
    """Return what a message says of a client's budget: something only where it is not its own.

    A client that came after the plan was made is granted nothing until the next one.
    """
    if not order.settings.has_global_budget:
        return NOTHING
    return {BUDGET_KEY: grant_to_record(granted.get(client, 0))}


def read_answers(replies: Replies, settings: Settings) -> dict[int, QueryAnswer]:
    """Return how clients' purchases stand; answers that cannot be used become failures."""
    answers = {}
    for client in list(replies.messages):
        try:
            metrics = metrics_of(replies.messages[client].content)
            answer = QueryAnswer.from_metrics(metrics)
            check_purchase(answer, settings)
            answers[client] = answer
        except ValueError as error:
            replies.reject(client, str(error))
    return answers


def total(answers: Mapping[int, QueryAnswer], attribute: str) -> int:
    """Return the sum of a count over the clients."""
    return sum(int(getattr(answer, attribute)) for answer in answers.values())
