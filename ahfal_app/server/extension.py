"""More cycles for a run that has ended, or will: what may be said of them when it is resumed."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

from ahfal_app.arrivals import make_order
from ahfal_app.arrivals.core.paths import BY_LENGTH
from ahfal_app.config import MORE, Settings, expanded, read_scalar, setting_fields
from ahfal_app.errors import ConfigError
from ahfal_app.parameters import Scalar
from ahfal_app.results.records import CycleRecord
from ahfal_app.server.checkpoint import Checkpoint, Position

#: Settings that may be raised on resume.
RAISED = ("cycles", "target-fraction", "target-labels", "label-steps")

#: The settings beside them that they are checked with.
_STEPS = ("initial-fraction", "query-fraction", "initial-labels", "query-labels")

_MORE = re.compile(r"\+(\d{1,9})")


def on_resume(values: Mapping[str, object], stored: Callable[[str], Settings]) -> dict[str, object]:
    """Return what a resumed run was told, with the number of all cycles for `cycles=+2`.

    What it was not told of its labels is what it was started with, so that a higher target can
    stand alone.

    Parameters
    ----------
    values : Mapping[str, object]
        Flat settings.
    stored : Callable[[str], Settings]
        Reads the settings of the run in a folder.

    Raises
    ------
    ConfigError
        No run is resumed, or a setting is said twice.
    """
    resume = values.get("resume")
    values = told(values) if resume else values
    said = values.get("cycles")
    more = _MORE.fullmatch(said) if isinstance(said, str) else None
    if not resume:
        if more is None:
            return dict(values)
        raise ConfigError([f"cycles={said!r}: allowed with resume=<a run's folder> alone"])
    run = stored(str(expanded("resume", Path(str(resume)))))
    before = run.to_flat()
    kept = {key: before[key] for key in (*RAISED, *_STEPS) if key not in values}
    if more is not None:
        kept["cycles"] = run.num_cycles + int(more[1])
    return {**values, **kept}


def told(values: Mapping[str, object]) -> dict[str, object]:
    """Return those of flat settings that a person has said of a resumed run.

    Flower gives every setting, with its default where nobody set it. There a default is said where
    it stands in `more`, as it was written by `saying`.

    Parameters
    ----------
    values : Mapping[str, object]
        Flat settings.

    Raises
    ------
    ConfigError
        A setting has one value in `more`, and another one beside it.
    """
    fields, defaults = setting_fields(), Settings().to_flat()
    own = {key: value for key, value in values.items() if key != MORE}
    if len(own) >= len(defaults):
        own = {key: value for key, value in own.items() if value != defaults.get(key)}
    text = values.get(MORE, "")
    try:
        words = shlex.split(text) if isinstance(text, str) else []
    except ValueError:
        return {**own, MORE: text}  # Whoever reads the settings says what is wrong with it.
    said = {
        key: read_scalar(value)
        for key, equals, value in (word.partition("=") for word in words)
        if equals and key in fields
    }
    if twice := [key for key, value in said.items() if own.get(key, value) != value]:
        raise ConfigError([f"{twice[0]}: stands in {MORE} and beside it; allowed is once"])
    rest = [word for word in words if word.partition("=")[0] not in said]
    return {**own, **said, MORE: shlex.join(rest) if said else text}


def saying(values: Mapping[str, object], settings: Settings) -> dict[str, Scalar]:
    """Return those settings of a resumed run that a person has said to be as they are by default.

    Parameters
    ----------
    values : Mapping[str, object]
        What was said, as flat settings.
    settings : Settings
        What was read of it.
    """
    flat, defaults = settings.to_flat(), Settings().to_flat()
    return {key: flat[key] for key in values if key in flat and flat[key] == defaults.get(key)}


def extended(stored: Settings, said: Mapping[str, object]) -> Settings:
    """Return a run's settings with the cycles that it is to have.

    More cycles raise the target to what they buy, where it leaves nothing to be bought in them; a
    higher target raises the number of cycles.

    Parameters
    ----------
    stored : Settings
        What the run was started with, or extended to before.
    said : Mapping[str, object]
        Those of `RAISED` that were given on resume.

    Raises
    ------
    ConfigError
        They are no more than the run has, or its ε is divided by the number of its cycles.
    """
    before = stored.to_flat()
    anew = {key: value for key, value in said.items() if value != before.get(key)}
    if not anew:
        return stored
    found = _raised(stored, anew)
    told = ", ".join(f"{key}={value!r}" for key, value in anew.items())
    if found.num_cycles <= stored.num_cycles:
        raise ConfigError(
            [
                f"{told}: the run has {stored.num_cycles} cycles, cycles={stored.cycles} and "
                f"{stored.target_key}={before[stored.target_key]!r}; allowed on resume is what "
                "gives it more"
            ]
        )
    if stored.simulates_arrivals and _is_by_length(stored):
        raise ConfigError(
            [
                f"{told}: allowed are the run's {stored.num_cycles} cycles, since what has arrived "
                f"with arrival-order={stored.arrival_order!r} or changed on its path depends on "
                "their number"
            ]
        )
    if stored.uses_local_dp and stored.releases == "cumulative":
        raise ConfigError(
            [
                f"{told}: allowed with privacy={stored.privacy!r} are the run's "
                f"{stored.num_cycles} cycles: its sites were promised privacy.epsilon="
                f"{stored.epsilon} for all {stored.num_releases} histograms together, and more of "
                "them would cost more"
            ]
        )
    return found


def making_up(cycle: int, stored: Settings, settings: Settings) -> str:
    """Return in words that the next purchase is larger than others; empty where it is not.

    Purchases lead to initial + cycle * query labels, whatever was bought before. One that a lower
    target cut off is made up for by the one that follows.

    Parameters
    ----------
    cycle : int
        The cycle that the run has come to.
    stored : Settings
        What the run was started with, or extended to before.
    settings : Settings
        With the cycles that it is to have.
    """
    last, query = stored.num_cycles, stored.label_amounts[1]
    # Steps say each training's labels by themselves: none of them is cut off.
    if settings.num_cycles <= last or cycle < last - 1 or stored.label_steps:
        return ""
    due = settings.labelled_amount(last) - stored.labelled_amount(last - 1)
    if due <= query:
        return ""
    before, key = stored.to_flat(), stored.target_key
    step = key.replace("target", "query")
    return (
        f"{key}={before[key]!r} has cut off the run's last purchase, which the next one makes up "
        f"for, with {float(due):g} in place of {step}={before[step]!r}"
    )


def reopened(
    checkpoint: Checkpoint, settings: Settings, cycles: Sequence[CycleRecord]
) -> Checkpoint:
    """Return where a run goes on whose last cycle bought nothing, and is not the last any more.

    It closes that cycle again, with a purchase. So it does where it was killed at that.

    Parameters
    ----------
    checkpoint : Checkpoint
        The run's newest.
    settings : Settings
        With the cycles that it is to have.
    cycles : Sequence[CycleRecord]
        The cycles that have a record; the last one has none where it was being closed again.
    """
    position = checkpoint.position
    if position.round or not 0 < position.cycle <= settings.num_cycles:
        return checkpoint
    record = next((each for each in cycles if each.cycle == position.cycle - 1), None)
    has_bought = record is not None and record.mean is not None
    # By the checkpoint and not by the record, which may be newer, and of the cycle as it was closed
    # again.
    is_end = not has_bought if checkpoint.is_end is None else checkpoint.is_end
    if not is_end or (position.cycle == settings.num_cycles and record is not None):
        return checkpoint
    back = Position(position.run, position.cycle - 1, settings.rounds)
    return replace(checkpoint, position=back)


def _is_by_length(stored: Settings) -> bool:
    """Tell whether what has arrived so far, or how it looks, depends on how many cycles follow."""
    order = make_order(stored.arrival_order, stored.parameters_of("arrival-order"))
    looks = stored.covariate_drift != "none" and stored.severity_path in BY_LENGTH
    return order.is_by_length or looks


def _raised(stored: Settings, anew: Mapping[str, object]) -> Settings:
    key = stored.target_key
    if other := [name for name in anew if name not in ("cycles", key)]:
        raise ConfigError(
            [f"{other[0]}={anew[other[0]]!r}: allowed on resume of this run is {key}"]
        )
    initial, query, _ = stored.label_amounts
    changes: dict[str, object] = {"cycles": anew.get("cycles", 0)}
    if key in anew:
        changes[key.replace("-", "_")] = anew[key]
    found = stored.model_copy(update=changes)
    wanted = int(str(changes["cycles"]))
    if stored.label_steps:
        _check_steps(stored, found, wanted)
    if key in anew or found.num_cycles >= wanted:
        return found
    return found.model_copy(update=_target(stored, initial + (wanted - 1) * query))


def _check_steps(stored: Settings, found: Settings, wanted: int) -> None:
    """Refuse steps that are not the run's with more behind them, and more cycles than steps."""
    had_T, steps_T = stored.steps_T, found.steps_T
    if steps_T[: len(had_T)] != had_T:
        raise ConfigError(
            [
                f"label-steps={found.label_steps!r}: allowed on resume of this run are "
                f"{stored.label_steps!r} with more behind them"
            ]
        )
    if wanted > len(steps_T):
        raise ConfigError(
            [
                f"cycles={wanted}: allowed are at most {len(steps_T)} with "
                f"label-steps={found.label_steps!r}, or more steps beside it"
            ]
        )


def _target(stored: Settings, wanted: Fraction) -> dict[str, object]:
    if stored.counts_labels:
        return {"target_labels": int(wanted)}
    return {"target_fraction": float(min(wanted, Fraction(1)))}
