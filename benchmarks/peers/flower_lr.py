"""Flower's simulation runs `quickstart/`; a player of `lr_mnist.py`, in their environment.

By `run_simulation`, which leaves out what `flwr run` does besides: starting a SuperLink, packing
the app and sending it there.
"""

from __future__ import annotations

import json
import os

from flwr.simulation import run_simulation
from quickstart.client_app import app as client_app
from quickstart.server_app import app as server_app


def main() -> None:
    """Run the simulation that the environment variable tells of."""
    told = json.loads(os.environ["LR_MNIST_SETTINGS"])
    run_simulation(
        server_app=server_app,
        client_app=client_app,
        num_supernodes=told["clients"],
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            "init_args": {"num_cpus": os.cpu_count()},
        },
    )


if __name__ == "__main__":
    main()
