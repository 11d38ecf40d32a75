"""Networks by name: those beside this package, torchvision's, and other packages'.

Listing names imports neither the networks nor torchvision.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import nn

from ahfal_app.errors import ConfigError, UnknownComponent
from ahfal_app.models.core.base import Classifier
from ahfal_app.models.core.facts import NetworkFacts
from ahfal_app.parameters import Parameters, Scalar, parameter_problems, suggestion
from ahfal_app.plugins import DATASETS, MODELS

#: What the names of torchvision's networks start with.
TORCHVISION_PREFIX = "torchvision/"

#: The network that suits the data set.
AUTO = "auto"

# What that is where a data set does not say.
_USUAL = "resnet8"
_FOR_VECTORS = "linear"

# Networks draw their weights from torch's global generator, which all threads share.
_initialising = threading.Lock()


def model_names() -> tuple[str, ...]:
    """Return the names of all networks but torchvision's, without importing them.

    Raises
    ------
    DuplicateComponent
        Two networks claim the same name.
    """
    return MODELS.names()


def networks_for_vectors() -> tuple[str, ...]:
    """Return the names of the networks that are made for vectors."""
    return tuple(name for name in model_names() if network_facts(name).takes_vectors)


def resolve_model_name(model: str, dataset: str, is_vectors: bool = False) -> str:
    """Return the network that the setting `model` means for a data set."""
    if model != AUTO:
        return model
    if is_vectors:
        return _FOR_VECTORS
    known = DATASETS.component(dataset) if dataset in DATASETS.names() else None
    return str(getattr(known, "model", _USUAL))


def model_problem(name: str) -> str | None:
    """Return the line that refuses a name which no network has, or None.

    Raises
    ------
    DuplicateComponent
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


def network_facts(name: str) -> NetworkFacts:
    """Return what is known of a network; of one that no file here names, nothing is."""
    if name not in MODELS.names():
        return NetworkFacts()
    return cast(NetworkFacts, MODELS.trait(name, "FACTS", NetworkFacts()))


def network_parameters(name: str) -> type[Parameters]:
    """Return the model of a network's parameters; torchvision's have none.

    Raises
    ------
    ConfigError
        Another package's network cannot be loaded.
    """
    if name.startswith(TORCHVISION_PREFIX):
        return Parameters
    try:
        return MODELS.parameters(name)
    except UnknownComponent as error:
        raise ConfigError([str(error)]) from error


def build_model(
    name: str,
    image_shape: tuple[int, int, int],
    num_classes: int,
    seed: int,
    parameters: Mapping[str, Scalar] | None = None,
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
    parameters : Mapping[str, Scalar], optional
        The network's parameters by their keys without `model.`.

    Raises
    ------
    ConfigError
        No network has this name, a parameter is not allowed, or it does not fit the images.
    DuplicateComponent
        Two networks claim the same name.
    """
    if problem := model_problem(name):
        raise ConfigError([problem])
    values = dict(parameters or {})
    if problems := parameter_problems(MODELS.setting, name, network_parameters(name), values):
        raise ConfigError(problems)
    with _initialising, torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name.startswith(TORCHVISION_PREFIX):
            return _build_torchvision(name, image_shape, num_classes)
        return _build(name, image_shape, num_classes, values)


# torchvision takes a while to import, and most networks do without: hence the late imports.


def _build_torchvision(
    name: str, image_shape: tuple[int, int, int], num_classes: int
) -> Classifier:
    from ahfal_app.models.core.adapted import as_classifier
    from ahfal_app.models.core.torchvision_networks import torchvision_network

    own_name = name.removeprefix(TORCHVISION_PREFIX)
    network = torchvision_network(own_name, image_shape, num_classes)
    return as_classifier(network, name, image_shape, num_classes)


def _build(
    name: str, image_shape: tuple[int, int, int], num_classes: int, values: Mapping[str, Scalar]
) -> Classifier:
    """Call a network's function, and refuse what is no network."""
    build, where = MODELS.component(name), f"model={name!r}: {MODELS.where(name)}"
    if not callable(build):
        raise ConfigError(
            [f"{where} is no function; allowed is build(image_shape, num_classes) -> nn.Module"]
        )
    arguments: list[Any] = [image_shape, num_classes]
    model = network_parameters(name)
    if model.model_fields:
        arguments.append(model.model_validate(dict(values)))
    network = build(*arguments)
    if name in MODELS.own_names() and isinstance(network, Classifier):
        return network
    if not isinstance(network, nn.Module):
        raise ConfigError(
            [f"{where} gives {type(network).__name__}; allowed is a Classifier or nn.Module"]
        )
    from ahfal_app.models.core.adapted import as_classifier

    return as_classifier(network, name, image_shape, num_classes)
