"""A run's model at a site: checked as it comes, left in its folder, compared with its own."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.numpy import save as save_arrays
from torch import Tensor

from ahfal_app.client.model_card import card_of_use
from ahfal_app.client.state import array_of
from ahfal_app.config import Settings
from ahfal_app.errors import ConfigError, MessageRefused
from ahfal_app.evaluation import EvaluationSums, Interval, figures_of
from ahfal_app.messages.fields import LARGEST_COUNT, shown
from ahfal_app.results.model_card import CARD
from ahfal_app.results.reading import MODEL
from ahfal_app.results.units import bounds_text, percent
from ahfal_app.storage.files import write_bytes, write_json, write_text
from ahfal_app.storage.private import make_private
from ahfal_app.training.model_use import BackboneUse, ModelUse, describe_network, model_metadata
from ahfal_app.training.resources import Resources

PERSONAL = "personal.safetensors"
COMPARISON = "comparison.json"

#: What the server alone knows of a model; the site knows all else, and believes nobody.
_FROM_SERVER = ("labels", "accuracy", "cycle", "round", "chosen_by", "split")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SiteModels:
    """The folder with the models of a site's newest run.

    Attributes
    ----------
    folder : Path
        Made where it is missing, for its owner alone.
    settings : Settings
        The run's settings, with those of the site.
    loaded : Resources
        The site's data and its network.
    """

    folder: Path
    settings: Settings
    loaded: Resources

    def keep(self, tensors: Mapping[str, Tensor], metadata: str, with_personal: bool) -> None:
        """Leave the run's model and its card; what earlier runs have left there goes.

        Parameters
        ----------
        tensors : dict[str, Tensor]
            The model, of the names and shapes of the site's network.
        metadata : str
            What the server says of it.
        with_personal : bool
            Whether the site's own is going to lie beside it.

        Raises
        ------
        MessageRefused
            What the server says of it is not what the site knows.
        """
        use = self._checked(metadata)
        make_private(self.folder)
        for name in (PERSONAL, COMPARISON):
            (self.folder / name).unlink(missing_ok=True)
        # What a process left that was killed as it wrote.
        for part in self.folder.glob(".*.tmp"):
            part.unlink()
        self._write(MODEL, tensors, use)
        card = card_of_use(self.loaded.dataset.class_names, use, with_personal)
        write_text(self.folder / CARD, card)
        _log.warning("the run's model is in %s", self.folder)

    def keep_personal(
        self, local: dict[str, Tensor], cycle: int, labels: int, tests: Mapping[str, EvaluationSums]
    ) -> None:
        """Leave the site's own model, and how both do on what the site has held out.

        Parameters
        ----------
        local : dict[str, Tensor]
            The site's own, f^L of a cycle.
        cycle : int
            That cycle.
        labels : int
            Labels of the site that it was trained on.
        tests : Mapping[str, EvaluationSums]
            What both came to on samples of the site that nothing was trained on, by their files.
        """
        learnt = {"labels": labels, "cycle": cycle, "round": self.settings.rounds, "personal": True}
        use = describe_network(self.loaded, self.settings).model_copy(update=learnt)
        self._write(PERSONAL, local, use)
        found = {name: figures_of(sums).accuracy for name, sums in tests.items()}
        size = max((accuracy.of for accuracy in found.values()), default=0)
        kind = "vectors" if self.loaded.dataset.holds_vectors else "images"
        said: dict[str, Any] = {kind: size, "cycle": cycle}
        if size:
            said["models"] = {name: _told(accuracy) for name, accuracy in found.items()}
        else:
            said["note"] = f"no held-out {kind}"
        write_json(self.folder / COMPARISON, said)
        for line in _lines(found, kind) if size else [f"not compared: no held-out {kind}"]:
            _log.warning("%s", line)

    def _checked(self, metadata: str) -> ModelUse:
        """Return what the server says of a model, held against what is known here.

        A folder that it names is not taken over: where the site has the backbone's weights, it
        says itself.
        """
        own = describe_network(self.loaded, self.settings)
        try:
            content = json.loads(metadata)
            if not isinstance(content, dict) or set(content) != {"backbone", "classes", "use"}:
                raise ValueError(f"metadata={shown(content)}: not what a run's model says")
            said = ModelUse.parsed(content["use"], "metadata")
        except (ConfigError, ValueError, RecursionError) as error:
            raise MessageRefused(f"metadata: {error}") from error
        if content["classes"] != list(self.loaded.dataset.class_names):
            raise MessageRefused(f"metadata: classes={shown(content['classes'])}: not the run's")
        if content["backbone"] != self._backbone:
            raise MessageRefused(f"metadata: backbone={shown(content['backbone'])}: not the run's")
        use = own.model_copy(update={name: getattr(said, name) for name in _FROM_SERVER})
        for name, value in use:
            if not _equal(value, getattr(said, name)):
                raise MessageRefused(
                    f"metadata: {name}={shown(getattr(said, name))}: not the run's"
                )
        self._check_told(use)
        return use

    def _check_told(self, use: ModelUse) -> None:
        settings = self.settings
        for name, value, most in (
            ("labels", use.labels, LARGEST_COUNT),
            ("cycle", use.cycle, settings.num_cycles - 1),
            ("round", use.round, settings.rounds),
        ):
            if value is None or value > most:
                raise MessageRefused(f"metadata: {name}={shown(value)}: allowed is at most {most}")
        if use.chosen_by not in ("", settings.metric):
            raise MessageRefused(f"metadata: chosen_by={shown(use.chosen_by)}: not the run's")

    @property
    def _backbone(self) -> str:
        backbone = self.loaded.backbone
        return backbone.digest if backbone is not None else ""

    def _write(self, name: str, tensors: Mapping[str, Tensor], use: ModelUse) -> None:
        classes = self.loaded.dataset.class_names
        metadata = model_metadata(classes, self._backbone, use.model_dump(mode="json"))
        arrays = {key: array_of(tensor) for key, tensor in tensors.items()}
        write_bytes(self.folder / name, save_arrays(arrays, metadata))


def _equal(own: object, said: object) -> bool:
    """Return whether both are the same; where weights of a backbone lie, each has its own word."""
    if isinstance(own, BackboneUse) and isinstance(said, BackboneUse):
        return own.model_copy(update={"weights": said.weights}) == said
    return own == said


def _told(accuracy: Interval) -> dict[str, object]:
    return {
        "right": accuracy.count,
        "accuracy": accuracy.share,
        "interval": accuracy.bounds,
    }


def _lines(found: Mapping[str, Interval], kind: str) -> list[str]:
    """Return the comparison in words."""
    return [
        f"{name}: accuracy {percent(accuracy.share)} on {accuracy.of} held-out {kind} of this "
        f"site, 95 %: {bounds_text(accuracy.bounds)}"
        for name, accuracy in found.items()
    ]
