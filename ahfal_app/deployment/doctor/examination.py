"""All checks of a site, in the order in which a person would mend what they find."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import click
from flwr.common.config import parse_config_args

from ahfal_app.deployment.doctor.backbone import check_backbone
from ahfal_app.deployment.doctor.data import check_data
from ahfal_app.deployment.doctor.finding import Finding, failure
from ahfal_app.deployment.doctor.key import check_key
from ahfal_app.deployment.doctor.link import Link, check_link
from ahfal_app.deployment.doctor.machine import check_device, check_versions
from ahfal_app.deployment.doctor.policy import check_policy
from ahfal_app.deployment.doctor.processes import check_processes
from ahfal_app.deployment.doctor.site import check_site
from ahfal_app.deployment.doctor.state import check_state

# What Flower takes for a pair; it says nothing about the rest.
_PAIR = re.compile(r"""\S+?=('[^']*'|"[^"]*"|\S+)""")


@dataclass(frozen=True)
class Site:
    """What the SuperNode is going to be started with.

    Attributes
    ----------
    node_config : str
        Its `--node-config`.
    superlink : str
        Its `--superlink`: host:port.
    root_certificates : Path | None
        Its `--root-certificates`.
    private_key : Path | None
        Its `--auth-supernode-private-key`.
    insecure : bool
        Whether it is started with `--insecure`.
    classes : str
        The run's setting `classes`, where it is known; empty otherwise.
    run : Mapping[str, object]
        The run's settings of its backbone, where it has one.
    backbone_hash : str
        The hash of the server's backbone or its beginning, where it is known; empty otherwise.
    """

    node_config: str
    superlink: str
    root_certificates: Path | None = None
    private_key: Path | None = None
    insecure: bool = False
    classes: str = ""
    run: Mapping[str, object] = field(default_factory=dict)
    backbone_hash: str = ""


def examine(site: Site) -> Iterator[Finding]:
    """Check a site; findings come as they are made, since some checks take a while."""
    yield from check_versions()
    node_config, problems = read_node_config(site.node_config)
    yield from (failure("node-config", problem) for problem in problems)
    if node_config is not None:
        yield from _check_place(node_config)
        yield from examine_node(node_config, site.classes)
        if site.run:
            yield from check_backbone(node_config, site.run, site.backbone_hash)
        yield from check_state(node_config)
    yield check_processes()
    if site.private_key or not site.insecure:
        yield check_key(site.private_key)
    yield from check_link(Link(site.superlink, site.root_certificates, site.insecure))


def read_node_config(text: str) -> tuple[dict[str, str | int | float | bool] | None, list[str]]:
    """Return what a site says in `--node-config`, or None, and what Flower cannot read of it."""
    problems = []
    if ignored := " ".join(_PAIR.sub("", text).split()):
        problems.append(f"{ignored!r} is no key=value: Flower would ignore it")
    try:
        # By Flower's own parser, so that quotes mean the same.
        return dict(parse_config_args([text])), problems
    except (click.ClickException, OSError, ValueError) as error:
        return None, [*problems, f"{text!r} cannot be read: {error}"]


def examine_node(node_config: Mapping[str, object], classes: str) -> Iterator[Finding]:
    """Check what a site would do with its data, wherever its server is.

    Parameters
    ----------
    node_config : Mapping[str, object]
        What it says of itself.
    classes : str
        The run's setting `classes`, where it is known; empty otherwise.
    """
    yield check_device(node_config)
    if "data" in node_config:
        yield from check_site(node_config, classes)
    else:
        yield from check_data(node_config)
    yield from check_policy(node_config)


def _check_place(node_config: Mapping[str, object]) -> Iterator[Finding]:
    place, count = node_config.get("partition-id"), node_config.get("num-partitions")
    if not _is_count(place):
        yield failure(
            "node-config", f"partition-id={place!r}: allowed is the site's number, an integer ≥ 0"
        )
    elif count is not None and not (_is_count(count) and int(str(place)) < int(str(count))):
        yield failure(
            "node-config",
            f"num-partitions={count!r}: allowed is the number of sites, above partition-id={place}",
        )


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
