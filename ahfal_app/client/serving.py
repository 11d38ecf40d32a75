"""What answers a message at a node: its client, once all is checked that the message asks for.

A node is a *site* where it names folders of its own. Then nothing that a server says decides what
is read or written there: its folders are its own, and its policy is held against every message
before anything is loaded. A node without them is a simulated client, which shares the server's
machine and its folders.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, MutableMapping
from pathlib import Path

import torch

from ahfal_app.backbones import PRETRAINED, UNTRAINED
from ahfal_app.client.client import Client
from ahfal_app.client.momentum import Collection, collection, momentum_in
from ahfal_app.client.node_config import (
    NodeConfig,
    at_site,
    is_site,
    models_kept,
    oracle_options,
    partition_of,
    site_folders,
    state_folder,
)
from ahfal_app.client.past_runs import PastRuns, past_runs
from ahfal_app.client.policy import FEWEST_TESTED, Policy
from ahfal_app.client.state import ClientState
from ahfal_app.config import Settings
from ahfal_app.data.cache import FEATURES, data_dir
from ahfal_app.errors import ConfigError, MessageRefused
from ahfal_app.messages.protocol import Order
from ahfal_app.plugins import ORACLES, STRATEGIES
from ahfal_app.results.identity import is_folder_of
from ahfal_app.storage.private import make_private
from ahfal_app.storage.usage import bytes_in
from ahfal_app.training.choices import computing_threads
from ahfal_app.training.resources import Resources, resources, site_resources

# Simulated clients of an engine in this process, with what their order said of them.
_kept: weakref.WeakKeyDictionary[Collection, dict[object, tuple[object, Client]]] = (
    weakref.WeakKeyDictionary()
)


def client_for(
    order: Order,
    node_config: NodeConfig,
    memory: Callable[[], MutableMapping[str, bytes]],
    needed_bytes: int | None = None,
) -> Client:
    """Return the client that a node serves, ready to do what an order says.

    Parameters
    ----------
    order : Order
        What the message says.
    node_config : NodeConfig
        What the node says of itself.
    memory : Callable[[], MutableMapping[str, bytes]]
        Returns what Flower keeps of the node in memory.
    needed_bytes : int | None
        How much will be written besides decoded images; None: a few lines, which no limit of the
        disk holds up, since they may be labels.

    Raises
    ------
    ConfigError
        Run and node do not go together.
    MessageRefused
        The message names what a server has no business to name.
    PolicyRefused
        The site's policy does not allow it.
    """
    engine = collection()
    if engine is None or is_site(node_config) or order.settings.client_state != "disk":
        return _made(order, node_config, memory, needed_bytes)
    # A run's clients are made once, and looked up by all that they are made of.
    key = (node_config.get("partition-id"), node_config.get("num-partitions"))
    told = (order.settings, order.run, order.run_folder, order.data, order.proximal_mu)
    kept = _kept.setdefault(engine, {})
    known = kept.get(key)
    if known is not None and known[0] == (*told, order.backbone):
        torch.set_num_threads(computing_threads(order.settings))
        return known[1]
    client = _made(order, node_config, memory, needed_bytes)
    kept[key] = ((*told, order.backbone), client)
    return client


def _made(
    order: Order,
    node_config: NodeConfig,
    memory: Callable[[], MutableMapping[str, bytes]],
    needed_bytes: int | None,
) -> Client:
    partition, partitions = partition_of(order.settings, node_config)
    settings = at_site(order.settings, node_config)
    if settings.num_clients == 0:
        settings = settings.model_copy(update={"num_clients": partitions})
    run_folder = Path(order.run_folder)
    is_shared = is_folder_of(run_folder, order.run)
    policy, past, room = Policy(), PastRuns(), None
    if is_site(node_config):
        policy = Policy.from_node_config(node_config)
        models_kept(node_config)  # What it says of them is checked before a run, not at its end.
        past = _admitted(policy, settings, order, node_config)
        room = _room(policy, settings, node_config, needed_bytes)
        root = state_folder(node_config)
        state = ClientState.on_disk(root / order.run / str(partition), root)
    else:
        state = _simulated_state(settings, run_folder if is_shared else None, partition, memory)
    torch.set_num_threads(computing_threads(settings))
    loaded = _loaded(settings, order, node_config, room)
    _check_backbone(settings, loaded, order)
    policy.check_labels(settings, len(loaded.client_rows(partition)), past)
    is_simulated = settings.oracle == "simulated" and is_shared and loaded.site is None
    return Client(
        settings,
        partition,
        order.run,
        state,
        run_folder if is_simulated else None,
        loaded,
        oracle_options(node_config),
        order.proximal_mu,
        lambda ledger: policy.allowance(ledger, past),
        lambda granted: policy.check_grant(granted, past),
        (policy.fewest_tested or FEWEST_TESTED) if is_site(node_config) else 1,
    )


def _admitted(
    policy: Policy, settings: Settings, order: Order, node_config: NodeConfig
) -> PastRuns:
    """Hold a message against a site's policy; return what other runs have cost."""
    folder = state_folder(node_config)
    if settings.client_state != "disk":
        raise MessageRefused(f"client-state={settings.client_state!r}: allowed is 'disk' at a site")
    if "data" not in node_config and "dataset" not in node_config:
        _refuse_path(settings.dataset)
    if settings.uses_backbone and "backbone-weights" not in node_config:
        _refuse_weights(settings.backbone_weights)
    problems = [ORACLES.problem(settings.oracle), STRATEGIES.problem(settings.strategy)]
    if known := [problem for problem in problems if problem is not None]:
        raise ConfigError(known)
    past = past_runs(folder, order.run) if policy.counts_past_runs else PastRuns()
    policy.check(settings, order.data, past)
    make_private(folder)
    # On the way to the client's own folder, so that each is closed, whatever was there before.
    make_private(folder / order.run)
    return past


def _refuse_path(dataset: str) -> None:
    """Refuse a folder of this machine that a server names as its data set."""
    if Path(dataset).expanduser().exists() or not dataset[0].isalnum():
        raise MessageRefused(
            f"dataset={dataset!r}: a folder of a site is named by the site alone (dataset or data "
            "in --node-config)"
        )


def _refuse_weights(weights: str) -> None:
    """Refuse a file of this machine that a server names as the backbone's weights."""
    if weights not in (PRETRAINED, UNTRAINED):
        raise MessageRefused(
            "backbone-weights: a file of a site is named by the site alone (backbone-weights in "
            "--node-config)"
        )


def _check_backbone(settings: Settings, loaded: Resources, order: Order) -> None:
    """Refuse to train on features that are not those of the server's backbone."""
    if loaded.backbone is None or loaded.backbone.digest == order.backbone:
        return
    raise ConfigError(
        [
            f"backbone={settings.backbone!r}: weights and preprocessing have the hash "
            f"{loaded.backbone.digest[:12]} here, and {order.backbone[:12]} at the server; allowed "
            "is the same file of weights (backbone-weights) and the same version of its library"
        ]
    )


def _room(
    policy: Policy, settings: Settings, node_config: NodeConfig, needed_bytes: int | None
) -> int | None:
    """Return how many bytes decoded images and features may take; None where there is no limit."""
    if policy.most_disk_bytes is None:
        return None
    decoded = data_dir(settings) / "decoded"
    kept = [*decoded.glob("site-*"), *(data_dir(settings) / FEATURES).glob("site-*")]
    used = bytes_in(state_folder(node_config)) + sum(map(bytes_in, kept))
    if needed_bytes is not None:
        policy.check_disk(used + needed_bytes)
    return max(0, policy.most_disk_bytes - used)


def _simulated_state(
    settings: Settings,
    run_folder: Path | None,
    partition: int,
    memory: Callable[[], MutableMapping[str, bytes]],
) -> ClientState:
    if settings.client_state == "memory":
        return ClientState.in_record(memory())
    if run_folder is None:
        raise ConfigError(
            ["state-dir: a SuperNode on another machine than the server needs it in --node-config"]
        )
    folder, shared = run_folder / "clients" / str(partition), momentum_in(run_folder / "momentum")
    return ClientState.on_disk(folder, shared=(partition, shared))


def _loaded(
    settings: Settings, order: Order, node_config: NodeConfig, room: int | None
) -> Resources:
    folders = site_folders(settings, node_config)
    if folders is None:
        return resources(settings, order.data)
    if order.data is None:
        raise ConfigError(["data: the server has not said what format data must have"])
    return site_resources(settings, folders, order.data, room)
