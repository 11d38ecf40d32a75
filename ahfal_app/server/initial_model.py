"""The model that cycles start from, where a run goes on with one that is there already."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from ahfal_app.data.images import DataFormat
from ahfal_app.errors import ConfigError
from ahfal_app.parameters import Scalar
from ahfal_app.results.reading import MODEL
from ahfal_app.training.model_use import METADATA, ModelUse, model_metadata

_Arrays = Mapping[str, NDArray[np.generic]]

_USE = "use"

#: What the names of a model's last layer start with.
_HEAD = "head."


@dataclass(frozen=True)
class ModelFacts:
    """What a saved model says of itself, and what a run wants of it.

    Attributes
    ----------
    classes : tuple[str, ...]
        Names of the classes, in order.
    backbone : str
        SHA-256 of the backbone whose features it takes; empty where there is none.
    takes_vectors : bool
        Whether it takes vectors, and no images.
    parameters : Mapping[str, Scalar]
        Of the network: the settings `model.*`.
    """

    classes: tuple[str, ...]
    backbone: str
    takes_vectors: bool = False
    parameters: Mapping[str, Scalar] = field(default_factory=dict)

    def to_metadata(self, use: Mapping[str, object] | None = None) -> dict[str, str]:
        """Return it as a file of safetensors has it, with how the model is used."""
        return model_metadata(self.classes, self.backbone, use)


def with_initial(
    path: str, fresh: _Arrays, facts: ModelFacts, note: Callable[[str], None]
) -> dict[str, NDArray[np.generic]]:
    """Return a cycle's first model: what a file has, and a fresh head for other classes.

    Parameters
    ----------
    path : str
        The setting `initial-model`: a file, or a run's folder.
    fresh : Mapping[str, NDArray]
        The cycle's fresh model.
    facts : ModelFacts
        What the run's classes and backbone are.
    note : Callable[[str], None]
        Told where the head is made new.

    Raises
    ------
    ConfigError
        There is no such file, or it holds another network.
    """
    where = f"initial-model={path!r}"
    saved, said_of_it = _read(Path(path), where)
    backbone = said_of_it.get("backbone", facts.backbone)
    if backbone != facts.backbone:
        raise ConfigError(
            [
                f"{where}: it was trained on the backbone {backbone[:12] or 'none'}, this run has "
                f"{facts.backbone[:12] or 'none'}; allowed is a model of the same backbone"
            ]
        )
    if _takes_vectors(said_of_it) and not facts.takes_vectors:
        raise ConfigError(
            [f"{where}: it takes vectors; allowed with images is one that takes these"]
        )
    if parts := _other_parameters(said_of_it, facts.parameters):
        raise ConfigError(
            [f"{where}: it was trained with {', '.join(parts)}; allowed is the same here"]
        )
    other = [key for key in fresh if key in saved and saved[key].shape != fresh[key].shape]
    missing, unexpected = sorted(fresh.keys() - saved.keys()), sorted(saved.keys() - fresh.keys())
    # Another number of classes changes the first side of a head's arrays, and nothing else.
    wrong = [
        key
        for key in other
        if not key.startswith(_HEAD) or saved[key].shape[1:] != fresh[key].shape[1:]
    ]
    said = [
        f"{what} {keys[0]!r}"
        for what, keys in (("lacks", missing), ("has besides", unexpected), ("has another", wrong))
        if keys
    ]
    if said:
        raise ConfigError([f"{where}: allowed is a model of the same network; it {said[0]}"])
    names = said_of_it.get("classes")
    if other or (names is not None and tuple(names) != facts.classes):
        note(f"{where} has other classes: the head is made new")
        return {key: fresh[key] if key.startswith(_HEAD) else saved[key] for key in fresh}
    return {key: saved[key] for key in fresh}


def initial_standardisation(
    path: str, data: DataFormat, standardise: str
) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Return mean and deviation of what an initial model takes; None: it does not say.

    Parameters
    ----------
    path : str
        The setting `initial-model`.
    data : DataFormat
        The format of the run's data.
    standardise : str
        The setting of this name.

    Raises
    ------
    ConfigError
        There is no such file, or it takes other vectors, or images, than the run has.
    """
    where, numbers = f"initial-model={path!r}", data.image_shape[2]
    said = _read(Path(path), where)[1]
    if not said.get(_USE) or _takes_vectors(said) != data.vectors:
        return None
    use = ModelUse.parsed(said[_USE], where)
    if len(use.mean) != numbers:
        what = f"vectors of {len(use.mean)} numbers, and the data have {numbers}"
        if not data.vectors:
            what = f"images of {len(use.mean)} channels, and image-channels={numbers}"
        raise ConfigError([f"{where}: it takes {what}; allowed is a model of what the sites have"])
    if not data.vectors:
        return use.mean, use.deviation
    if standardise == "none" and (any(use.mean) or set(use.deviation) != {1.0}):
        raise ConfigError(
            [f"standardise='none': allowed is 'federation', as {where} takes standardised vectors"]
        )
    return use.mean, use.deviation


def _read(path: Path, where: str) -> tuple[dict[str, NDArray[np.generic]], dict[str, Any]]:
    file = path / MODEL if path.is_dir() else path
    if not path.exists():
        raise ConfigError([f"{where}: no such file or folder"])
    if not file.is_file():
        raise ConfigError([f"{where}: allowed is a file of safetensors, or the folder of a run"])
    try:
        with safe_open(file, "np") as found:
            # No mapping: it cannot be iterated over.
            arrays = {key: found.get_tensor(key) for key in found.keys()}  # noqa: SIM118
            text = (found.metadata() or {}).get(METADATA, "{}")
        return arrays, _said(json.loads(text))
    except (SafetensorError, OSError, TypeError, ValueError) as error:
        raise ConfigError([f"{where}: cannot be read: {error}"]) from error


def _said(content: object) -> dict[str, Any]:
    """Return what a file says of its model, if it is of the kind that `to_metadata` writes."""
    if not isinstance(content, dict):
        raise TypeError("its metadata are no mapping")
    names = content.get("classes", [])
    if not isinstance(content.get("backbone", ""), str) or not isinstance(names, list):
        raise TypeError("its metadata are not what a run writes")
    return content


def _takes_vectors(said: Mapping[str, Any]) -> bool:
    use = said.get(_USE)
    return isinstance(use, dict) and use.get("vectors") is True


def _other_parameters(said: Mapping[str, Any], wanted: Mapping[str, Scalar]) -> list[str]:
    """Return the settings of a saved model's network that are other ones here, as it had them.

    But for dropout, which a trained model does not have any more.
    """
    use = said.get(_USE)
    had = use.get("parameters") if isinstance(use, dict) else None
    if not isinstance(had, dict):
        return []
    return [
        f"model.{name}={had[name]}"
        for name, value in wanted.items()
        if name in had and had[name] != value and name != "dropout"
    ]
