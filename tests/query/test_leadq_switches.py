"""Each setting of LeaDQ reaches what its server learns; the released ones agree everywhere."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
import yaml
from numpy.typing import NDArray

from ahfal_app.query import make_strategy
from ahfal_app.query.core.agents import Agent, FlatAgent, RecurrentAgent, SetAgent
from ahfal_app.query.core.mixing import Mixer, MonotonicMixer, Sum
from ahfal_app.query.core.server_side import HeldOut, Task
from ahfal_app.query.core.value_learning import LearningRule, ValueLearner, replay_of
from ahfal_app.query.leadq import LeaDQServer, state_of
from ahfal_app.seeds import numpy_generator, torch_generator

ROOT = Path(__file__).parents[2]

# --- what is learned with ----------------------------------------------------------------------

DEFAULTS = LearningRule(
    discount=0.99,
    learning_rate=0.001,
    clip=10.0,
    steps=100,
    batch=32,
    target_every=200,
    trains_mixer=True,
    outcome_state=False,
    stream_ends=False,
    target_forgets=False,
)

TASK = Task(seed=5, num_classes=2, num_clients=3, held_out=4, most_rows=3)

#: What all servers have here that learn: small, and none of it the default.
SMALL: dict[str, Any] = {
    "learn-from": 4,
    "episode": 3,
    "gradient-steps": 3,
    "batch": 2,
    "target-every": 4,
    "hidden": 4,
    "mixing": 3,
}
RULE = dataclasses.replace(DEFAULTS, steps=3, batch=2, target_every=4)
AGENT, MIXER = RecurrentAgent(3, 2, 4), MonotonicMixer(4, 3, 3)


def server_of(settings: Mapping[str, Any]) -> LeaDQServer:
    return cast(LeaDQServer, make_strategy("leadq", settings).server_side(TASK))


@pytest.mark.parametrize(
    ("settings", "changes"),
    [
        ({}, {}),
        ({"gamma": 0.5}, {"discount": 0.5}),
        ({"learning-rate": 0.01}, {"learning_rate": 0.01}),
        ({"clip": 0.0}, {"clip": 0.0}),
        ({"gradient-steps": 7}, {"steps": 7}),
        ({"batch": 5}, {"batch": 5}),
        ({"target-every": 11}, {"target_every": 11}),
        ({"train-mixer": False}, {"trains_mixer": False}),
        ({"target-state": "published"}, {"outcome_state": True}),
        ({"bootstrap": "published"}, {"stream_ends": True}),
        ({"memory": "reset"}, {"target_forgets": True}),
        ({"memory": "none"}, {}),
    ],
)
def test_the_rule_is_that_of_the_settings(
    settings: dict[str, Any], changes: dict[str, Any]
) -> None:
    assert server_of(settings)._rule() == dataclasses.replace(DEFAULTS, **changes)


# --- what is learned ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Learning:
    """With what, and of what, a server is to learn."""

    rule: LearningRule = RULE
    agent: Agent = AGENT
    mixer: Mixer = MIXER
    state: str = "confidence"
    episode: int = 3
    buffer: int = 1000
    sees_earlier: bool = False


def with_rule(**changes: Any) -> Learning:
    return Learning(dataclasses.replace(RULE, **changes))


#: A setting and its value, and what is to be learned with it.
SWITCHES: dict[str, tuple[Any, Learning]] = {
    "gamma": (0.5, with_rule(discount=0.5)),
    "learning-rate": (0.01, with_rule(learning_rate=0.01)),
    "clip": (0.0, with_rule(clip=0.0)),
    "gradient-steps": (5, with_rule(steps=5)),
    "batch": (1, with_rule(batch=1)),
    "target-every": (2, with_rule(target_every=2)),
    "train-mixer": (False, with_rule(trains_mixer=False)),
    "target-state": ("published", with_rule(outcome_state=True)),
    "bootstrap": ("published", with_rule(stream_ends=True)),
    "memory": ("reset", with_rule(target_forgets=True)),
    "mixer": ("vdn", Learning(mixer=Sum())),
    "mixing": (2, Learning(mixer=MonotonicMixer(4, 3, 2))),
    "mixing-layers": (2, Learning(mixer=MonotonicMixer(4, 3, 3, layers=2))),
    "hidden": (5, Learning(agent=RecurrentAgent(3, 2, 5))),
    "agent": ("set", Learning(agent=SetAgent(2, 4))),
    "state": ("cross-entropy", Learning(state="cross-entropy")),
    "episode": (4, Learning(episode=4)),
    "buffer": (1, Learning(buffer=1)),
    "observe": ("previous", Learning(sees_earlier=True)),
}

CYCLES = 7
RANDOM = np.random.default_rng(0)
LABELS_M = np.array([0, 1, 0, 1])
LOGITS_TMC = RANDOM.normal(size=(CYCLES, 4, 2)).astype(np.float32)
ROWS_TKNF = RANDOM.dirichlet(np.ones(2), (CYCLES, 3, 3)).astype(np.float32)
#: One or two of three.
CHOSEN_TKN = RANDOM.permuted(np.eye(3, dtype=np.uint8)[None].repeat(CYCLES, 0), axis=2)
CHOSEN_TKN[::2] = 1 - CHOSEN_TKN[::2]

Weights = dict[str, NDArray[np.generic]]


def learned(settings: Mapping[str, Any]) -> Weights:
    """Return what a server has learned of the same as all others."""
    server = server_of({**SMALL, **settings})
    for cycle in range(CYCLES):
        server.trained(cycle, HeldOut(LOGITS_TMC[cycle], LABELS_M))
        told = zip(ROWS_TKNF[cycle], CHOSEN_TKN[cycle], strict=True)
        reports = enumerate({"rows": rows, "chosen": chosen} for rows, chosen in told)
        server.reported(cycle, dict(reports))
    prefix = "learner."
    return {
        name.removeprefix(prefix): values
        for name, values in server.state().items()
        if name.startswith(prefix)
    }


def learned_by_rule(learning: Learning) -> Weights:
    """Return what a learner has learned that no setting has made."""
    rule = learning.rule
    generator = torch_generator(TASK.seed, "leadq.init")
    learner = ValueLearner(learning.agent, learning.mixer, rule, generator)
    labels, rows_TKNF = torch.from_numpy(LABELS_M), torch.from_numpy(ROWS_TKNF)
    states = [state_of(torch.from_numpy(each), labels, learning.state) for each in LOGITS_TMC]
    accuracies = 100 * (LOGITS_TMC.argmax(axis=2) == LABELS_M).mean(axis=1)
    rewards = torch.tensor(np.diff(accuracies), dtype=torch.float32)
    places_TK = torch.full((CYCLES, 3), 3)
    sizes_TK, chosen_TKN = places_TK.clone(), torch.from_numpy(CHOSEN_TKN.astype(np.int64))
    if learning.sees_earlier:
        rows_TKNF = torch.cat([torch.zeros_like(rows_TKNF[:1]), rows_TKNF[:-1]])
        sizes_TK[0] = 0
    for cycle in range(SMALL["learn-from"], CYCLES):
        # Where nothing that follows counts, this is before the next decision.
        known = cycle if rule.stream_ends else cycle + 1
        replay = replay_of(
            rows_TKNF[:known],
            sizes_TK[:known],
            places_TK[:known],
            chosen_TKN[:known],
            torch.stack(states[: cycle + 1]),
            rewards[:cycle],
            learning.episode,
            rule,
        )
        drawn = partial(numpy_generator, TASK.seed, "leadq.replay", cycle)
        learner.learn(replay.newest(learning.buffer), drawn)
    return learner.state()


def same(first: Weights, second: Weights) -> bool:
    return first.keys() == second.keys() and all(
        np.array_equal(first[name], second[name]) for name in first
    )


def agents(weights: Weights) -> Weights:
    return {name: values for name, values in weights.items() if name.startswith("agent.")}


@pytest.fixture(scope="module")
def plain() -> Weights:
    """What is learned with no switch."""
    return learned({})


def test_what_is_learned_is_that_of_the_rule(plain: Weights) -> None:
    assert same(plain, learned_by_rule(Learning()))


@pytest.mark.parametrize("switch", SWITCHES)
def test_each_switch_reaches_what_is_learned(switch: str, plain: Weights) -> None:
    value, learning = SWITCHES[switch]
    changed = learned({switch: value})
    assert same(changed, learned_by_rule(learning))
    assert not same(agents(changed), agents(plain))


def test_a_mixer_that_is_not_learned_stays_as_it_was_drawn(plain: Weights) -> None:
    drawn = ValueLearner(AGENT, MIXER, RULE, torch_generator(TASK.seed, "leadq.init")).state()
    left = learned({"train-mixer": False})
    for name in MIXER.shapes:
        assert np.array_equal(left[f"mixer.{name}"], drawn[f"mixer.{name}"])
    assert any(
        not np.array_equal(plain[f"mixer.{name}"], drawn[f"mixer.{name}"]) for name in MIXER.shapes
    )


def test_an_agent_without_memory_is_another() -> None:
    assert same(learned({"memory": "none"}), learned_by_rule(Learning(agent=FlatAgent(3, 2, 4))))


# --- the released preset -----------------------------------------------------------------------


def written(path: Path, name: str) -> dict[str, Any]:
    """Return a dictionary that a module writes down."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == name and node.value:
            return cast(dict[str, Any], ast.literal_eval(node.value))
    raise AssertionError(f"{path}: no {name}")


def released(path: Path) -> dict[str, Any] | None:
    """Return the settings of the released algorithm in an experiment, if it is a part of it."""
    experiment = yaml.safe_load(path.read_text(encoding="utf-8"))
    return cast(dict[str, Any] | None, experiment["sweep"]["method"].get("as released"))


def test_the_released_algorithm_is_the_same_everywhere() -> None:
    """In all experiments that have it, and in the tests that show what it comes to."""
    files = sorted((ROOT / "conf" / "experiments").glob("leadq-*.yaml"))
    presets = {path.stem: preset for path in files if (preset := released(path))}
    assert presets.keys() >= {"leadq-ablation", "leadq-pretrained", "leadq-published"}
    (preset, *others) = presets.values()
    assert others == [preset] * len(others)
    assert written(ROOT / "tests" / "runs" / "test_leadq_runs.py", "PUBLISHED") == preset
    short = written(ROOT / "tests" / "query" / "test_leadq.py", "PUBLISHED")
    own = {f"strategy.{name}": value for name, value in short.items()}
    assert {"strategy": "leadq", **own} == preset


def test_the_released_rule() -> None:
    preset = released(ROOT / "conf" / "experiments" / "leadq-published.yaml")
    assert preset is not None
    own = {n.removeprefix("strategy."): v for n, v in preset.items() if n != "strategy"}
    assert server_of(own)._rule() == dataclasses.replace(
        DEFAULTS,
        learning_rate=0.01,
        clip=0.0,
        trains_mixer=False,
        outcome_state=True,
        stream_ends=True,
        target_forgets=True,
    )
