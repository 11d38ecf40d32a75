"""The oracle of Label Studio: a project for each site, a task for each image.

Tasks carry the ids of their request and their sample, so that whatever was interrupted goes on
where it stopped, and nothing is imported twice. Images travel inside the tasks (as data URIs):
nobody but Label Studio's users can fetch them, and no storage needs to be set up.
"""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from filelock import FileLock

from ahfal_app.config import expanded
from ahfal_app.errors import ConfigError, OracleError
from ahfal_app.labels.store import LabelReceipt, LabelRequest
from ahfal_app.oracle import Oracle, Site, check_folder
from ahfal_app.oracle.label_studio.connection import Connection
from ahfal_app.oracle.label_studio.interface import (
    answer_times,
    check_classes,
    labelling_interface,
    make_task,
    settling_answers,
    task_answers,
)
from ahfal_app.storage.files import write_json

URL = "oracle-url"
TOKEN_FILE = "oracle-token-file"  # noqa: S105

_THIS_MACHINE = ("localhost", "127.0.0.1", "::1")

_PROJECT = "label-studio.json"
_LOCK = "label-studio.lock"

# Small enough for the limits that servers put on a request's size, with images of megabytes.
_IMPORT_BYTES = 32 * 2**20

_log = logging.getLogger(__name__)


class LabelStudioOracle(Oracle):
    """Imports requests into a project of Label Studio and collects its annotations.

    Parameters
    ----------
    site : Site
        Whom it labels for.
    folder : Path
        Where it remembers the project.
    connection : Connection
        The server.
    """

    def __init__(self, site: Site, folder: Path, connection: Connection) -> None:
        self._site = site
        self._folder = folder
        self._connection = connection

    def submit(self, request: LabelRequest) -> None:
        """Import a request's tasks, or what is missing of them.

        Raises
        ------
        OracleError
            The server is away or refuses, or the project is gone or has other classes.
        """
        # Looking for what is missing and importing it must not mix with another process.
        with self._locked():
            project = self._project()
            known = self._connection.samples(project, request.request_id)
            missing = [
                position for position, sample in enumerate(request.samples) if sample not in known
            ]
            for tasks in self._batches(request, missing):
                self._connection.import_tasks(project, tasks)

    def collect(self, request_id: str) -> list[LabelReceipt]:
        """Return the annotations so far, the oldest of each task first.

        What several people have said of an image is all returned. An image counts as skipped
        where somebody has skipped it and nobody has named a class; where several people read
        each image, whoever skips it is one of them. What somebody has marked as the ground truth
        settles what they disagree on.

        Raises
        ------
        OracleError
            The server is away or refuses, or the project is gone or has other classes.
        """
        if self._remembered() is None:
            return []
        with self._locked():
            project = self._project()
        receipts: list[LabelReceipt] = []
        for task in self._connection.annotated(project, request_id):
            answers, problems = task_answers(
                task, self._site.class_names, self._site.readers.count > 1
            )
            given = answer_times(task, self._site.class_names)
            settled = settling_answers(task, self._site.class_names)
            receipts += [
                LabelReceipt(
                    request_id,
                    task["meta"]["sample"],
                    *answer,
                    given.get(answer),
                    decides=answer in settled,
                )
                for answer in answers
            ]
            for problem in problems:
                _log.warning("%s: %s", self._connection.project_address(project), problem)
        return receipts

    def withdraw(self, samples: Collection[int]) -> None:
        """Delete the tasks of images that the site no longer has, with their annotations.

        Raises
        ------
        OracleError
            The server is away or refuses, or the project is gone.
        """
        if self._remembered() is None:
            return
        with self._locked():
            self._connection.delete_tasks(self._project(), samples)

    def check(self) -> str:
        """See whether the server takes the token, and has the site's project if it had one.

        Raises
        ------
        OracleError
            The server is away or refuses, the project is gone or has other classes, or the folder
            cannot be written.
        """
        check_folder(self._folder)
        self._connection.check()
        mark = self._remembered()
        if mark is not None:
            self._found(mark)
        return _warning_of(self._connection.url)

    # --- inside -------------------------------------------------------------------------

    def _locked(self) -> FileLock:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OracleError(f"{self._folder}: cannot be made: {error}") from error
        return FileLock(self._folder / _LOCK)

    def _remembered(self) -> str | None:
        """Return the mark that the site's project carries, or None before there is one."""
        path = self._folder / _PROJECT
        try:
            return str(json.loads(path.read_text(encoding="utf-8"))["mark"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError) as error:
            raise OracleError(f"{path}: cannot be read: {error!r}") from error

    def _project(self) -> int:
        """Return the id of the site's project; it is made the first time.

        The mark is on the disk before the project is made. If that was interrupted, the project
        is found again by its mark, or made now if it never came to that.
        """
        mark = self._remembered()
        if mark is None:
            mark = f"ahfal-{uuid.uuid4().hex}"
            self._remember({"mark": mark, "made": False})
        identity = self._found(mark)
        if identity is None:
            interface = labelling_interface(self._site.class_names)
            identity = self._connection.make_project(self._title, mark, interface)
        if not self._was_made():
            self._remember({"mark": mark, "made": True})
        return identity

    def _found(self, mark: str) -> int | None:
        """Return the id of the project with the site's mark, or None if it was never made."""
        found = self._connection.find_project(self._title, mark)
        if found is not None:
            identity, interface = found
            check_classes(interface, self._site.class_names)
            return identity
        if self._was_made():
            raise OracleError(
                f"project {self._title!r} is gone from {self._connection.url}: restore it, or "
                f"delete {self._folder / _PROJECT} to have a new one made for what is still open"
            )
        return None

    def _was_made(self) -> bool:
        about = json.loads((self._folder / _PROJECT).read_text(encoding="utf-8"))
        return bool(about["made"])

    @property
    def _title(self) -> str:
        return f"AHFAL, site {self._site.client}"

    def _remember(self, about: dict[str, object]) -> None:
        path = self._folder / _PROJECT
        try:
            write_json(path, about)
        except OSError as error:
            raise OracleError(f"{path}: cannot be written: {error}") from error

    def _batches(
        self, request: LabelRequest, positions: Sequence[int]
    ) -> Iterator[list[dict[str, object]]]:
        """Give the tasks at some positions of a request, in parts of a bounded size."""
        tasks: list[dict[str, object]] = []
        size = 0
        for position in positions:
            image = self._site.image(request.samples[position])
            task, length = make_task(request, position, image, self._site.class_names)
            if tasks and size + length > _IMPORT_BYTES:
                yield tasks
                tasks, size = [], 0
            tasks.append(task)
            size += length
        if tasks:
            yield tasks


def make(site: Site) -> LabelStudioOracle:
    """Return an oracle of Label Studio.

    Raises
    ------
    ConfigError
        The server's address, the token or the folder is missing or unusable, or the SDK is not
        installed.
    """
    problems = []
    url = site.options.get(URL, "")
    if not url.startswith(("http://", "https://")):
        problems.append(
            f"{URL}={url!r}: allowed with oracle='label-studio' is the server's address, such as "
            "http://127.0.0.1:8080"
        )
    token, problem = _token(site.options.get(TOKEN_FILE, ""))
    if problem:
        problems.append(problem)
    if site.folder is None:
        problems.append(
            "oracle='label-studio': allowed only with a folder: client-state='disk', or "
            "oracle-dir in --node-config"
        )
    if problems or site.folder is None:
        raise ConfigError(problems)
    return LabelStudioOracle(site, site.folder, Connection(url.rstrip("/"), token))


def _warning_of(url: str) -> str:
    """Return what is wrong with an address that works."""
    parts = urlsplit(url)
    if parts.scheme == "https" or parts.hostname in _THIS_MACHINE:
        return ""
    return (
        f"{URL}={url!r}: images and the token go there without TLS; allowed is what is on this "
        "machine or in a network of its own, better is https"
    )


def _token(name: str) -> tuple[str, str]:
    """Return the token in a file, or what is wrong; never what the file says otherwise."""
    allowed = "allowed is a file with Label Studio's access token in one line"
    if not name:
        return "", f"{TOKEN_FILE}='': {allowed}"
    try:
        token = expanded("oracle-token-file", name).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        return "", f"{TOKEN_FILE}={name!r}: {allowed}; {type(error).__name__}"
    if not token or not token.isascii() or len(token.split()) != 1:
        return "", f"{TOKEN_FILE}={name!r}: {allowed}"
    return token, ""
