"""The ClientApp: one short handler for each message type."""

from __future__ import annotations

import functools
import logging
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TypeVar, cast

from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from ahfal_app.class_statistics import ClassStatistics
from ahfal_app.client.client import Client
from ahfal_app.client.coordination import UnderWay
from ahfal_app.client.node_config import is_site, models_kept, partition_of
from ahfal_app.client.outgoing import told
from ahfal_app.client.serving import client_for
from ahfal_app.code_version import PACKAGE_FOLDER, __version__
from ahfal_app.errors import MessageRefused
from ahfal_app.flat import FlatArrays, Layout
from ahfal_app.messages import secure_aggregation as secure
from ahfal_app.messages.answers import (
    Introduction,
    QueryAnswer,
    drift_to_metrics,
    histogram_to_metrics,
    moments_to_metrics,
    predictions_to_metrics,
)
from ahfal_app.messages.arrays import FlatRecord, decode_all, size_in_bytes
from ahfal_app.messages.coordination import Asked, answer_to, asked_from
from ahfal_app.messages.evaluation import RECORD_KEY as EVALUATION_KEY
from ahfal_app.messages.evaluation import evaluation_to_record
from ahfal_app.messages.fields import arrays_of, config_of, metrics_of
from ahfal_app.messages.keys import (
    ARRAYS_KEY,
    BUDGET_KEY,
    CONFIG_KEY,
    COORDINATION_KEY,
    KEPT_KEY,
    METRICS_KEY,
    MODEL_KEY,
    POLICY_KEY,
    PURCHASES_KEY,
    QUESTIONS_KEY,
    REPORT_KEY,
    STATISTICS_KEY,
)
from ahfal_app.messages.protocol import (
    Order,
    grant_from_record,
    metadata_from_record,
    purchases_from_record,
    statistics_from_record,
)
from ahfal_app.messages.reports import arrays_to, policy_from
from ahfal_app.plugins import shared_code_hash
from ahfal_app.privacy.participant import Participant
from ahfal_app.privacy.sessions import Topic
from ahfal_app.storage.private import owner_only
from ahfal_app.training.flat import FlatTensors

app = ClientApp()

Handler = Callable[[Message, Context], Message]
Read = TypeVar("Read")

_STATE_KEY = "ahfal"
_RAISED = 2  # Flower's code for a ClientApp that raised an exception.

_log = logging.getLogger(__name__)


def _nothing() -> None:
    return None


# The order and the global model that were decoded last.
_newest_order: tuple[Callable[[], ConfigRecord | None], Order | None] = (_nothing, None)
_newest: tuple[Callable[[], ArrayRecord | None], FlatTensors] = (
    _nothing,
    FlatTensors(Layout.of({}), {}),
)


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
    """Tell which client this is; where a run begins, ask for its initial labels."""
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
        # Later on only what the server knows of this client may tell whether labels are due.
        begins = PURCHASES_KEY in message.content.metric_records and _purchases(message) < 0
        metrics = client.join(order.cycle, begins).to_metrics()
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
    content = RecordDict(
        {ARRAYS_KEY: FlatRecord(tensors.numpy()), METRICS_KEY: answer.to_metrics()}
    )
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


@app.query("drift")
@_guarded
def drift(message: Message, context: Context) -> Message:
    """Tell whether the class mix is another than before."""
    order = _order(message)
    client = _client(order, context)
    has_model = ARRAYS_KEY in message.content.array_records
    found = client.drift(_tensors(message, client) if has_model else None, _trained(order))
    return _metrics_reply(message, drift_to_metrics(found))


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
        case Topic.COORDINATION:
            step = _step(message)
            advertisement = client.advertise_coordination(order.cycle, step, session)
        case Topic.BUDGET:
            advertisement = client.advertise_split(order.cycle, _step(message), session)
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


@app.query("coordinate")
@_guarded
def coordinate(message: Message, context: Context) -> Message:
    """Answer a step of a choice that is made together with the other clients."""
    order = _order(message)
    client = _client(order, context, needed_bytes=0)
    asked = _asked(message)
    has_model = ARRAYS_KEY in message.content.array_records
    tensors = _tensors(message, client) if has_model else None
    statistics, granted = _statistics(message, client), _granted(message, order)
    under_way = client.coordinate(tensors, order.cycle, asked, statistics, granted)
    return _step_reply(message, order, asked, under_way)


@app.query("split")
@_guarded
def split(message: Message, context: Context) -> Message:
    """Answer a step of how a budget is split that all clients share."""
    order = _order(message)
    client = _client(order, context, needed_bytes=0)
    asked = _asked(message)
    has_model = ARRAYS_KEY in message.content.array_records
    tensors = _tensors(message, client) if has_model else None
    return _step_reply(message, order, asked, client.split(tensors, _trained(order), asked))


@app.query("select")
@_guarded
def select(message: Message, context: Context) -> Message:
    """Choose what to label and hand it to the oracle."""
    order = _order(message)
    client = _client(order, context, needed_bytes=0)
    statistics, granted = _statistics(message, client), _granted(message, order)
    tensors, bought = _tensors(message, client), _purchases(message)
    if COORDINATION_KEY in message.content.config_records:
        asked = _asked(message)
        answer = client.select_together(tensors, order.cycle, asked, statistics, granted, bought)
        if answer is None:
            return _lost_reply(message)
    else:
        policy = _policy(message, client)
        answer = client.select(tensors, order.cycle, statistics, granted, policy, bought)
    reply = _query_reply(message, answer)
    if report := client.report(order.cycle):
        reply.content[REPORT_KEY] = arrays_to(report)
    return reply


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
            metadata = metadata_from_record(config_of(message.content, MODEL_KEY))
        client.keep_model(_tensors(message, client), metadata, personal)
    return _metrics_reply(message, MetricRecord({KEPT_KEY: int(keeps)}))


def _order(message: Message) -> Order:
    """Return the order; clients of one process that are sent the same object share it."""
    global _newest_order
    with _checked():
        record = config_of(message.content)
        known, order = _newest_order
        if order is None or known() is not record:
            order = Order.from_record(record)
            _newest_order = (weakref.ref(record), order)
    return order


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


def _tensors(message: Message, client: Client) -> FlatTensors:
    """Return the global model; clients of one process that are sent the same object share it."""
    global _newest
    with _checked():
        record = arrays_of(message.content)
        known, tensors = _newest
        if known() is record and tensors.layout == client.layout:
            return tensors
        tensors = FlatTensors.copy_of(decode_all(record, client.layout))
    # A lone assignment: clients in other threads see the one or the other.
    _newest = (weakref.ref(record), tensors)
    return tensors


def _granted(message: Message, order: Order) -> int | None:
    """Return the labels that the server grants, where all clients share one budget."""
    if not order.settings.has_global_budget:
        return None
    with _checked():
        return grant_from_record(metrics_of(message.content, BUDGET_KEY))


def _purchases(message: Message) -> int:
    """Return the newest cycle that the server knows this client to have bought labels for."""
    with _checked():
        return purchases_from_record(metrics_of(message.content, PURCHASES_KEY))


def _statistics(message: Message, client: Client) -> ClassStatistics:
    with _checked():
        record = metrics_of(message.content, STATISTICS_KEY)
        return statistics_from_record(record, client.num_classes)


def _policy(message: Message, client: Client) -> FlatArrays | None:
    """Return what the query strategy's half at the server has told, if it has."""
    if POLICY_KEY not in message.content.array_records:
        return None
    with _checked():
        return policy_from(message.content.array_records[POLICY_KEY], client.policy_forms)


def _asked(message: Message) -> Asked:
    with _checked():
        return asked_from(
            message.content.config_records[COORDINATION_KEY],
            message.content.array_records[QUESTIONS_KEY],
        )


def _step(message: Message) -> int:
    with _checked():
        return secure.step_of(secure.record_of(message.content))


def _bytes_of(message: Message) -> int:
    with _checked():
        return size_in_bytes(arrays_of(message.content))


@contextmanager
def _participant(
    message: Message, context: Context, read: Callable[[ConfigRecord], Read]
) -> Iterator[tuple[Participant, Read]]:
    order, (session, topic, asked) = _order(message), _secure_request(message, read)
    client = _client(order, context)
    place = _step(message) if topic.has_steps else order.round
    with client.participant(order.cycle, session, topic, place) as participant:
        yield participant, asked


def _secure_request(
    message: Message, read: Callable[[ConfigRecord], Read]
) -> tuple[str, Topic, Read]:
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


def _step_reply(
    message: Message, order: Order, asked: Asked, under_way: UnderWay | None
) -> Message:
    if under_way is None:
        return _lost_reply(message)
    if asked.last == 0:
        return _metrics_reply(message, under_way.opening.to_metrics())
    arrays = answer_to(under_way.answer, with_sums=not order.settings.uses_secure_aggregation)
    return Message(RecordDict({QUESTIONS_KEY: arrays}), reply_to=message)


def _lost_reply(message: Message) -> Message:
    """Say that what came before was lost, so that all of it is to be told anew."""
    return Message(RecordDict({COORDINATION_KEY: ConfigRecord({"lost": True})}), reply_to=message)


def _secure_reply(message: Message, record: ConfigRecord) -> Message:
    return Message(RecordDict({secure.RECORD_KEY: record}), reply_to=message)
