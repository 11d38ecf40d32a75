"""The ServerApp: Flower's own FedAvg and its own loop."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from flwr.app import ArrayRecord, ConfigRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from quickstart.task import Net, load_test, test

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the rounds, test the model once after the last, and write down what came of it."""
    told = json.loads(os.environ["LR_MNIST_SETTINGS"])
    rounds, ends = int(told["rounds"]), []

    def after_round(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        ends.append(time.time())
        if server_round < rounds:
            return None
        net = Net()
        net.load_state_dict(arrays.to_torch_state_dict())
        return MetricRecord({"accuracy": test(net, load_test())})

    strategy = FedAvg(
        fraction_train=told["fraction-train"],
        fraction_evaluate=told["fraction-evaluate"],
        min_train_nodes=1,
        min_evaluate_nodes=1,
        min_available_nodes=told["clients"],
    )
    result = strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(Net().state_dict()),
        num_rounds=rounds,
        train_config=ConfigRecord({key: told[key] for key in ("batch-size", "local-epochs", "lr")}),
        evaluate_fn=after_round,
    )
    accuracy = float(result.evaluate_metrics_serverapp[rounds]["accuracy"])
    report = {"accuracy": accuracy, "round_ends": ends}
    Path(told["report"]).write_text(json.dumps(report))
