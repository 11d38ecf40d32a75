"""The little that AHFAL needs of Label Studio's SDK, with errors that have names.

Tokens are in no message: errors tell what the server says and how it can be mended.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Collection, Sequence
from typing import Any, TypeVar

import httpx

from ahfal_app.errors import ConfigError, OracleError

_TIMEOUT_S = 60.0
_PAGE_SIZE = 500

_ADVICE = {
    401: "the token is wrong or has expired",
    403: "the token's user may not do this",
    404: "it is not there",
    413: "an image is larger than the server takes",
}

T = TypeVar("T")


class Connection:
    """A server of Label Studio.

    Parameters
    ----------
    url : str
        Its address, without a slash at the end.
    token : str
        An access token.

    Raises
    ------
    ConfigError
        The SDK is not installed.
    """

    def __init__(self, url: str, token: str) -> None:
        self.url = url
        self._token = token
        try:
            # It takes seconds to load, and only sites with this oracle need it.
            self._sdk = importlib.import_module("label_studio_sdk")
            self._api_error: type[Exception] = importlib.import_module(
                "label_studio_sdk.core.api_error"
            ).ApiError
        except ModuleNotFoundError as error:
            raise ConfigError(
                [
                    "oracle='label-studio': allowed only with Label Studio's SDK; install it "
                    f"with `uv sync --extra label-studio` ({error})"
                ]
            ) from error

    def project_address(self, project: int) -> str:
        """Return where people find a project."""
        return f"{self.url}/projects/{project}"

    def check(self) -> None:
        """See whether the server answers and takes the token."""
        self._ask("access", lambda client: client.users.whoami())

    def find_project(self, title: str, mark: str) -> tuple[int, str] | None:
        """Return the id and the labelling interface of the project with a mark, or None."""

        def find(client: Any) -> tuple[int, str] | None:
            # People may rename a project, so the title only says where to look first.
            for query in ({"title": title}, {}):
                for project in client.projects.list(**query):
                    if mark in (project.description or ""):
                        return project.id, client.projects.get(project.id).label_config
            return None

        return self._ask("projects", find)

    def make_project(self, title: str, mark: str, interface: str) -> int:
        """Make a project and return its id."""

        def make(client: Any) -> int:
            project = client.projects.create(
                title=title,
                description=f"Made by AHFAL; keep this line: {mark}",
                label_config=interface,
                enable_empty_annotation=False,
                show_skip_button=True,
            )
            identity: int = project.id
            return identity

        return self._ask(f"project {title!r}", make)

    def import_tasks(self, project: int, tasks: Sequence[dict[str, object]]) -> None:
        """Import tasks; they are there when this returns."""
        self._ask(
            f"project {project}",
            lambda client: client.projects.import_tasks(project, request=tasks),
        )

    def samples(self, project: int, request_id: str) -> set[int]:
        """Return the samples that a request has tasks of."""
        return {t["meta"]["sample"] for t in self._tasks(project, request_id, include="id,meta")}

    def delete_tasks(self, project: int, samples: Collection[int]) -> None:
        """Delete all tasks of these samples; there may be none."""
        tasks = self._tasks(project, None, include="id,meta")
        gone = [task["id"] for task in tasks if task["meta"].get("sample") in samples]

        def delete(client: Any) -> None:
            for task in gone:
                client.tasks.delete(str(task))

        self._ask(f"project {project}", delete)

    def annotated(self, project: int, request_id: str) -> list[dict[str, Any]]:
        """Return a request's tasks that somebody has labelled or skipped, with annotations."""
        return self._tasks(project, request_id, only_annotated=True)

    def _tasks(self, project: int, request_id: str | None, **what: object) -> list[dict[str, Any]]:
        """Return the tasks of a request, or all that are ours."""
        asked = {
            "filter": "filter:tasks:data.request",
            "operator": "equal",
            "type": "String",
            "value": request_id,
        }
        items = [asked] if request_id is not None else []
        query = {"filters": {"conjunction": "and", "items": items}}

        def tasks(client: Any) -> list[dict[str, Any]]:
            found = client.tasks.list(
                project=project,
                query=json.dumps(query),
                fields="all",
                **what,
                page_size=_PAGE_SIZE,
            )
            return [
                {"id": task.id, "meta": task.meta, "annotations": getattr(task, "annotations", [])}
                for task in found
                if "request" in (task.meta or {}) and request_id in (None, task.meta["request"])
            ]

        return self._ask(f"project {project}", tasks)

    def _ask(self, what: str, question: Callable[[Any], T]) -> T:
        try:
            with httpx.Client(timeout=_TIMEOUT_S, follow_redirects=True) as http:
                client = self._sdk.LabelStudio(
                    base_url=self.url, api_key=self._token, httpx_client=http
                )
                return question(client)
        except httpx.HTTPError as error:
            raise OracleError(
                f"Label Studio at {self.url}: cannot be reached: {type(error).__name__}; it is "
                "asked again"
            ) from error
        except self._api_error as error:
            status, body = getattr(error, "status_code", None), getattr(error, "body", None)
            said = body.get("detail", "") if isinstance(body, dict) else ""
            advice = _ADVICE.get(status or 0, "it is asked again")
            # The SDK's own message has headers with session cookies in it.
            raise OracleError(
                f"Label Studio at {self.url}: {what}: status {status}: {said} ({advice})"
            ) from None
