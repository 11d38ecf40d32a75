"""Serves pages on this machine alone."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Callable
from contextlib import closing

import uvicorn
from starlette.types import ASGIApp

from ahfal_app.errors import PageError
from ahfal_app.web.guard import TOKEN

#: The only interface that pages are served on.
HOST = "127.0.0.1"


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


def serve_page(make: Callable[[str, int], ASGIApp], port: int, tell: Callable[[str], None]) -> None:
    """Serve a page with a new token until it is interrupted.

    Parameters
    ----------
    make : Callable[[str, int], ASGIApp]
        Returns the page's application for a token and the port that it is served on; it has
        `Guard` around it.
    port : int
        Port to listen on; 0: any that is free.
    tell : Callable[[str], None]
        Is told the address to open, once it can be opened.

    Raises
    ------
    PageError
        The port is taken.
    """
    with closing(loopback_socket(port)) as listener:
        listening = listener.getsockname()[1]
        token = secrets.token_urlsafe(32)
        # The log of requests would keep the token; pages open no WebSocket.
        settings = uvicorn.Config(
            make(token, listening),
            log_level="warning",
            access_log=False,
            server_header=False,
            ws="none",
        )
        address = f"http://{HOST}:{listening}/?{TOKEN}={token}"
        _Server(settings, lambda: tell(address)).run(sockets=[listener])


def loopback_socket(port: int) -> socket.socket:
    """Return a socket that is bound to a port of this machine alone; 0: any that is free.

    Raises
    ------
    PageError
        The port is taken.
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
    except OSError as error:
        listener.close()
        raise PageError(f"port={port}: allowed is a free port, or 0 for any: {error}") from error
    return listener
