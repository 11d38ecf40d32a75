"""A run's model at a site: checked as it comes, left in the site's folder, compared with its own.

Shapes: N held-out samples.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.numpy import save as save_arrays
from scipy.stats import binomtest
from torch import Tensor

from ahfal_app.client.model_card import card_of_use
from ahfal_app.client.state import array_of
from ahfal_app.config import Settings
from ahfal_app.errors import ConfigError, MessageRefused
from ahfal_app.labels.store import Labelled
from ahfal_app.messages.fields import LARGEST_COUNT, shown
from ahfal_app.results.model_card import CARD
from ahfal_app.results.reading import MODEL
from ahfal_app.results.units import percent
from ahfal_app.storage.files import write_bytes, write_json, write_text
from ahfal_app.storage.private import make_private
from ahfal_app.training.model_use import BackboneUse, ModelUse, describe_network, model_metadata
from ahfal_app.training.prediction import predict
from ahfal_app.training.resources import Resources

PERSONAL = "personal.safetensors"
COMPARISON = "comparison.json"

#: What the server alone knows of a model; the site knows all else, and believes nobody.
_FROM_SERVER = ("labels", "accuracy", "cycle", "round", "chosen_by")

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

    def keep(self, tensors: dict[str, Tensor], metadata: str, with_personal: bool) -> None:
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
        self,
        tensors: dict[str, Tensor],
        local: dict[str, Tensor],
        cycle: int,
        labels: int,
        held_out: Labelled,
    ) -> None:
        """Leave the site's own model, and how both do on what the site has held out.

        Parameters
        ----------
        tensors : dict[str, Tensor]
            The run's model.
        local : dict[str, Tensor]
            The site's own, f^L of a cycle.
        cycle : int
            That cycle.
        labels : int
            Labels of the site that it was trained on.
        held_out : Labelled
            Labelled samples of the site that nothing was trained on.
        """
        learnt = {"labels": labels, "cycle": cycle, "round": self.settings.rounds, "personal": True}
        use = describe_network(self.loaded, self.settings).model_copy(update=learnt)
        self._write(PERSONAL, local, use)
        found = {MODEL: self._tested(tensors, held_out), PERSONAL: self._tested(local, held_out)}
        size = len(held_out.samples_N)
        said: dict[str, Any] = {"images": size, "cycle": cycle}
        if size:
            said["models"] = {name: _told(right, size) for name, right in found.items()}
        else:
            said["note"] = "no held-out images"
        write_json(self.folder / COMPARISON, said)
        for line in _lines(found, size):
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

    def _write(self, name: str, tensors: dict[str, Tensor], use: ModelUse) -> None:
        classes = self.loaded.dataset.class_names
        metadata = model_metadata(classes, self._backbone, use.model_dump(mode="json"))
        arrays = {key: array_of(tensor) for key, tensor in tensors.items()}
        write_bytes(self.folder / name, save_arrays(arrays, metadata))

    def _tested(self, tensors: dict[str, Tensor], held_out: Labelled) -> int:
        """Return of how many held-out samples a model predicts the class."""
        if not len(held_out.samples_N):
            return 0
        model = self.loaded.model_with(tensors)
        rows_N = torch.from_numpy(held_out.samples_N)
        predicted_N = predict(model, self.loaded.train_images, rows_N).logits_NC.argmax(dim=1)
        return int((predicted_N.cpu().numpy() == held_out.labels_N).sum())


def _equal(own: object, said: object) -> bool:
    """Return whether both are the same; where weights of a backbone lie, each has its own word."""
    if isinstance(own, BackboneUse) and isinstance(said, BackboneUse):
        return own.model_copy(update={"weights": said.weights}) == said
    return own == said


def _wilson(right: int, of: int) -> tuple[float, float]:
    """Return Wilson's interval of 95 % of a share (Wilson, JASA 1927)."""
    found = binomtest(right, of).proportion_ci(0.95, method="wilson")
    return float(found.low), float(found.high)


def _told(right: int, of: int) -> dict[str, object]:
    return {"right": right, "accuracy": right / of, "interval": _wilson(right, of)}


def _lines(right: dict[str, int], size: int) -> list[str]:
    """Return the comparison in words."""
    if not size:
        return ["the run's model and this site's own are not compared: no held-out images"]
    lines = []
    for name, count in right.items():
        low, high = _wilson(count, size)
        lines.append(
            f"{name}: accuracy {percent(count / size)} on {size} held-out images of this site, "
            f"95 %: {percent(low)} to {percent(high)}"
        )
    return lines
