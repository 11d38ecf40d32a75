"""Where a run came from: code, versions, hardware, data."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from ahfal_app.code_version import PACKAGE_FOLDER, __version__, code_hash
from ahfal_app.plugins import provenances

_PACKAGES = (
    "torch",
    "flwr",
    "ray",
    "numpy",
    "datasets",
    "flwr-datasets",
    "pyarrow",
    "pydantic",
    "scikit-learn",
)


def describe_environment(
    *,
    class_names: Sequence[str],
    data_fingerprint: str | None,
    partition_fingerprint: str | None,
    settings: Mapping[str, object] | None = None,
) -> dict[str, Any]:
    """Return what `environment.json` holds.

    Parameters
    ----------
    class_names : Sequence[str]
        Names of the classes in the order of their numbers.
    data_fingerprint : str or None
        SHA-256 of the data set (`ImageDataset.fingerprint`); None where the server has none.
    partition_fingerprint : str or None
        `Partition.fingerprint`; None where the server does not know the partition.
    settings : Mapping[str, object], optional
        Flat settings, for the components of other packages that they choose.
    """
    return {
        "code": describe_code(),
        "versions": {"python": platform.python_version(), **package_versions()},
        "components": [asdict(each) for each in provenances(settings or {})],
        "hardware": describe_hardware(),
        "data": {
            "class_names": list(class_names),
            "fingerprint": data_fingerprint,
            "partition_fingerprint": partition_fingerprint,
        },
    }


def describe_code() -> dict[str, Any]:
    """Return the package's version and hash, and the commit if it runs from a checkout."""
    return {"version": __version__, "hash": code_hash(), **_commit()}


def describe_hardware() -> dict[str, Any]:
    """Return processor, cores, memory in bytes and, if torch is loaded, the GPUs."""
    return {
        "system": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "usable_cores": _usable_cores(),
        "memory_bytes": _memory_bytes(),
        "gpus": _gpus(),
    }


def load_average() -> float | None:
    """Return how many processes wanted a core in the last minute; None where that is not told."""
    try:
        return round(os.getloadavg()[0], 2)
    except (AttributeError, OSError):
        return None


@cache
def _commit() -> Mapping[str, Any]:
    """Return the commit of the code that this process has loaded, and whether it was changed."""
    # An installed copy may lie inside another project's checkout: only a repository that
    # tracks this very package says anything about it.
    if _git("ls-files", "--error-unmatch", "__init__.py") is None:
        return {"commit": None, "dirty": None}
    changes = _git("status", "--porcelain", "--", ".")
    return {"commit": _git("rev-parse", "HEAD"), "dirty": bool(changes)}


def _git(*arguments: str) -> str | None:
    git = shutil.which("git")
    if git is None:
        return None
    done = subprocess.run(  # noqa: S603  # fixed arguments, no shell
        [git, "-C", str(PACKAGE_FOLDER), *arguments], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() if done.returncode == 0 else None


@cache
def package_versions() -> Mapping[str, str]:
    """Return the versions of packages, which stay what they are while a process lives."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _processor() -> str:
    listing = Path("/proc/cpuinfo")
    if listing.exists():
        for line in listing.read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() in {"model name", "Model"}:
                return value.strip()
    return platform.processor() or platform.machine()


def _usable_cores() -> int | None:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def _memory_bytes() -> int | None:
    names = getattr(os, "sysconf_names", {})
    if "SC_PAGE_SIZE" not in names or "SC_PHYS_PAGES" not in names:
        return None
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _gpus() -> list[str]:
    # Describing a machine is no reason to load torch; a run that trains has loaded it.
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
