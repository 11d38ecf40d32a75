"""The little that AHFAL needs of Label Studio's SDK, with errors that have names.

Tokens are in no message: errors tell what the server says and how it can be mended.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Sequence
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
                    f"with `pip install 'ahfal-app[label-studio]'` ({error})"
                ]
            ) from error
        self._made: Any = None

    def project_address(self, project: int) -> str:
        """Return where people find a project."""
        return f"{self.url}/projects/{project}"

    def find_project(self, title: str, mark: str) -> tuple[int, str] | None:
        """Return the id and the labelling interface of the project with a mark, or None."""

        def find() -> tuple[int, str] | None:
            # People may rename a project, so the title only says where to look first.
            for query in ({"title": title}, {}):
                for project in self._client.projects.list(**query):
                    if mark in (project.description or ""):
                        return project.id, self._client.projects.get(project.id).label_config
            return None

        return self._ask("projects", find)

    def make_project(self, title: str, mark: str, interface: str) -> int:
        """Make a project and return its id."""

        def make() -> int:
            project = self._client.projects.create(
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
            lambda: self._client.projects.import_tasks(project, request=tasks),
        )

    def tasks(self, project: int, request_id: str) -> list[dict[str, Any]]:
        """Return a request's tasks with `id`, `meta` and `annotations`, without their images."""
        query = {
            "filters": {
                "conjunction": "and",
                "items": [
                    {
                        "filter": "filter:tasks:data.request",
                        "operator": "equal",
                        "type": "String",
                        "value": request_id,
                    }
                ],
            }
        }

        def tasks() -> list[dict[str, Any]]:
            found = self._client.tasks.list(
                project=project,
                query=json.dumps(query),
                fields="all",
                include="id,meta,annotations",
                page_size=_PAGE_SIZE,
            )
            return [
                {"id": task.id, "meta": task.meta, "annotations": task.annotations}
                for task in found
                if (task.meta or {}).get("request") == request_id
            ]

        return self._ask(f"project {project}", tasks)

    @property
    def _client(self) -> Any:
        if self._made is None:
            self._made = self._sdk.LabelStudio(
                base_url=self.url, api_key=self._token, timeout=_TIMEOUT_S
            )
        return self._made

    def _ask(self, what: str, question: Callable[[], T]) -> T:
        try:
            return question()
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
