"""Options that commands of several kinds have."""

from __future__ import annotations

from typing import Annotated

import typer

Metric = Annotated[
    str,
    typer.Option(
        metavar="METRIC",
        help="What runs are compared by, accuracy or another metric; else as their settings say.",
    ),
]

Reference = Annotated[
    str,
    typer.Option(
        metavar="METHOD",
        help="What differences are to; else as the experiment's file says, AHFAL, or the first.",
    ),
]
