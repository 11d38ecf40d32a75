"""How the server comes to the class statistics, in each mode of privacy.

Shape suffixes: M clients, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ahfal_app.class_statistics import ClassStatistics, class_statistics, statistics_from_sums
from ahfal_app.config import Settings
from ahfal_app.messages.answers import histogram_from_metrics
from ahfal_app.messages.fields import metrics_of
from ahfal_app.messages.protocol import HISTOGRAM, Order
from ahfal_app.privacy.local_dp import proportions_of_noisy
from ahfal_app.privacy.sessions import HistogramAnswer
from ahfal_app.results.records import Forgetting
from ahfal_app.server.federation import NOTHING, Federation, Replies, ask
from ahfal_app.server.plausibility import LabelBounds
from ahfal_app.server.secure_sum import secure_sum


@dataclass(frozen=True)
class ClassHistograms:
    """What the server learned of the clients' histograms.

    Attributes
    ----------
    statistics : ClassStatistics
        Over the clients' labelled sets.
    clients : frozenset[int]
        Clients that answered, and go on to the selection.
    failures : dict[int, str]
        Why the others did not.
    seconds : float
        Wall time.
    epsilon_spent : float | None
        The most that any client's releases have cost so far; None without noise.
    forgetting : Forgetting | None
        What forgetting changes; None where nothing is forgotten, or the server cannot know.
    """

    statistics: ClassStatistics
    clients: frozenset[int]
    failures: dict[int, str]
    seconds: float
    epsilon_spent: float | None
    forgetting: Forgetting | None = None


def collect_histograms(
    federation: Federation,
    order: Order,
    num_classes: int,
    most_labels: LabelBounds,
    require: Callable[[Replies, int, str], None],
) -> ClassHistograms:
    """Ask the clients for their class histograms, as the settings' privacy has it.

    Parameters
    ----------
    federation : Federation
        The clients.
    order : Order
        With the cycle that was just trained.
    num_classes : int
        Number of classes, as many counts as a histogram must have.
    most_labels : LabelBounds
        Labels that a client may have, by client.
    require : Callable
        As of `purchase.buy`.

    Raises
    ------
    NoLabelledClients
        No client has a labelled sample.
    SecureAggregationFailed
        A secure sum was wanted, and cannot be had.
    """
    if order.settings.uses_secure_aggregation:
        return _summed(federation, order, num_classes, require)
    return _single(federation, order, num_classes, most_labels, require)


def _single(
    federation: Federation,
    order: Order,
    num_classes: int,
    most_labels: LabelBounds,
    require: Callable[[Replies, int, str], None],
) -> ClassHistograms:
    settings, clients = order.settings, federation.clients
    replies = ask(federation, order, HISTOGRAM, dict.fromkeys(clients, NOTHING))
    answers = []
    for client in list(replies.messages):
        try:
            metrics = metrics_of(replies.messages[client].content)
            answer = histogram_from_metrics(metrics, num_classes, settings.uses_local_dp)
            if not settings.uses_local_dp:
                _check_total(answer, most_labels[client])
            _check_weighted(answer, settings)
            answers.append(answer)
        except ValueError as error:
            replies.reject(client, str(error))
    require(replies, len(clients), "histogram")
    spent = max(answer.epsilon_spent for answer in answers) if settings.uses_local_dp else None
    answers = [answer for answer in answers if answer.has_labels]
    rows_MC, plain_MC = (
        np.array(counts, dtype=np.float64).reshape(-1, num_classes)
        for counts in ([a.used_C for a in answers], [a.counts_C for a in answers])
    )
    if settings.uses_local_dp:
        rows_MC, plain_MC = proportions_of_noisy(rows_MC), proportions_of_noisy(plain_MC)
    effective_M = [answer.effective for answer in answers]
    statistics = class_statistics(
        rows_MC,
        settings.tau,
        settings.dispersion,
        effective_M if settings.dispersion_correction else None,
        settings.tau_rule,
    )
    forgetting = None
    if settings.forget:
        plain = class_statistics(
            plain_MC, settings.tau, settings.dispersion, rule=settings.tau_rule
        )
        forgetting = Forgetting(
            deviation=tuple(plain.deviation_C.tolist()),
            low=tuple(plain.low_C.tolist()),
            effective=() if settings.uses_local_dp else tuple(effective_M),
        )
    return ClassHistograms(
        statistics,
        frozenset(replies.messages),
        replies.failures,
        replies.seconds,
        spent,
        forgetting,
    )


def _check_weighted(answer: HistogramAnswer, settings: Settings) -> None:
    """Refuse counts without what is wanted of them where older labels count less, or besides."""
    if bool(settings.forget) != (answer.weighted_C is not None) and answer.has_labels:
        wanted = "missing" if settings.forget else "told and not asked for"
        raise ValueError(f"weighted: {wanted} with forget={settings.forget:g}")


def _check_total(answer: HistogramAnswer, most: int) -> None:
    total = int(answer.counts_C.sum())
    if total > most:
        raise ValueError(f"counts of {total} labels: it has at most {most}, by its own word")


def _summed(
    federation: Federation,
    order: Order,
    num_classes: int,
    require: Callable[[Replies, int, str], None],
) -> ClassHistograms:
    total = secure_sum(federation, order, 2 * num_classes + 1, require)
    sums = total.sums
    return ClassHistograms(
        statistics_from_sums(
            sums.proportions_C,
            sums.squares_C,
            sums.num_clients,
            order.settings.tau,
            order.settings.dispersion,
            order.settings.tau_rule,
        ),
        frozenset(total.clients) & frozenset(federation.clients),
        total.failures,
        total.seconds,
        total.epsilon_spent if order.settings.uses_local_dp else None,
    )
