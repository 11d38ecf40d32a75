"""What somebody who uses a saved model needs to know: its network, its input, its origin."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from ahfal_app.code_version import __version__
from ahfal_app.config import SITES, Settings
from ahfal_app.errors import ConfigError
from ahfal_app.parameters import Scalar
from ahfal_app.results.kept import Kept
from ahfal_app.training.resources import Resources

#: The one key of a model file's metadata, under which JSON says all of it.
METADATA = "ahfal"

_LONGEST_NAME = 200

_OF_DATASET = "dataset."

#: Settings that the test split of a data set hangs on, beside its own parameters.
_SPLIT_KEYS = frozenset(
    {
        "classes",
        "held-out",
        "image-column",
        "label-column",
        "max-test-samples",
        "max-train-samples",
        "partition",
        "seed",
        "shown-column",
        "test-fraction",
        "vector-column",
    }
)

_Side = Annotated[int, Field(ge=1, le=100_000)]
_Deviation = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Number = Annotated[float, Field(allow_inf_nan=False)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


class BackboneUse(_Strict):
    """The settings of a backbone; its weights are not in the model's file where they are frozen."""

    name: str
    weights: str
    size: Annotated[int, Field(ge=0)]
    crop: bool


class SplitUse(_Strict):
    """What a run has tested its model on, so that others leave out what it was trained on.

    Attributes
    ----------
    fingerprint : str
        Of the server's data, as the run had them.
    settings : dict[str, Scalar]
        What their test split hangs on: settings by their keys, those at their default left out.
    """

    fingerprint: Annotated[str, Field(max_length=_LONGEST_NAME)]
    settings: dict[str, Scalar]

    @field_validator("settings")
    @classmethod
    def _known(cls, settings: dict[str, Scalar]) -> dict[str, Scalar]:
        """Refuse what says anything else, such as where data lie, and values that are none."""
        if others := [key for key in settings if not _splits(key)]:
            raise ValueError(f"{others[0]!r} is none of what a test split hangs on")
        _with(settings, {})
        return settings

    @property
    def chooses(self) -> bool:
        """Whether a column or a parameter of the data set was named, which others need not have."""
        return any(key.endswith("-column") or key.startswith(_OF_DATASET) for key in self.settings)

    @property
    def is_of_sites(self) -> bool:
        """Whether the server's data were for testing alone, since clients had data of their own."""
        return self.settings.get("partition") == SITES

    def of(self, values: Mapping[str, object]) -> Settings:
        """Return settings with these values, by which data are split as the run's were."""
        return _with(self.settings, values)


class ModelUse(_Strict):
    """How a saved model is used.

    Attributes
    ----------
    network : str
        The setting `model`, resolved.
    parameters : dict[str, Scalar]
        The network's parameters, `model.*`.
    tune : str
        Which parts of a backbone were trained.
    backbone : BackboneUse | None
        The network whose features the model takes, or which it is made of.
    vectors : bool
        Whether it takes vectors, and no images.
    shape : tuple[int, int, int]
        Height, width and channels that images are brought to, before a backbone scales them; of
        vectors (1, 1, D).
    mean, deviation : tuple[float, ...]
        What pixels scaled to [0, 1], or vectors, are normalised with, for each channel or number.
    labels : int
        Labels that it was trained on, at all sites together.
    accuracy : float | None
        On the run's test set.
    privacy : str
        The setting of this name.
    code : str
        Version of the software that wrote it.
    cycle, round : int | None
        When it was aggregated, from 0 and from 1; None where its file does not say.
    chosen_by : str
        The metric that it was the best by of the models of its run that were tested; empty: it is
        the last one.
    personal : bool
        Whether it is a site's own, trained on that site's labels after the run's last aggregation.
    split : SplitUse | None
        What the run has tested it on; None where the server had no data, of a site's own model, and
        where an older version wrote the file.
    """

    network: str
    parameters: dict[str, Scalar]
    tune: str
    backbone: BackboneUse | None
    vectors: bool
    shape: tuple[_Side, _Side, _Side]
    mean: tuple[_Number, ...]
    deviation: tuple[_Deviation, ...]
    labels: Annotated[int, Field(ge=0)]
    accuracy: Annotated[float, Field(ge=0, le=1)] | None
    privacy: str
    code: str
    cycle: Annotated[int, Field(ge=0)] | None = None
    round: Annotated[int, Field(ge=1)] | None = None
    chosen_by: Annotated[str, Field(max_length=_LONGEST_NAME)] = ""
    personal: bool = False
    split: SplitUse | None = None

    @classmethod
    def parsed(cls, content: object, where: str) -> ModelUse:
        """Return what a file says, checked.

        Raises
        ------
        ConfigError
            It is not what a run writes; `where` is named.
        """
        try:
            # As JSON, which has lists where there are tuples, and is strict about all else.
            found = cls.model_validate_json(json.dumps(content))
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise ConfigError(
                [f"{where}: its description is not what a run writes: {place}: {first['msg']}"]
            ) from error
        if len(found.mean) != found.shape[2] or len(found.deviation) != found.shape[2]:
            means = f"{len(found.mean)} means for {found.shape[2]} channels"
            raise ConfigError([f"{where}: {means}; allowed is one each"])
        return found


def model_metadata(
    classes: Sequence[str], backbone: str, use: Mapping[str, object] | None = None
) -> dict[str, str]:
    """Return what a file of safetensors says of its model.

    Under one key: safetensors writes several in an order that varies, and equal runs are to
    leave equal files.

    Parameters
    ----------
    classes : Sequence[str]
        Names of the classes, in order.
    backbone : str
        SHA-256 of the backbone whose features it takes; empty where there is none.
    use : Mapping, optional
        How it is used, as `ModelUse` is written.
    """
    said: dict[str, object] = {"backbone": backbone, "classes": classes}
    return {METADATA: json.dumps(said if use is None else {**said, "use": use})}


def describe_use(loaded: Resources, settings: Settings, kept: Kept) -> ModelUse:
    """Return how the model of a run is used, with what its test said."""
    learnt = {
        "labels": kept.labels,
        "accuracy": kept.accuracy,
        "cycle": kept.cycle,
        "round": kept.round,
        "chosen_by": kept.metric,
        "split": _split(loaded, settings) if settings.has_dataset else None,
    }
    return describe_network(loaded, settings).model_copy(update=learnt)


def describe_network(loaded: Resources, settings: Settings) -> ModelUse:
    """Return how a model of these settings is used, of which nothing is known but its network."""
    dataset, backbone = loaded.dataset, None
    if settings.uses_backbone:
        backbone = BackboneUse(
            name=settings.backbone,
            weights=settings.backbone_weights,
            size=settings.backbone_size,
            crop=settings.backbone_crop,
        )
    return ModelUse(
        network=loaded.model_name,
        parameters=dict(settings.parameters_of("model")),
        tune=settings.tune,
        backbone=backbone,
        vectors=dataset.holds_vectors,
        shape=dataset.image_shape,
        mean=tuple(map(float, dataset.mean_C)),
        deviation=tuple(map(float, dataset.std_C)),
        labels=0,
        accuracy=None,
        privacy=settings.privacy,
        code=__version__,
    )


def _split(loaded: Resources, settings: Settings) -> SplitUse:
    usual = Settings().to_flat()
    said = settings.to_flat().items()
    own = {key: value for key, value in said if _splits(key) and value != usual.get(key)}
    return SplitUse(fingerprint=loaded.dataset.fingerprint, settings=own)


def _splits(key: str) -> bool:
    return key in _SPLIT_KEYS or key.startswith(_OF_DATASET)


def _with(said: Mapping[str, Scalar], values: Mapping[str, object]) -> Settings:
    parameters = {key: value for key, value in said.items() if key.startswith(_OF_DATASET)}
    known = {key: value for key, value in said.items() if key not in parameters}
    return Settings.model_validate({**values, **known, "parameters": parameters})
