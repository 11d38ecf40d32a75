"""A process that has what a ClientApp imports at hand, and forks a ClientApp of each request.

To import it all takes some three seconds of a processor, and each message to a site has a process
of its own. A fork of this one begins with everything imported, and shares the memory.

It is asked through a socket, one ClientApp at a time: a request is the arguments of one, as JSON;
the answer is one byte, when that has ended. The socket's end is its own end, and is seen at the
other side once the last ClientApp has ended, too, since that holds the socket as well.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import logging
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from flwr.supercore.app_utils import start_parent_process_monitor

#: Whether ClientApps are forked. What is safe on Linux, where nothing that is imported has begun
#: to work with threads, is not on macOS; and Windows forks nothing.
IS_POSSIBLE = sys.platform == "linux"

#: Imported before the first fork: what every message needs, whatever it asks for.
_MODULES = ("ahfal_app.deployment.clientapp", "ahfal_app.client_app")

# `-P`: no module is taken from the folder in which this happens to be started.
_COMMAND = (sys.executable, "-P", "-m", "ahfal_app.deployment.fork_server")

_MOST_BYTES = 2**16
_ENDED = b"."

# Less than Flower waits for the end of a SuperExec that is stopped.
_ENDS_WITHIN_S = 3.0

_log = logging.getLogger(__name__)


class ForkServer:
    """The process, as seen by who starts it; it is started at once, and ends with `close`.

    Raises
    ------
    OSError
        It cannot be started.
    """

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            command = [*_COMMAND, str(theirs.fileno())]
            self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()])  # noqa: S603
        self._socket.setblocking(False)
        self._is_busy = False

    def start(self, arguments: Sequence[str]) -> None:
        """Have a ClientApp started with these arguments; none may be running.

        Raises
        ------
        OSError
            The process has ended.
        """
        self._socket.send(json.dumps(list(arguments)).encode())
        self._is_busy = True

    def is_busy(self) -> bool:
        """Return whether a ClientApp is running; it is to be asked again and again."""
        # Cleared away where it was killed: its ClientApp takes it to be there until then.
        self._process.poll()
        if self._is_busy and select.select([self._socket], [], [], 0)[0]:
            # The byte, or nothing: whoever could have sent it has ended.
            self._socket.recv(len(_ENDED))
            self._is_busy = False
        return self._is_busy

    def close(self) -> None:
        """Let it end, at once or with the ClientApp that is running."""
        self._socket.close()
        if not self._is_busy:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_ENDS_WITHIN_S)


def serve(requests: socket.socket) -> Sequence[str] | None:
    """Fork a process for each request; returns in each of these, with the arguments.

    Code that was installed meanwhile is taken: then the process begins anew, before the request.

    Parameters
    ----------
    requests : socket.socket
        As of `ForkServer`.

    Returns
    -------
    Sequence[str] | None
        In a fork, the arguments; None in this process, when the other end is closed.
    """
    # Whoever stops a site stops what has started this, which then has its end closed.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    at_hand, is_first = _installed(), True
    # A collection would write to all objects, and so copy them.
    gc.collect()
    gc.freeze()
    while True:
        select.select([requests], [], [])
        # The first request is why this has begun: a folder that changes all the time is no loop.
        if not is_first and _installed() != at_hand:
            _begin_anew(requests)
        is_first = False
        request = requests.recv(_MOST_BYTES)
        if not request:
            return None
        sys.stdout.flush()
        sys.stderr.flush()
        server, forked = os.getpid(), os.fork()
        if not forked:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            # Two would run if the next server began while this one's ClientApp is left over.
            start_parent_process_monitor(server)
            arguments: list[str] = json.loads(request)
            return arguments
        os.waitpid(forked, 0)
        try:
            requests.send(_ENDED)
        except OSError:  # Nobody waits any more.
            return None


def _installed() -> dict[str, int]:
    """Return when what is imported was changed, and the folders in which packages come and go."""
    files = (getattr(module, "__file__", None) for module in tuple(sys.modules.values()))
    changed: dict[str, int] = {}
    for path in {*filter(None, files), *filter(None, sys.path)}:
        try:
            changed[path] = Path(path).stat().st_mtime_ns
        except OSError:
            changed[path] = 0
    return changed


def _begin_anew(requests: socket.socket) -> None:
    _log.info("code was installed: it is loaded anew")
    requests.set_inheritable(True)
    os.execv(_COMMAND[0], [*_COMMAND, str(requests.fileno())])  # noqa: S606


def main() -> None:
    """Serve the socket whose number is the argument; a fork goes on as a ClientApp."""
    requests = socket.socket(fileno=int(sys.argv[1]))
    requests.set_inheritable(False)
    for name in _MODULES:
        try:
            importlib.import_module(name)
        except Exception:  # noqa: BLE001  # A ClientApp meets it again, and tells the server.
            _log.exception("%s cannot be loaded", name)
    arguments = serve(requests)
    if arguments is not None:
        importlib.import_module(_MODULES[0]).main(arguments)


if __name__ == "__main__":
    main()
