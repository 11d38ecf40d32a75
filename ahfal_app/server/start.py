"""Where a run begins: settings that are checked, data, folder and checkpoint; new or resumed."""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord

from ahfal_app.config import Settings
from ahfal_app.config_sources import read_yaml
from ahfal_app.errors import ConfigError, ResumeError
from ahfal_app.messages.arrays import held_record
from ahfal_app.parameters import Scalar
from ahfal_app.plugins import FAMILIES
from ahfal_app.results.environment import describe_environment
from ahfal_app.results.reading import CHECKPOINT, ENVIRONMENT, read_metrics
from ahfal_app.results.run_folder import Recorder, new_run_folder
from ahfal_app.server.checkpoint import (
    Arrays,
    Checkpoint,
    Position,
    read_checkpoint,
    write_checkpoint,
)
from ahfal_app.server.extension import RAISED, extended, making_up, on_resume, reopened
from ahfal_app.server.initial_model import ModelFacts, initial_standardisation, with_initial
from ahfal_app.server.preflight import (
    check_data,
    check_settings,
    with_absolute_paths,
)
from ahfal_app.server.standardising import keep_standardisation
from ahfal_app.training.resources import Resources, resources

_log = logging.getLogger(__name__)

#: Settings that a resumed run takes over if they are given anew: they do not change its result.
_ANEW_ON_RESUME = (
    "data_dir",
    "start_timeout",
    "round_timeout",
    "tracker",
    "stopping",
    "stopping_mode",
    "stop_set",
    "label_cost",
    "round_cost",
    "currency",
    "on_event",
    "on_event_after_hours",
)

#: Settings that may be given on resume; without effect, where they say where the run lies.
_FREE_ON_RESUME = frozenset(
    {"resume", "name", "output-dir", *RAISED, *(name.replace("_", "-") for name in _ANEW_ON_RESUME)}
)


@dataclass(frozen=True)
class Start:
    """Where a run begins: settings, folder, position and model; and what runs its clients.

    `at_once` clients, or batches of the evaluation, are computed at the same time.
    `extended_from` has the numbers of cycles that the run had before it was given more, `warning`
    what people should know of these.
    """

    settings: Settings
    loaded: Resources
    folder: Path
    checkpoint: Checkpoint
    engine: Mapping[str, object] = field(default_factory=dict)
    at_once: int = 1
    extended_from: tuple[int, ...] = ()
    warning: str = ""


def prepare(values: Mapping[str, object]) -> Start:
    """Check everything and open the run's folder; nothing is trained or bought yet.

    Raises
    ------
    ConfigError, ResumeError, CheckpointError
        The run cannot be started, or not be continued.
    """
    values = on_resume(values, _stored)
    settings = with_absolute_paths(check_settings(values))
    if settings.resume:
        return _resumed(settings)
    loaded, is_given = _loaded(settings)
    folder = new_run_folder(settings)
    resolved = {"name": folder.name, "output_dir": str(folder.parent), "model": loaded.model_name}
    settings = settings.model_copy(update=resolved)
    position = Position(secrets.token_hex(8), 0, 0)
    checkpoint = Checkpoint(position, to_numpy(fresh_arrays(loaded, settings, 0)))
    Recorder(folder).start(settings, environment_of(loaded, settings, None))
    if is_given and settings.has_sites:
        keep_standardisation(folder, loaded.dataset.format)
    write_checkpoint(folder / CHECKPOINT, checkpoint)
    return Start(settings, loaded, folder, checkpoint)


def _loaded(settings: Settings) -> tuple[Resources, bool]:
    """Load the data, and tell whether an initial model says how they are standardised.

    Images are normalised as it says where there is no test set, whose own moments they have else.
    """
    loaded = check_data(settings)
    own = loaded.dataset.format
    if not settings.initial_model or (own.is_measured and not own.vectors):
        return loaded, False
    found = initial_standardisation(settings.initial_model, own, settings.standardise)
    if found is None:
        return loaded, False
    return resources(settings, replace(own, mean_C=found[0], std_C=found[1])), True


def _resumed(given: Settings) -> Start:
    folder = Path(given.resume)
    stored = _stored(given.resume)
    if stored.client_state == "memory":
        raise ResumeError(
            f"resume={given.resume!r}: its clients have lost labels, which client-state='memory' "
            "keeps no longer than a run lives; allowed is a run with client-state='disk'"
        )
    _refuse_changes(given, stored)
    checkpoint = read_checkpoint(folder / CHECKPOINT)
    said = {name: getattr(given, name) for name in _ANEW_ON_RESUME if _was_said(given, name)}
    said["parameters"] = _parameters_on_resume(given, stored, said)
    flat = given.to_flat()
    raised = {key: flat[key] for key in RAISED if _was_said(given, key.replace("-", "_"))}
    settings = extended(stored, raised).model_copy(update=said)
    had = _extended_from(folder)
    if settings.num_cycles > stored.num_cycles:
        had = (*had, stored.num_cycles)
    checkpoint = reopened(checkpoint, settings, read_metrics(folder).cycles)
    loaded = _loaded(settings)[0]
    if not settings.has_sites:
        _refuse_other_data(folder, settings, loaded.dataset.fingerprint)
    return Start(
        settings,
        loaded,
        folder,
        checkpoint,
        extended_from=had,
        warning=making_up(checkpoint.position.cycle, stored, settings),
    )


def _parameters_on_resume(
    given: Settings, stored: Settings, said: Mapping[str, object]
) -> dict[str, Scalar]:
    """Return the parameters of components: of one that is chosen anew, those that it is given."""
    anew = tuple(f"{key}." for key in FAMILIES if key in said)
    kept = {key: value for key, value in stored.parameters.items() if not key.startswith(anew)}
    return kept | {key: value for key, value in given.parameters.items() if key.startswith(anew)}


def _stored(resume: str) -> Settings:
    """Return the settings of the run in a folder."""
    config = Path(resume) / "config.yaml"
    if not config.is_file():
        raise ResumeError(f"resume={resume!r}: allowed is the folder of a run")
    return check_settings(read_yaml(config))


def _refuse_other_data(folder: Path, settings: Settings, fingerprint: str) -> None:
    """Refuse data in which the rows that clients have labelled are other samples."""
    before = str(_kept_environment(folder).get("data", {}).get("fingerprint") or fingerprint)
    if before != fingerprint:
        raise ResumeError(
            f"dataset={settings.dataset!r}: its fingerprint is {fingerprint[:12]}, the run was "
            f"started with {before[:12]}; allowed on resume are the same data"
        )


def _extended_from(folder: Path) -> tuple[int, ...]:
    return tuple(_kept_environment(folder).get("extended_from", ()))


def _kept_environment(folder: Path) -> dict[str, Any]:
    environment = folder / ENVIRONMENT
    content: dict[str, Any] = json.loads(environment.read_text()) if environment.exists() else {}
    return content


def _refuse_changes(given: Settings, stored: Settings) -> None:
    """Refuse settings that are not what the run was started with."""
    before, defaults = stored.to_flat(), Settings().to_flat()
    names = {field.alias or name: name for name, field in Settings.model_fields.items()}
    problems = [
        f"{key}={value!r}: the run was started with {before.get(key)!r}; allowed on resume is the "
        "same or nothing"
        for key, value in given.to_flat().items()
        if key not in _FREE_ON_RESUME
        and value != before.get(key)
        and (value != defaults.get(key) or _was_said(given, names.get(key, key)))
    ]
    if problems:
        raise ConfigError(problems)


def _was_said(given: Settings, name: str) -> bool:
    """Tell whether a person has given a setting on resume."""
    return name in given.model_fields_set


def environment_of(
    loaded: Resources, settings: Settings, partition_fingerprint: str | None
) -> dict[str, object]:
    """Return what a run's `environment.json` says of data, network and machine.

    Parameters
    ----------
    loaded, settings : Resources, Settings
        The run's.
    partition_fingerprint : str | None
        Of the partition, once it is known.
    """
    recipe = loaded.recipe(settings)
    environment = describe_environment(
        class_names=loaded.dataset.class_names,
        data_fingerprint=loaded.dataset.fingerprint or None,
        partition_fingerprint=partition_fingerprint,
        settings=settings.to_flat(),
    )
    environment["data"] |= {
        "name": loaded.dataset.name,
        "kind": "vectors" if loaded.dataset.holds_vectors else "images",
        "train": len(loaded.dataset.train),
        "test": len(loaded.dataset.test),
        "not_used": [asdict(line) for line in loaded.dataset.not_used],
        "notes": list(loaded.dataset.notes),
    }
    environment["resolved"] = {
        "model": loaded.model_name,
        "device": str(loaded.device),
        "precision": recipe.precision,
        "compile": recipe.compile,
        "augmentation": asdict(recipe.augmentation),
    }
    if loaded.backbone is not None:
        environment["backbone"] = {
            "name": loaded.backbone.name,
            "sha256": loaded.backbone.digest,
            "features": loaded.backbone.features,
            "views": settings.feature_views,
            "preprocessing": asdict(loaded.backbone.preprocessing),
            # Of what was computed by this process; the rest was there.
            "extracted": {
                split: {"images": images, "seconds": seconds}
                for split, (images, seconds) in loaded.extracted.items()
            },
        }
    return environment


def fresh_arrays(loaded: Resources, settings: Settings, cycle: int) -> ArrayRecord:
    """Return the model that a cycle starts from: a fresh one, or the initial one that is set."""
    state = loaded.new_model(cycle).state_dict()
    fresh = {name: tensor.numpy() for name, tensor in state.items()}
    if settings.initial_model:
        fresh = with_initial(
            settings.initial_model, fresh, model_facts(loaded, settings), _log.warning
        )
    return held_record(fresh, loaded.layout)


def model_facts(loaded: Resources, settings: Settings) -> ModelFacts:
    """Return what an initial model is held against."""
    backbone, dataset = loaded.backbone, loaded.dataset
    return ModelFacts(
        dataset.class_names,
        backbone.digest if backbone is not None else "",
        dataset.holds_vectors,
        settings.parameters_of("model"),
    )


def to_numpy(arrays: ArrayRecord) -> Arrays:
    """Return a record's arrays by name."""
    return {name: array.numpy() for name, array in arrays.items()}
