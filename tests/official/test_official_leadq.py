"""LeaDQ as released: its networks, its choices, and whole runs of its learning."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support.official import Agreement, Looked, Replaced, Settings, official
from support.strategy_cases import context_for, pool_of
from torch import Tensor, nn
from torch.nn import functional

from ahfal_app.query import Signal, checked_select, make_strategy
from ahfal_app.query.core.agents import Agent, FlatAgent, RecurrentAgent
from ahfal_app.query.core.mixing import Mixer, MonotonicMixer, Sum
from ahfal_app.query.core.server_side import Arrays, HeldOut, Task
from ahfal_app.query.leadq import LeaDQ, LeaDQServer

pytestmark = [pytest.mark.official, pytest.mark.usefixtures("_cpu")]

#: Names of the published mixer's layers here.
LAYERS = {
    "first": "hyper_w1",
    "second": "hyper_w2",
    "first-shift": "hyper_b1",
    "second-shift": "hyper_b2.0",
    "value": "hyper_b2.2",
}
LAYERS_OF_TWO = {
    "first-inner": "hyper_w1.0",
    "first": "hyper_w1.2",
    "second-inner": "hyper_w2.0",
    "second": "hyper_w2.2",
}


def networks() -> SimpleNamespace:
    return official(
        "leadq",
        "models/models_for_marl.py",
        ["QMIX_Net", "VDN_Net", "Q_network_RNN", "Q_network_MLP", "orthogonal_init"],
        torch=torch,
        nn=nn,
        F=functional,
    )


def settings(**changes: Any) -> Settings:
    """Return the release's settings, but for sizes; arrivals are as many as clients there."""
    sizes = {"num_classes": 3, "n_arrive": 4, "n_query": 1, "n_eval": 12, "num_users": 4}
    learning = {"batch_size_rl": 4, "episode_limit": 4, "max_train_steps": 5, "gamma": 0.99}
    widths = {"rnn_hidden_dim": 8, "mlp_hidden_dim": 8, "qmix_hidden_dim": 6}
    hyper = {"hyper_hidden_dim": 64, "hyper_layers_num": 1}
    switches = {"use_rnn": True, "use_qmix": True, "use_double_q": True, "use_hard_update": True}
    off = {"use_lr_decay": False, "use_grad_clip": False, "use_orthogonal_init": True}
    others = {"target_update_freq": 7, "tau": 0.005, "device": "cpu", "test_bs": 5}
    return Settings(
        {**sizes, **learning, **widths, **hyper, **switches, **off, **others, **changes}
    )


def drawn(network: nn.Module, generator: torch.Generator) -> nn.Module:
    """Draw all of a network's weights, in double precision."""
    with torch.no_grad():
        for weights in network.parameters():
            weights.copy_(torch.randn(weights.shape, generator=generator) / 2)
    return network.double()


def agents_weights(network: nn.Module, agent: Agent) -> dict[str, Tensor]:
    """Return their agent's weights by our names; both are in the order of the layers."""
    values = network.state_dict().values()
    return dict(zip(agent.shapes, values, strict=True))


def mixers_name(name: str, layers: int) -> str:
    layer, _, kind = name.partition(".")
    return f"{({**LAYERS, **LAYERS_OF_TWO} if layers == 2 else LAYERS)[layer]}.{kind}"


def relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).detach().abs().max() / theirs.detach().abs().max())


@pytest.mark.parametrize(
    ("kind", "published"), [(RecurrentAgent, "Q_network_RNN"), (FlatAgent, "Q_network_MLP")]
)
def test_agent(kind: type[FlatAgent], published: str, agreement: Agreement) -> None:
    """Values over episodes of nine, of the sizes of the release."""
    worst = 0.0
    for seed in range(10):
        generator = torch.Generator().manual_seed(seed)
        args = settings(rnn_hidden_dim=64, mlp_hidden_dim=64)
        network: Any = drawn(getattr(networks(), published)(args, 100, 10), generator)
        agent = kind(10, 10, 64)
        rows_ESKNF = torch.randn(4, 9, 10, 10, 10, generator=generator).double().softmax(dim=-1)
        theirs = [network(rows_ESKNF[:, step].reshape(40, 100)) for step in range(9)]
        theirs_ESKN = torch.stack([each.reshape(4, 10, 10) for each in theirs], dim=1)
        ours_ESKN = agent.unrolled(
            agents_weights(network, agent),
            rows_ESKNF,
            torch.full((4, 9, 10), 10),
            [True] + [False] * 8,
        )
        worst = max(worst, relative(ours_ESKN, theirs_ESKN))
    agreement.add(
        "leadq",
        f"leadq: `{published}`",
        "values of 10 arrivals of 10 clients, 40 episodes of 9",
        f"to {worst:.0e} of the largest",
    )
    assert worst < 1e-12


@pytest.mark.parametrize("layers", [1, 2, 0])
def test_mixer(layers: int, agreement: Agreement) -> None:
    """With one layer, with two, and the plain sum."""
    worst = worst_slope = 0.0
    for seed in range(10):
        generator = torch.Generator().manual_seed(seed)
        values_ELK = torch.randn(4, 9, 10, generator=generator).double().requires_grad_()
        states_ELM = torch.rand(4, 9, 1000, generator=generator).double()
        if layers:
            args = settings(qmix_hidden_dim=32, hyper_layers_num=layers)
            network: Any = drawn(networks().QMIX_Net(args, 1000, 10), generator)
            mixer: Mixer = MonotonicMixer(1000, 10, 32, layers)
            published = network.state_dict()
            weights = {name: published[mixers_name(name, layers)] for name in mixer.shapes}
            assert len(published) == len(weights)
            theirs_EL = network(values_ELK, states_ELM)[..., 0]
        else:
            mixer, weights = Sum(), {}
            theirs_EL = networks().VDN_Net()(values_ELK)[..., 0]
        ours_EL = mixer.mixed(mixer.mixing(weights, states_ELM), values_ELK)
        slopes = [torch.autograd.grad(each.sum(), values_ELK)[0] for each in (ours_EL, theirs_EL)]
        worst = max(worst, relative(ours_EL, theirs_EL))
        worst_slope = max(worst_slope, relative(*slopes))
    how = {0: "", 1: ", one layer", 2: ", two layers"}[layers]
    agreement.add(
        "leadq",
        f"leadq: `{'QMIX_Net' if layers else 'VDN_Net'}`",
        f"value of 10 clients by 1,000 numbers, 360 times{how}",
        f"to {worst:.0e} of the largest, slopes to {worst_slope:.0e}",
    )
    assert max(worst, worst_slope) < 1e-12


class Samples(torch.utils.data.Dataset[Any]):
    """Rows of a table of logits, from some row on, with labels."""

    def __init__(self, first: int, labels: NDArray[np.int64]) -> None:
        self.first, self.labels = first, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        return torch.tensor(self.first + row), int(self.labels[row])


class Draws:
    """Which episodes a step learns from: never the first, of which ours saw less."""

    def __init__(self, cycle: int, step: int) -> None:
        self._random = np.random.default_rng((cycle, step))

    def choice(self, number: int, size: int, **options: Any) -> NDArray[np.int64]:
        return self._random.choice(np.arange(1, number), size, replace=False)


class Run:
    """A run of streams without networks: both sides see the same logits.

    Arrivals of their round r, which begins at -1, are the K A rows from (r + 1) K A on, A of each
    of K clients; what the model of each round makes of the held-out samples is drawn.
    """

    def __init__(self, seed: int, rounds: int, args: Settings) -> None:
        self.args, self.rounds, self.seed = args, rounds, seed
        random = np.random.default_rng(seed)
        self.clients, self.arrivals = int(args.num_users), int(args.n_arrive)
        total = (rounds + 1) * self.clients * self.arrivals
        self.logits = 2 * random.normal(size=(total, args.num_classes)).astype(np.float32)
        held_out = random.normal(size=(rounds + 1, args.n_eval, args.num_classes))
        self.held_out = held_out.astype(np.float32)
        self.labels = random.integers(0, args.num_classes, args.n_eval)

    def first_of(self, round_: int, client: int) -> int:
        return ((round_ + 1) * self.clients + client) * self.arrivals

    def network(self, round_: int) -> Looked:
        """Return the global model after a round: logits of all samples."""
        held_out = self.held_out[round_ + 1]
        table = torch.from_numpy(np.concatenate([self.logits, held_out]))
        return Looked(table, table)


class Theirs:
    """The authors' environment, as their main program goes through it."""

    def __init__(self, run: Run, told: list[float]) -> None:
        self.run, self._told = run, told
        self.cycle = self.step = 0
        self.reward = 0.0
        split = official(
            "leadq",
            "query_strategies/strategy.py",
            ["DatasetSplit"],
            Dataset=torch.utils.data.Dataset,
        ).DatasetSplit
        module = official(
            "leadq",
            "util/env_for_marl.py",
            ["FLEnv", "QLearner", "ReplayBuffer"],
            torch=torch,
            nn=nn,
            np=Replaced(np, random=SimpleNamespace(choice=self._choice)),
            DataLoader=torch.utils.data.DataLoader,
            Variable=torch.autograd.Variable,
            DatasetSplit=split,
            wandb=SimpleNamespace(log=lambda values: None),
            print=lambda *words: None,
            **vars(networks()),
        )
        rows = len(run.logits)
        dataset = Samples(0, np.zeros(rows, np.int64))
        self.store: dict[str, Any] = {
            "dataset_eval": Samples(rows, run.labels),
            "dataset_query": dataset,
            "dataset_train": dataset,
        }
        self.env = module.FLEnv(Settings({**run.args, "n_train_tot": rows}), self.store)
        self._next: Tensor | None = None

    def _choice(self, number: int, size: int, replace: bool) -> NDArray[np.int64]:
        self.step += 1
        return Draws(self.cycle, self.step - 1).choice(number, size)

    def arrive(self, arrived: dict[int, NDArray[np.int64]]) -> None:
        self.store["dict_users_train_arrive"] = arrived

    def choose(self, round_: int) -> tuple[list[NDArray[np.int64]], list[list[int]]]:
        """Return what each client chooses, and where it lies among its arrivals."""
        self._observed, self._next = self._next, None
        chosen, places = self.env.make_action(
            self._observed, self.store["dict_users_train_arrive"], self.run.network(round_ - 1)
        )
        return chosen, places

    def trained(self, round_: int, places: list[list[int]] | None) -> list[float]:
        """Observe, and learn where something was chosen; return the losses of the steps."""
        network, self._told[:] = self.run.network(round_), []
        self._next = self.env.get_observation(network, self.store, self.run.args)
        if places is not None:
            feedback = self.reward, _ = self.env.step(network)
            self.env.collect_info(self._observed, places, feedback, self._next)
            self.cycle, self.step = round_ + 1, 0
            self.env.learn()
        return list(self._told)

    def take_over(self, state: Arrays, layers: int) -> None:
        """Begin with the weights that ours begins with."""
        learner = self.env.agents_n
        ours = {name: torch.from_numpy(np.array(values)) for name, values in state.items()}
        agent = [v for name, v in ours.items() if name.startswith("learner.agent.")]
        mixer = {
            mixers_name(name.removeprefix("learner.mixer."), layers): values
            for name, values in ours.items()
            if name.startswith("learner.mixer.")
        }
        for network in (learner.eval_Q_net, learner.target_Q_net):
            network.load_state_dict(dict(zip(network.state_dict(), agent, strict=True)))
        for network in (learner.eval_mix_net, learner.target_mix_net):
            network.load_state_dict(mixer)


@contextmanager
def losses_told(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """Collect what gradients are taken of."""
    told: list[float] = []
    backward: Any = Tensor.backward

    def telling(loss: Tensor, *arguments: Any, **options: Any) -> None:
        told.append(float(loss.detach()))
        backward(loss, *arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(Tensor, "backward", telling)
        yield told


def released(**changes: Any) -> LeaDQ:
    """Return our strategy with all departures of the release, at the sizes of `settings`."""
    values: dict[str, Any] = {
        "order": "arrival",
        "memory": "reset",
        "observe": "previous",
        "state": "cross-entropy",
        "train-mixer": False,
        "target-state": "published",
        "bootstrap": "published",
        "episode": 3,
        "learn-from": 16,
        "cold-start": 6,
        "epsilon-start": 0.0,
        "epsilon-end": 0.0,
        "epsilon-cycles": 1,
        "reward-start": "published",
        "learning-rate": 0.01,
        "clip": 0.0,
        "gradient-steps": 5,
        "batch": 4,
        "target-every": 7,
        "hidden": 8,
        "mixing": 6,
    }
    return cast(LeaDQ, make_strategy("leadq", {**values, **changes}))


#: Settings of the release, and ours beside them.
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "as released": ({}, {}),
    "two labels, two layers": (
        {"n_query": 2, "hyper_layers_num": 2},
        {"mixing-layers": 2},
    ),
    "without memory": ({"use_rnn": False}, {"memory": "none"}),
    "sum as mixer": ({"use_qmix": False}, {"mixer": "vdn"}),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_runs(variant: str, agreement: Agreement, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds of arrivals, choices, rewards and learning; both learn from the same choices."""
    monkeypatch.setattr(
        "ahfal_app.query.leadq.numpy_generator", lambda seed, purpose, *where: Draws(*where)
    )
    changed, own = VARIANTS[variant]
    args, rounds = settings(**changed), 40
    choices: list[tuple[bool, bool]] = []
    worst_loss = worst_weight = 0.0
    learnings = 0
    for seed in range(3):
        run, strategy = Run(seed, rounds, args), released(**own)
        sizes = (run.clients, int(args.n_eval), run.arrivals)
        task = Task(seed, int(args.num_classes), sizes[0], held_out=sizes[1], most_rows=sizes[2])
        server = cast(LeaDQServer, strategy.server_side(task))
        with losses_told(monkeypatch) as told:
            theirs = Theirs(run, told)
            theirs.take_over(server.state(), int(args.hyper_layers_num))
            theirs.arrive(arrived_of(run, -1))
            theirs.trained(-1, None)
            history: list[dict[int, Arrays]] = [{} for _ in range(run.clients)]
            losses: list[float] = []
            for round_ in range(rounds):
                server.trained(round_, HeldOut(run.held_out[round_], run.labels))
                if round_:
                    own_reward = server.figures()["reward"]
                    assert own_reward == pytest.approx(theirs.reward, abs=1e-9)
                if losses:
                    learnings += 1
                    own_loss = server.figures()["TD loss"]
                    worst_loss = max(worst_loss, abs(own_loss / np.mean(losses) - 1))
                policy = {n: torch.from_numpy(np.array(v)) for n, v in server.policy().items()}
                theirs.arrive(arrived_of(run, round_))
                chosen, places = theirs.choose(round_)
                reports: dict[int, Arrays] = {}
                for client in range(run.clients):
                    first = run.first_of(round_, client)
                    pool = pool_of({Signal.GLOBAL_LOGITS: run.logits[first : first + run.arrivals]})
                    context = context_of(run, round_, client, policy, history[client])
                    ours = checked_select(strategy, pool, context)
                    ids = np.asarray(chosen[client]) - first
                    choices.append((bool(policy), set(ours.tolist()) == set(ids.tolist())))
                    reports[client] = strategy.report(pool, context, ids)
                    history[client] = {round_ + 1: reports[client]}
                server.reported(round_, reports)
                losses = theirs.trained(round_, places)
            server.trained(rounds, HeldOut(run.held_out[rounds], run.labels))
        published = theirs.env.agents_n.eval_Q_net.state_dict().values()
        learned = [v for n, v in server.state().items() if n.startswith("learner.agent.")]
        for values, expected in zip(learned, published, strict=True):
            worst_weight = max(worst_weight, relative(torch.from_numpy(values), expected))
    acting = [equal for acts, equal in choices if acts]
    cold = [equal for acts, equal in choices if not acts]
    agreement.add(
        "leadq",
        "leadq: `FLEnv.make_action`, `step`, `collect_info`, `learn`",
        f"3 runs of {rounds} rounds, {variant}: choices of least confidence and by the policy, "
        "losses, weights in the end",
        f"{sum(cold)} of {len(cold)} and {sum(acting)} of {len(acting)} equal; {learnings} losses "
        f"to {worst_loss:.0e} and weights to {worst_weight:.0e} of the largest",
    )
    assert all(cold)
    assert all(acting)
    assert len(cold) == 3 * 6 * 4
    assert learnings == 3 * 24
    assert worst_loss < 1e-3
    assert worst_weight < 1e-2


def test_other_numbers_of_arrivals(agreement: Agreement, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their first learning fails, unless a client has as many arrivals as there are clients."""
    run = Run(0, 16, settings(n_arrive=5))
    with losses_told(monkeypatch) as told:
        theirs = Theirs(run, told)
        theirs.arrive(arrived_of(run, -1))
        theirs.trained(-1, None)
        for round_ in range(16):
            theirs.arrive(arrived_of(run, round_))
            _, places = theirs.choose(round_)
            if round_ < 15:
                assert theirs.trained(round_, places) == []
        with pytest.raises(IndexError):
            theirs.trained(15, places)
    agreement.add(
        "leadq",
        "leadq: `QLearner.train`",
        "5 arrivals of each of 4 clients",
        "fails there, at its first learning: arrivals by clients mask clients by arrivals",
    )


def arrived_of(run: Run, round_: int) -> dict[int, NDArray[np.int64]]:
    """Return each client's arrivals, in the order that ours takes for that of their coming."""
    arrived = {}
    for client in range(run.clients):
        order = context_of(run, round_, client).generator("leadq.order").permutation(run.arrivals)
        arrived[client] = run.first_of(round_, client) + order
    return arrived


def context_of(run: Run, round_: int, client: int, policy: Any = None, history: Any = ()) -> Any:
    return context_for(
        int(run.args.n_query),
        int(run.args.num_classes),
        seed=run.seed,
        client=client,
        cycle=round_ + 1,
        policy=policy or None,
        history=dict(history),
    )
