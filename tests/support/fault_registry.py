"""All faults that are injected into real processes, and what each needs."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from support import faults, faults_of_sites, hosts
from support.deployment import NGINX
from support.hospitals import Trial


@dataclass(frozen=True)
class Fault:
    """A fault.

    Attributes
    ----------
    prepare : Callable[[Trial], None]
        Called before the server and the sites are started.
    strike : Callable[[Trial, random.Random], str]
        Starts a run, injects the fault at a moment that the generator draws, and returns how the
        run ended.
    sites : int
        Number of sites.
    missing : str
        What this machine lacks for it; empty where it can be injected.
    """

    prepare: Callable[[Trial], None]
    strike: Callable[[Trial, random.Random], str]
    sites: int = 2
    missing: str = ""


def _nothing(trial: Trial) -> None:
    """Prepare nothing."""


def _missing(name: str) -> str:
    if name in ("site_cut_off", "disk_full") and not hosts.is_root():
        return "needs root, for network namespaces and mounts"
    if name == "site_cut_off" and not NGINX:
        return "needs nginx, which listens beyond loopback"
    if name == "wrong_clock" and not hosts.compiler():
        return "needs a C compiler"
    return ""


def _fault(name: str, strike: Callable[[Trial, random.Random], str]) -> Fault:
    prepare = faults_of_sites.PREPARATIONS.get(name, _nothing)
    return Fault(prepare, strike, 3 if name == "site_cut_off" else 2, _missing(name))


#: By name.
FAULTS = {
    name: _fault(name, strike)
    for name, strike in {**faults.FAULTS, **faults_of_sites.FAULTS}.items()
}
