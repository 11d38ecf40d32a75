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
import time
import warnings
from collections.abc import Sequence

from flwr.supercore.app_utils import start_parent_process_monitor

#: Whether ClientApps are forked. What is safe on Linux, where what is imported has no threads but
#: some that know of forks, is not on macOS; and Windows forks nothing.
IS_POSSIBLE = sys.platform == "linux"

#: Imported before the first fork: what every message needs, whatever it asks for.
_MODULES = ("ahfal_app.deployment.clientapp", "ahfal_app.client_app")

# `-P`: no module is taken from the folder in which this happens to be started.
_COMMAND = (sys.executable, "-P", "-m", "ahfal_app.deployment.fork_server")

# How often the process begins anew before a request is served with what there is.
_MOST_ANEW = 3

# In place of when it was changed, of a file that may be another one than was imported.
_AFTER = -1

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
            number = theirs.fileno()
            command = [*_COMMAND, str(number)]
            self._process = subprocess.Popen(command, pass_fds=[number])  # noqa: S603  # our own
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
            # The byte; or nothing, or an error where the request was never read: whoever could
            # have sent it has ended.
            with contextlib.suppress(OSError):
                self._socket.recv(len(_ENDED))
            self._is_busy = False
        return self._is_busy

    def close(self) -> None:
        """Let it end, at once or with the ClientApp that is running."""
        self._socket.close()
        if not self._is_busy:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_ENDS_WITHIN_S)


def serve(requests: socket.socket, at_hand: AtHand, times_anew: int = 0) -> Sequence[str] | None:
    """Fork a process for each request; returns in each of these, with the arguments.

    Code that was installed meanwhile is taken: then the process begins anew, before the request.

    Parameters
    ----------
    requests : socket.socket
        As of `ForkServer`.
    at_hand : AtHand
        What was imported, as it was on the disk.
    times_anew : int
        How often the process has begun anew without a request in between.

    Returns
    -------
    Sequence[str] | None
        In a fork, the arguments; None in this process, when the other end is closed.
    """
    # Whoever stops a site stops what has started this, which then has its end closed.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    # Ignored, as it may have been inherited, nobody could be waited for.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    # A collection would write to all objects, and so copy them.
    gc.collect()
    gc.freeze()
    is_first = True
    while True:
        try:
            # Left where it is: it is for the process that begins anew.
            if not requests.recv(1, socket.MSG_PEEK):
                return None
        except OSError:
            return None
        # Where code changes all the time, the first one is served with what there is.
        if times_anew < _MOST_ANEW and at_hand.has_changed(code_alone=is_first):
            _begin_anew(requests, times_anew + 1 if is_first else 1)
        is_first = False
        request = requests.recv(_MOST_BYTES)
        server, forked = os.getpid(), _fork()
        if not forked:
            _be_a_process_of_its_own()
            # Another server's ClientApp would run beside this one, were it left over. It is
            # interrupted as soon as it runs Python again, and counts as running until it ends.
            start_parent_process_monitor(server)
            arguments: list[str] = json.loads(request)
            return arguments
        os.waitpid(forked, 0)
        try:
            requests.send(_ENDED)
        except OSError:  # Nobody waits any more.
            return None
        times_anew = 0


def _fork() -> int:
    for stream in (sys.stdout, sys.stderr):
        # There may be none, or nobody that reads it.
        with contextlib.suppress(AttributeError, OSError, ValueError):
            stream.flush()
    with warnings.catch_warnings():
        # Of threads: those of OpenBLAS and of jemalloc, which know of forks, are all there are.
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def _be_a_process_of_its_own() -> None:
    """Undo what the server is besides, in a fork: deaf to signals, and the same for all."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # AHFAL draws nothing from these; a component of others might.
    for name in ("torch", "numpy.random"):
        if name in sys.modules:
            sys.modules[name].seed()


class AtHand:
    """What is imported, as it was on the disk when that began.

    Parameters
    ----------
    began_ns : int
        When the first import began, by the clock of files, in nanoseconds. What was changed since
        may have been imported as it was before.
    """

    def __init__(self, began_ns: int) -> None:
        now_ns = time.time_ns()
        self._code = {
            # What is from the future is of another clock.
            path: _AFTER if began_ns <= changed_ns <= now_ns else changed_ns
            for path, changed_ns in _code().items()
        }
        self._folders = _folders()

    def has_changed(self, code_alone: bool = False) -> bool:
        """Return whether code is another now, or packages have come or gone."""
        now = {path: _changed_ns(path) for path in self._code}
        return now != self._code or (not code_alone and _folders() != self._folders)


def _code() -> dict[str, int]:
    """Return when the files of what is imported were changed."""
    files = (getattr(module, "__file__", None) for module in tuple(sys.modules.values()))
    return {path: _changed_ns(path) for path in filter(None, files)}


def _folders() -> dict[str, int]:
    """Return when something came to, or went from, the folders that packages are in.

    Not to the one that this was started in, which may be where a site's state is.
    """
    here = os.getcwd()
    return {path: _changed_ns(path) for path in sys.path if path and path != here}


def _changed_ns(path: str) -> int:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0


def _begin_anew(requests: socket.socket, times_anew: int) -> None:
    _log.warning("code was installed: it is loaded anew")
    requests.set_inheritable(True)
    arguments = [*_COMMAND, str(requests.fileno()), str(times_anew)]
    try:
        os.execv(_COMMAND[0], arguments)  # noqa: S606  # of our own making, by no shell
    except OSError:
        # Python itself is being replaced: next time, then.
        _log.exception("what is installed cannot be started: the code at hand goes on")
        requests.set_inheritable(False)


def main() -> None:
    """Serve the socket whose number is the argument; a fork goes on as a ClientApp."""
    began_ns = time.time_ns()
    requests = socket.socket(fileno=int(sys.argv[1]))
    requests.set_inheritable(False)
    for name in _MODULES:
        try:
            importlib.import_module(name)
        except Exception:  # noqa: BLE001  # A ClientApp meets it again, and tells the server.
            _log.exception("%s cannot be loaded", name)
    arguments = serve(requests, AtHand(began_ns), int((*sys.argv, "0")[2]))
    if arguments is not None:
        importlib.import_module(_MODULES[0]).main(arguments)


if __name__ == "__main__":
    main()
