"""A backbone with a head, trained from its pretrained weights: all of it, or some parts.

Shapes: B images, c channels, H height, W width, D features, C classes.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ahfal_app.backbones import Backbone, Preprocessing
from ahfal_app.errors import ConfigError
from ahfal_app.models.core.adapted import switch_off_chance, try_training, use_own_batch_norm
from ahfal_app.models.core.base import Classifier
from ahfal_app.parameters import suggestion

#: What the setting `tune` calls the head among the parts that are trained.
HEAD = "head"

#: Train everything.
ALL = "all"

#: Backbones, by digest, and what was trained of them, that have been tried in this process.
_tried: set[tuple[str, str]] = set()


class Finetuned(Classifier):
    """A backbone whose features a head takes.

    Parts that are frozen are not part of the state dictionary: every site has them already. Their
    batch normalisation stays in evaluation mode, and its statistics as they were.

    Parameters
    ----------
    backbone : Backbone
        Copied.
    top : Classifier
        A head on vectors of the backbone's features.
    tune : str
        `all`, or prefixes of the names of what is trained, with commas between.
    """

    def __init__(self, backbone: Backbone, top: Classifier, tune: str) -> None:
        super().__init__()
        self._preprocessing: Preprocessing = backbone.preprocessing
        self.backbone: nn.Module = copy.deepcopy(backbone.network).requires_grad_()
        switch_off_chance(self.backbone)
        use_own_batch_norm(self.backbone)
        self.head = top.head
        # What is left of it has no parameters twice; `head` is declared as a linear layer.
        top.head = nn.Identity()  # type: ignore[assignment]  # emptied
        self.top = top
        self._frozen = frozenset(_frozen(self, tune))
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name not in self._frozen)
        self._resting = [
            module
            for path, module in self.backbone.named_modules(prefix="backbone")
            if _tensors(module) and all(f"{path}.{name}" in self._frozen for name in _own(module))
        ]

    def features(self, images_BcHW: Tensor) -> Tensor:
        """Return the input of the head's last layer; images are scaled as the backbone wants."""
        features_BD = self.backbone(self._preprocessing.fitted(images_BcHW))
        found_BD: Tensor = self.top.features(features_BD)
        return found_BD

    def train(self, mode: bool = True) -> Finetuned:
        """Set the mode; what is frozen stays in evaluation mode."""
        super().train(mode)
        for module in self._resting:
            module.eval()
        return self

    # torch's has overloads, of which this is the sum.
    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Return what is trained, by name: what travels, and what is kept of a model."""
        state: dict[str, Any] = super().state_dict(*args, **kwargs)
        return {key: value for key, value in state.items() if key not in self._frozen}

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """Load what is trained; the rest is the backbone's."""
        frozen = {k: v for k, v in nn.Module.state_dict(self).items() if k in self._frozen}
        return super().load_state_dict({**state_dict, **frozen}, strict, assign)


def tune_problem(backbone: Backbone, tune: str) -> str | None:
    """Return the line that refuses a `tune` that names nothing of a backbone, or None."""
    if tune == ALL:
        return None
    names = [name for name, _ in backbone.network.named_parameters()]
    known = sorted({name.partition(".")[0] for name in names})
    for prefix in _prefixes(tune):
        if prefix != HEAD and not any(_starts(name, prefix) for name in names):
            return (
                f"tune={tune!r}: {prefix!r} is no part of {backbone.name}"
                f"{suggestion(prefix, known)}; allowed is all | head | prefixes of "
                f"{', '.join(known)}, with commas between"
            )
    if HEAD not in _prefixes(tune):
        return f"tune={tune!r}: allowed are parts with {HEAD!r} among them, which is always new"
    return None


def _frozen(model: Finetuned, tune: str) -> list[str]:
    """Return the names of what is not trained: parameters and buffers of the backbone."""
    if tune == ALL:
        return []
    prefixes = [prefix for prefix in _prefixes(tune) if prefix != HEAD]
    names = list(model.backbone.state_dict())
    return [
        f"backbone.{name}"
        for name in names
        if not any(_starts(name, prefix) for prefix in prefixes)
    ]


def _prefixes(tune: str) -> list[str]:
    return [prefix.strip() for prefix in tune.split(",")]


def _starts(name: str, prefix: str) -> bool:
    """Tell whether a name is a part's: `layer4` is no prefix of `layer40.weight`."""
    return name == prefix or name.startswith(f"{prefix}.")


def _own(module: nn.Module) -> list[str]:
    """Return the names of a module's own parameters and buffers."""
    return [
        *(name for name, _ in module.named_parameters(recurse=False)),
        *(name for name, _ in module.named_buffers(recurse=False)),
    ]


def _tensors(module: nn.Module) -> bool:
    return bool(_own(module))


def finetuned(backbone: Backbone, top: Classifier, tune: str) -> Classifier:
    """Return a backbone with a head as a network that is trained.

    Raises
    ------
    ConfigError
        `tune` names no part of it, or what it names cannot be trained on a single image or draws
        random numbers in training.
    """
    if problem := tune_problem(backbone, tune):
        raise ConfigError([problem])
    with torch.no_grad():
        model = Finetuned(backbone, top, tune).train()
    if (backbone.digest, tune) not in _tried:
        side = backbone.preprocessing.size
        try_training(model, f"backbone={backbone.name!r} tune={tune!r}", (side, side, 3))
        _tried.add((backbone.digest, tune))
    return model
