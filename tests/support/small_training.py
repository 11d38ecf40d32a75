"""A few images, a small network and the steps of a training that takes milliseconds."""

from __future__ import annotations

import numpy as np
import torch

from ahfal_app.data.augmentation import Augmentation
from ahfal_app.data.device import DeviceImages
from ahfal_app.data.images import Images
from ahfal_app.models import Classifier, build_model
from ahfal_app.training.sgd import Recipe

CPU = torch.device("cpu")
RECIPE = Recipe(
    local_epochs=2,
    batch_size=8,
    learning_rate=0.05,
    momentum=0.9,
    weight_decay=5e-4,
    lr_decay_epochs=260,
    lr_decay_factor=0.1,
    augmentation=Augmentation(0, False),
    precision="fp32",
    compile=False,
)
ROWS = torch.tensor([3, 5, 6, 8, 9, 11, 12, 15, 16, 17, 19, 21, 22, 23, 25, 26, 28, 30, 31, 33])


def make_images(
    shape: tuple[int, int, int] = (6, 6, 1), num_images: int = 40, device: torch.device = CPU
) -> DeviceImages:
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 256, (num_images, *shape)).astype(np.uint8)
    labels = draw.integers(0, 3, num_images)
    return DeviceImages(Images(pixels, labels), (0.5,) * shape[2], (0.25,) * shape[2], device)


def make_model(name: str = "small-cnn", channels: int = 1, seed: int = 0) -> Classifier:
    model = build_model(name, (6, 6, channels), 3, seed)
    return model.to(memory_format=torch.channels_last)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
