"""Data, network and training, without anything clever.

Shapes: N samples, D pixels of an image, C classes.
"""

from __future__ import annotations

import os
from functools import cache

import numpy as np
import torch
from datasets import Dataset, load_dataset
from torch import Tensor, nn
from torch.utils.data import DataLoader

CLASSES, PIXELS = 10, 28 * 28
_TEST_BATCH = 1000


class Net(nn.Module):
    """Multinomial logistic regression, from the weights that both sides begin with."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(PIXELS, CLASSES)
        begin = _told()
        self.load_state_dict({name: torch.from_numpy(begin[name]) for name in self.state_dict()})

    def forward(self, pixels_ND: Tensor) -> Tensor:
        """Return the logits, shape (N, C)."""
        logits_NC: Tensor = self.head(pixels_ND)
        return logits_NC


def load_partition(partition: int, batch_size: int) -> DataLoader[dict[str, Tensor]]:
    """Return a client's images and labels in batches, each epoch in another order."""
    rows = _told()["users_UN"][partition]
    return DataLoader(_of(rows), batch_size=batch_size, shuffle=True)


def load_share(partition: int, share: float) -> DataLoader[dict[str, Tensor]]:
    """Return a share of a client's images and labels, in one batch."""
    rows = _told()["users_UN"][partition]
    kept = rows[: max(1, round(share * len(rows)))]
    return DataLoader(_of(kept), batch_size=len(kept))


def load_test() -> DataLoader[dict[str, Tensor]]:
    """Return the test images in batches."""
    return DataLoader(_split("test").with_transform(_tensors), batch_size=_TEST_BATCH)


def train(net: Net, batches: DataLoader[dict[str, Tensor]], epochs: int, rate: float) -> float:
    """Train; return the mean loss of all batches."""
    optimizer = torch.optim.SGD(net.parameters(), lr=rate)
    losses = []
    for _ in range(epochs):
        for batch in batches:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net(batch["pixels"]), batch["label"])
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return sum(losses) / len(losses)


@torch.no_grad()
def test(net: Net, batches: DataLoader[dict[str, Tensor]]) -> float:
    """Return the accuracy."""
    hits, seen = 0, 0
    for batch in batches:
        hits += int((net(batch["pixels"]).argmax(1) == batch["label"]).sum())
        seen += len(batch["label"])
    return hits / seen


@cache
def _told() -> dict[str, np.ndarray]:
    """Return the split, the first weights and how pixels are normalised."""
    with np.load(os.environ["LR_MNIST_TOLD"]) as held:
        return dict(held)


def _of(rows: np.ndarray) -> Dataset:
    return _split("train").select(rows).with_transform(_tensors)


@cache
def _split(name: str) -> Dataset:
    files = {name: f"{os.environ['LR_MNIST_DATA']}/*{name}*.parquet"}
    return load_dataset("parquet", data_files=files, split=name)


def _tensors(batch: dict[str, list]) -> dict[str, list]:
    scale, shift = (_told()[name].item() for name in ("scale", "shift"))
    pixels = [np.asarray(image, dtype=np.float32).reshape(-1) for image in batch["image"]]
    return {
        "pixels": [torch.from_numpy(each * scale + shift) for each in pixels],
        "label": batch["label"],
    }
