"""A person at a page, in headless Chromium: looks, presses keys and clicks."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from support import browser
from websockets.sync.client import ClientConnection, connect

_PATIENCE_S = 240.0

#: Names and codes of keys that are no letters.
_KEYS = {
    "Backspace": ("Backspace", 8),
    "Tab": ("Tab", 9),
    "Enter": ("Enter", 13),
    "Escape": ("Escape", 27),
    "ArrowLeft": ("ArrowLeft", 37),
    "ArrowUp": ("ArrowUp", 38),
    "ArrowRight": ("ArrowRight", 39),
    "ArrowDown": ("ArrowDown", 40),
}

_SHIFT = 8


def wait_for(happened: Callable[[], Any], what: str, patience_s: float = _PATIENCE_S) -> Any:
    """Return the first true value; a page is never ready at once."""
    end = time.monotonic() + patience_s
    while time.monotonic() < end:
        if value := happened():
            return value
        time.sleep(0.05)
    raise AssertionError(f"not within {patience_s:g} s: {what}")


class Session:
    """Orders over Chromium's DevTools protocol, and their answers."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._number = 0

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        self._connection.send(
            json.dumps({"id": self._number, "method": method, "params": parameters})
        )
        while True:
            message = json.loads(self._connection.recv(timeout=_PATIENCE_S))
            if message.get("id") == self._number:
                if "error" in message:
                    raise AssertionError(f"{method}: {message['error']}")
                return message["result"]
            self._note(message.get("method"), message.get("params", {}))

    def _note(self, method: str | None, about: dict[str, Any]) -> None:
        """Take notice of what was not asked for."""


class Tab(Session):
    """One page."""

    def __init__(self, connection: ClientConnection) -> None:
        super().__init__(connection)
        self.console: list[str] = []
        self.urls: list[str] = []
        #: Requests that are held back, in order: their number to Chromium, and their address.
        self.held: list[tuple[str, str]] = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def open(self, address: str) -> None:
        self.call("Page.navigate", url=address)

    def resize(self, width: int, height: int = 900) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def evaluate(self, expression: str) -> Any:
        done = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in done:
            raise AssertionError(f"{expression}: {done['exceptionDetails']}")
        return done["result"].get("value")

    def wait(self, expression: str, patience_s: float = _PATIENCE_S) -> Any:
        return wait_for(lambda: self.evaluate(expression), expression, patience_s)

    def press(self, key: str, shift: bool = False) -> None:
        name, code = _KEYS.get(key, (key, ord(key.upper()) if len(key) == 1 else 0))
        about: dict[str, Any] = {"key": name, "windowsVirtualKeyCode": code}
        about["modifiers"] = _SHIFT if shift else 0
        if key == "Enter":
            about["text"] = "\r"
        elif len(key) == 1:
            about["text"] = key
            if key.isalnum():
                about["code"] = f"Digit{key}" if key.isdigit() else f"Key{key.upper()}"
        self.call("Input.dispatchKeyEvent", type="keyDown", **about)
        about.pop("text", None)
        self.call("Input.dispatchKeyEvent", type="keyUp", **about)

    def write(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def click(self, selector: str) -> None:
        """Click on the middle of an element, once nothing lies over it, as messages do."""
        place = self.wait(
            f"""(() => {{ const e = document.querySelector({json.dumps(selector)});
            if (!e) return null; e.scrollIntoView({{block: "center"}});
            const r = e.getBoundingClientRect();
            const place = {{x: r.x + r.width / 2, y: r.y + r.height / 2}};
            const hit = document.elementFromPoint(place.x, place.y);
            const own = [e, ...(e.labels ?? [])];
            return r.width && hit && own.some((o) => o.contains(hit)) ? place : null; }})()"""
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **place)

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Take hold of what is at a point, and move it to another."""
        for kind, (x, y) in (
            ("mousePressed", start),
            ("mouseMoved", end),
            ("mouseReleased", end),
        ):
            self.call("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, x=x, y=y)

    def turn_wheel(self, at: tuple[float, float], by: float) -> None:
        """Turn the mouse's wheel over a point: up, where `by` is negative."""
        x, y = at
        self.call("Input.dispatchMouseEvent", type="mouseWheel", x=x, y=y, deltaX=0, deltaY=by)

    def ask_for(self, languages: str) -> None:
        """Ask for pages in these languages, as in the header `Accept-Language`."""
        self.call("Network.setExtraHTTPHeaders", headers={"Accept-Language": languages})

    def hold(self, *patterns: str) -> None:
        """Hold back requests to addresses of these patterns (`*` is anything) until let go.

        From the next page on: what is open may still send one.
        """
        self.call("Fetch.enable", patterns=[{"urlPattern": pattern} for pattern in patterns])

    def is_held(self, part: str) -> bool:
        """Return whether a request to an address with this part is held back."""
        self.evaluate("0")  # What has happened meanwhile comes with any answer.
        return any(part in url for _, url in self.held)

    def let_go(self, part: str = "", fail: bool = False) -> None:
        """Let requests to addresses with this part through, or let them fail."""
        self.evaluate("0")
        for number, url in [held for held in self.held if part in held[1]]:
            self.held.remove((number, url))
            if fail:
                self.call("Fetch.failRequest", requestId=number, errorReason="ConnectionRefused")
            else:
                self.call("Fetch.continueRequest", requestId=number)

    def hold_nothing(self) -> None:
        """Let all requests through from now on."""
        self.let_go()
        self.call("Fetch.disable")
        self.held.clear()

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    def _note(self, method: str | None, about: dict[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            self.console.append(str(about["exceptionDetails"]))
        elif method == "Log.entryAdded" and about["entry"]["level"] == "error":
            self.console.append(about["entry"]["text"])
        elif method == "Fetch.requestPaused":
            self.held.append((about["requestId"], about["request"]["url"]))
        elif method == "Network.requestWillBeSent":
            self.urls.append(about["request"]["url"])


class Chromium:
    """A browser, in which each page is somebody's who has never been here."""

    def __init__(self, port: int, connection: ClientConnection) -> None:
        self._port = port
        self._session = Session(connection)

    @contextmanager
    def tab(self) -> Iterator[Tab]:
        """Open an empty page with cookies and a cache of its own; it closes with the block."""
        context = self._session.call("Target.createBrowserContext")["browserContextId"]
        made = self._session.call(
            "Target.createTarget", url="about:blank", browserContextId=context, newWindow=True
        )
        address = f"ws://127.0.0.1:{self._port}/devtools/page/{made['targetId']}"
        try:
            with connect(address, max_size=None) as connection:
                yield Tab(connection)
        finally:
            self._session.call("Target.disposeBrowserContext", browserContextId=context)


@contextmanager
def chromium(folder: Path) -> Iterator[Chromium]:
    """Start a browser that reaches this machine alone; it ends with the block."""
    assert browser.CHROMIUM is not None
    profile = folder / "profile"
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
    process = subprocess.Popen(
        [
            browser.CHROMIUM,
            *sandbox,
            "--headless",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-background-networking",
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
            "--remote-debugging-port=0",
            f"--user-data-dir={profile}",
            "about:blank",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        port, path = _listening(profile / "DevToolsActivePort")
        with connect(f"ws://127.0.0.1:{port}{path}", max_size=None) as connection:
            yield Chromium(port, connection)
            connection.send(json.dumps({"id": 0, "method": "Browser.close"}))
    finally:
        _end(process)


def _listening(port_file: Path) -> tuple[int, str]:
    """Return the port and the path at which Chromium is told what to do, once it says so."""

    def told() -> list[str]:
        lines = port_file.read_text().split() if port_file.is_file() else []
        return lines if len(lines) == 2 else []

    port, path = wait_for(told, "Chromium")
    return int(port), path


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the browser and its children, which are in a group of their own."""
    import signal

    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
