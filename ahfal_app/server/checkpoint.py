"""Checkpoints of the server: one folder each, complete or not there at all.

A checkpoint is written into a temporary folder, synced, and renamed into place; the one
before it is kept. It holds JSON and safetensors, never pickle, and hashes of both.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from ahfal_app.errors import CheckpointError
from ahfal_app.results.reading import CHECKPOINT_STATE
from ahfal_app.storage.files import new_folder, remove_parts

SCHEMA_VERSION = 3
_KEPT = 2
_MODEL = "model.safetensors"
_AGGREGATION = "aggregation.safetensors"
_POLICY = "policy.safetensors"

Arrays = dict[str, NDArray[np.generic]]


@dataclass(frozen=True)
class Position:
    """How far a run has come: `round` rounds of `cycle` (from 0) are done."""

    run: str
    cycle: int
    round: int


@dataclass(frozen=True)
class Checkpoint:
    """The server's state at a position.

    Attributes
    ----------
    position : Position
        How far the run has come.
    arrays : Arrays
        The global model.
    bought : dict[int, int]
        The newest cycle that each client is known to have bought labels for.
    aggregation : Arrays
        What the aggregation carries from round to round; empty where it has no state.
    policy : bytes
        State of the query strategy's half at the server, as safetensors; empty where it has none.
    is_end : bool | None
        Whether the run ended here: the cycle before bought nothing, and the model is still that
        cycle's. None where an earlier version wrote it, which did not say.
    skipped : tuple[str, ...]
        What is wrong with newer checkpoints that could not be read.
    """

    position: Position
    arrays: Arrays
    bought: dict[int, int] = field(default_factory=dict)
    aggregation: Arrays = field(default_factory=dict)
    policy: bytes = b""
    is_end: bool | None = False
    skipped: tuple[str, ...] = ()


def write_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint as the newest in `folder`, durably, and drop all but two."""
    numbers = _numbers(folder)
    number = numbers[-1] + 1 if numbers else 1
    contents = {
        _MODEL: save_arrays(ordered(checkpoint.arrays)),
        _AGGREGATION: save_arrays(ordered(checkpoint.aggregation)),
    }
    if checkpoint.policy:
        contents[_POLICY] = checkpoint.policy
    state = {
        "schema": SCHEMA_VERSION,
        **asdict(checkpoint.position),
        "bought": _runs(checkpoint.bought),
        "end": checkpoint.is_end,
        "files-sha256": {
            name: hashlib.sha256(content).hexdigest() for name, content in contents.items()
        },
    }
    # It changes once a cycle, and checkpoints are written every round.
    linked = _same_file(folder, numbers, state)
    state["sha256"] = _state_hash(state)
    contents[CHECKPOINT_STATE] = json.dumps(state, indent=1).encode()
    target = folder / f"{number:08d}"
    remove_parts(target)
    with new_folder(target) as part:
        for name, content in contents.items():
            if name != _POLICY or not _link(linked, part / name):
                (part / name).write_bytes(content)
    for old in numbers[: len(numbers) - _KEPT + 1]:
        shutil.rmtree(folder / f"{old:08d}")


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read the newest undamaged checkpoint.

    Raises
    ------
    CheckpointError
        There is none; the message tells what is wrong with each that is there.
    """
    reasons: list[str] = []
    for number in reversed(_numbers(folder)):
        try:
            return replace(_read(folder / f"{number:08d}"), skipped=tuple(reasons))
        except CheckpointError as error:
            reasons.append(str(error))
    raise CheckpointError("; ".join(reasons) or f"{folder}: no checkpoint")


def _read(folder: Path) -> Checkpoint:
    try:
        state = json.loads((folder / CHECKPOINT_STATE).read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder}: {error}") from error
    if not isinstance(state, dict) or state.pop("sha256", None) != _state_hash(state):
        raise CheckpointError(f"{folder}: {CHECKPOINT_STATE} is damaged")
    if state["schema"] != SCHEMA_VERSION:
        raise CheckpointError(
            f"{folder}: schema {state['schema']}; this version reads {SCHEMA_VERSION}"
        )
    hashes = state["files-sha256"]
    model, aggregation = (
        _read_arrays(folder / name, hashes[name]) for name in (_MODEL, _AGGREGATION)
    )
    policy = _read_file(folder / _POLICY, hashes[_POLICY]) if _POLICY in hashes else b""
    bought = _unrolled(state["bought"])
    position = Position(state["run"], state["cycle"], state["round"])
    return Checkpoint(position, model, bought, aggregation, policy, state.get("end"))


def _runs(bought: Mapping[int, int]) -> list[list[int]]:
    """Return runs of clients of the same cycle, as first, last and cycle: of thousands a few."""
    if bought and len(set(bought.values())) == 1 and max(bought) - min(bought) == len(bought) - 1:
        # The usual case, by passes that cost next to nothing in each round.
        return [[min(bought), max(bought), next(iter(bought.values()))]]
    runs: list[list[int]] = []
    for client, cycle in sorted(bought.items()):
        if runs and runs[-1][1:] == [client - 1, cycle]:
            runs[-1][1] = client
        else:
            runs.append([client, client, cycle])
    return runs


def _unrolled(runs: list[list[int]]) -> dict[int, int]:
    return {client: cycle for first, last, cycle in runs for client in range(first, last + 1)}


def _read_arrays(path: Path, sha256: str) -> Arrays:
    content = _read_file(path, sha256)
    try:
        return load_arrays(content)
    except SafetensorError as error:
        raise CheckpointError(f"{path.parent}: {path.name}: {error}") from error


def _read_file(path: Path, sha256: str) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path.parent}: {path.name}: {error}") from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise CheckpointError(f"{path.parent}: {path.name} is damaged")
    return content


def _same_file(folder: Path, numbers: list[int], state: Mapping[str, Any]) -> Path | None:
    """Return the policy of the last checkpoint but one, where a new one has the same.

    That of the last one stays a file of its own, so that one damaged file spoils one checkpoint.
    """
    wanted = state["files-sha256"].get(_POLICY)
    if len(numbers) < _KEPT or wanted is None:
        return None
    before = folder / f"{numbers[-_KEPT]:08d}" / _POLICY
    try:
        # What is linked is checked: a damaged file must not live on.
        return before if hashlib.sha256(before.read_bytes()).hexdigest() == wanted else None
    except OSError:
        return None


def _link(source: Path | None, target: Path) -> bool:
    """Make a file another name of one that is there; tell whether that could be done."""
    if source is None:
        return False
    try:
        target.hardlink_to(source)
    except OSError:  # Not every file system has such names.
        return False
    return True


def _numbers(folder: Path) -> list[int]:
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


def _state_hash(state: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def ordered(arrays: Arrays) -> Arrays:
    """Return arrays whose values lie one row after the other, as safetensors wants them."""
    return {
        name: np.ascontiguousarray(array).reshape(array.shape) for name, array in arrays.items()
    }
