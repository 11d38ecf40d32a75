"""The watching page's server side: what is known of the runs of a folder, on request."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping
from http import HTTPStatus
from pathlib import Path

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from ahfal_app.errors import ReportError
from ahfal_app.results.overview import Overview, Overviews
from ahfal_app.watch_page.page import PAGE
from ahfal_app.watch_page.script import SCRIPT
from ahfal_app.watch_page.style import STYLE
from ahfal_app.web.guard import Guard
from ahfal_app.web.serving import serve_page


def make_app(folder: Path, token: str, port: int) -> Starlette:
    """Return the web application of the page.

    Parameters
    ----------
    folder : Path
        The folder of a run, or one with folders of runs in it.
    token : str
        What must be shown to see anything.
    port : int
        The port that it is served on.
    """
    overviews = Overviews(folder)

    # Not `async`: it reads files, and is given a thread.
    def state(request: Request) -> Response:
        now = dt.datetime.now(dt.UTC)
        try:
            runs = overviews.all(now)
        except ReportError as error:
            return JSONResponse({"error": str(error)}, HTTPStatus.NOT_FOUND)
        # A name that is not among them leads nowhere: it is no path.
        chosen = request.query_params.get("run", "")
        chosen = chosen if chosen in runs else _default(runs)
        return JSONResponse(
            {
                "now": now.isoformat(),
                "is_one": overviews.is_one_run,
                "runs": [{"key": key, **_summary(run)} for key, run in runs.items()],
                "chosen": chosen,
                "run": runs[chosen].model_dump(mode="json"),
            }
        )

    return Starlette(
        routes=[
            Route("/", lambda request: HTMLResponse(PAGE)),
            Route("/page.js", lambda request: Response(SCRIPT, media_type="text/javascript")),
            Route("/page.css", lambda request: Response(STYLE, media_type="text/css")),
            Route("/favicon.ico", lambda request: Response(status_code=HTTPStatus.NO_CONTENT)),
            Route("/state", state),
        ],
        middleware=[Middleware(Guard, token=token, port=port, command="ahfal watch")],
    )


def serve(folder: Path, port: int, tell: Callable[[str], None]) -> None:
    """Serve the page until it is interrupted.

    Parameters
    ----------
    folder : Path
        The folder of a run, or one with folders of runs in it.
    port : int
        Port to listen on; 0: any that is free.
    tell : Callable[[str], None]
        Is told the address to open, once it can be opened.

    Raises
    ------
    PageError
        The port is taken.
    """
    serve_page(lambda token, listening: make_app(folder, token, listening), port, tell)


def _default(runs: Mapping[str, Overview]) -> str:
    """Return the first run that goes on, or the first."""
    return next((key for key, run in runs.items() if not run.has_ended), next(iter(runs)))


def _summary(run: Overview) -> dict[str, object]:
    """Return what a list of runs says of one."""
    accuracy = run.curve[-1].accuracy if run.curve else None
    return {**run.model_dump(mode="json", exclude={"sites", "curve"}), "accuracy": accuracy}
