"""The ClientApp: one short handler for each message type."""

from __future__ import annotations

import functools
import logging
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TypeVar, cast

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from ahfal_app.client.client import Client
from ahfal_app.client.node_config import is_site, models_kept, partition_of
from ahfal_app.client.outgoing import told
from ahfal_app.client.serving import client_for
from ahfal_app.code_version import PACKAGE_FOLDER, __version__
from ahfal_app.errors import MessageRefused
from ahfal_app.messages import secure_aggregation as secure
from ahfal_app.messages.answers import (
    Introduction,
    QueryAnswer,
    histogram_to_metrics,
    moments_to_metrics,
    predictions_to_metrics,
)
from ahfal_app.messages.arrays import ArrayForm, decode_all, held_record, size_in_bytes
from ahfal_app.messages.evaluation import RECORD_KEY as EVALUATION_KEY
from ahfal_app.messages.evaluation import evaluation_to_record
from ahfal_app.messages.keys import (
    ARRAYS_KEY,
    BUDGET_KEY,
    CONFIG_KEY,
    KEPT_KEY,
    METRICS_KEY,
    MODEL_KEY,
    STATISTICS_KEY,
)
from ahfal_app.messages.protocol import (
    Order,
    grant_from_record,
    metadata_from_record,
    statistics_from_record,
)
from ahfal_app.plugins import shared_code_hash
from ahfal_app.privacy.participant import Participant
from ahfal_app.privacy.sessions import Topic
from ahfal_app.storage.private import owner_only

app = ClientApp()

Handler = Callable[[Message, Context], Message]
Asked = TypeVar("Asked")

_STATE_KEY = "ahfal"
_RAISED = 2  # Flower's code for a ClientApp that raised an exception.

_log = logging.getLogger(__name__)


def _nothing() -> ArrayRecord | None:
    return None


# The global model that was decoded last, with the forms that it was held against.
_newest: tuple[
    Callable[[], ArrayRecord | None], Mapping[str, ArrayForm], dict[str, torch.Tensor]
] = (_nothing, {}, {})


def _guarded(handler: Handler) -> Handler:
    """Let a site keep its files and its errors to itself.

    A simulated client tells its errors as they are: they are the researcher's own.
    """

    @functools.wraps(handler)
    def guarded(message: Message, context: Context) -> Message:
        if not is_site(context.node_config):
            return handler(message, context)
        try:
            with owner_only():
                return handler(message, context)
        except Exception as error:  # noqa: BLE001 (whatever it is, its text stays here)
            # The server hears that it failed, and why in general. Patients' names stay here.
            _log.exception("%s: %s", message.metadata.message_type, told(error))
            return Message(Error(_RAISED, told(error)), reply_to=message)

    return guarded


@app.query("join")
@_guarded
def join(message: Message, context: Context) -> Message:
    """Tell which client this is, and ask for its initial labels."""
    order = _order(message)
    partition, partitions = partition_of(order.settings, context.node_config)
    code = shared_code_hash(order.settings.to_flat())
    is_known = order.code == code or is_site(context.node_config)
    about = Introduction(
        client=partition,
        num_clients=partitions,
        code=code,
        # Where a site has installed what is its own affair.
        code_folder="" if is_known else str(PACKAGE_FOLDER),
        version=__version__,
    )
    metrics = MetricRecord()
    num_clients = order.settings.num_clients or partitions
    if order.code == code and partition < num_clients <= partitions:
        client = _client(order, context, needed_bytes=0)
        metrics = client.join(order.cycle).to_metrics()
        about = replace(
            about,
            data=client.data_fingerprint,
            partition=client.partition_fingerprint,
            device=client.device,
            backbone=client.backbone,
        )
    return Message(
        RecordDict({CONFIG_KEY: about.to_record(), METRICS_KEY: metrics}), reply_to=message
    )


@app.query("begin")
@_guarded
def begin(message: Message, context: Context) -> Message:
    """Ask for the first labels, where joining alone could not decide which."""
    order = _order(message)
    client = _client(order, context, needed_bytes=0)
    return _query_reply(message, client.begin(_granted(message, order), order.cycle))


@app.train()
@_guarded
def train(message: Message, context: Context) -> Message:
    """Train the global model locally."""
    order = _order(message)
    if order.round == 0:
        raise MessageRefused("server-round=0: allowed is at least 1 in training")
    # It is kept once as the momentum, and in a cycle's last round once as f^L.
    needed = 2 * _bytes_of(message) if is_site(context.node_config) else 0
    client = _client(order, context, needed_bytes=needed)
    tensors, answer = client.train(
        _tensors(message, client),
        order.cycle,
        order.round,
        last_round=order.round == order.settings.rounds,
    )
    # Copies, since the next client of this thread is trained in the same places.
    arrays = held_record({n: tensor.detach().cpu().numpy().copy() for n, tensor in tensors.items()})
    content = RecordDict({ARRAYS_KEY: arrays, METRICS_KEY: answer.to_metrics()})
    return Message(content, reply_to=message)


@app.evaluate()
@_guarded
def evaluate(message: Message, context: Context) -> Message:
    """Test the global model on held-out labels, and tell sums."""
    order = _order(message)
    client = _client(order, context, needed_bytes=0)
    sums = client.evaluate(_tensors(message, client), order.cycle)
    content = RecordDict({EVALUATION_KEY: evaluation_to_record(sums)})
    return Message(content, reply_to=message)


@app.query("moments")
@_guarded
def moments(message: Message, context: Context) -> Message:
    """Tell sums over all samples, that they can be standardised alike everywhere."""
    sums_E = _client(_order(message), context).moments()
    return _metrics_reply(message, moments_to_metrics(sums_E))


@app.query("predictions")
@_guarded
def predictions(message: Message, context: Context) -> Message:
    """Tell sums over predictions of the stop set."""
    order = _order(message)
    client = _client(order, context)
    sums_E = client.predictions(_tensors(message, client), _trained(order))
    return _metrics_reply(message, predictions_to_metrics(sums_E))


@app.query("histogram")
@_guarded
def histogram(message: Message, context: Context) -> Message:
    """Tell how many labelled samples of each class there are, with noise or without."""
    order = _order(message)
    answer = _client(order, context).histogram(order.cycle)
    return _metrics_reply(message, histogram_to_metrics(answer))


@app.query("advertise_keys")
@_guarded
def advertise_keys(message: Message, context: Context) -> Message:
    """Begin a session of secure aggregation with fresh keys."""
    order, (session, topic, _) = _order(message), _secure_request(message, lambda _: None)
    client = _client(order, context)
    match topic:
        case Topic.HISTOGRAM:
            advertisement = client.advertise_histogram(order.cycle, session)
        case Topic.MOMENTS:
            advertisement = client.advertise_moments(session)
        case Topic.EVALUATION:
            tensors = _tensors(message, client)
            advertisement = client.advertise_evaluation(tensors, order.cycle, order.round, session)
        case Topic.STOP_SET:
            tensors = _tensors(message, client)
            advertisement = client.advertise_predictions(tensors, _trained(order), session)
    return _secure_reply(message, secure.advertisement_to(advertisement))


@app.query("share_keys")
@_guarded
def share_keys(message: Message, context: Context) -> Message:
    """Split the session's secrets among the clients."""
    with _participant(message, context, secure.roster_from) as (participant, roster):
        ciphertexts = participant.share_keys(roster)
    return _secure_reply(message, secure.ciphertexts_to(ciphertexts))


@app.query("mask")
@_guarded
def mask(message: Message, context: Context) -> Message:
    """Tell the masked histogram."""
    with _participant(message, context, secure.ciphertexts_from) as (participant, ciphertexts):
        masked_D = participant.mask(ciphertexts)
    return _secure_reply(message, secure.vector_to(masked_D))


@app.query("unmask")
@_guarded
def unmask(message: Message, context: Context) -> Message:
    """Tell the shares that unmask the sum over the clients that stayed."""
    with _participant(message, context, secure.survivors_from) as (participant, survivors):
        unmasking = participant.unmask(survivors)
    return _secure_reply(message, secure.unmasking_to(unmasking))


@app.query("select")
@_guarded
def select(message: Message, context: Context) -> Message:
    """Choose what to label and hand it to the oracle."""
    order = _order(message)
    client = _client(order, context, needed_bytes=0)
    with _checked():
        record = message.content.metric_records[STATISTICS_KEY]
        statistics = statistics_from_record(record, client.num_classes)
    granted = _granted(message, order)
    answer = client.select(_tensors(message, client), order.cycle, statistics, granted)
    return _query_reply(message, answer)


@app.query("collect")
@_guarded
def collect(message: Message, context: Context) -> Message:
    """Take in labels that have come since."""
    order = _order(message)
    return _query_reply(message, _client(order, context).collect(order.cycle))


@app.query("model")
@_guarded
def model(message: Message, context: Context) -> Message:
    """Keep the model that a run leaves, if the site wants it."""
    order = _order(message)
    if not (is_site(context.node_config) and order.settings.has_sites):
        raise MessageRefused("a model is left at sites alone, with partition='sites'")
    keeps, personal = models_kept(context.node_config)
    if keeps:
        client = _client(order, context, needed_bytes=(1 + personal) * _bytes_of(message))
        with _checked():
            metadata = metadata_from_record(message.content.config_records[MODEL_KEY])
        client.keep_model(_tensors(message, client), metadata, personal)
    return _metrics_reply(message, MetricRecord({KEPT_KEY: int(keeps)}))


def _order(message: Message) -> Order:
    with _checked():
        return Order.from_record(message.content.config_records[CONFIG_KEY])


def _trained(order: Order) -> int:
    """Return a cycle that can have been trained."""
    if order.cycle >= order.settings.num_cycles:
        raise MessageRefused(f"cycle={order.cycle}: allowed is a cycle of the run")
    return order.cycle


def _client(order: Order, context: Context, needed_bytes: int | None = None) -> Client:
    def memory() -> dict[str, bytes]:
        record = context.state.config_records.setdefault(_STATE_KEY, ConfigRecord())
        return cast(dict[str, bytes], record)

    return client_for(order, context.node_config, memory, needed_bytes)


def _tensors(message: Message, client: Client) -> dict[str, torch.Tensor]:
    """Return the global model; clients of one process that are sent the same object share it."""
    global _newest
    with _checked():
        record = message.content.array_records[ARRAYS_KEY]
        known, forms, tensors = _newest
        if known() is record and forms is client.array_forms:
            return dict(tensors)
        forms = client.array_forms
        arrays = decode_all(record, forms)
    tensors = {name: torch.from_numpy(value.copy()) for name, value in arrays.items()}
    # A lone assignment: clients in other threads see the one or the other.
    _newest = (weakref.ref(record), forms, tensors)
    return dict(tensors)


def _granted(message: Message, order: Order) -> int | None:
    """Return the labels that the server grants, where all clients share one budget."""
    if not order.settings.has_global_budget:
        return None
    with _checked():
        return grant_from_record(message.content.metric_records[BUDGET_KEY])


def _bytes_of(message: Message) -> int:
    with _checked():
        return size_in_bytes(message.content.array_records[ARRAYS_KEY])


@contextmanager
def _participant(
    message: Message, context: Context, read: Callable[[ConfigRecord], Asked]
) -> Iterator[tuple[Participant, Asked]]:
    order, (session, topic, asked) = _order(message), _secure_request(message, read)
    client = _client(order, context)
    with client.participant(order.cycle, session, topic, order.round) as participant:
        yield participant, asked


def _secure_request(
    message: Message, read: Callable[[ConfigRecord], Asked]
) -> tuple[str, Topic, Asked]:
    """Return the session that a request belongs to, its sum's topic, and what it says besides."""
    with _checked():
        record = secure.record_of(message.content)
        return secure.session_name(record), secure.topic_of(record), read(record)


@contextmanager
def _checked() -> Iterator[None]:
    """Refuse a message in which something is missing or is not what it must be."""
    try:
        yield
    except (KeyError, ValueError) as error:
        raise MessageRefused(str(error)) from error


def _query_reply(message: Message, answer: QueryAnswer) -> Message:
    return _metrics_reply(message, answer.to_metrics())


def _metrics_reply(message: Message, metrics: MetricRecord) -> Message:
    return Message(RecordDict({METRICS_KEY: metrics}), reply_to=message)


def _secure_reply(message: Message, record: ConfigRecord) -> Message:
    return Message(RecordDict({secure.RECORD_KEY: record}), reply_to=message)
