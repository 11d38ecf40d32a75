"""Data, network and training, without anything clever."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

#: As many labels as each of two sites has at the start in the run that this is compared with.
_IMAGES = 72
_BATCH = 128


class Net(nn.Module):
    """Two convolutions and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(128, 10),
        )

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Return the logits, shape (N, classes)."""
        logits_NK: Tensor = self.layers(images_NCHW)
        return logits_NK


def load(partition: int) -> tuple[Tensor, Tensor]:
    """Return images, (N, 1, 8, 8), and labels, (N,), of a site."""
    digits = load_digits()
    rows = slice(partition * _IMAGES, (partition + 1) * _IMAGES)
    images_NHW = torch.tensor(digits.images[rows], dtype=torch.float32) / 16
    return images_NHW.unsqueeze(1), torch.tensor(digits.target[rows])


def train(net: Net, images_NCHW: Tensor, labels_N: Tensor) -> float:
    """Train for one epoch; return the mean loss of its batches."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    losses = []
    order_N = torch.randperm(len(labels_N))
    for rows in order_N.split(_BATCH):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(images_NCHW[rows]), labels_N[rows])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return sum(losses) / len(losses)


def evaluate(net: Net, images_NCHW: Tensor, labels_N: Tensor) -> float:
    """Return the accuracy."""
    with torch.no_grad():
        return float((net(images_NCHW).argmax(1) == labels_N).float().mean())
