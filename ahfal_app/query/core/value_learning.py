"""Learning what choices are worth from rewards that all clients share: LeaDQ's learning rule.

Temporal differences with double Q: of the next observation the network that is learned takes the
best rows, and its older copy (the *target*) says what they are worth. For decision t with state
s_t, observations o_t, choices a_t and reward R_t,

    y_t = R_t + γ (1 - done_t) ψ⁻(Q'_1 … Q'_K, s_{t+1}),
    loss = mean over t of (ψ(Σ_{i ∈ a_1t} q_i(o_1t), …, s_t) - y_t)².

Decisions are learned in episodes, over which an agent remembers. What is replayed is drawn by key,
so that nothing of a generator has to be kept.

Shape suffixes: T decisions, E episodes, L decisions of an episode, S = L + 1 steps of it, K
clients, N rows, F features, M numbers of a state, J drawn episodes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ahfal_app.query.core.agents import Agent, most_valued
from ahfal_app.query.core.mixing import Mixer, Mixing

#: Returns the generator of a gradient step of a learning.
Generators = Callable[[int], np.random.Generator]


@dataclass(frozen=True)
class LearningRule:
    """How values are learned.

    Attributes
    ----------
    discount : float
        γ.
    learning_rate, clip : float
        Of Adam; the norm that gradients are scaled down to, 0: never.
    steps, batch : int
        Gradient steps of a learning, and episodes in each.
    target_every : int
        Gradient steps after which the target is a copy of what is learned.
    trains_mixer : bool
        Whether the mixer is learned, too, or stays as it was drawn.
    outcome_state : bool
        Whether a choice is valued by the state after it (as released), or by the one before.
    stream_ends : bool
        Whether bootstrapping is as released: from nothing after each episode, and from no future at
        decisions 0, L + 1, 2 (L + 1) and so on; or the stream goes on.
    target_forgets : bool
        Whether the target's memory begins one step late, as released.
    """

    discount: float
    learning_rate: float
    clip: float
    steps: int
    batch: int
    target_every: int
    trains_mixer: bool = True
    outcome_state: bool = False
    stream_ends: bool = False
    target_forgets: bool = False


@dataclass(frozen=True, eq=False)
class Replay:
    """All decisions so far, by episodes; padded with zeros.

    Attributes
    ----------
    rows_ESKNF : Tensor
        Observations; the last step of an episode is the next one's first. Shape (E, S, K, N, F).
    sizes_ESK : Tensor
        How many rows each has. Shape (E, S, K).
    chosen_ELKN : Tensor
        What was chosen, float32 0 or 1. Shape (E, L, K, N).
    states_ESM : Tensor
        States. Shape (E, S, M).
    rewards_EL, done_EL, real_EL : Tensor
        Rewards, whether no future counts, and whether there was such a decision. Shape (E, L).
    open_ELKN : Tensor
        What may be chosen next, as is taken for the target. Shape (E, L, K, N).
    counts_ELK : Tensor
        How many are. Shape (E, L, K).
    begins_S : list[bool]
        At which steps memory begins anew.
    """

    rows_ESKNF: Tensor
    sizes_ESK: Tensor
    chosen_ELKN: Tensor
    states_ESM: Tensor
    rewards_EL: Tensor
    done_EL: Tensor
    real_EL: Tensor
    open_ELKN: Tensor
    counts_ELK: Tensor
    begins_S: list[bool]

    def newest(self, episodes: int) -> Replay:
        """Return the newest episodes alone, at least one."""
        kept: dict[str, Any] = {
            name: values[-episodes:] if isinstance(values, Tensor) else values
            for name, values in vars(self).items()
        }
        return replace(self, **kept)


def replay_of(
    rows_TKNF: Tensor,
    sizes_TK: Tensor,
    places_TK: Tensor,
    chosen_TKN: Tensor,
    states_TM: Tensor,
    rewards_T: Tensor,
    length: int,
    rule: LearningRule,
) -> Replay:
    """Return decisions by episodes.

    Parameters
    ----------
    rows_TKNF : Tensor
        What each client's choice goes by: as many decisions as are known, which may be one more
        than there are rewards. Shape (T or T + 1, K, N, F).
    sizes_TK, places_TK : Tensor
        How many rows each has, 0 where a client did not choose; and of how many it chose, which
        may be others. Shape as above.
    chosen_TKN : Tensor
        What was chosen. Shape as above.
    states_TM : Tensor
        States before each decision, and after the last. Shape (T + 1, M).
    rewards_T : Tensor
        Rewards. Shape (T,).
    length : int
        Decisions L of an episode.
    rule : LearningRule
        How it will be learned from.
    """
    num, most = len(rewards_T), rows_TKNF.shape[2]
    total = -(-num // length) * length
    steps_ES = torch.arange(total).reshape(-1, length)[:, :1] + torch.arange(length + 1)
    decisions_EL = steps_ES[:, :-1]

    def taken(values_T: Tensor, places: Tensor) -> Tensor:
        room = values_T.new_zeros(max(0, total + 1 - len(values_T)), *values_T.shape[1:])
        return torch.cat([values_T, room])[places]

    sizes_ESK = taken(sizes_TK, steps_ES)
    chosen_ESKN = taken(chosen_TKN * (sizes_TK > 0)[..., None], steps_ES)
    counts_ESK = chosen_ESKN.sum(dim=-1).long()
    rows_ESKNF, counts_ELK = taken(rows_TKNF, steps_ES), counts_ESK[:, 1:]
    places_ELK = taken(places_TK * (sizes_TK > 0), steps_ES)[:, 1:]
    done_EL = torch.zeros_like(decisions_EL)
    if rule.stream_ends:
        # After an episode, and after the newest decision, comes an observation of zeros.
        is_over_EL = decisions_EL + 1 >= len(rows_TKNF)
        is_over_EL[:, -1] = True
        rows_ESKNF[:, 1:][is_over_EL] = 0.0
        nothing_ELK = torch.where(sizes_ESK[:, :-1] > 0, most, 0)
        is_over_EL1 = is_over_EL[..., None]
        sizes_ESK[:, 1:] = torch.where(is_over_EL1, nothing_ELK, sizes_ESK[:, 1:])
        places_ELK = torch.where(is_over_EL1, nothing_ELK, places_ELK)
        counts_ELK = torch.where(is_over_EL1, counts_ESK[:, :-1], counts_ELK)
        done_EL = (decisions_EL % (length + 1) == 0).long()
    return Replay(
        rows_ESKNF=rows_ESKNF,
        sizes_ESK=sizes_ESK,
        chosen_ELKN=chosen_ESKN[:, :-1].float(),
        states_ESM=taken(states_TM, steps_ES),
        rewards_EL=taken(rewards_T, decisions_EL),
        done_EL=done_EL.float(),
        real_EL=(decisions_EL < num).float(),
        open_ELKN=torch.arange(most) < places_ELK[..., None],
        counts_ELK=counts_ELK,
        begins_S=[True] + [False] * (length - 1) + [not rule.stream_ends],
    )


class ValueLearner:
    """An agent's and a mixer's weights, and how they are learned.

    Parameters
    ----------
    agent, mixer : Agent, Mixer
        The networks.
    rule : LearningRule
        How they are learned.
    generator : torch.Generator
        Draws the first weights: matrices orthogonal, everything else 0.
    """

    def __init__(
        self, agent: Agent, mixer: Mixer, rule: LearningRule, generator: torch.Generator
    ) -> None:
        self._agent, self._mixer, self._rule = agent, mixer, rule
        self.agent_weights = _drawn(agent.shapes, generator)
        self.mixer_weights = _drawn(mixer.shapes, generator)
        self.steps = 0
        learned = [*self.agent_weights.values()]
        if rule.trains_mixer:
            learned += self.mixer_weights.values()
        for weights in learned:
            weights.requires_grad_()
        self._learned = learned
        self._adam = torch.optim.Adam(learned, lr=rule.learning_rate)
        self._copy_to_target()

    def learn(self, replay: Replay, generator_of: Generators) -> float:
        """Make the steps of one learning, and return their mean loss.

        Parameters
        ----------
        replay : Replay
            All decisions so far.
        generator_of : Generators
            Draws the episodes of each step.
        """
        losses = []
        target = self._target_values(replay)
        number = len(replay.rewards_EL)
        for step in range(self._rule.steps):
            drawn = generator_of(step).choice(
                number, min(self._rule.batch, number), replace=False, shuffle=False
            )
            loss = self._loss(replay, torch.from_numpy(drawn), target)
            losses.append(self._descend(loss))
            if self.steps % self._rule.target_every == 0:
                self._copy_to_target()
                target = self._target_values(replay)
        return float(np.mean(losses))

    def loss(self, replay: Replay) -> Tensor:
        """Return the loss of all episodes, by the weights as they are."""
        every_E = torch.arange(len(replay.rewards_EL))
        return self._loss(replay, every_E, self._target_values(replay))

    def _loss(self, replay: Replay, drawn_J: Tensor, target: tuple[Tensor, Mixing]) -> Tensor:
        rule = self._rule
        values_JSKN = self._agent.unrolled(
            self.agent_weights,
            replay.rows_ESKNF[drawn_J],
            replay.sizes_ESK[drawn_J],
            replay.begins_S,
        )
        states_JSM = replay.states_ESM[drawn_J]
        states_JLM = states_JSM[:, 1:] if rule.outcome_state else states_JSM[:, :-1]
        chosen_JLK = (values_JSKN[:, :-1] * replay.chosen_ELKN[drawn_J]).sum(dim=-1)
        mixing = self._mixer.mixing(self.mixer_weights, states_JLM)
        value_JL = self._mixer.mixed(mixing, chosen_JLK)
        wanted_JL = self._wanted(replay, drawn_J, values_JSKN.detach()[:, 1:], target)
        real_JL = replay.real_EL[drawn_J]
        return ((value_JL - wanted_JL) ** 2 * real_JL).sum() / real_JL.sum()

    @torch.no_grad()
    def _wanted(
        self,
        replay: Replay,
        drawn_J: Tensor,
        next_JLKN: Tensor,
        target: tuple[Tensor, Mixing],
    ) -> Tensor:
        """Return what values are to be: y. Shape (J, L)."""
        values_ELKN, mixing = target
        is_best_JLKN = most_valued(next_JLKN, replay.open_ELKN[drawn_J], replay.counts_ELK[drawn_J])
        worth_JLK = torch.where(is_best_JLKN, values_ELKN[drawn_J], 0.0).sum(dim=-1)
        future_JL = self._mixer.mixed(tuple(part[drawn_J] for part in mixing), worth_JLK)
        left_JL = 1.0 - replay.done_EL[drawn_J]
        return replay.rewards_EL[drawn_J] + self._rule.discount * left_JL * future_JL

    @torch.no_grad()
    def _target_values(self, replay: Replay) -> tuple[Tensor, Mixing]:
        """Return the target's values of what comes next (E, L, K, N), and how it mixes them.

        They are the same for all steps until the target is another.
        """
        begin = 1 if self._rule.target_forgets else 0
        values_ESKN = self._agent.unrolled(
            self._target_agent,
            replay.rows_ESKNF[:, begin:],
            replay.sizes_ESK[:, begin:],
            replay.begins_S[begin:],
        )
        mixing = self._mixer.mixing(self._target_mixer, replay.states_ESM[:, 1:])
        return values_ESKN[:, 1 - begin :], mixing

    def _descend(self, loss: Tensor) -> float:
        self._adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch's is untyped
        if self._rule.clip:
            torch.nn.utils.clip_grad_norm_(self._learned, self._rule.clip)
        self._adam.step()
        self.steps += 1
        return float(loss.detach())

    def _copy_to_target(self) -> None:
        self._target_agent = _copied(self.agent_weights)
        self._target_mixer = _copied(self.mixer_weights)

    # --- state --------------------------------------------------------------------------

    def state(self) -> dict[str, NDArray[np.generic]]:
        """Return weights, their targets and Adam's moments by name."""
        arrays: dict[str, NDArray[np.generic]] = {"steps": np.array(self.steps)}
        for name, tensor in self._tensors():
            arrays[name] = tensor.detach().numpy().copy()
        for number, weights in enumerate(self._learned):
            for name, moment in self._adam.state[weights].items():
                arrays[f"adam.{number}.{name}"] = moment.numpy().copy()
        return arrays

    def restore(self, state: Mapping[str, NDArray[np.generic]]) -> None:
        """Take over what `state` has returned.

        Raises
        ------
        ValueError
            A weight is missing, or of another shape.
        """
        for name, tensor in self._tensors():
            if name not in state or state[name].shape != tensor.shape:
                raise ValueError(f"{name}: missing, or not of shape {tuple(tensor.shape)}")
            with torch.no_grad():
                tensor.copy_(torch.from_numpy(np.array(state[name])))
        self.steps = int(state["steps"])
        for number, weights in enumerate(self._learned):
            prefix = f"adam.{number}."
            moments = {
                name.removeprefix(prefix): torch.from_numpy(np.array(values))
                for name, values in state.items()
                if name.startswith(prefix)
            }
            if moments:
                self._adam.state[weights] = moments

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        for part, weights in (
            ("agent", self.agent_weights),
            ("mixer", self.mixer_weights),
            ("target-agent", self._target_agent),
            ("target-mixer", self._target_mixer),
        ):
            for name, tensor in weights.items():
                yield f"{part}.{name}", tensor


def _drawn(shapes: Mapping[str, tuple[int, ...]], generator: torch.Generator) -> dict[str, Tensor]:
    weights = {name: torch.zeros(shape) for name, shape in shapes.items()}
    for tensor in weights.values():
        if tensor.ndim == 2:
            torch.nn.init.orthogonal_(tensor, generator=generator)
    return weights


def _copied(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in weights.items()}
