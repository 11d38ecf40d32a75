"""Pretrained networks that turn images into features: timm's, torchvision's, other packages'.

Another package registers a function in the entry-point group `ahfal_app.backbones`; it is called
without arguments and returns `Made`: a network and the images that it wants.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path

import torch
from torch import nn

from ahfal_app.backbones.core.base import Backbone, Preprocessing, digest_of
from ahfal_app.backbones.core.libraries import (
    Made,
    timm_network,
    timm_problem,
    torchvision_network,
    torchvision_problem,
)
from ahfal_app.backbones.core.weights import load_weights, read_weights
from ahfal_app.errors import ConfigError
from ahfal_app.parameters import suggestion
from ahfal_app.plugins import BACKBONES

__all__ = [
    "NO_BACKBONE",
    "PRETRAINED",
    "UNTRAINED",
    "Backbone",
    "Made",
    "Preprocessing",
    "backbone_problem",
    "load_backbone",
]

#: Networks are trained on the images themselves.
NO_BACKBONE = "none"

#: Weights that the library downloads, and weights that nobody trained.
PRETRAINED, UNTRAINED = "pretrained", "none"

# Weights that nobody trained must be the same on the server and at all sites.
_SEED = 0

# Networks draw their first weights from torch's global generator, which all threads share.
_initialising = threading.Lock()

_LIBRARIES: dict[str, tuple[Callable[[str], str | None], Callable[[str, bool], Made]]] = {
    "timm/": (timm_problem, timm_network),
    "torchvision/": (torchvision_problem, torchvision_network),
}


def backbone_problem(name: str) -> str | None:
    """Return the line that refuses a name that no backbone has, or None."""
    for prefix, (problem, _) in _LIBRARIES.items():
        if name.startswith(prefix):
            return problem(name.removeprefix(prefix))
    known = [NO_BACKBONE, *BACKBONES.names()]
    if name in known:
        return None
    allowed = " | ".join([*known, *(f"{prefix}<name>" for prefix in _LIBRARIES)])
    return f"backbone={name!r}: allowed is {allowed}{suggestion(name, known)}"


@lru_cache(maxsize=2)
def load_backbone(name: str, weights: str, size: int = 0, crop: bool = False) -> Backbone:
    """Return a backbone with its weights, in evaluation mode, on the CPU.

    Parameters
    ----------
    name : str
        The setting `backbone`, and not `none`.
    weights : str
        The setting `backbone-weights`: `pretrained`, `none` or a file.
    size : int
        Height and width of the images that it is to see; 0: its own.
    crop : bool
        Whether the middle is cut out of images, as in its training, or they are taken whole.

    Raises
    ------
    ConfigError
        There is no such backbone, it has no pooled features, or its weights cannot be used.
    """
    if problem := backbone_problem(name):
        raise ConfigError([problem])
    made = _made(name, weights)
    network = made.network.eval().requires_grad_(False)
    preprocessing = dataclasses.replace(
        made.preprocessing,
        size=size or made.preprocessing.size,
        crop=made.preprocessing.crop if crop else 1.0,
    )
    features = _features(network, name, preprocessing)
    digest = digest_of(name, network, preprocessing)
    origin = BACKBONES.provenance(name)
    return Backbone(name, network, preprocessing, features, digest, origin.source if origin else "")


def _made(name: str, weights: str) -> Made:
    build: Callable[[bool], Made] | None = None
    for prefix, (_, network) in _LIBRARIES.items():
        if name.startswith(prefix):
            build = partial(network, name.removeprefix(prefix))
    with _initialising, torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        made = build(weights == PRETRAINED) if build else BACKBONES.component(name)()
        if not isinstance(made, Made):
            raise ConfigError(
                [
                    f"backbone={name!r}: {BACKBONES.where(name)} gives {type(made).__name__}; "
                    "allowed is ahfal_app.backbones.Made"
                ]
            )
        if weights not in (PRETRAINED, UNTRAINED):
            state = read_weights(Path(weights))
            where = f"backbone={name!r} with backbone-weights={weights!r}"
            load_weights(made.network, state, where, made.classifier, made.convert)
    return made


def _features(network: nn.Module, name: str, preprocessing: Preprocessing) -> int:
    """Return how many features a network gives, having tried it on two images."""
    size = preprocessing.size
    images_BcHW = torch.linspace(-1.0, 1.0, 2 * 3 * size * size).reshape(2, 3, size, size)
    try:
        with torch.inference_mode():
            features_BD = network(images_BcHW)
    except (RuntimeError, ValueError, AssertionError) as error:
        raise ConfigError(
            [
                f"backbone-size={size}: allowed with backbone={name!r} is a size that it takes; it "
                f"says: {error}"
            ]
        ) from error
    if not isinstance(features_BD, torch.Tensor) or features_BD.dim() != 2:
        given = tuple(features_BD.shape) if isinstance(features_BD, torch.Tensor) else "no tensor"
        raise ConfigError(
            [
                f"backbone={name!r}: allowed is a network with pooled features, (2, D) of 2 "
                f"images; it gives {given}"
            ]
        )
    return int(features_BD.shape[1])
