"""Who takes part: the exchange in which clients tell who they are.

It is the first of a run, and is repeated at the start of a cycle for nodes that are new or
failed before: a site that was away, or came back under another node id, takes part again.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

from flwr.app import RecordDict

from ahfal_app.code_version import PACKAGE_FOLDER
from ahfal_app.config import Settings, share_of
from ahfal_app.errors import CodeMismatch, ConfigError, QuorumNotReached, ResumeError
from ahfal_app.ledger import Ledger
from ahfal_app.messages.answers import Introduction, JoinAnswer
from ahfal_app.messages.fields import metrics_of
from ahfal_app.messages.keys import CONFIG_KEY
from ahfal_app.messages.protocol import JOIN, Order
from ahfal_app.server.federation import Federation

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Member:
    """What the server knows about a client that joined."""

    client: int
    node: int
    num_samples: int
    labelled: int
    last_cycle: int
    ledger: Ledger
    data: str
    partition: str
    device: str


@dataclass(frozen=True)
class _Answer:
    """What a node says, before its client is known."""

    about: Introduction
    content: RecordDict


@dataclass
class Membership:
    """The clients of a run.

    Attributes
    ----------
    settings : Settings
        The run's settings, with `num_clients` resolved.
    members : dict[int, Member]
        Those that joined, by client.
    failures : dict[int, str]
        Why the others did not, by client.
    spare : set[int]
        Nodes that serve no client of this run.
    """

    settings: Settings
    members: dict[int, Member] = field(default_factory=dict)
    failures: dict[int, str] = field(default_factory=dict)
    spare: set[int] = field(default_factory=set)


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
    answers: dict[int, _Answer] = {}
    failures: dict[int, str] = {}
    while new := [node for node in nodes if node not in answers and node not in failures]:
        _ask(federation, order, new, answers, failures)
        # Only the clients know how many nodes are still to come.
        wanted = max([wanted, *(answer.about.num_clients for answer in answers.values())])
        nodes = federation.wait_for_nodes(wanted, settings.start_timeout)
    connected = max((answer.about.num_clients for answer in answers.values()), default=0)
    if settings.num_clients > connected > 0:
        raise ConfigError(
            [
                f"num-clients={settings.num_clients}: allowed is at most {connected}, "
                "the number of connected clients"
            ]
        )
    num_clients = settings.num_clients or connected
    membership = Membership(settings.model_copy(update={"num_clients": num_clients}))
    _admit(federation, membership, answers, failures)
    if len(membership.members) < share_of(settings.quorum, num_clients):
        reasons = "; ".join(sorted(set(failures.values()))) or "no more nodes connected"
        raise QuorumNotReached(
            f"start: {len(membership.members)} of {num_clients or 'the'} clients joined within "
            f"{settings.start_timeout:g} s (quorum={settings.quorum}): {reasons}"
        )
    return membership


def join_again(federation: Federation, order: Order, membership: Membership) -> list[int]:
    """Let nodes that are not part of the run join; return the clients that did.

    A node whose client another connected node serves is left out, with a warning: the labels and
    the budget of one site must not become those of another.

    Raises
    ------
    CodeMismatch
        A client runs other code than the server.
    """
    known = {member.node for member in membership.members.values()} | membership.spare
    connected = federation.wait_for_nodes(0, 0.0)
    new = [node for node in connected if node not in known]
    if not new:
        return []
    answers: dict[int, _Answer] = {}
    failures: dict[int, str] = {}
    _ask(federation, order, new, answers, failures)
    for node, answer in list(answers.items()):
        member = membership.members.get(answer.about.client)
        if member is not None and member.node in connected:
            _log.warning(
                "partition-id=%d: node %d has it and is connected; node %d is left out",
                answer.about.client,
                member.node,
                node,
            )
            del answers[node]
    return _admit(federation, membership, answers, failures)


def check_resumable(membership: Membership, bought: Mapping[int, int]) -> None:
    """Check that every client still has what it is known to have bought.

    Parameters
    ----------
    membership : Membership
        The clients that joined the resumed run.
    bought : Mapping[int, int]
        The newest cycle that each is known to have bought labels for.

    Raises
    ------
    ResumeError
        A client's labels are gone.
    """
    lost = [
        member
        for client, member in membership.members.items()
        if member.last_cycle < bought.get(client, -1)
    ]
    if lost:
        first = lost[0]
        raise ResumeError(
            f"{len(lost)} clients have lost labels, such as client {first.client}: it holds those "
            f"bought up to cycle {first.last_cycle}, it had bought for cycle "
            f"{bought[first.client]} (client-state='memory' does not outlive a run)"
        )


def _ask(
    federation: Federation,
    order: Order,
    nodes: list[int],
    answers: dict[int, _Answer],
    failures: dict[int, str],
) -> None:
    content = RecordDict({CONFIG_KEY: order.to_record()})
    messages = [federation.message_to_node(node, JOIN, content, "join") for node in nodes]
    replies = federation.exchange_with_nodes(messages)
    failures |= replies.failures
    for node, reply in replies.messages.items():
        try:
            about = Introduction.from_record(reply.content.config_records[CONFIG_KEY])
        except (KeyError, ValueError) as error:
            failures[node] = f"unusable answer to join: {error}"
        else:
            _check_code(about, order.code)
            answers[node] = _Answer(about, reply.content)


def _admit(
    federation: Federation,
    membership: Membership,
    answers: Mapping[int, _Answer],
    failures: dict[int, str],
) -> list[int]:
    """Make members of the nodes whose answers can be used; return their clients."""
    num_clients = membership.settings.num_clients
    admitted: dict[int, Member] = {}
    for node, answer in answers.items():
        if answer.about.client >= num_clients:
            membership.spare.add(node)
        elif answer.about.client in admitted:
            raise ConfigError(
                [f"partition-id={answer.about.client}: two nodes have it; allowed is one"]
            )
        else:
            try:
                admitted[answer.about.client] = _member(node, answer)
            except (KeyError, ValueError) as error:
                failures[node] = f"unusable answer to join: {error}"
    membership.members |= admitted
    members = membership.members
    membership.members = {client: members[client] for client in sorted(members)}
    federation.assign({client: member.node for client, member in membership.members.items()})
    reasons = "; ".join(sorted(set(failures.values()))) or "its node did not connect"
    absent = [client for client in range(num_clients) if client not in membership.members]
    membership.failures = dict.fromkeys(absent, f"did not join: {reasons}")
    return sorted(admitted)


def _check_code(about: Introduction, code: str) -> None:
    if about.code != code:
        raise CodeMismatch(
            f"server and client run different code: {PACKAGE_FOLDER} (hash {code[:12]}) "
            f"and {about.code_folder or 'elsewhere'} (hash {about.code[:12]}); a local SuperLink "
            "that was started in another checkout does this: stop it and start the run again; a "
            "query strategy, model or local update of another package counts, too"
        )


def _member(node: int, answer: _Answer) -> Member:
    labels = JoinAnswer.from_metrics(metrics_of(answer.content))
    about = answer.about
    if not (about.data and about.partition and about.device):
        raise ValueError("it does not say what its data, partition and device are")
    return Member(
        client=about.client,
        node=node,
        num_samples=labels.num_samples,
        labelled=labels.labelled,
        last_cycle=labels.last_cycle,
        ledger=labels.ledger,
        data=about.data,
        partition=about.partition,
        device=about.device,
    )
