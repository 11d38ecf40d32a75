"""A page that a command serves, in a thread of the tests' own process."""

from __future__ import annotations

import io
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial

import pytest
from rich.console import Console

from ahfal_app import cli
from ahfal_app.cli import labels, models, runs
from ahfal_app.web import serving


@contextmanager
def page_of(*arguments: str) -> Iterator[str]:
    """Run a command that serves a page, and give the address that it prints."""
    servers: list[serving._Server] = []
    listening = threading.Event()

    class Stoppable(serving._Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            servers.append(self)
            await super().startup(sockets)
            listening.set()

    printed = io.StringIO()

    def run() -> None:
        with suppress(SystemExit):
            cli.main(list(arguments))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(serving, "_Server", Stoppable)
        for module in (labels, models, runs):
            patch.setattr(module, "Console", partial(Console, file=printed))
        thread = threading.Thread(target=run)
        thread.start()
        try:
            assert listening.wait(timeout=60), printed.getvalue()
            found = re.search(r"http://\S+", printed.getvalue())
            assert found is not None
            yield found[0]
        finally:
            for server in servers:
                server.should_exit = True
            thread.join(timeout=60)
    assert not thread.is_alive()
