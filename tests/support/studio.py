"""A real server of Label Studio with a database of its own, and answers over its API."""

from __future__ import annotations

import base64
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from support.deployment import free_ports, wait_until

VERSION = "1.23.2"
TOKEN = "0123456789abcdef0123456789abcdef01234567"
EMAIL = "annotator@example.invalid"
PASSWORD = "several-words-and-1"

#: A machine that has other things to do takes minutes to make the database.
_START_TIMEOUT_S = 900.0

_POLL_PAUSE_S = 1.0


def installed_program() -> list[str] | None:
    """Return the command that `AHFAL_LABEL_STUDIO` names, or on CI one that installs it."""
    if program := os.environ.get("AHFAL_LABEL_STUDIO"):
        return [program]
    if os.environ.get("CI") and (uv := shutil.which("uv")):
        return [uv, "tool", "run", "--from", f"label-studio=={VERSION}", "label-studio"]
    return None


@contextmanager
def label_studio(folder: Path, program: Sequence[str]) -> Iterator[str]:
    """Run a server for as long as the block, and give its address."""
    (port,) = free_ports(1)
    environment = {
        **os.environ,
        "LABEL_STUDIO_BASE_DATA_DIR": str(folder),
        "SECRET_KEY": "only for this test",
        "COLLECT_ANALYTICS": "false",
        "LATEST_VERSION_CHECK": "false",
        "SENTRY_DSN": "",
        "FRONTEND_SENTRY_DSN": "",
    }
    environment.pop("PYTHONPATH", None)  # It has a Python environment of its own.
    command = [*program, "start", "--no-browser", "--internal-host", "127.0.0.1"]
    command += ["--port", str(port), "--username", EMAIL, "--password", PASSWORD]
    command += ["--user-token", TOKEN, "--enable-legacy-api-token"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            command, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    url = f"http://127.0.0.1:{port}"

    def healthy() -> bool:
        assert process.poll() is None, (folder / "log").read_text()
        try:
            return httpx.get(f"{url}/health", trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    try:
        wait_until(healthy, _START_TIMEOUT_S)
        yield url
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextmanager
def api(url: str) -> Iterator[Any]:
    """Give the SDK's client of a server, as the server's only user."""
    import label_studio_sdk

    with httpx.Client(timeout=60) as http:
        yield label_studio_sdk.LabelStudio(base_url=url, api_key=TOKEN, httpx_client=http)


def annotate(client: Any, task: int, *choices: str, skipped: bool = False) -> None:
    """Annotate a task with classes, or skip it."""
    value = {"choices": list(choices)}
    result = [{"from_name": "class", "to_name": "image", "type": "choices", "value": value}]
    client.annotations.create(task, result=result if choices else [], was_cancelled=skipped)


@contextmanager
def annotator_at_work(url: str, class_of: Callable[[bytes], str]) -> Iterator[None]:
    """Label whatever comes up on a server, one task after the other, as long as the block lasts.

    Parameters
    ----------
    url : str
        The server.
    class_of : Callable[[bytes], str]
        Says what an image file shows; of a task, nothing else is looked at.
    """
    stop = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(_label_all, url, class_of, stop)
        try:
            yield
        finally:
            stop.set()
        working.result()


def _label_all(url: str, class_of: Callable[[bytes], str], stop: threading.Event) -> None:
    with api(url) as client:
        while not stop.wait(_POLL_PAUSE_S):
            for project in client.projects.list():
                if project.task_number == project.num_tasks_with_annotations:
                    continue
                tasks = client.tasks.list(project=project.id, include="id,is_labeled")
                for task in [task.id for task in tasks if not task.is_labeled]:
                    _, _, encoded = client.tasks.get(task).data["image"].partition(",")
                    annotate(client, task, class_of(base64.b64decode(encoded)))
