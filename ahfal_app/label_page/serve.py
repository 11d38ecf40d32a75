"""Serves the labelling page on this machine alone."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import uvicorn

from ahfal_app.errors import OracleError
from ahfal_app.label_page.app import PageOptions, make_app
from ahfal_app.label_page.desk import Desk
from ahfal_app.label_page.guard import TOKEN

_HOST = "127.0.0.1"


class _Server(uvicorn.Server):
    """A server that says so once it listens."""

    def __init__(self, config: uvicorn.Config, tell: Callable[[], None]) -> None:
        super().__init__(config)
        self._tell = tell

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say so."""
        await super().startup(sockets)
        if self.started:
            self._tell()


def serve(
    folder: Path,
    annotator: str,
    port: int,
    options: PageOptions,
    tell: Callable[[str], None],
) -> None:
    """Serve the page until it is interrupted.

    Parameters
    ----------
    folder : Path
        The desk's folder.
    annotator : str
        Who labels in this page.
    port : int
        Port to listen on; 0: any that is free.
    options : PageOptions
        How the page is shown, and what may be done there.
    tell : Callable[[str], None]
        Is told the address to open, once it can be opened.

    Raises
    ------
    OracleError
        The port is taken.
    """
    with closing(loopback_socket(port)) as listener:
        listening = listener.getsockname()[1]
        token = secrets.token_urlsafe(32)
        app = make_app(Desk(folder), annotator, token, listening, **vars(options))
        # The log of requests would keep the token; the page opens no WebSocket.
        settings = uvicorn.Config(
            app, log_level="warning", access_log=False, server_header=False, ws="none"
        )
        address = f"http://{_HOST}:{listening}/?{TOKEN}={token}"
        _Server(settings, lambda: tell(address)).run(sockets=[listener])


def loopback_socket(port: int) -> socket.socket:
    """Return a socket that is bound to a port of this machine alone; 0: any that is free.

    Raises
    ------
    OracleError
        The port is taken.
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((_HOST, port))
    except OSError as error:
        listener.close()
        raise OracleError(f"port={port}: allowed is a free port, or 0 for any: {error}") from error
    return listener
