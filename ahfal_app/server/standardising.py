"""How the server learns what all sites' samples are standardised by.

Shape suffix: E entries of sums over samples (`Moments`).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ahfal_app.data.images import DataFormat
from ahfal_app.data.moments import Moments, moments_for
from ahfal_app.errors import CheckpointError, SecureAggregationFailed
from ahfal_app.messages.answers import moments_from_metrics
from ahfal_app.messages.fields import metrics_of
from ahfal_app.messages.protocol import MOMENTS, Order
from ahfal_app.privacy.sessions import Topic
from ahfal_app.server.federation import NOTHING, Federation, Replies, ask
from ahfal_app.server.secure_sum import secure_sum
from ahfal_app.storage.files import write_json

_FILE = "standardisation.json"


def is_asked_of_sites(order: Order) -> bool:
    """Return whether the sites say what data are standardised by: of vectors, or of any data."""
    data, settings = order.data, order.settings
    if data is None or not settings.has_sites:
        return False
    return not data.is_measured or (data.vectors and settings.standardise != "none")


def standardised(
    federation: Federation,
    order: Order,
    require: Callable[[Replies, int, str], None],
    note: Callable[[str], None],
) -> DataFormat:
    """Return the format of all sites' samples with their mean and deviation.

    It is asked for once in a run, and kept in its folder: what a model was trained on must not
    change under it when data come in, or the run is resumed.

    Parameters
    ----------
    federation : Federation
        The sites.
    order : Order
        With the format by the server's test set, or by the settings alone.
    require : Callable
        As of `purchase.buy`.
    note : Callable
        Called with what people should know.

    Raises
    ------
    QuorumNotReached, SecureAggregationFailed
        Too few sites answered, or what they masked is no sum.
    CheckpointError
        What was kept cannot be read.
    """
    reference = order.data
    if reference is None or not is_asked_of_sites(order):
        raise ValueError("there is nothing to standardise")
    path = Path(order.run_folder) / _FILE
    if not path.exists():
        what = "vectors" if reference.vectors else "pixels"
        moments = moments_for(reference)
        told = _told(federation, order, moments, require)
        for client, reason in told.failures.items():
            note(f"{what} are standardised without {federation.name(client)}: {reason}")
        mean_C, std_C = moments.standardisation(told.sums_E, told.sites)
        samples = int(told.sums_E[0])
        write_json(path, {"samples": samples, "mean": mean_C, "deviation": std_C})
        note(f"{what} are standardised by mean and deviation over {samples} samples")
    return _kept(path, reference)


def keep_standardisation(folder: Path, data: DataFormat) -> None:
    """Write down what samples are standardised by where no site need be asked for it."""
    write_json(folder / _FILE, {"mean": data.mean_C, "deviation": data.std_C})


def _kept(path: Path, reference: DataFormat) -> DataFormat:
    try:
        kept = json.loads(path.read_text())
        pair = [tuple(map(float, kept[key])) for key in ("mean", "deviation")]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    if any(len(values) != reference.image_shape[2] for values in pair):
        raise CheckpointError(f"{path}: not one mean and deviation for each number or channel")
    return replace(reference, mean_C=pair[0], std_C=pair[1])


@dataclass(frozen=True, eq=False)
class _Told:
    """Sums over all sites that told theirs, how many these are, and why the others did not."""

    sums_E: NDArray[np.int64]
    sites: int
    failures: dict[int, str]


def _told(
    federation: Federation,
    order: Order,
    moments: Moments,
    require: Callable[[Replies, int, str], None],
) -> _Told:
    most = order.settings.max_client_samples
    if order.settings.uses_secure_aggregation:
        return _told_in_secret(federation, order, moments, require, most)
    clients = federation.clients
    replies = ask(federation, order, MOMENTS, dict.fromkeys(clients, NOTHING))
    total_E = np.zeros(moments.size, np.int64)
    for client in list(replies.messages):
        try:
            metrics = metrics_of(replies.messages[client].content)
            sums_E = moments_from_metrics(metrics, moments.size)
            # Neither more than one site has, nor than all together may have.
            moments.check(sums_E, min(most, moments.most_samples - int(total_E[0])))
            total_E += sums_E
        except ValueError as error:
            replies.reject(client, str(error))
    require(replies, len(clients), "moments")
    return _Told(total_E, len(replies.messages), replies.failures)


def _told_in_secret(
    federation: Federation,
    order: Order,
    moments: Moments,
    require: Callable[[Replies, int, str], None],
    most: int,
) -> _Told:
    def check(sum_E: NDArray[np.uint64], contributors: int) -> None:
        try:
            moments.check(sum_E.view(np.int64), most * contributors, contributors)
        except ValueError as error:
            raise SecureAggregationFailed(
                f"what was unmasked is no sum over {contributors} sites' samples: {error}"
            ) from error

    about = replace(order, cycle=0, round=0)
    summed = secure_sum(federation, about, moments.size, require, check, Topic.MOMENTS)
    return _Told(summed.sum_D.view(np.int64), summed.with_labels, summed.failures)
