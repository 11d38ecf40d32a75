"""Who takes part: the first exchange of a run, in which clients tell who they are."""

from __future__ import annotations

import math
from dataclasses import dataclass

from flwr.app import ConfigRecord, MetricRecord, RecordDict

from ahfal_app.code_version import PACKAGE_FOLDER, code_hash
from ahfal_app.config import Settings
from ahfal_app.errors import CodeMismatch, ConfigError, QuorumNotReached, ResumeError
from ahfal_app.federation import Federation
from ahfal_app.labels import Ledger
from ahfal_app.protocol import (
    CONFIG_KEY,
    JOIN,
    Order,
    integer,
    ledger_from_metrics,
    metrics_of,
)


@dataclass(frozen=True)
class Member:
    """What the server knows about a client that joined."""

    client: int
    num_samples: int
    labelled: int
    pending: int
    last_cycle: int
    ledger: Ledger
    data: str
    partition: str


@dataclass(frozen=True)
class Membership:
    """The clients of a run, and the failures of those that could not join."""

    settings: Settings
    members: dict[int, Member]
    failures: dict[int, str]

    @property
    def data_fingerprint(self) -> str:
        """Fingerprint of the data set that all clients have."""
        return next(iter(self.members.values())).data

    @property
    def partition_fingerprint(self) -> str:
        """Fingerprint of the partition that all clients have."""
        return next(iter(self.members.values())).partition


def join(federation: Federation, order: Order) -> Membership:
    """Wait for the nodes, learn which client each serves, and have initial labels bought.

    Raises
    ------
    CodeMismatch
        A client runs other code than the server.
    ConfigError
        More clients are wanted than there are, or one client is there twice.
    QuorumNotReached
        Too few clients are there, or too few can take part.
    """
    settings = order.settings
    wanted = settings.num_clients or 1
    nodes = federation.wait_for_nodes(wanted, settings.start_timeout)
    answers: dict[int, RecordDict] = {}
    failures: dict[int, str] = {}
    while len(answers) + len(failures) < wanted:
        new = [node for node in nodes if node not in answers and node not in failures]
        if not new:
            break
        content = RecordDict({CONFIG_KEY: order.to_record()})
        messages = [federation.message_to_node(n, JOIN, content, "join") for n in new]
        replies = federation.exchange_with_nodes(messages)
        answers |= {node: reply.content for node, reply in replies.messages.items()}
        failures |= replies.failures
        # Only the clients know how many nodes are still to come.
        wanted = max(wanted, *(_about(a, "num-clients") for a in answers.values()), 1)
        nodes = federation.wait_for_nodes(wanted, settings.start_timeout)
    return _membership(federation, settings, answers, failures)


def _membership(
    federation: Federation,
    settings: Settings,
    answers: dict[int, RecordDict],
    failures: dict[int, str],
) -> Membership:
    for content in answers.values():
        _check_code(content.config_records[CONFIG_KEY])
    connected = max((_about(a, "num-clients") for a in answers.values()), default=0)
    if settings.num_clients > connected > 0:
        raise ConfigError(
            [
                f"num-clients={settings.num_clients}: allowed is at most {connected}, "
                "the number of connected clients"
            ]
        )
    num_clients = settings.num_clients or connected
    nodes: dict[int, int] = {}
    members: dict[int, Member] = {}
    for node, content in answers.items():
        client = _about(content, "client")
        if client >= num_clients:
            continue
        if client in nodes:
            raise ConfigError([f"partition-id={client}: two nodes have it; allowed is one"])
        nodes[client] = node
        members[client] = _member(client, content)
    reasons = "; ".join(sorted(set(failures.values()))) or "no more nodes connected"
    if len(members) < max(1, math.ceil(settings.quorum * num_clients)):
        raise QuorumNotReached(
            f"start: {len(members)} of {num_clients or 'the'} clients joined within "
            f"{settings.start_timeout:g} s (quorum={settings.quorum}): {reasons}"
        )
    federation.assign(nodes)
    missing = {c: reasons for c in range(num_clients) if c not in members}
    resolved = settings.model_copy(update={"num_clients": num_clients})
    ordered = {client: members[client] for client in sorted(members)}
    return Membership(resolved, ordered, missing)


def _about(content: RecordDict, key: str) -> int:
    value = content.config_records[CONFIG_KEY][key]
    if not isinstance(value, int):
        raise ValueError(f"{key}={value!r}: allowed is an integer")
    return value


def _check_code(about: ConfigRecord) -> None:
    folder, code = str(about["code-folder"]), str(about["code"])
    if code != code_hash():
        raise CodeMismatch(
            f"server and client run different code: {PACKAGE_FOLDER} (hash {code_hash()[:12]}) "
            f"and {folder} (hash {code[:12]}); a local SuperLink that was started in another "
            "checkout does this: stop it and start the run again"
        )


def _member(client: int, content: RecordDict) -> Member:
    metrics: MetricRecord = metrics_of(content)
    about = content.config_records[CONFIG_KEY]
    return Member(
        client=client,
        num_samples=integer(metrics, "num-samples"),
        labelled=integer(metrics, "labelled"),
        pending=integer(metrics, "pending"),
        last_cycle=integer(metrics, "last-cycle"),
        ledger=ledger_from_metrics(metrics),
        data=str(about["data"]),
        partition=str(about["partition"]),
    )


def check_resumable(membership: Membership, cycle: int) -> None:
    """Check that every client still has what was bought before a cycle.

    Raises
    ------
    ResumeError
        A client's labels are gone.
    """
    bought = min(cycle, membership.settings.num_cycles - 1)
    behind = {c: m for c, m in membership.members.items() if m.last_cycle < bought}
    if behind:
        client, member = next(iter(behind.items()))
        raise ResumeError(
            f"{len(behind)} clients have lost labels, such as client {client}: it holds those "
            f"bought up to cycle {member.last_cycle}, the run had come to cycle {cycle} "
            "(client-state='memory' does not outlive a run)"
        )
