"""The ClientApp: one short handler for each message type."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from ahfal_app.client.client import Client
from ahfal_app.client.node_config import (
    at_site,
    oracle_options,
    partition_of,
    path_of,
    site_folders,
)
from ahfal_app.client.state import ClientState
from ahfal_app.code_version import PACKAGE_FOLDER
from ahfal_app.errors import ConfigError
from ahfal_app.messages import secure_aggregation as secure
from ahfal_app.messages.answers import Introduction, QueryAnswer, histogram_to_metrics
from ahfal_app.messages.keys import ARRAYS_KEY, CONFIG_KEY, METRICS_KEY, STATISTICS_KEY
from ahfal_app.messages.protocol import Order, statistics_from_record
from ahfal_app.plugins import shared_code_hash
from ahfal_app.privacy.participant import Participant
from ahfal_app.training.resources import computing_threads, resources, site_resources

app = ClientApp()

_STATE_KEY = "ahfal"


@app.query("join")
def join(message: Message, context: Context) -> Message:
    """Tell which client this is, and ask for its initial labels."""
    order = _order(message)
    partition, partitions = partition_of(order.settings, context.node_config)
    code = shared_code_hash(order.settings.to_flat())
    about = Introduction(
        client=partition,
        num_clients=partitions,
        code=code,
        # Only then, since where a site has installed what is its own affair.
        code_folder="" if order.code == code else str(PACKAGE_FOLDER),
    )
    metrics = MetricRecord()
    num_clients = order.settings.num_clients or partitions
    if order.code == code and partition < num_clients <= partitions:
        client = _client(order, context)
        metrics = client.join(order.cycle).to_metrics()
        about = replace(
            about,
            data=client.data_fingerprint,
            partition=client.partition_fingerprint,
            device=client.device,
        )
    return Message(
        RecordDict({CONFIG_KEY: about.to_record(), METRICS_KEY: metrics}), reply_to=message
    )


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the global model locally."""
    order = _order(message)
    tensors, answer = _client(order, context).train(
        message.content.array_records[ARRAYS_KEY].to_torch_state_dict(),
        order.cycle,
        order.round,
        last_round=order.round == order.settings.rounds,
    )
    content = RecordDict({ARRAYS_KEY: ArrayRecord(tensors), METRICS_KEY: answer.to_metrics()})
    return Message(content, reply_to=message)


@app.query("histogram")
def histogram(message: Message, context: Context) -> Message:
    """Tell how many labelled samples of each class there are, with noise or without."""
    order = _order(message)
    answer = _client(order, context).histogram(order.cycle)
    return _metrics_reply(message, histogram_to_metrics(answer))


@app.query("advertise_keys")
def advertise_keys(message: Message, context: Context) -> Message:
    """Begin a session of secure aggregation with fresh keys."""
    order, record = _order(message), secure.record_of(message.content)
    session = secure.session_name(record)
    advertisement = _client(order, context).advertise_keys(order.cycle, session)
    return _secure_reply(message, secure.advertisement_to(advertisement))


@app.query("share_keys")
def share_keys(message: Message, context: Context) -> Message:
    """Split the session's secrets among the clients."""
    with _participant(message, context) as (participant, record):
        ciphertexts = participant.share_keys(secure.roster_from(record))
    return _secure_reply(message, secure.ciphertexts_to(ciphertexts))


@app.query("mask")
def mask(message: Message, context: Context) -> Message:
    """Tell the masked histogram."""
    with _participant(message, context) as (participant, record):
        masked_D = participant.mask(secure.ciphertexts_from(record))
    return _secure_reply(message, secure.vector_to(masked_D))


@app.query("unmask")
def unmask(message: Message, context: Context) -> Message:
    """Tell the shares that unmask the sum over the clients that stayed."""
    with _participant(message, context) as (participant, record):
        unmasking = participant.unmask(secure.survivors_from(record))
    return _secure_reply(message, secure.unmasking_to(unmasking))


@app.query("select")
def select(message: Message, context: Context) -> Message:
    """Choose what to label and hand it to the oracle."""
    order = _order(message)
    answer = _client(order, context).select(
        message.content.array_records[ARRAYS_KEY].to_torch_state_dict(),
        order.cycle,
        statistics_from_record(message.content.metric_records[STATISTICS_KEY]),
    )
    return _query_reply(message, answer)


@app.query("collect")
def collect(message: Message, context: Context) -> Message:
    """Take in labels that have come since."""
    order = _order(message)
    return _query_reply(message, _client(order, context).collect(order.cycle))


def _order(message: Message) -> Order:
    return Order.from_record(message.content.config_records[CONFIG_KEY])


def _client(order: Order, context: Context) -> Client:
    partition, partitions = partition_of(order.settings, context.node_config)
    settings = at_site(order.settings, context.node_config)
    torch.set_num_threads(computing_threads(settings))
    if settings.num_clients == 0:
        settings = settings.model_copy(update={"num_clients": partitions})
    folders = site_folders(settings, context.node_config)
    if folders is None:
        loaded = resources(settings)
    else:
        if order.data is None:
            raise ConfigError(["data: the server has not said what format data must have"])
        loaded = site_resources(settings, folders, order.data)
    folder = Path(order.run_folder)
    is_simulated = settings.oracle == "simulated" and folder.is_dir() and folders is None
    return Client(
        settings,
        partition,
        order.run,
        _state(order, context, partition),
        folder if is_simulated else None,
        loaded,
        oracle_options(context.node_config),
        order.proximal_mu,
    )


def _state(order: Order, context: Context, partition: int) -> ClientState:
    if order.settings.client_state == "memory":
        record = context.state.config_records.setdefault(_STATE_KEY, ConfigRecord())
        return ClientState.in_record(cast(dict[str, bytes], record))
    # A real site names a folder of its own; a simulated client shares the run's folder.
    configured = context.node_config.get("state-dir")
    if configured:
        return ClientState.on_disk(path_of(configured) / order.run / str(partition))
    if not Path(order.run_folder).is_dir():
        raise ConfigError(
            ["state-dir: a SuperNode on another machine than the server needs it in --node-config"]
        )
    return ClientState.on_disk(Path(order.run_folder) / "clients" / str(partition))


@contextmanager
def _participant(message: Message, context: Context) -> Iterator[tuple[Participant, ConfigRecord]]:
    order, record = _order(message), secure.record_of(message.content)
    session = secure.session_name(record)
    with _client(order, context).participant(order.cycle, session) as participant:
        yield participant, record


def _query_reply(message: Message, answer: QueryAnswer) -> Message:
    return _metrics_reply(message, answer.to_metrics())


def _metrics_reply(message: Message, metrics: MetricRecord) -> Message:
    return Message(RecordDict({METRICS_KEY: metrics}), reply_to=message)


def _secure_reply(message: Message, record: ConfigRecord) -> Message:
    return Message(RecordDict({secure.RECORD_KEY: record}), reply_to=message)
