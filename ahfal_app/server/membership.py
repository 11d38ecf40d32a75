"""Who takes part: the exchange in which clients tell who they are.

It is the first of a run, and is repeated at the start of a cycle for nodes that are new or
failed before: a site that was away, or came back under another node id, takes part again.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from flwr.app import RecordDict

from ahfal_app.code_version import PACKAGE_FOLDER
from ahfal_app.config import Settings, share_of
from ahfal_app.errors import CodeMismatch, ConfigError, QuorumNotReached, ResumeError
from ahfal_app.ledger import ArrivalFigures, Ledger
from ahfal_app.messages.answers import Introduction, JoinAnswer
from ahfal_app.messages.fields import config_of, metrics_of
from ahfal_app.messages.keys import CONFIG_KEY, PURCHASES_KEY
from ahfal_app.messages.protocol import JOIN, Order, purchases_to_record
from ahfal_app.results.records import called
from ahfal_app.server.federation import Federation
from ahfal_app.server.plausibility import check_counts

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Member:
    """What the server knows about a client that joined; `name` is for messages to people."""

    client: int
    name: str
    node: int
    num_samples: int
    labelled: int
    held_out: int
    last_cycle: int
    ledger: Ledger
    data: str
    partition: str
    device: str
    version: str = ""
    arrivals: ArrivalFigures | None = None


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
    backbone : str
        SHA-256 of the backbone that all must have; empty where there is none.
    """

    settings: Settings
    members: dict[int, Member] = field(default_factory=dict)
    failures: dict[int, str] = field(default_factory=dict)
    spare: set[int] = field(default_factory=set)
    backbone: str = ""


def join(federation: Federation, order: Order, begins: bool) -> Membership:
    """Wait for the nodes, learn which client each serves, and have initial labels bought.

    Parameters
    ----------
    federation : Federation
        The clients.
    order : Order
        With the cycle that the run goes on with.
    begins : bool
        Whether no client is known to have bought labels. Otherwise nothing is bought: whoever has
        none may have lost them, and would ask people once more.

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
        _ask(federation, order, begins, new, answers, failures)
        # Only the clients know how many nodes are still to come.
        wanted = max([wanted, *_most_said(answers)[:1]])
        nodes = federation.wait_for_nodes(wanted, settings.start_timeout)
    for answer in answers.values():
        if answer.about.code != order.code:
            raise CodeMismatch(_other_code(answer.about, order.code))
    connected = _agreed_number(answers, failures)
    if settings.num_clients > connected > 0:
        raise ConfigError(
            [
                f"num-clients={settings.num_clients}: allowed is at most {connected}, "
                "the number of connected clients"
            ]
        )
    num_clients = settings.num_clients or connected
    settings = settings.model_copy(update={"num_clients": num_clients})
    membership = Membership(settings, backbone=order.backbone)
    if twice := _claimed_twice(answers):
        nodes = [node for node, answer in answers.items() if answer.about.client == twice[0]]
        who = ", ".join(federation.node_name(node) for node in nodes)
        raise ConfigError(
            [f"partition-id={twice[0]}: {len(nodes)} nodes have it ({who}); allowed is one"]
        )
    _admit(federation, membership, answers, failures)
    if len(membership.members) < share_of(settings.quorum, num_clients):
        raise QuorumNotReached(_too_few(federation, membership, answers, failures))
    return membership


def join_again(
    federation: Federation, order: Order, membership: Membership, bought: Mapping[int, int]
) -> list[int]:
    """Let nodes that are not part of the run join; return the clients that did.

    One that does not fit is left out, with a warning, and the others go on: that its client is
    served by another connected node (the labels and the budget of one site must not become those
    of another), or claimed by two; that it runs other code, or has other data; that it has lost
    labels that it is known to have bought. Nobody buys anything yet.

    Parameters
    ----------
    federation : Federation
        The clients.
    order : Order
        With the cycle that is about to be trained.
    membership : Membership
        Who takes part; whoever joins becomes part of it.
    bought : Mapping[int, int]
        The newest cycle that each client is known to have bought labels for.
    """
    known = {member.node for member in membership.members.values()} | membership.spare
    connected = federation.wait_for_nodes(0, 0.0)
    new = [node for node in connected if node not in known]
    if not new:
        return []
    answers: dict[int, _Answer] = {}
    failures: dict[int, str] = {}
    _ask(federation, order, False, new, answers, failures)
    twice = _claimed_twice(answers)
    for node, answer in list(answers.items()):
        problem = _misfit(answer.about, order, membership, connected, twice)
        if problem := problem or _loss(answer, bought):
            _log.warning(
                "%s, partition-id=%d, is left out: %s",
                federation.node_name(node),
                answer.about.client,
                problem,
            )
            failures[node] = problem
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
            f"{len(lost)} clients have lost labels, such as {first.name}: "
            f"{_lost(first.last_cycle, bought[first.client])}; nothing was bought. Bring its "
            "folder back, at a site from the backup of state-dir, or leave its node off"
        )


def _too_few(
    federation: Federation,
    membership: Membership,
    answers: Mapping[int, _Answer],
    failures: Mapping[int, str],
) -> str:
    """Return in words who did not join and why: those that failed, and those that never came."""
    settings, members = membership.settings, membership.members
    reasons = [federation.describe_nodes(failures)] if failures else []
    if max(1, settings.num_clients) > len(answers.keys() | failures.keys()):
        reasons.append(f"no more nodes connected within {settings.start_timeout:g} s")
    there = ", ".join(member.name for member in members.values())
    return (
        f"start: {len(members)} of {settings.num_clients or 'the'} clients joined "
        f"(quorum={settings.quorum}): {'; '.join(reasons) or 'no node serves them'}; there: "
        f"{there or 'nobody'}"
    )


def _ask(
    federation: Federation,
    order: Order,
    begins: bool,
    nodes: list[int],
    answers: dict[int, _Answer],
    failures: dict[int, str],
) -> None:
    content = RecordDict({CONFIG_KEY: order.to_record()})
    if begins:
        content[PURCHASES_KEY] = purchases_to_record(-1)
    messages = [federation.message_to_node(node, JOIN, content, "join") for node in nodes]
    replies = federation.exchange_with_nodes(messages)
    failures |= replies.failures
    for node, reply in replies.messages.items():
        try:
            about = Introduction.from_record(config_of(reply.content))
        except (KeyError, ValueError) as error:
            failures[node] = f"unusable answer to join: {error}"
        else:
            answers[node] = _Answer(about, reply.content)


def _most_said(answers: Mapping[int, _Answer]) -> list[int]:
    """Return how many clients there are, as most nodes say; several numbers where none wins."""
    said = Counter(answer.about.num_clients for answer in answers.values())
    return sorted(number for number, votes in said.items() if votes == max(said.values()))


def _agreed_number(answers: dict[int, _Answer], failures: dict[int, str]) -> int:
    """Return how many clients there are; nodes that say otherwise than most are left out.

    Raises
    ------
    ConfigError
        As many nodes say one number as another.
    """
    most = _most_said(answers)
    if len(most) > 1:
        numbers = " and ".join(map(str, most[:2]))
        raise ConfigError([f"num-partitions: nodes say {numbers}; allowed is one number for all"])
    number = most[0] if most else 0
    for node, answer in list(answers.items()):
        if answer.about.num_clients != number:
            failures[node] = (
                f"it says num-partitions={answer.about.num_clients}, most nodes {number}"
            )
            del answers[node]
    return number


def _claimed_twice(answers: Mapping[int, _Answer]) -> list[int]:
    claims = Counter(answer.about.client for answer in answers.values())
    return sorted(client for client, nodes in claims.items() if nodes > 1)


def _misfit(
    about: Introduction,
    order: Order,
    membership: Membership,
    connected: Collection[int],
    twice: Collection[int],
) -> str | None:
    """Return why a newcomer cannot take part in a run that is under way, or None."""
    if about.client >= membership.settings.num_clients:
        return None  # It serves no client of this run.
    member = membership.members.get(about.client)
    if member is not None and member.node in connected:
        return f"node {member.node} has it and is connected"
    if about.client in twice:
        return "two nodes claim it"
    if about.code != order.code:
        return _other_code(about, order.code)
    data = {(each.data, each.partition) for each in membership.members.values()}
    if data and (about.data, about.partition) not in data:
        return "it has other data than the run"
    return None


def _loss(answer: _Answer, bought: Mapping[int, int]) -> str | None:
    """Return in words what a client that comes back has lost, or None."""
    known = bought.get(answer.about.client, -1)
    try:
        last_cycle = JoinAnswer.from_metrics(metrics_of(answer.content)).last_cycle
    except (KeyError, ValueError):
        return None  # It cannot be used anyway, and is told so.
    if last_cycle >= known:
        return None
    return f"it has lost labels: {_lost(last_cycle, known)}"


def _lost(last_cycle: int, known: int) -> str:
    held = f"those bought up to cycle {last_cycle}" if last_cycle >= 0 else "none"
    return f"it holds {held}, it had bought for cycle {known}"


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
        else:
            try:
                admitted[answer.about.client] = _member(federation, node, answer, membership)
            except (KeyError, ValueError) as error:
                failures[node] = f"unusable answer to join: {error}"
    membership.members |= admitted
    members = membership.members
    membership.members = {client: members[client] for client in sorted(members)}
    federation.assign({client: member.node for client, member in membership.members.items()})
    reasons = federation.describe_nodes(failures) or "its node did not connect"
    absent = [client for client in range(num_clients) if client not in membership.members]
    membership.failures = dict.fromkeys(absent, f"did not join: {reasons}")
    return sorted(admitted)


def _other_code(about: Introduction, code: str) -> str:
    folder = _printable(about.code_folder) or "elsewhere"
    return (
        f"server and client run different code: {PACKAGE_FOLDER} (hash {code[:12]}) and, for "
        f"client {about.client}, {folder} (hash {about.code[:12]}); a "
        "local SuperLink that was started in another checkout does this: stop it and start the "
        "run again; a query strategy, model or local update of another package counts, too"
    )


def _printable(text: str) -> str:
    """Return what somebody else has sent as text that can do nothing to a terminal."""
    return "".join(letter if letter.isprintable() else " " for letter in text)[:200]


def _member(federation: Federation, node: int, answer: _Answer, membership: Membership) -> Member:
    labels = JoinAnswer.from_metrics(metrics_of(answer.content))
    labelled = labels.labelled + labels.held_out
    check_counts(labels.num_samples, labelled, labels.ledger, membership.settings)
    about = answer.about
    if about.backbone != membership.backbone:
        raise ValueError(
            f"its backbone has weights and preprocessing with the hash {about.backbone[:12]!r}, "
            f"the server's {membership.backbone[:12]!r}"
        )
    if not (about.data and about.partition and about.device):
        raise ValueError("it does not say what its data, partition and device are")
    return Member(
        client=about.client,
        name=called(about.client, federation.site_of_node(node)),
        node=node,
        num_samples=labels.num_samples,
        labelled=labels.labelled,
        held_out=labels.held_out,
        last_cycle=labels.last_cycle,
        ledger=labels.ledger,
        data=about.data,
        partition=about.partition,
        device=about.device,
        version=about.version,
        arrivals=labels.arrivals,
    )
