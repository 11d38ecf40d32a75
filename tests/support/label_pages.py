"""The labelling page as tests meet it: over HTTP, as a command, and in a browser."""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from starlette.applications import Starlette
from support.labelling import CLASSES, encoded
from support.served_pages import page_of

from ahfal_app.labels.store import LabelRequest, LabelStore
from ahfal_app.oracle import Oracle, Site, make_oracle

PORT = 4711
HOST = f"127.0.0.1:{PORT}"
TOKEN = "right-token"


def site(folder: Path | None, classes: tuple[str, ...] = CLASSES, image: Any = encoded) -> Site:
    return Site(0, classes, {}, image, folder)


def asked_site(state_dir: Path, requests: Sequence[LabelRequest], image: Any = encoded) -> Oracle:
    """Make a client's state with requests that are in its store and on its desk."""
    oracle = make_oracle("page", site(state_dir / "oracle", image=image))
    store = LabelStore.open_file(state_dir / "labels.sqlite", np.arange(100), len(CLASSES))
    store.describe(CLASSES, {i: f"ward/{i}.png" for i in range(100)})
    store.allot(sum(len(made.samples) for made in requests) + 1)
    for made in requests:
        oracle.submit(store.reserve(made))
    store.close()
    return oracle


@dataclass
class Visitor:
    """Sends requests to the page's application, with the cookie unless told otherwise."""

    app: Starlette

    def __call__(
        self, path: str, json: Any = None, cookie: str | None = TOKEN, **headers: str
    ) -> httpx.Response:
        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url=f"http://{HOST}") as client:
                if cookie is not None:
                    headers["Cookie"] = f"ahfal-{PORT}={cookie}"
                if json is None:
                    return await client.get(path, headers=headers)
                return await client.post(path, headers=headers, json=json)

        return asyncio.run(ask())


@contextmanager
def served(state_dir: Path, *options: str) -> Iterator[str]:
    """Run the command and give the address that it prints."""
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "ahfal_app", "label", str(state_dir), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert process.stdout is not None
        found = re.search(r"http://\S+", process.stdout.readline())
        assert found is not None
        yield found[0]
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()
        assert process.wait(timeout=60) == 0, rest
        assert "Traceback" not in rest
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


@contextmanager
def served_here(state_dir: Path, *options: str) -> Iterator[str]:
    """Run the command in a thread of this process, and give the address that it prints."""
    with page_of("label", str(state_dir), *options) as address:
        yield address
