"""At a run's end every site gets the model that the run leaves, if it wants it."""

from __future__ import annotations

from collections.abc import Mapping

from flwr.app import ArrayRecord

from ahfal_app.messages.fields import count, metrics_of
from ahfal_app.messages.keys import ARRAYS_KEY, KEPT_KEY, MODEL_KEY
from ahfal_app.messages.protocol import MODEL, Order, metadata_to_record
from ahfal_app.results.progress import Progress
from ahfal_app.results.units import bytes_text
from ahfal_app.server.federation import Federation, Records, ask


def deliver(
    federation: Federation,
    order: Order,
    arrays: ArrayRecord,
    metadata: str,
    absent: Mapping[int, str],
    progress: Progress,
) -> None:
    """Send all sites the model. What goes wrong at one is told, and stops nothing.

    Parameters
    ----------
    federation : Federation
        The clients.
    order : Order
        What every message says.
    arrays : ArrayRecord
        The model.
    metadata : str
        What its file says of it.
    absent : Mapping[int, str]
        Why clients are not there that belong to the run.
    progress : Progress
        Who is told.
    """
    before = federation.bytes_down
    content: Records = {ARRAYS_KEY: arrays, MODEL_KEY: metadata_to_record(metadata)}
    replies = ask(federation, order, MODEL, dict.fromkeys(federation.clients, content))
    kept = 0
    for client, reply in list(replies.messages.items()):
        try:
            does_keep = bool(count(metrics_of(reply.content), KEPT_KEY))
        except ValueError as error:
            replies.reject(client, f"unusable answer: {error}")
            continue
        kept += does_keep
        if not does_keep:
            progress.note(f"{federation.name(client)} keeps no model (keep-model=false)")
    for client, reason in {**absent, **replies.failures}.items():
        progress.warn(f"{federation.name(client)} has not got the model: {reason}")
    sites = len({*federation.clients, *absent})
    sent = bytes_text(federation.bytes_down - before)
    progress.note(f"the run's model is at {kept} of {sites} sites, {sent} sent")
