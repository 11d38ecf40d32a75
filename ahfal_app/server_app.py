"""The ServerApp: settings from Flower's run config, one run, a summary."""

from __future__ import annotations

from dataclasses import replace

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from rich.console import Console

from ahfal_app.errors import AhfalError
from ahfal_app.results.progress import Progress
from ahfal_app.results.summary import print_summary
from ahfal_app.server.run import execute
from ahfal_app.server.start import prepare
from ahfal_app.training.choices import fitting_at_once

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run federated active learning on Flower's grid."""
    console = Console()
    try:
        start = prepare(context.run_config)
        at_once = fitting_at_once(start.settings)
        start = replace(start, engine={"name": "flower"}, at_once=at_once)
        folder = execute(start, grid, Progress(console))
    except AhfalError as error:
        # Flower shows the traceback; people need the message, and before it.
        console.print(f"{type(error).__name__}: {error}", markup=False, soft_wrap=True)
        raise
    print_summary(folder, console)
