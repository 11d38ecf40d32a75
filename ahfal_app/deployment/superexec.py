"""A SuperExec for sites: Flower's, but for what it starts.

Flower's own starts whatever the server has sent code for, in as many processes as it likes: a
ClientApp that takes more than 30 s to start is started again, beside the first one, which makes
both slower still. This one starts ClientApps and nothing else, one at a time, and each runs the
code that is installed at the site (`ahfal_app.deployment.clientapp`).

It takes the arguments of `flower-superexec`.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from collections.abc import Sequence

from flwr.supercore.cli import flower_superexec
from flwr.supercore.constant import TaskType
from flwr.supercore.superexec import run_superexec
from flwr.supercore.superexec.executor import ExecutionSpec, LaunchResult
from flwr.supercore.superexec.executor.subprocess_executor import SubprocessExecutor

from ahfal_app.deployment import fork_server
from ahfal_app.deployment.fork_server import ForkServer

#: ClientApps that run at the same time: a SuperNode has one message at a time dealt with.
MOST_AT_ONCE = 1

#: How long what ClientApps import is kept in memory after the last one has ended, in seconds.
KEPT_FOR_S = 600.0

# `-P`: no module is taken from the folder in which this happens to be started.
_COMMAND = (sys.executable, "-P", "-m", "ahfal_app.deployment.clientapp")

_log = logging.getLogger(__name__)


class Processes:
    """Starts each ClientApp as a new process, which imports all that it needs."""

    def __init__(self) -> None:
        self._running: subprocess.Popen[bytes] | None = None

    def start(self, arguments: Sequence[str]) -> None:
        """Start one with these arguments."""
        self._running = subprocess.Popen([*_COMMAND, *arguments])  # noqa: S603  # of our own making

    def is_busy(self) -> bool:
        """Return whether one is running."""
        return self._running is not None and self._running.poll() is None

    def close(self) -> None:
        """Do nothing: what runs ends by itself."""


class SiteExecutor(SubprocessExecutor):
    """Starts ClientApps of the site's own code, one at a time."""

    def __init__(self) -> None:
        self._starter: ForkServer | Processes | None = None
        self._last_used_s = 0.0

    def get_eligible_capacity(
        self,
        supported_task_types: set[TaskType],
        *,
        insecure: bool = False,
        root_certificates_path: str | None = None,
    ) -> tuple[set[TaskType], set[str]]:
        """Return what may be started now: a ClientApp, or nothing while one is running."""
        if self._starter is not None and self._starter.is_busy():
            self._last_used_s = time.monotonic()
            return set(), set()
        if time.monotonic() - self._last_used_s > KEPT_FOR_S:
            self.close()
        return supported_task_types & {TaskType.CLIENT_APP}, set()

    def launch(self, spec: ExecutionSpec) -> LaunchResult:
        """Start a ClientApp."""
        if spec.task_type is not TaskType.CLIENT_APP:
            return LaunchResult.failed("a site runs ClientApps alone")
        self._start(self._arguments(spec))
        self._last_used_s = time.monotonic()
        return LaunchResult.accepted()

    def _arguments(self, spec: ExecutionSpec) -> list[str]:
        arguments = ["--runtime-api-address", spec.runtime_api_address, "--token", spec.token]
        if spec.insecure:
            arguments.append("--insecure")
        elif spec.root_certificates_path is not None:
            arguments += ["--root-certificates", spec.root_certificates_path]
        if spec.parent_pid is not None:
            arguments += ["--parent-pid", str(spec.parent_pid)]
        return arguments

    def _start(self, arguments: Sequence[str]) -> None:
        if self._starter is not None:
            try:
                self._starter.start(arguments)
            except OSError:
                _log.warning("what ClientApps are forked from has ended: it is started again")
                self.close()
            else:
                return
        self._starter = ForkServer() if fork_server.IS_POSSIBLE else Processes()
        self._starter.start(arguments)

    def close(self) -> None:
        """Start no more; a ClientApp that is running ends by itself."""
        if self._starter is not None:
            self._starter.close()
        self._starter = None


def main(arguments: Sequence[str] | None = None) -> None:
    """Run Flower's SuperExec with this executor; without arguments, with those of the process."""
    if arguments is not None:
        sys.argv = ["flower-superexec", *arguments]
    name = "get_executor"
    getattr(run_superexec, name)  # A Flower that has another name for it must not go unseen.
    setattr(run_superexec, name, lambda *_, **__: SiteExecutor())
    flower_superexec()


if __name__ == "__main__":
    main()
