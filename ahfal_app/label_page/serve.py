"""Serves the labelling page on this machine alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ahfal_app.label_page.app import PageOptions, make_app
from ahfal_app.label_page.desk import Desk
from ahfal_app.web.serving import serve_page


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
    PageError
        The port is taken.
    """
    desk = Desk(folder)
    serve_page(
        lambda token, listening: make_app(desk, annotator, token, listening, **vars(options)),
        port,
        tell,
    )
