"""ClientApps that run at the same time: one too many at a site, and each makes the next slower.

Only Linux tells of its processes in files; elsewhere nothing is found.
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from ahfal_app.deployment.doctor.finding import Finding, good, warning
from ahfal_app.deployment.superexec import MOST_AT_ONCE

# Flower's own, and that of `ahfal superexec` where it does not fork.
_PROGRAMS = (b"flwr-clientapp", b"ahfal_app.deployment.clientapp")
# And where it does: the name of what forks, and of each fork.
_FORKING = b"ahfal_app.deployment.fork_server"


def check_processes(processes: Path = Path("/proc")) -> Finding:
    """Count this user's ClientApps by the process that has started them."""
    counts = Counter(_parents_of_client_apps(processes))
    parent, count = max(counts.items(), key=lambda item: item[1], default=(0, 0))
    if count <= MOST_AT_ONCE:
        return good("processes", f"{count} ClientApps are running")
    return warning(
        "processes",
        f"{count} ClientApps of process {parent} run at the same time: Flower starts one again "
        "that took more than 30 s to start; run the site by `ahfal supernode`, or its SuperExec by "
        f"`ahfal superexec`, which start {MOST_AT_ONCE} at a time",
    )


def _parents_of_client_apps(processes: Path) -> Iterator[int]:
    for folder in processes.glob("[0-9]*"):
        # It may end while it is looked at.
        with contextlib.suppress(OSError):
            if folder.stat().st_uid != os.getuid():
                continue
            words, parent = _words(folder), _parent(folder)
            is_fork = _FORKING in words and _FORKING in _words(processes / str(parent))
            if is_fork or any(word.endswith(_PROGRAMS) for word in words):
                yield parent


def _words(folder: Path) -> list[bytes]:
    return (folder / "cmdline").read_bytes().split(b"\0")


def _parent(folder: Path) -> int:
    lines = (folder / "status").read_text(encoding="utf-8", errors="replace").splitlines()
    found = [line.split()[1] for line in lines if line.startswith("PPid:")]
    return int(found[0]) if found else 0
