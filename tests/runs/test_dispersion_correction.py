"""Class statistics less what sampling alone gives them."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import Context, Message
from support.simulation import TINY, Simulation

from ahfal_app.client_app import app as client_app
from ahfal_app.errors import ConfigError
from ahfal_app.forgetting import effective_size, forgotten_counts
from ahfal_app.server.start import prepare

CORRECTS: dict[str, object] = {"dispersion-correction": True, "rounds": 1, "seed": 0}


class Histograms:
    """Answers for a client, and keeps the class counts that it tells."""

    def __init__(self) -> None:
        self.counts: dict[int, dict[int, list[int]]] = {}

    def __call__(self, message: Message, context: Context) -> Message:
        reply = client_app(message, context)
        if message.metadata.message_type == "query.histogram":
            cycle = message.content.config_records["config"]["cycle"]
            client = int(context.node_config["partition-id"])
            counts = reply.content.metric_records["metrics"]["counts"]
            assert isinstance(cycle, int)
            assert isinstance(counts, list)
            self.counts.setdefault(cycle, {})[client] = [int(count) for count in counts]
        return reply

    def told(self, cycle: int) -> np.ndarray:
        """Return the clients' counts of what a cycle was trained on, (K, C)."""
        return np.array([self.counts[cycle][client] for client in range(3)])


def _corrected(shares_KC: np.ndarray, sizes_K: np.ndarray) -> np.ndarray:
    """Return √max(0, σ² - mean p (1 - p) / (N - 1)), as it is printed."""
    noise_C = np.mean(
        [share_C * (1 - share_C) / (n - 1) for share_C, n in zip(shares_KC, sizes_K, strict=True)],
        axis=0,
    )
    corrected_C: np.ndarray = np.sqrt(np.maximum(shares_KC.var(axis=0) - noise_C, 0))
    return corrected_C


def test_what_sampling_gives_is_taken_away_in_a_run(simulation: Simulation) -> None:
    clients = Histograms()
    outcome = simulation(CORRECTS, handler=clients, partition="iid")
    for cycle in outcome.metrics.cycles[:-1]:
        assert cycle.deviation is not None
        counts_KC = clients.told(cycle.cycle)
        sizes_K = counts_KC.sum(axis=1)
        shares_KC = counts_KC / sizes_K[:, None]
        assert cycle.mean == pytest.approx(shares_KC.mean(axis=0))
        assert cycle.deviation == pytest.approx(_corrected(shares_KC, sizes_K))
        # Clients that are alike differ by chance alone, and here nothing of it counts.
        assert (shares_KC.std(axis=0) > np.array(cycle.deviation) + 0.005).any()


def test_old_labels_are_worth_less_in_it(simulation: Simulation) -> None:
    clients = Histograms()
    outcome = simulation(CORRECTS, handler=clients, forget=1.0)
    first, second, _ = outcome.metrics.cycles
    assert first.forgetting is not None
    assert second.forgetting is not None
    old_KC = clients.told(0)
    by_TKC = np.stack([old_KC, clients.told(1) - old_KC])
    weighted_KC = np.array([forgotten_counts(by_TKC[:, k], 1.0) for k in range(3)])
    sizes_K = np.array([effective_size(by_TKC[:, k].sum(axis=1), 1.0) for k in range(3)])
    assert second.forgetting.effective == pytest.approx(sizes_K)
    shares_KC = weighted_KC / weighted_KC.sum(axis=1, keepdims=True)
    assert second.deviation == pytest.approx(_corrected(shares_KC, sizes_K))


def test_without_it_nothing_is_taken_away(simulation: Simulation) -> None:
    clients = Histograms()
    outcome = simulation({**CORRECTS, "dispersion-correction": False}, handler=clients, cycles=2)
    counts_KC = clients.told(0)
    shares_KC = counts_KC / counts_KC.sum(axis=1, keepdims=True)
    assert outcome.metrics.cycles[0].deviation == pytest.approx(shares_KC.std(axis=0))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (
            {"privacy": "secure-aggregation"},
            "dispersion-correction=true: allowed is false with privacy='secure-aggregation'",
        ),
        (
            {"privacy": "local-dp", "privacy.epsilon": 5.0},
            "dispersion-correction=true: allowed is false with privacy='local-dp'",
        ),
        (
            {"dispersion": "coefficient-of-variation"},
            "dispersion-correction=true: allowed is false with "
            "dispersion='coefficient-of-variation'",
        ),
    ],
)
def test_where_nobody_knows_what_to_take_away_it_is_refused(
    settings: dict[str, object], reason: str, simulation: Simulation
) -> None:
    with pytest.raises(ConfigError) as refused:
        prepare({**TINY, **simulation.base, **CORRECTS, **settings})
    assert reason in str(refused.value)
