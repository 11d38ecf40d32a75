"""Finds networks by name: the modules beside this package, torchvision's, and entry points.

Listing names imports neither the networks nor torchvision.
"""

from __future__ import annotations

import importlib
import pkgutil
import threading
from collections.abc import Callable
from functools import partial
from importlib.metadata import EntryPoint
from pathlib import Path

import torch
from torch import nn

from ahfal_app.config import suggestion
from ahfal_app.errors import ConfigError, DuplicateModel
from ahfal_app.models.core.base import Classifier
from ahfal_app.plugins import entry_points

#: Packages register networks of their own in this group: `name = "module:build"`.
ENTRY_POINT_GROUP = "ahfal_app.models"

#: What the names of torchvision's networks start with.
TORCHVISION_PREFIX = "torchvision/"

#: The network that suits the data set.
AUTO = "auto"

_Build = Callable[[tuple[int, int, int], int], Classifier]

_PACKAGE = "ahfal_app.models"

# Networks draw their weights from torch's global generator, which all threads share.
_initialising = threading.Lock()


def model_names() -> tuple[str, ...]:
    """Return the names of all networks but torchvision's, without importing them.

    Raises
    ------
    DuplicateModel
        Two networks claim the same name.
    """
    return tuple(sorted(_origins()))


def resolve_model_name(model: str, dataset: str) -> str:
    """Return the network that the setting `model` means for a data set."""
    if model != AUTO:
        return model
    return "small-cnn" if dataset == "digits" else "resnet8"


def model_problem(name: str) -> str | None:
    """Return the line that refuses a name which no network has, or None.

    Raises
    ------
    DuplicateModel
        Two networks claim the same name.
    """
    if name.startswith(TORCHVISION_PREFIX):
        from ahfal_app.models.core.torchvision_networks import torchvision_names

        known = [TORCHVISION_PREFIX + each for each in torchvision_names()]
        allowed = (
            f"{TORCHVISION_PREFIX} with one of "
            "torchvision.models.list_models(module=torchvision.models)"
        )
    else:
        known = [AUTO, *model_names()]
        allowed = " | ".join([*known, f"{TORCHVISION_PREFIX}<name>"])
    return (
        None if name in known else f"model={name!r}: allowed is {allowed}{suggestion(name, known)}"
    )


def build_model(
    name: str,
    image_shape: tuple[int, int, int],
    num_classes: int,
    seed: int,
    *,
    head_kernel: int = 3,
) -> Classifier:
    """Return a freshly initialised network; equal seeds give equal weights.

    Parameters
    ----------
    name : str
        One of `model_names()`, or `torchvision/` and the name of a classifier of torchvision's.
    image_shape : tuple[int, int, int]
        Height, width and channels of an image.
    num_classes : int
        Number of classes C.
    seed : int
        Seed of the initial weights; torch's global generator is left as it was. Threads may
        build networks at the same time.
    head_kernel : int
        The setting of this name, for networks that have it.

    Raises
    ------
    ConfigError
        No network has this name, or it does not fit the images.
    DuplicateModel
        Two networks claim the same name.
    """
    if problem := model_problem(name):
        raise ConfigError([problem])
    build = _builder(name, {"head_kernel": head_kernel})
    with _initialising, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(image_shape, num_classes)


def _origins() -> dict[str, str | EntryPoint]:
    """Return where each network comes from: a module's name or an entry point."""
    origins: dict[str, str | EntryPoint] = {}
    folder = str(Path(__file__).parent.parent)
    for module in pkgutil.iter_modules([folder]):
        if not module.ispkg:
            origins[module.name.replace("_", "-")] = f"{_PACKAGE}.{module.name}"
    for entry_point in entry_points(group=ENTRY_POINT_GROUP):
        name = entry_point.name
        if name == AUTO or name.startswith(TORCHVISION_PREFIX):
            raise DuplicateModel(
                f"model {name!r} has a meaning already, and {entry_point.value} claims it"
            )
        if name in origins:
            first = origins[name]
            other = first.value if isinstance(first, EntryPoint) else first
            raise DuplicateModel(
                f"model {name!r} is defined twice: {other} and {entry_point.value}"
            )
        origins[name] = entry_point
    return origins


def _builder(name: str, settings: dict[str, int]) -> _Build:
    """Return the function that makes a network of a shape (H, W, c) and a number of classes."""
    if name.startswith(TORCHVISION_PREFIX):
        return partial(_build_torchvision, name)
    origin = _origins()[name]
    if isinstance(origin, EntryPoint):
        return partial(_build_foreign, origin)
    module = importlib.import_module(origin)
    taken = {key: settings[key] for key in getattr(module, "SETTINGS", ())}
    return partial(module.build, **taken)


# torchvision takes a while to import, and most networks do without: hence the late imports.


def _build_torchvision(
    name: str, image_shape: tuple[int, int, int], num_classes: int
) -> Classifier:
    from ahfal_app.models.core.adapted import as_classifier
    from ahfal_app.models.core.torchvision_networks import torchvision_network

    own_name = name.removeprefix(TORCHVISION_PREFIX)
    network = torchvision_network(own_name, image_shape, num_classes)
    return as_classifier(network, name, image_shape, num_classes)


def _build_foreign(
    entry_point: EntryPoint, image_shape: tuple[int, int, int], num_classes: int
) -> Classifier:
    """Call a function of another package, and refuse what is no network."""
    from ahfal_app.models.core.adapted import as_classifier

    where = f"model={entry_point.name!r}: {entry_point.value}"
    try:
        build = entry_point.load()
    except (ImportError, AttributeError) as error:
        raise ConfigError([f"{where} cannot be loaded: {error}"]) from error
    if not callable(build):
        raise ConfigError(
            [f"{where} is no function; allowed is build(image_shape, num_classes) -> nn.Module"]
        )
    network = build(image_shape, num_classes)
    if not isinstance(network, nn.Module):
        raise ConfigError(
            [f"{where} gives {type(network).__name__}; allowed is a Classifier or nn.Module"]
        )
    return as_classifier(network, entry_point.name, image_shape, num_classes)
