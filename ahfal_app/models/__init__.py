"""Networks by name; each module of this package is one, named after its file, but two helpers."""

from __future__ import annotations

import importlib
import pkgutil
import threading

import torch

from ahfal_app.config import suggestion
from ahfal_app.errors import ConfigError
from ahfal_app.models.base import Classifier

_HELPERS = ("base", "batch_norm")

__all__ = ["Classifier", "build_model", "model_names", "resolve_model_name"]

# Networks draw their weights from torch's global generator, which all threads share.
_initialising = threading.Lock()


def model_names() -> tuple[str, ...]:
    """Return the names of all networks."""
    modules = (module.name for module in pkgutil.iter_modules(__path__))
    return tuple(
        sorted(name.replace("_", "-") for name in modules if name not in ("base", "batch_norm"))
    )


def resolve_model_name(model: str, dataset: str) -> str:
    """Return the network that the setting `model` means for a data set."""
    if model != "auto":
        return model
    return "small-cnn" if dataset == "digits" else "resnet8"


def build_model(
    name: str, image_shape: tuple[int, int, int], num_classes: int, seed: int
) -> Classifier:
    """Return a freshly initialised network; equal seeds give equal weights.

    Parameters
    ----------
    name : str
        One of `model_names()`.
    image_shape : tuple[int, int, int]
        Height, width and channels of an image.
    num_classes : int
        Number of classes C.
    seed : int
        Seed of the initial weights; torch's global generator is left as it was. Threads may
        build networks at the same time.

    Raises
    ------
    ConfigError
        No network has this name.
    """
    if name not in model_names():
        near = suggestion(name, model_names())
        raise ConfigError([f"model={name!r}: allowed is auto | {' | '.join(model_names())}{near}"])
    module = importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
    with _initialising, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Classifier = module.build(image_shape, num_classes)
    return model
