"""How the server learns what all sites' vectors are standardised by.

Shape suffix: E = 2 D + 1 entries of sums over vectors of D numbers.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ahfal_app.data.images import DataFormat
from ahfal_app.data.moments import check_sums, standardisation
from ahfal_app.errors import CheckpointError
from ahfal_app.messages.answers import moments_from_metrics
from ahfal_app.messages.fields import metrics_of
from ahfal_app.messages.protocol import MOMENTS, Order
from ahfal_app.privacy.sessions import Topic
from ahfal_app.server.federation import NOTHING, Federation, Replies, ask
from ahfal_app.server.secure_sum import secure_sum
from ahfal_app.storage.files import write_json

_FILE = "standardisation.json"


def standardised(
    federation: Federation,
    order: Order,
    require: Callable[[Replies, int, str], None],
    note: Callable[[str], None],
) -> DataFormat:
    """Return the format of all sites' vectors with their mean and deviation.

    It is asked for once in a run, and kept in its folder: what a model was trained on must not
    change under it when data come in, or the run is resumed.

    Parameters
    ----------
    federation : Federation
        The sites.
    order : Order
        With the format by the server's test set.
    require : Callable
        As of `purchase.buy`.
    note : Callable
        Called with what people should know.

    Raises
    ------
    QuorumNotReached, SecureAggregationFailed
        Too few sites answered.
    CheckpointError
        What was kept cannot be read.
    """
    reference = order.data
    if reference is None or not reference.vectors or order.settings.standardise == "none":
        raise ValueError("there is nothing to standardise")
    path = Path(order.run_folder) / _FILE
    if not path.exists():
        sums_E, failures = _sums(federation, order, len(reference.mean_C), require)
        for client, reason in failures.items():
            note(f"vectors are standardised without {federation.name(client)}: {reason}")
        mean_D, std_D = standardisation(sums_E, reference)
        write_json(path, {"samples": int(sums_E[0]), "mean": mean_D, "deviation": std_D})
        note(f"vectors are standardised by mean and deviation over {int(sums_E[0])} samples")
    try:
        kept = json.loads(path.read_text())
        return replace(reference, mean_C=tuple(kept["mean"]), std_C=tuple(kept["deviation"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error


def keep_standardisation(folder: Path, data: DataFormat) -> None:
    """Write down what vectors are standardised by where no site need be asked for it."""
    write_json(folder / _FILE, {"mean": data.mean_C, "deviation": data.std_C})


def _sums(
    federation: Federation,
    order: Order,
    numbers: int,
    require: Callable[[Replies, int, str], None],
) -> tuple[NDArray[np.int64], dict[int, str]]:
    """Return the sums over all sites that told theirs, and why the others did not."""
    settings, size = order.settings, 2 * numbers + 1
    most = settings.max_client_samples
    if settings.uses_secure_aggregation:

        def check(sum_D: NDArray[np.uint64], contributors: int) -> None:
            check_sums(sum_D.view(np.int64), most * contributors)

        about = replace(order, cycle=0, round=0)
        summed = secure_sum(federation, about, size, require, check, Topic.MOMENTS)
        return summed.sum_D.view(np.int64), summed.failures
    clients = federation.clients
    replies = ask(federation, order, MOMENTS, dict.fromkeys(clients, NOTHING))
    total_E = np.zeros(size, np.int64)
    for client in list(replies.messages):
        try:
            metrics = metrics_of(replies.messages[client].content)
            sums_E = moments_from_metrics(metrics, size)
            check_sums(sums_E, most)
            total_E += sums_E
        except ValueError as error:
            replies.reject(client, str(error))
    require(replies, len(clients), "moments")
    return total_E, replies.failures
