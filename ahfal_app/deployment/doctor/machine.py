"""Versions of what AHFAL needs, and the device that it is to compute on."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement

from ahfal_app.config import parse_settings
from ahfal_app.deployment.doctor.finding import Finding, failure, good
from ahfal_app.errors import ConfigError

_DISTRIBUTION = "ahfal-app"


def check_versions() -> Iterator[Finding]:
    """Compare what is installed with what AHFAL asks for."""
    try:
        requirements = [Requirement(text) for text in requires(_DISTRIBUTION) or []]
    except PackageNotFoundError:
        yield failure("versions", f"{_DISTRIBUTION} is not installed: install it with pip or uv")
        return
    needed = [each for each in requirements if not each.marker or each.marker.evaluate()]
    problems = [problem for each in needed if (problem := unmet(each))]
    for problem in problems:
        yield failure("versions", problem)
    if not problems:
        yield good(
            "versions",
            f"Python {platform.python_version()}, flwr {version('flwr')}, torch {version('torch')}",
        )


def unmet(requirement: Requirement) -> str | None:
    """Return what is wrong about an installed package, or None."""
    try:
        installed = version(requirement.name)
    except PackageNotFoundError:
        return f"{requirement.name} is not installed: needed is {requirement}"
    # A build of a release that is yet to come is good enough, too.
    if requirement.specifier.contains(installed, prereleases=True):
        return None
    return f"{requirement.name} is {installed}: needed is {requirement}; install that version"


def check_device(node_config: Mapping[str, object]) -> Finding:
    """Look for the device that the site names, or the best that there is."""
    import torch

    from ahfal_app.training.choices import resolve_device

    wanted = str(node_config.get("device", "auto"))
    try:
        device = resolve_device(parse_settings({"device": wanted}).device)
    except ConfigError as error:
        return failure("device", "; ".join(error.problems))
    if device.type != "cuda":
        return good("device", f"{device.type} (device={wanted!r})")
    free, total = torch.cuda.mem_get_info(device)
    name = torch.cuda.get_device_name(device)
    return good("device", f"{name}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free")
