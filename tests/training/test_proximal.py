"""The proximal term of FedProx, alone, in training, and beside KCFU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from support.small_training import CPU, RECIPE, ROWS, generator, make_images, make_model
from torch.nn.functional import cross_entropy

from ahfal_app.config import parse_settings
from ahfal_app.query import make_strategy
from ahfal_app.server.aggregation import make_aggregation
from ahfal_app.training.local_updates.core.base import LocalSituation, Objective
from ahfal_app.training.objectives import make_local_update, make_objective
from ahfal_app.training.proximal import ProximalTerm
from ahfal_app.training.resources import resources
from ahfal_app.training.sgd import LocalUpdate, train_locally


def _anchors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def test_value_and_gradient_on_a_case_computed_by_hand():
    """mu / 2 times the squares of what was moved; its gradient is mu times the move."""
    model = make_model()
    term = ProximalTerm(0.5, _anchors(model), CPU)
    assert term(model).item() == 0
    with torch.no_grad():
        model.head.bias += torch.tensor([1.0, -2.0, 3.0])
    value = term(model)
    assert value.item() == pytest.approx(0.25 * (1 + 4 + 9), rel=1e-6)
    value.backward()
    torch.testing.assert_close(model.head.bias.grad, torch.tensor([0.5, -1.0, 1.5]))
    assert not model.head.weight.grad.any()


def test_a_larger_mu_holds_training_nearer_to_the_global_model():
    images = make_images()
    distances = []
    for mu in (0.0, 0.1, 1.0, 5.0):
        model = make_model()
        anchors = _anchors(model)
        objective = Objective(cross_entropy, ProximalTerm(mu, anchors, CPU))
        labels = images.labels_N[ROWS]
        train_locally(
            LocalUpdate(model, images, ROWS, labels, RECIPE, None, generator(0), objective)
        )
        moved = [(p.detach() - anchors[n]).square().sum() for n, p in model.named_parameters()]
        distances.append(float(torch.stack(moved).sum()))
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] < distances[0] / 2


def _objective(data_dir: Path, **values: object) -> Objective:
    """What a client minimises; the aggregation asks for the term, as the server does."""
    settings = parse_settings({"data-dir": str(data_dir), "num-clients": 3, **values})
    loaded = resources(settings)
    situation = LocalSituation(
        seed=settings.seed,
        client=0,
        cycle=0,
        round=2,
        class_counts_C=np.full(10, 3),
        rows_N=np.arange(30),
        labelled_N=np.arange(0),
        initially_labelled_N=np.arange(0),
        global_tensors={n: t.clone() for n, t in loaded.new_model(0).state_dict().items()},
        is_fresh=False,
    )
    strategy = make_strategy("entropy", {})
    return make_objective(
        make_local_update(settings),
        loaded,
        strategy,
        loaded.recipe(settings),
        situation,
        make_aggregation(settings).proximal_mu,
    )


def test_it_is_added_to_kcfu_and_belongs_to_fedprox_alone(data_dir: Path):
    settings = parse_settings({"data-dir": str(data_dir), "num-clients": 3})
    moved = resources(settings).new_model(0)
    with torch.no_grad():
        moved.head.bias[3] += 2.0
    assert _objective(data_dir).penalty is None
    values: dict[tuple[str, str], float] = {}
    for update in ("plain", "kcfu"):
        for aggregation in ("fedavg", "fedprox"):
            given = {"local-update": update, "aggregation": aggregation}
            if aggregation == "fedprox":
                given |= {"aggregation.proximal-mu": 0.5}
            penalty = _objective(data_dir, **given).penalty
            values[update, aggregation] = penalty(moved).item() if penalty else 0.0
    proximal = 0.25 * 2.0**2
    assert values["plain", "fedavg"] == 0
    assert values["plain", "fedprox"] == pytest.approx(proximal, rel=1e-5)
    assert values["kcfu", "fedavg"] > 1e-3
    assert values["kcfu", "fedprox"] == pytest.approx(values["kcfu", "fedavg"] + proximal, rel=1e-5)
