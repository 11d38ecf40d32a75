"""pfl-research trains many small users; a player of `small_users.py`, in their environment.

Their simulated backend and FedAvg, as their documentation has them: users' images are normalised
float tensors that are there before the first round, local SGD without momentum, the central
optimiser adds the mean of the updates. Nothing is evaluated but in a round that is not timed.

Shapes: N images, H height, W width, c channels.
"""

from __future__ import annotations

import argparse
import os

import numpy as np
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam import NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from torch import Tensor, nn
from turns import Player, Stopped


class SmallCNN(nn.Module):
    """The network `small-cnn` of the project, with the names of its parameters."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 32, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(32)
        self.conv2 = nn.Conv2d(32, 32, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(32)
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.hidden = nn.Linear(128, 64)
        self.head = nn.Linear(64, num_classes)

    def forward(self, images_NcHW: Tensor) -> Tensor:
        """Return the logits, one row for each image."""
        hidden = torch.relu(self.bn1(self.conv1(images_NcHW)))
        hidden = torch.relu(self.bn2(self.conv2(hidden)))
        hidden = torch.relu(self.hidden(self.pool(hidden).flatten(1)))
        logits: Tensor = self.head(hidden)
        return logits

    def loss(self, images_NcHW: Tensor, labels_N: Tensor) -> Tensor:
        """Return what is minimised."""
        self.train()
        return nn.functional.cross_entropy(self(images_NcHW), labels_N)

    @torch.no_grad()
    def metrics(self, images_NcHW: Tensor, labels_N: Tensor) -> dict[str, Weighted]:
        """Return the accuracy."""
        self.eval()
        hits = (self(images_NcHW).argmax(1) == labels_N).sum().item()
        return {"accuracy": Weighted(hits, len(labels_N))}


class Turns(TrainingProcessCallback):
    """Waits before each round, and tells the test accuracy in the last."""

    def __init__(self, player: Player, rounds: int, test: Dataset) -> None:
        self._player, self._rounds, self._test = player, rounds, test

    def on_train_begin(self, *, model: PyTorchModel) -> Metrics:
        """Wait for the first turn."""
        self._player.wait()
        return Metrics()

    def after_central_iteration(
        self, aggregate_metrics: Metrics, model: PyTorchModel, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        """Say that the round is over; wait for the next one."""
        report = {}
        if central_iteration + 1 == self._rounds:
            accuracy = next(iter(model.evaluate(self._test, lambda name: name)))[1]
            report = {"accuracy": accuracy.overall_value}
        self._player.done(report)
        self._player.wait()
        return False, Metrics()


def main() -> None:
    """Take part until the referee stops."""
    arguments = _arguments()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 (pfl draws from it)
    held = np.load(arguments.data)
    network = SmallCNN(held["train_NHWc"].shape[3], arguments.classes)
    network.load_state_dict(
        {name: torch.from_numpy(held[f"weight:{name}"]) for name in network.state_dict()}
    )
    train, test = (_normalised(held[f"{split}_NHWc"], held) for split in ("train", "test"))
    labels_N = torch.from_numpy(held["train_labels_N"])
    users = {
        number: Dataset((train[rows], labels_N[rows]), user_id=number)
        for number, rows in enumerate(torch.from_numpy(held["users_UN"]))
    }
    tested = Dataset((test, torch.from_numpy(held["test_labels_N"])))
    model = PyTorchModel(
        network,
        local_optimizer_create=torch.optim.SGD,
        central_optimizer=torch.optim.SGD(network.parameters(), lr=1.0),
    )
    cohort = FederatedDataset(users.__getitem__, get_user_sampler("minimize_reuse", list(users)))
    player = Player(arguments.address, arguments.name)
    try:
        FederatedAveraging().run(
            NNAlgorithmParams(
                central_num_iterations=arguments.rounds + 1,
                evaluation_frequency=arguments.rounds + 1,
                train_cohort_size=arguments.users,
                val_cohort_size=0,
            ),
            SimulatedBackend(training_data=cohort, val_data=cohort),
            model,
            NNTrainHyperParams(
                local_batch_size=arguments.batch,
                local_num_epochs=1,
                local_learning_rate=arguments.learning_rate,
            ),
            callbacks=[Turns(player, arguments.rounds, tested)],
            send_metrics_to_platform=False,
        )
    except Stopped:
        # Not by way of pfl's own processes and gloo's threads, which wait for each other.
        os._exit(0)


def _normalised(images_NHWc: np.ndarray, held: np.lib.npyio.NpzFile) -> Tensor:
    scaled = torch.from_numpy(images_NHWc).float() * torch.from_numpy(held["scale_c"])
    shifted = scaled + torch.from_numpy(held["shift_c"])
    return shifted.permute(0, 3, 1, 2).contiguous()


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--address", required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--classes", type=int, required=True)
    parser.add_argument("--users", type=int, required=True, help="of a round")
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--learning-rate", type=float, required=True)
    parser.add_argument("--threads", type=int, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
