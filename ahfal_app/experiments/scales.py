"""How an experiment is shrunk to what a machine can do, in one documented way."""

from __future__ import annotations

import enum
import itertools
import math
from collections.abc import Iterable, Mapping

from ahfal_app.arrivals.class_incremental import ClassIncremental
from ahfal_app.config import DEFAULT_NUM_CLIENTS, Settings
from ahfal_app.parameters import Scalar


class Scale(enum.StrEnum):
    """How much of an experiment is run."""

    PAPER = "paper"
    SMALL = "small"
    SMOKE = "smoke"


#: What each scale changes; nothing else is touched.
MEANING = {
    Scale.PAPER: "everything as the file says",
    Scale.SMALL: (
        "at most 10,000 training samples, 10 rounds a cycle, 5 local epochs and 3 seeds; the "
        "learning rate drops after the same share of the epochs"
    ),
    Scale.SMOKE: (
        "digits and the small network instead of the file's, no more labels and arrivals than fit "
        "them, at most 3 clients, as many in a round as the file has, 2 cycles, 1 round, 1 local "
        "epoch and 1 seed: whether it runs, and no result"
    ),
}

_MOST_SEEDS = {Scale.SMALL: 3, Scale.SMOKE: 1}

_SMALL_SAMPLES = 10_000
_SMALL_ROUNDS = 10
_SMALL_EPOCHS = 5

_SMOKE_SAMPLES = 600

_DEFAULTS = Settings().to_flat()

#: In place of a file's shares that buy no label of so few samples.
_SMOKE_LABELS: dict[str, object] = {"query-fraction": 0.05, "target-fraction": 0.35}
_SMOKE_INITIAL = 0.1

#: Settings of the file's data and network, which are others now: as they are by default.
_OF_FILES_OWN = (
    *("classes", "image-column", "label-column", "vector-column", "shown-column"),
    *("image-size", "test-fraction", "initial-model"),
    *("backbone", "backbone-weights", "backbone-size", "backbone-crop", "tune", "feature-views"),
    # All but the default one choose by features, of which images have none.
    "initial-strategy",
)

_SMOKE: dict[str, object] = {
    "dataset": "digits",
    "model": "small-cnn",
    "max-train-samples": _SMOKE_SAMPLES,
    "max-test-samples": 100,
    "min-partition-size": 1,
    "rounds": 1,
    "local-epochs": 1,
    "compile": "never",
}
_SMOKE_CLIENTS = 3
_SMOKE_CYCLES = 2
_SMOKE_HELD_OUT = 20


def seeds_at(scale: Scale, seeds: Iterable[Scalar]) -> list[Scalar]:
    """Return the seeds of an experiment that a scale keeps: the first ones."""
    return list(seeds)[: _MOST_SEEDS.get(scale)]


def settings_at(scale: Scale, values: Mapping[str, object]) -> dict[str, object]:
    """Return a run's settings as a scale changes them; values need not be valid yet.

    Parameters
    ----------
    scale : Scale
        How much is run.
    values : Mapping[str, object]
        Flat settings; what is missing has its default.
    """
    if scale is Scale.PAPER:
        return dict(values)
    if scale is Scale.SMALL:
        return dict(values) | _small(values)
    clients = _smaller(values, "num-clients", _SMOKE_CLIENTS) or _SMOKE_CLIENTS
    cycles = _smaller(values, "cycles", _SMOKE_CYCLES) or _SMOKE_CYCLES
    # Parameters of the file's network, which is another now.
    kept = {key: value for key, value in values.items() if not key.startswith("model.")}
    own = {key: _DEFAULTS[key] for key in _OF_FILES_OWN}
    smoke = kept | own | _SMOKE | {"num-clients": clients, "cycles": cycles}
    if held_out := _smaller(values, "held-out", _SMOKE_HELD_OUT):
        smoke["held-out"] = held_out
    if kept.get("drift-test", "none") != "none":
        # Two windows are no longer than the run.
        smoke["drift-window"] = min(_integer(values, "drift-window"), cycles // 2)
    before = _integer(values, "num-clients") or DEFAULT_NUM_CLIENTS
    if 0 < (fraction := _number(values, "client-fraction")) < 1:
        # As many in a round as the file has, since an aggregation may need them.
        smoke["client-fraction"] = min(1.0, fraction * before / clients)
    return smoke | _smoke_labels(kept, clients) | _smoke_arrivals(kept, clients, cycles)


def _smoke_labels(values: Mapping[str, object], clients: int) -> dict[str, object]:
    """Return numbers or shares of labels where so few samples are fewer than the file's."""
    mine = _SMOKE_SAMPLES // clients
    most = (_SMOKE_SAMPLES if values.get("budget") == "global" else mine) // 4
    if values.get("label-steps"):
        return {"label-steps": _fewer_steps(str(values["label-steps"]), most)}
    if _integer(values, "target-labels"):
        more = _integer(values, "target-labels") - _integer(values, "initial-labels")
        if more < 0:
            return {}  # It is refused as the file says it.
        initial, query = (_smaller(values, f"{when}-labels", most) for when in ("initial", "query"))
        target = initial + min(query, more)
        return {"initial-labels": initial, "query-labels": query, "target-labels": target}
    if _number(values, "query-fraction") * mine >= 1:
        return {}
    initial_fraction = min(_number(values, "initial-fraction"), _SMOKE_INITIAL)
    return {"initial-fraction": initial_fraction, **_SMOKE_LABELS}


def _fewer_steps(steps: str, most: int) -> str:
    """Return the first steps, with no more labels in each than `most`."""
    try:
        first_T = [int(step) for step in steps.split(",")][:_SMOKE_CYCLES]
    except ValueError:
        return steps  # It is refused as the file says it.
    fewer_T = [min(after - before, most) for before, after in itertools.pairwise([0, *first_T])]
    return ",".join(str(step) for step in itertools.accumulate(fewer_T))


def _smoke_arrivals(values: Mapping[str, object], clients: int, cycles: int) -> dict[str, object]:
    """Return numbers and groups of arrivals that fit so few samples and cycles."""
    arrivals: dict[str, object] = {}
    if values.get("arrivals") == "count":
        most = _SMOKE_SAMPLES // clients // _SMOKE_CYCLES
        arrivals = {k: min(_number(values, k), most) for k in ("arrival-start", "arrival-rate")}
    if values.get("arrival-order") == ClassIncremental.name:
        # Each group has a cycle.
        key = "arrival-order.groups"
        groups = values.get(key, ClassIncremental.Parameters().groups)
        arrivals[key] = min(groups, cycles) if isinstance(groups, int) else groups
    return arrivals


def _number(values: Mapping[str, object], key: str) -> float:
    value = values.get(key, _DEFAULTS[key])
    return float(value) if isinstance(value, int | float) else 1.0


def _small(values: Mapping[str, object]) -> dict[str, object]:
    rounds = _smaller(values, "rounds", _SMALL_ROUNDS)
    epochs = _smaller(values, "local-epochs", _SMALL_EPOCHS)
    before = _integer(values, "rounds") * _integer(values, "local-epochs")
    decay = _integer(values, "lr-decay-epochs")
    samples = _smaller(values, "max-train-samples", _SMALL_SAMPLES)
    share = rounds * epochs / before if before else 1.0
    return {
        "rounds": rounds,
        "local-epochs": epochs,
        "lr-decay-epochs": math.ceil(decay * share),
        "max-train-samples": samples or _SMALL_SAMPLES,
    }


def _smaller(values: Mapping[str, object], key: str, most: int) -> int:
    return min(_integer(values, key), most)


def _integer(values: Mapping[str, object], key: str) -> int:
    value = values.get(key, _DEFAULTS[key])
    # What is not a number is told of when the settings are checked.
    return value if isinstance(value, int) else 0
