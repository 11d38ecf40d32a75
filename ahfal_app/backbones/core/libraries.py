"""Backbones of timm and of torchvision, with the preprocessing that each library says.

Both take long to import, and are imported when one of their networks is asked for.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from torch import nn

from ahfal_app.backbones.core.base import Interpolation, Preprocessing
from ahfal_app.backbones.core.timm_files import as_timm_reads
from ahfal_app.backbones.core.weights import Convert
from ahfal_app.errors import ConfigError
from ahfal_app.parameters import suggestion

_INTERPOLATIONS = ("bilinear", "bicubic")


@dataclass(frozen=True, eq=False)
class Made:
    """A network without its classifier, what images it wants, and what its classifier was called.

    `source` says where its pretrained weights are, for people who have to fetch them. `convert`
    brings a file's weights that do not fit into the network's form.
    """

    network: nn.Module
    preprocessing: Preprocessing
    classifier: tuple[str, ...] = ()
    source: str = ""
    convert: Convert | None = None


def timm_problem(name: str) -> str | None:
    """Return the line that refuses a name or a tag that timm does not know, or None."""
    import timm

    base, dot, tag = name.partition(".")
    # It looks at what is before the tag alone.
    if not timm.is_model(name):
        return (
            f"backbone='timm/{name}': allowed is timm/ with one of timm.list_models()"
            f"{suggestion(base, timm.list_models())}"
        )
    known = [each.partition(".")[2] for each in timm.list_models(base, include_tags=True)]
    tags = [each for each in known if each]
    if not dot or tag in tags:
        return None
    with_tags = f", alone or with one of its tags: {' | '.join(tags)}" if tags else " without a tag"
    return f"backbone='timm/{name}': allowed is timm/{base}{with_tags}{suggestion(tag, tags)}"


def timm_network(name: str, pretrained: bool) -> Made:
    """Return a network of timm's, with its classifier taken off.

    Raises
    ------
    ConfigError
        It gives no pooled features, or its weights cannot be had.
    """
    import timm

    # It has no types.
    data: Any = importlib.import_module("timm.data")
    try:
        network: Any = timm.create_model(name, pretrained=pretrained, num_classes=0)
    except Exception as error:
        if not pretrained:
            raise
        # Whatever the library raises where there is no network.
        plain: Any = timm.create_model(name, pretrained=False, num_classes=0)
        raise _unavailable(f"timm/{name}", _timm_source(plain), error) from error
    config = data.resolve_model_data_config(network)
    height, width = config["input_size"][1:]
    classifier = network.pretrained_cfg.get("classifier") or ()
    return Made(
        network,
        _preprocessing(
            min(height, width),
            config["interpolation"],
            config["mean"],
            config["std"],
            config["crop_pct"],
        ),
        (classifier,) if isinstance(classifier, str) else tuple(classifier),
        _timm_source(network),
        partial(as_timm_reads, name, network),
    )


def torchvision_problem(name: str) -> str | None:
    """Return the line that refuses a name that torchvision does not know, or None."""
    from torchvision import models

    known = models.list_models(module=models)
    if name in known:
        return None
    return (
        f"backbone='torchvision/{name}': allowed is torchvision/ with one of "
        f"torchvision.models.list_models(module=torchvision.models){suggestion(name, known)}"
    )


def torchvision_network(name: str, pretrained: bool) -> Made:
    """Return a network of torchvision's, with its last linear layer taken off.

    Raises
    ------
    ConfigError
        It has no linear layer at its end, or its weights cannot be had.
    """
    from torchvision import models

    weights = models.get_model_weights(name).DEFAULT
    try:
        network: nn.Module = models.get_model(name, weights=weights if pretrained else None)
    except Exception as error:
        if not pretrained:
            raise
        # No network, a download that is cut off, a hash that is another: each raises its own.
        raise _unavailable(f"torchvision/{name}", weights.url, error) from error
    linear = [path for path, module in network.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise ConfigError(
            [f"backbone='torchvision/{name}': allowed is a network that ends in an nn.Linear"]
        )
    network.set_submodule(linear[-1], nn.Identity())
    preset = weights.transforms()
    size = preset.crop_size[0]
    crop = size / preset.resize_size[0]
    interpolation = preset.interpolation.value
    return Made(
        network,
        _preprocessing(size, interpolation, preset.mean, preset.std, crop),
        (linear[-1],),
        weights.url,
    )


def _preprocessing(
    size: int, interpolation: str, mean: Any, std: Any, crop: float
) -> Preprocessing:
    known = interpolation if interpolation in _INTERPOLATIONS else "bilinear"
    return Preprocessing(
        int(size), cast(Interpolation, known), tuple(mean), tuple(std), min(1.0, float(crop))
    )


def _timm_source(network: Any) -> str:
    config = network.pretrained_cfg
    if name := config.get("hf_hub_id"):
        return f"model.safetensors of {name} from the Hugging Face Hub"
    return str(config.get("url") or "")


def _unavailable(name: str, source: str, error: Exception) -> ConfigError:
    fetch = f"fetch {source} where there is a network" if source else "fetch its weights elsewhere"
    return ConfigError(
        [
            f"backbone-weights='pretrained': the weights of {name} cannot be loaded from the "
            f"network ({type(error).__name__}: {error}); {fetch}, and give the file as "
            "backbone-weights"
        ]
    )
