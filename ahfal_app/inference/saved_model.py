"""A model's file, and the network that it holds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ahfal_app.backbones import Backbone, load_backbone
from ahfal_app.errors import ConfigError
from ahfal_app.inference.deployed import Deployed
from ahfal_app.models import Classifier, build_model
from ahfal_app.models.core.finetuned import finetuned
from ahfal_app.results.reading import MODEL
from ahfal_app.training.model_use import METADATA, ModelUse


@dataclass(frozen=True, eq=False)
class SavedModel:
    """A model that a run has left, checked.

    Attributes
    ----------
    path : Path
        Its file.
    classes : tuple[str, ...]
        Names of the classes, in the order of the probabilities.
    use : ModelUse
        Its network and its input.
    network : Deployed
        Maps samples to probabilities, on the CPU.
    """

    path: Path
    classes: tuple[str, ...]
    use: ModelUse
    network: Deployed

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample: (H, W, c) of an image, (D,) of a vector."""
        return self.use.shape[2:] if self.use.vectors else self.use.shape

    @property
    def input_text(self) -> str:
        """What it takes, in words."""
        sides = ", ".join(map(str, ("B", *self.sample_shape)))
        return (
            f"float32 ({sides})" if self.use.vectors else f"uint8 ({sides}), pixels from 0 to 255"
        )


def load_model(path: Path, backbone_weights: str = "") -> SavedModel:
    """Read a model's file, or that of a run's folder.

    Parameters
    ----------
    path : Path
        `model.safetensors`, or the folder of a run.
    backbone_weights : str
        The weights of its backbone, as the setting `backbone-weights` has them; empty: as in its
        run.

    Raises
    ------
    ConfigError
        There is no such file, it is no model of a run, or its backbone is not to be had.
    """
    file = path / MODEL if path.is_dir() else path
    where = f"model {str(path)!r}"
    if not file.is_file():
        raise ConfigError(
            [f"{where}: there is no such file; allowed is a run's folder or its {MODEL}"]
        )
    tensors, said = _read(file, where)
    classes = _classes(said, where)
    if "use" not in said:
        raise ConfigError(
            [f"{where}: it does not say how it is used; allowed is a file that this version writes"]
        )
    use = ModelUse.parsed(said["use"], where)
    backbone = _backbone(use, said.get("backbone"), backbone_weights, where)
    network = _network(use, len(classes), backbone)
    _load(network, tensors, where)
    mean, deviation = use.mean, use.deviation
    if backbone is not None and use.tune != "head":
        # It was trained along: part of the network, which scales what it gets.
        mean, deviation = backbone.preprocessing.mean_C, backbone.preprocessing.std_C
        backbone = None
    deployed = Deployed(network.eval(), use.shape, mean, deviation, backbone, vectors=use.vectors)
    return SavedModel(file, classes, use, deployed)


def _read(file: Path, where: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        with safe_open(file, "pt") as found:
            names: list[str] = found.keys()
            tensors = {name: found.get_tensor(name) for name in names}
            said = json.loads((found.metadata() or {}).get(METADATA, "{}"))
    except (SafetensorError, OSError, ValueError) as error:
        raise ConfigError([f"{where}: it cannot be read: {error}"]) from error
    if not isinstance(said, dict):
        raise ConfigError([f"{where}: its metadata are not what a run writes"])
    return tensors, said


def _classes(said: Mapping[str, Any], where: str) -> tuple[str, ...]:
    names = said.get("classes")
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        raise ConfigError([f"{where}: it has no list of classes; allowed is a model of a run"])
    return tuple(names)


def _backbone(use: ModelUse, digest: object, weights: str, where: str) -> Backbone | None:
    if use.backbone is None:
        return None
    named = use.backbone
    backbone = load_backbone(named.name, weights or named.weights, named.size, named.crop)
    if backbone.digest != digest:
        raise ConfigError(
            [
                f"{where}: it was trained on the backbone {str(digest)[:12]}, and {named.name} "
                f"with these weights is {backbone.digest[:12]}; allowed are those of its run"
            ]
        )
    return backbone


def _network(use: ModelUse, classes: int, backbone: Backbone | None) -> Classifier:
    shape = use.shape if backbone is None else (1, 1, backbone.features)
    network = build_model(use.network, shape, classes, 0, use.parameters)
    if backbone is None or use.tune == "head":
        return network
    return finetuned(backbone, network, use.tune)


def _load(network: Classifier, tensors: Mapping[str, Tensor], where: str) -> None:
    wanted = network.state_dict()
    wrong = sorted(wanted.keys() ^ tensors.keys()) + [
        key for key in wanted if key in tensors and wanted[key].shape != tensors[key].shape
    ]
    if wrong:
        raise ConfigError([f"{where}: {wrong[0]!r} is not as its network has it"])
    with torch.no_grad():
        network.load_state_dict(tensors)
