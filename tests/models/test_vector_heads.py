"""Heads on vectors: shapes, normalisation, dropout without chance, the same alone and together."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from support.small_training import CPU, RECIPE

from ahfal_app.data.device import DeviceImages
from ahfal_app.data.images import Images
from ahfal_app.errors import ConfigError
from ahfal_app.models import build_model
from ahfal_app.models.core.vectors import CountedDropout
from ahfal_app.training.sgd import LocalUpdate, train_locally
from ahfal_app.training.together.trainer import TogetherTrainer

NUMBERS, CLASSES = 7, 3


@pytest.mark.parametrize(("name", "features"), [("linear", NUMBERS), ("mlp", 256)])
def test_a_head_takes_vectors_and_vectors_as_images(name: str, features: int) -> None:
    model = build_model(name, (1, 1, NUMBERS), CLASSES, 0)
    vectors = torch.randn(5, NUMBERS, generator=torch.Generator().manual_seed(0))
    assert model.features(vectors).shape == (5, features)
    assert torch.equal(model(vectors), model(vectors[:, :, None, None]))
    assert torch.equal(model(vectors), model.head(model.features(vectors)))
    assert torch.equal(model.features_of_map(model.feature_map(vectors)), model.features(vectors))


def test_a_linear_head_is_logistic_regression() -> None:
    model = build_model("linear", (1, 1, NUMBERS), CLASSES, 0)
    vectors = torch.randn(4, NUMBERS, generator=torch.Generator().manual_seed(0))
    expected = vectors @ model.head.weight.T + model.head.bias
    torch.testing.assert_close(model(vectors), expected)
    assert sum(p.numel() for p in model.parameters()) == (NUMBERS + 1) * CLASSES


def test_pixels_are_a_vector_too() -> None:
    assert build_model("linear", (8, 8, 1), 10, 0)(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def test_unit_vectors_have_the_length_that_is_set() -> None:
    model = build_model("linear", (1, 1, 2), CLASSES, 0, {"normalise": "unit", "scale": 5.0})
    features = model.features(torch.tensor([[3.0, 4.0], [-0.6, 0.8], [0.0, 0.0]]))
    torch.testing.assert_close(features, torch.tensor([[3.0, 4.0], [-3.0, 4.0], [0.0, 0.0]]))


def test_batch_normalisation_standardises_and_remembers() -> None:
    model = build_model("linear", (1, 1, 2), CLASSES, 0, {"normalise": "batch"}).train()
    vectors = torch.tensor([[1.0, 10.0], [3.0, 30.0]])
    torch.testing.assert_close(
        model.features(vectors), torch.tensor([[-1.0, -1.0], [1.0, 1.0]]), rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(model.vectors.norm.running_mean, torch.tensor([0.2, 2.0]))


def test_dropout_follows_from_the_step_alone() -> None:
    features = torch.ones(64, 500)
    one, other = CountedDropout(0.3, 500), CountedDropout(0.3, 500)
    first, second = one(features), one(features)
    torch.manual_seed(5)  # Nothing is drawn from it.
    assert torch.equal(other(features), first)
    assert not torch.equal(first, second)
    for dropped in (first, second):
        assert dropped.unique().tolist() == pytest.approx([0.0, 1 / 0.7])
        left_out = dropped == 0
        # 32,000 draws: three standard deviations are 0.008 over all, 0.09 and 0.17 in a line.
        assert abs(float(left_out.float().mean()) - 0.3) < 0.008
        assert float((left_out.float().mean(0) - 0.3).abs().max()) < 0.25
        assert float((left_out.float().mean(1) - 0.3).abs().max()) < 0.12
    # Whether a feature is left out in one step says nothing of the next.
    both = float(((first == 0) & (second == 0)).float().mean())
    assert abs(both - 0.09) < 0.006
    assert torch.equal(one.eval()(features), features)
    assert int(one.steps) == 2


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"dropout": 1.0}, r"model.dropout=1.0: allowed is number, ≥ 0, < 1"),
        ({"normalise": "l2"}, r"model.normalise='l2': allowed is `none` | `unit` | `batch`"),
        ({"hidden": 5}, "model.hidden: 'linear' has no such parameter"),
    ],
)
def test_bad_parameters_are_refused(parameters: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        build_model("linear", (1, 1, 2), CLASSES, 0, parameters)  # type: ignore[arg-type]
    assert message in str(error.value)


@pytest.mark.parametrize("name", ["linear", "mlp"])
@pytest.mark.parametrize(
    "parameters", [{"normalise": "unit"}, {"normalise": "batch", "dropout": 0.4}]
)
def test_together_as_alone(name: str, parameters: dict[str, float | str]) -> None:
    draw = np.random.default_rng(0)
    vectors = draw.normal(size=(60, 1, 1, NUMBERS)).astype(np.float16)
    labels = draw.integers(0, CLASSES, 60)
    images = DeviceImages(Images(vectors, labels), (0.0,) * NUMBERS, (1.0,) * NUMBERS, CPU)  # type: ignore[arg-type]
    images.scale_C, images.shift_C = 255 * images.scale_C.double(), images.shift_C.double()
    sizes = (16, 5, 20)

    def updates() -> list[LocalUpdate]:
        found = []
        for client, size in enumerate(sizes):
            rows = torch.arange(20 * client, 20 * client + size)
            model = build_model(name, (1, 1, NUMBERS), CLASSES, 0, parameters).double()
            generator = torch.Generator().manual_seed(client)
            found.append(
                LocalUpdate(
                    model,
                    images,
                    rows,
                    images.labels_N[rows],
                    dataclasses.replace(RECIPE, local_epochs=3),
                    None,
                    generator,
                )
            )
        return found

    alone, together = updates(), updates()
    losses = [train_locally(update).loss for update in alone]
    results = TogetherTrainer(graphs=False)(together)
    assert [result.loss for result in results] == pytest.approx(losses)
    for one, other in zip(alone, together, strict=True):
        for key, value in one.model.state_dict().items():
            limit = 1e-6 if "running" in key else 1e-10
            torch.testing.assert_close(
                other.model.state_dict()[key], value, rtol=limit, atol=limit, msg=key
            )
