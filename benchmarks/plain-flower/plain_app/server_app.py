"""The ServerApp: Flower's own FedAvg and its own loop."""

from __future__ import annotations

import time
from pathlib import Path

from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from plain_app.task import Net

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the rounds; write down when each was over."""
    settings = context.run_config
    times_file = Path(str(settings["times-file"]))

    def note_time(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        with times_file.open("a") as file:
            file.write(f"{time.time()}\n")
        return MetricRecord({"round": server_round})

    strategy = FedAvg(
        fraction_evaluate=float(str(settings["fraction-evaluate"])),
        min_train_nodes=2,
        min_available_nodes=2,
    )
    strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(Net().state_dict()),
        num_rounds=int(str(settings["num-server-rounds"])),
        evaluate_fn=note_time,
    )
