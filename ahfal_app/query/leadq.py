"""LeaDQ: a policy that is learned from what labels have brought, where data stream in.

At each client a network (the agent) gives every sample that has arrived a value; the best ones are
labelled. At the server the agents are learned together from the change of the global model's
accuracy on held-out samples (`core/value_learning.py`), by what clients report of their choices.

Cycle c is trained, and labels are then bought for cycle t = c + 1: this is *decision* t. Its state
s_t is what the model of cycle t - 1 makes of the held-out samples, its reward what the model of
cycle t gains over that. The first decision is 1.

Shape suffixes: N samples in the pool, C classes, F features of a row, R rows of all clients, T
decisions, K clients, M held-out samples, B selected samples.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor

from ahfal_app.errors import ConfigError, InvalidSelection
from ahfal_app.flat import ArrayForm
from ahfal_app.query.core.agents import Agent, FlatAgent, RecurrentAgent, SetAgent
from ahfal_app.query.core.base import QueryContext, QueryStrategy
from ahfal_app.query.core.mixing import Mixer, MonotonicMixer, Sum
from ahfal_app.query.core.picking import ranked, top_scores
from ahfal_app.query.core.pool import PoolView, Signal
from ahfal_app.query.core.reveals import Reveal
from ahfal_app.query.core.scores import other_probabilities
from ahfal_app.query.core.server_side import Arrays, HeldOut, RowsForm, ServerSide, Task
from ahfal_app.query.core.value_learning import LearningRule, Replay, ValueLearner, replay_of
from ahfal_app.seeds import numpy_generator, torch_generator
from ahfal_app.settings import Settings

#: How far the probabilities of a row may be from 1 together.
_ROUNDING = 1e-4

#: Most rows of a report where nobody can say how many samples arrive at once.
_MOST_ROWS = 20_000

_EPSILON = "epsilon"
_AGENT = "agent."


class LeaDQ(QueryStrategy):
    """Samples by a policy that the server learns from what labels have brought.

    For data that stream in (`arrivals=count pool-memory=1`). The server needs samples to measure
    what labels bring (`held-out`), and clients tell it, with each purchase, which class
    probabilities the global model gives to each sample that has arrived, and which they chose: a
    site must allow that (`policy-reveals=observations`), and no protection of `privacy` goes with
    it. Until there is something to learn from (`learn-from`, `cold-start`) the least confident
    samples are chosen.

    The defaults are the algorithm as its paper means it, where the paper says enough to tell. The
    authors' code does something else: it computes a choice from the arrivals of the cycle before
    and applies its positions to new ones, so that after 34 cycles of least confidence it chooses at
    random. Each such departure is a parameter; `conf/experiments/leadq-published.yaml` has all.
    """

    name: ClassVar[str] = "leadq"
    paper: ClassVar[str] = (
        "Sun, Li, Lin and Zhang, Federated active learning with streaming data by decentralised "
        "deep Q-learning (LeaDQ), AAAI 2025 (arXiv 2412.08138)"
    )
    signals: ClassVar[frozenset[Signal]] = frozenset({Signal.GLOBAL_LOGITS})
    tells: ClassVar[bool] = True

    class Parameters(QueryStrategy.Parameters):
        """Networks, learning, and where the authors' code departs from the paper."""

        agent: Literal["flat", "set"] = Field(
            default="flat",
            description="What sees the arrivals: one network all of them as one vector, or one "
            "network each of them and the mean of all (ours).",
        )
        order: Literal["confidence", "arrival"] = Field(
            default="confidence",
            description="Arrivals in the vector: by rising confidence, or as they came (which is "
            "at random), as published.",
        )
        memory: Literal["history", "reset", "none"] = Field(
            default="history",
            description="A GRU that remembers the episode; one that forgets it where it acts and "
            "not where it learns, as published; or no memory. Without effect with `agent=set`.",
        )
        observe: Literal["current", "previous"] = Field(
            default="current",
            description="Arrivals that a choice is computed from: those that it is made among, or "
            "those of the cycle before, as published.",
        )
        report: Literal["probabilities", "confidence"] = Field(
            default="probabilities",
            description="What clients tell of each arrival, and agents see: all class "
            "probabilities, or the highest alone (ours).",
        )
        state: Literal["confidence", "cross-entropy"] = Field(
            default="confidence",
            description="What the mixer sees of held-out samples: the highest probability, or the "
            "cross-entropy with the label, as published.",
        )
        mixer: Literal["qmix", "vdn"] = Field(
            default="qmix", description="How clients' values become one: by the state, or a sum."
        )
        train_mixer: bool = Field(
            default=True, description="Whether the mixer is learned; as published it is not."
        )
        target_state: Literal["next", "published"] = Field(
            default="next",
            description="A choice is valued by the state before it and its target by the one "
            "after it; or both by the latter, as published.",
        )
        bootstrap: Literal["continue", "published"] = Field(
            default="continue",
            description="The stream goes on after an episode; or nothing follows it, and ends are "
            "where the authors' code has them.",
        )
        episode: int = Field(
            default=10, ge=1, le=10_000, description="Cycles that a GRU remembers; published: 9."
        )
        learn_from: int = Field(
            default=20,
            ge=1,
            le=10**6,
            description="Decisions with a reward before learning starts; published: 320.",
        )
        cold_start: int = Field(
            default=0,
            ge=0,
            le=10**6,
            description="Cycles of least confidence, after which the policy acts, learned or not; "
            "0: until it is learned. Published: 34.",
        )
        epsilon_start: float = Field(
            default=0.2,
            ge=0,
            le=1,
            description="Probability of a random choice, at first; published: 0.",
        )
        epsilon_end: float = Field(
            default=0.05, ge=0, le=1, description="And in the end; published: 0."
        )
        epsilon_cycles: int = Field(
            default=50, ge=1, le=10**6, description="Cycles from the one to the other."
        )
        reward: Literal["accuracy", "loss"] = Field(
            default="accuracy",
            description="The gain in held-out accuracy, in points; or the fall of 100 times the "
            "held-out cross-entropy (ours, less noisy).",
        )
        reward_start: Literal["measured", "published"] = Field(
            default="measured",
            description="What the first reward is measured from: the model before, or 0.1, as "
            "published.",
        )
        learning_rate: float = Field(
            default=0.001, gt=0, le=1, description="Of Adam; published: 0.01."
        )
        clip: float = Field(
            default=10.0,
            ge=0,
            le=1e6,
            description="Norm that gradients are scaled down to; 0: never, as published.",
        )
        gradient_steps: int = Field(
            default=100, ge=1, le=10**5, description="Steps of each learning."
        )
        batch: int = Field(default=32, ge=1, le=10**5, description="Episodes of each step.")
        buffer: int = Field(
            default=1000, ge=1, le=10**6, description="Newest episodes that are learned from."
        )
        target_every: int = Field(
            default=200, ge=1, le=10**6, description="Steps after which the target is renewed."
        )
        gamma: float = Field(default=0.99, ge=0, le=1, description="Discount of later rewards.")
        hidden: int = Field(default=64, ge=1, le=4096, description="Width of the agent.")
        mixing: int = Field(default=32, ge=1, le=4096, description="Width of the mixer.")
        mixing_layers: Literal[1, 2] = Field(
            default=1,
            description="Layers that make the mixer's weights of the state: one, or two with 64 "
            "numbers between them.",
        )

        @model_validator(mode="after")
        def _go_together(self) -> Self:
            """Refuse what means nothing together."""
            if self.agent == "set" and self.observe == "previous":
                raise ValueError(
                    "strategy.observe='previous': allowed with strategy.agent='flat', whose "
                    "values belong to places"
                )
            if self.reward == "loss" and self.reward_start == "published":
                raise ValueError(
                    "strategy.reward-start='published': allowed with strategy.reward='accuracy', "
                    "since 0.1 is no cross-entropy of a model"
                )
            return self

    parameters: Parameters

    @property
    def reveals(self) -> frozenset[Reveal]:
        """Predictions of single samples, and which were chosen."""
        return frozenset({Reveal.OBSERVATIONS})

    @property
    def remembers(self) -> int:
        """As many cycles as the GRU goes back, and one more where it sees the one before."""
        later = int(self.parameters.observe == "previous")
        return self._remembered_steps + later

    def problems(self, settings: Settings) -> list[str]:
        """Refuse a run without held-out samples, or whose arrivals make no vector."""
        problems = []
        if not settings.held_out:
            problems.append(
                f"held-out=0: allowed is at least 1 with strategy={self.name!r}, which measures on "
                "these samples what labels bring"
            )
        single_access = settings.arrivals == "count" and settings.pool_memory == 1
        if self.parameters.agent == "flat" and not single_access:
            problems.append(
                f"strategy={self.name!r}: allowed with arrivals='count' and pool-memory=1, so that "
                "all arrivals of a cycle make one vector; or strategy.agent='set'"
            )
        return problems

    # --- at the client ------------------------------------------------------------------

    def select(self, pool: PoolView, context: QueryContext) -> NDArray[np.int64]:
        """Return what the policy values most; without one the least confident samples."""
        logits_NC = pool.signal(Signal.GLOBAL_LOGITS)
        policy = context.policy
        observed = None if policy is None else self._observed(logits_NC, context)
        if policy is None or observed is None:
            doubt_N = other_probabilities(logits_NC).sum(dim=1)
            return top_scores(doubt_N, pool.ids_N, context.budget)
        epsilon = float(policy[_EPSILON][0])
        if epsilon:
            generator = context.generator("leadq.explore")
            if generator.random() < epsilon:
                return generator.choice(pool.ids_N, context.budget, replace=False)
        order_N = self._order(logits_NC, context)
        values_N = self._values(policy, observed, len(pool))
        scores_N = torch.empty_like(values_N)
        scores_N[order_N] = values_N
        return top_scores(scores_N, pool.ids_N, context.budget)

    def report_forms(self, task: Task) -> Mapping[str, RowsForm]:
        """Return the forms of a row for each arrival, and of whether it was chosen."""
        features = task.num_classes if self.parameters.report == "probabilities" else 1
        return {"rows": RowsForm((features,), "float32"), "chosen": RowsForm((), "uint8")}

    def report(self, pool: PoolView, context: QueryContext, ids_B: NDArray[np.int64]) -> Arrays:
        """Return what an agent sees of the arrivals, in its order, and what was chosen."""
        logits_NC = pool.signal(Signal.GLOBAL_LOGITS)
        order_N = self._order(logits_NC, context)
        chosen_N = np.isin(pool.ids_N, ids_B)[order_N.numpy()]
        rows_NF = self._rows(logits_NC)[order_N]
        return {"rows": rows_NF.numpy(), "chosen": chosen_N.astype(np.uint8)}

    def _rows(self, logits_NC: Tensor) -> Tensor:
        """Return what is seen of each sample, float32 on the CPU. Shape (N, F)."""
        probabilities_NC = torch.softmax(logits_NC.double(), dim=1).float().cpu()
        if self.parameters.report == "probabilities":
            return probabilities_NC
        return probabilities_NC.max(dim=1, keepdim=True).values

    def _order(self, logits_NC: Tensor, context: QueryContext) -> Tensor:
        """Return the pool's positions as they lie in the vector. Shape (N,)."""
        if self.parameters.order == "arrival":
            # Ids are in order, and arrivals of one cycle came in any: this is one of them.
            order_N = context.generator("leadq.order").permutation(len(logits_NC))
            return torch.from_numpy(order_N)
        return ranked(other_probabilities(logits_NC).sum(dim=1).cpu())

    def _observed(self, logits_NC: Tensor, context: QueryContext) -> list[Tensor] | None:
        """Return what the choice goes by, oldest first; None where there is nothing."""
        decision, history = context.cycle, context.history
        first = decision - self.remembered_steps_of(decision)
        if self.parameters.observe == "previous":
            if decision - 1 not in history:
                return None
            earlier = range(first - 1, decision)
            # A step counts only where the client has chosen in it, and in the one before.
            asked = [t for t in earlier if t in history and (t + 1 in history or t == decision - 1)]
            return [torch.from_numpy(np.array(history[t]["rows"])) for t in asked]
        asked = [t for t in range(first, decision) if t in history]
        seen = [torch.from_numpy(np.array(history[t]["rows"])) for t in asked]
        return [*seen, self._rows(logits_NC)[self._order(logits_NC, context)]]

    def _values(self, policy: Mapping[str, Tensor], observed: list[Tensor], size: int) -> Tensor:
        """Return the values of the arrivals in their order in the vector. Shape (N,)."""
        weights = _named(policy, _AGENT)
        places = size if self.parameters.agent == "set" else len(weights["output.bias"])
        if size > places:
            raise InvalidSelection(
                f"strategy {self.name!r}: {size} samples for a policy of {places} places"
            )
        agent = self._agent(places, observed[-1].shape[1])
        steps = observed if agent.is_recurrent else observed[-1:]
        rows_SNF = torch.stack([_padded(rows_NF, places) for rows_NF in steps])
        sizes_S = torch.tensor([len(rows_NF) for rows_NF in steps])
        begins_S = [True] + [False] * (len(steps) - 1)
        # Of one client in one episode.
        rows_ESKNF, sizes_ESK = rows_SNF[None, :, None], sizes_S[None, :, None]
        values_ESKN = agent.unrolled(weights, rows_ESKNF, sizes_ESK, begins_S)
        return values_ESKN[0, -1, 0, :size].double()

    # --- at both ------------------------------------------------------------------------

    def _agent(self, places: int, features: int) -> Agent:
        own = self.parameters
        if own.agent == "set":
            return SetAgent(features, own.hidden)
        kind = FlatAgent if own.memory == "none" else RecurrentAgent
        return kind(places, features, own.hidden)

    @property
    def _remembered_steps(self) -> int:
        """Steps before the one that is decided that an agent may remember where it acts."""
        own = self.parameters
        return own.episode - 1 if own.agent == "flat" and own.memory == "history" else 0

    def remembered_steps_of(self, decision: int) -> int:
        """Return the steps before a decision in its episode, as far as they are remembered."""
        return min(self._remembered_steps, (decision - 1) % self.parameters.episode)

    # --- at the server ------------------------------------------------------------------

    def policy_forms(self, task: Task) -> Mapping[str, ArrayForm]:
        """Return the forms of the agent's weights, and of the probability of a random choice."""
        forms = {_EPSILON: ArrayForm((1,), "float32")}
        for name, shape in self.agent_of(task).shapes.items():
            forms[f"{_AGENT}{name}"] = ArrayForm(shape, "float32")
        return forms

    def agent_of(self, task: Task) -> Agent:
        """Return a run's agent.

        Raises
        ------
        ConfigError
            Nobody knows how many samples arrive at once.
        """
        places = task.most_rows
        if places is None and self.parameters.agent == "flat":
            raise ConfigError([f"strategy={self.name!r}: allowed with arrivals='count' alone"])
        (features,) = self.report_forms(task)["rows"].columns
        return self._agent(places or 0, features)

    def server_side(self, task: Task) -> ServerSide:
        """Return what learns the policy."""
        return LeaDQServer(self, task)


@dataclass(frozen=True, eq=False)
class _Decision:
    """What clients chose in a decision: rows of all, one client after the other.

    `sizes_K` says how many rows each has; 0 where it chose nothing, or did not answer.
    """

    sizes_K: NDArray[np.int64]
    rows_RF: NDArray[np.float32]
    chosen_R: NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class _Known:
    """All decisions, padded.

    Attributes
    ----------
    rows_TKNF, sizes_TK : NDArray
        What was reported, and how many rows each has.
    chosen_TKN : NDArray[np.int64]
        What was chosen.
    seen_TKNF, seen_TK : NDArray
        The rows that each choice goes by, and how many.
    """

    rows_TKNF: NDArray[np.float32]
    sizes_TK: NDArray[np.int64]
    chosen_TKN: NDArray[np.int64]
    seen_TKNF: NDArray[np.float32]
    seen_TK: NDArray[np.int64]


class LeaDQServer(ServerSide):
    """The server's half of LeaDQ: states, rewards, all decisions, and what is learned of them.

    Parameters
    ----------
    strategy : LeaDQ
        The strategy.
    task : Task
        The run.
    """

    def __init__(self, strategy: LeaDQ, task: Task) -> None:
        self._strategy, self._own, self._task = strategy, strategy.parameters, task
        (self._features,) = strategy.report_forms(task)["rows"].columns
        self._learner = ValueLearner(
            strategy.agent_of(task),
            self._mixer(),
            self._rule(),
            torch_generator(task.seed, "leadq.init"),
        )
        self._states: list[NDArray[np.float32]] = []
        self._scores: list[float] = []
        self._rewards: list[float] = []
        self._decisions: list[_Decision] = []
        self._figures: dict[str, float] = {}

    # --- what happens in a cycle --------------------------------------------------------

    def trained(self, cycle: int, held_out: HeldOut | None) -> None:
        """Keep the state after a cycle, and the reward of the decision before it."""
        if held_out is None:
            raise ConfigError(["held-out=0: allowed is at least 1 with strategy='leadq'"])
        if cycle != len(self._states):
            raise ValueError(f"cycle {cycle}: {len(self._states)} cycles are known")
        logits = torch.from_numpy(np.array(held_out.logits_MC))
        labels = torch.from_numpy(np.array(held_out.labels_M))
        self._states.append(state_of(logits, labels, self._own.state).numpy())
        accuracy = 100.0 * float((logits.argmax(dim=1) == labels).double().mean())
        score = accuracy
        if self._own.reward == "loss":
            score = -100.0 * float(_cross_entropies(logits, labels).mean())
        self._figures = {"held-out accuracy": accuracy / 100.0}
        if cycle:
            is_published = cycle == 1 and self._own.reward_start == "published"
            before = 0.1 if is_published else self._scores[-1]
            self._rewards.append(score - before)
            self._figures["reward"] = self._rewards[-1]
        self._scores.append(score)
        if self._own.bootstrap == "published":
            # What comes next is not looked at, so that this is learned from before anybody acts.
            self._learn(cycle)

    def policy(self) -> Arrays:
        """Return the agent, once it acts, and with which probability chance does."""
        first, decision = self._first_acting, len(self._states)
        if decision < first:
            return {}
        agent = {
            f"{_AGENT}{name}": tensor.detach().numpy().copy()
            for name, tensor in self._learner.agent_weights.items()
        }
        return {_EPSILON: np.array([self._epsilon(decision - first)], np.float32), **agent}

    def check_report(self, report: Arrays) -> None:
        """Refuse what no softmax gives, or chooses nothing."""
        rows_RF = np.asarray(report["rows"], np.float64)
        chosen_R = np.asarray(report["chosen"], np.uint8)
        most = _MOST_ROWS if self._task.most_rows is None else self._task.most_rows
        if len(rows_RF) > most:
            raise ValueError(f"rows: {len(rows_RF)}; allowed are at most {most}")
        if not (np.isfinite(rows_RF).all() and (rows_RF >= 0).all()):
            raise ValueError("rows: allowed are finite numbers of at least 0")
        lowest = 1.0 if self._own.report == "probabilities" else 1 / self._task.num_classes
        sums_R = rows_RF.sum(axis=1)
        if ((sums_R < lowest - _ROUNDING) | (sums_R > 1 + _ROUNDING)).any():
            raise ValueError(f"rows: allowed are sums from {lowest:g} to 1, within {_ROUNDING:g}")
        if (chosen_R > 1).any() or not chosen_R.any():
            raise ValueError("chosen: allowed are 0 and 1, and at least one 1")

    def reported(self, cycle: int, reports: Mapping[int, Arrays]) -> None:
        """Keep a decision, and learn: what clients see next of the one before is known now."""
        clients, nothing = range(self._task.num_clients), np.zeros((0, self._features), np.float32)
        there = {client: reports[client] for client in clients if client in reports}
        sizes = [len(there[client]["rows"]) if client in there else 0 for client in clients]
        rows = [np.asarray(report["rows"], np.float32) for report in there.values()]
        chosen = [np.asarray(report["chosen"], np.uint8) for report in there.values()]
        self._decisions.append(
            _Decision(
                np.array(sizes, np.int64),
                np.concatenate([nothing, *rows]),
                np.concatenate([np.zeros(0, np.uint8), *chosen]),
            )
        )
        if rows:
            pairs = zip(rows, chosen, strict=True)
            by_doubt = [_is_least_confident(*pair) for pair in pairs]
            self._figures["share of least confidence"] = float(np.mean(by_doubt))
        decision = cycle + 1
        if decision >= self._first_acting:
            self._figures["epsilon"] = self._epsilon(decision - self._first_acting)
            self._figures["correlation with doubt"] = self._correlation_with_doubt()
        if self._own.bootstrap == "continue":
            self._learn(cycle)

    def figures(self) -> Mapping[str, float]:
        """Return this cycle's reward, accuracy, loss, exploration, and how values go with doubt."""
        return dict(self._figures)

    # --- learning -----------------------------------------------------------------------

    def _learn(self, cycle: int) -> None:
        """Learn of the first so many decisions as there are rewards."""
        if cycle < self._own.learn_from:
            return
        seed = self._task.seed
        # On one thread, so that no sum depends on how many there are.
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            loss = self._learner.learn(
                self._replay(), lambda step: numpy_generator(seed, "leadq.replay", cycle, step)
            )
        finally:
            torch.set_num_threads(threads)
        self._figures["TD loss"] = loss

    def _correlation_with_doubt(self) -> float:
        """Return how the acting agent's values go with 1 - max p of the newest arrivals.

        Pearson's correlation over the arrivals of a client, the mean over those that have two
        different values and doubts; 0 where none has.
        """
        known = self._known()
        decision = len(self._decisions)
        first = decision - self._strategy.remembered_steps_of(decision)
        steps = slice(first - 1, decision)
        with torch.no_grad():
            values_KN = self._strategy.agent_of(self._task).unrolled(
                self._learner.agent_weights,
                torch.from_numpy(known.seen_TKNF[steps])[None],
                torch.from_numpy(known.seen_TK[steps])[None],
                [True] + [False] * (decision - first),
            )[0, -1]
        found = []
        for client, size in enumerate(known.sizes_TK[-1].tolist()):
            values_N = values_KN[client, :size].double().numpy()
            doubts_N = 1.0 - known.rows_TKNF[-1, client, :size].max(axis=1).astype(np.float64)
            if known.seen_TK[-1, client] and size > 1 and np.ptp(values_N) and np.ptp(doubts_N):
                found.append(float(np.corrcoef(values_N, doubts_N)[0, 1]))
        return float(np.mean(found)) if found else 0.0

    def _replay(self) -> Replay:
        known = self._known()
        return replay_of(
            torch.from_numpy(known.seen_TKNF),
            torch.from_numpy(known.seen_TK),
            torch.from_numpy(known.sizes_TK),
            torch.from_numpy(known.chosen_TKN),
            torch.from_numpy(np.stack(self._states)),
            torch.tensor(self._rewards, dtype=torch.float32),
            self._own.episode,
            self._rule(),
        ).newest(self._own.buffer)

    def _known(self) -> _Known:
        sizes_TK = np.stack([each.sizes_K for each in self._decisions])
        most = int(sizes_TK.max(initial=1))
        if self._own.agent == "flat":
            most = self._task.most_rows or most
        is_row_TKN = np.arange(most) < sizes_TK[..., None]
        rows_TKNF = np.zeros((*is_row_TKN.shape, self._features), np.float32)
        rows_TKNF[is_row_TKN] = np.concatenate([each.rows_RF for each in self._decisions])
        chosen_TKN = np.zeros(is_row_TKN.shape, np.int64)
        chosen_TKN[is_row_TKN] = np.concatenate([each.chosen_R for each in self._decisions])
        seen_TKNF, seen_TK = rows_TKNF, sizes_TK
        if self._own.observe == "previous":
            seen_TKNF = np.concatenate([np.zeros_like(rows_TKNF[:1]), rows_TKNF[:-1]])
            before_TK = np.concatenate([np.zeros_like(sizes_TK[:1]), sizes_TK[:-1]])
            seen_TK = np.where(sizes_TK > 0, before_TK, 0)
        return _Known(rows_TKNF, sizes_TK, chosen_TKN, seen_TKNF, seen_TK)

    def _mixer(self) -> Mixer:
        if self._own.mixer == "vdn":
            return Sum()
        own, task = self._own, self._task
        return MonotonicMixer(task.held_out, task.num_clients, own.mixing, own.mixing_layers)

    def _rule(self) -> LearningRule:
        own = self._own
        return LearningRule(
            discount=own.gamma,
            learning_rate=own.learning_rate,
            clip=own.clip,
            steps=own.gradient_steps,
            batch=own.batch,
            target_every=own.target_every,
            trains_mixer=own.train_mixer,
            outcome_state=own.target_state == "published",
            stream_ends=own.bootstrap == "published",
            target_forgets=own.memory == "reset",
        )

    @property
    def _first_acting(self) -> int:
        """The first decision that the policy takes."""
        if self._own.cold_start:
            return self._own.cold_start + 1
        return self._own.learn_from + (1 if self._own.bootstrap == "published" else 2)

    def _epsilon(self, cycles: int) -> float:
        """Return the probability of a random choice, so many cycles after the first."""
        own = self._own
        share = min(1.0, cycles / own.epsilon_cycles)
        return own.epsilon_start + (own.epsilon_end - own.epsilon_start) * share

    # --- state --------------------------------------------------------------------------

    def state(self) -> Arrays:
        """Return the networks, all decisions, states and rewards."""
        decisions = self._decisions
        clients = self._task.num_clients
        return {
            **{f"learner.{name}": values for name, values in self._learner.state().items()},
            "states": np.array(self._states, np.float32).reshape(-1, self._task.held_out),
            "scores": np.array(self._scores, np.float64),
            "rewards": np.array(self._rewards, np.float64),
            "sizes": np.array([d.sizes_K for d in decisions], np.int64).reshape(-1, clients),
            "rows": np.concatenate(
                [np.zeros((0, self._features), np.float32), *(d.rows_RF for d in decisions)]
            ),
            "chosen": np.concatenate([np.zeros(0, np.uint8), *(d.chosen_R for d in decisions)]),
        }

    def restore(self, state: Arrays) -> None:
        """Be as it was when this was its state."""
        learner = "learner."
        self._learner.restore(
            {n.removeprefix(learner): v for n, v in state.items() if n.startswith(learner)}
        )
        self._states = list(np.asarray(state["states"], np.float32))
        self._scores = np.asarray(state["scores"], np.float64).tolist()
        self._rewards = np.asarray(state["rewards"], np.float64).tolist()
        sizes_TK = np.asarray(state["sizes"], np.int64)
        ends_T = np.cumsum(sizes_TK.sum(axis=1))[:-1]
        rows = np.split(np.asarray(state["rows"], np.float32), ends_T)
        chosen = np.split(np.asarray(state["chosen"], np.uint8), ends_T)
        self._decisions = [_Decision(*parts) for parts in zip(sizes_TK, rows, chosen, strict=False)]


def state_of(logits_MC: Tensor, labels_M: Tensor, kind: str) -> Tensor:
    """Return what a mixer sees of held-out samples, float32. Shape (M,).

    Parameters
    ----------
    logits_MC, labels_M : Tensor
        What the model makes of them, and their classes.
    kind : str
        `confidence` or `cross-entropy`.
    """
    if kind == "cross-entropy":
        return _cross_entropies(logits_MC, labels_M).float()
    return torch.softmax(logits_MC.double(), dim=1).max(dim=1).values.float()


def _cross_entropies(logits_MC: Tensor, labels_M: Tensor) -> Tensor:
    logs_MC = torch.log_softmax(logits_MC.double(), dim=1)
    return -logs_MC.gather(1, labels_M[:, None]).squeeze(1)


def _is_least_confident(rows_NF: NDArray[np.float32], chosen_N: NDArray[np.uint8]) -> bool:
    """Tell whether a choice is the one that least confidence makes."""
    confidence_N, is_chosen_N = rows_NF.max(axis=1), chosen_N.astype(bool)
    left_N = confidence_N[~is_chosen_N]
    return bool(confidence_N[is_chosen_N].max() <= left_N.min(initial=np.inf))


def _padded(rows_NF: Tensor, places: int) -> Tensor:
    return torch.nn.functional.pad(rows_NF, (0, 0, 0, places - len(rows_NF)))


def _named(arrays: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): v for n, v in arrays.items() if n.startswith(prefix)}
