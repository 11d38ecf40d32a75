"""Networks: counts of the published ResNet-8, its graph, seeds, and small inputs."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor
from torch.nn.functional import batch_norm, conv2d, linear, relu
from torch.utils.flop_counter import FlopCounterMode

from ahfal_app.errors import ConfigError
from ahfal_app.models import build_model, model_names, resolve_model_name

CIFAR = (32, 32, 3)
NAMES = model_names()


def multiply_accumulates(num_classes: int) -> int:
    model = build_model("resnet8", CIFAR, num_classes, 0).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, 32, 32))
    return counter.get_total_flops() // 2


def reference_resnet8(state: dict[str, Tensor], images: Tensor, training: bool) -> Tensor:
    """The published graph, written down once more from its description."""

    def norm(x: Tensor, name: str) -> Tensor:
        mean, var = state[f"{name}.running_mean"].clone(), state[f"{name}.running_var"].clone()
        return batch_norm(x, mean, var, state[f"{name}.weight"], state[f"{name}.bias"], training)

    x = conv2d(images, state["stem.weight"], padding=1)
    for block, stride in enumerate((1, 2, 2)):
        name = f"blocks.{block}"
        shortcut = x
        if stride == 2:
            shortcut = conv2d(x, state[f"{name}.shortcut.weight"], stride=2)
        x = conv2d(x, state[f"{name}.conv1.weight"], stride=stride, padding=1)
        x = relu(norm(x, f"{name}.bn1"))
        x = norm(conv2d(x, state[f"{name}.conv2.weight"], padding=1), f"{name}.bn2")
        x = relu(x + shortcut)
    x = relu(norm(x, "bn"))
    pooled = torch.nn.functional.avg_pool2d(x, 8).flatten(1)
    return linear(pooled, state["head.weight"], state["head.bias"])


def randomised(seed: int) -> torch.nn.Module:
    """A ResNet-8 whose normalisation is not the identity, as after training."""
    model = build_model("resnet8", CIFAR, 10, seed)
    generator = torch.Generator().manual_seed(seed)
    for name, value in model.state_dict().items():
        if "bn" in name and value.is_floating_point():
            value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
    return model


def test_resnet8_has_the_published_counts() -> None:
    model = build_model("resnet8", CIFAR, 10, 0)
    assert sum(parameter.numel() for parameter in model.parameters()) == 77_946
    assert sum(buffer.numel() for buffer in model.buffers()) == 583
    assert len(model.state_dict()) == 46
    assert multiply_accumulates(10) == 12_501_632


def test_resnet8_for_100_classes_has_the_published_counts() -> None:
    model = build_model("resnet8", CIFAR, 100, 0)
    assert sum(parameter.numel() for parameter in model.parameters()) == 83_796
    assert multiply_accumulates(100) == 12_507_392


@pytest.mark.parametrize("training", [False, True])
def test_resnet8_computes_the_published_graph(training: bool) -> None:
    model = randomised(3).train(training)
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        expected = reference_resnet8(state, images, training)
        torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-4)


def test_resnet8_convolutions_start_with_the_published_deviation() -> None:
    weight = build_model("resnet8", CIFAR, 10, 0).state_dict()["blocks.2.conv2.weight"]
    assert float(weight.std()) == pytest.approx(math.sqrt(2 / (9 * 64)), rel=0.02)
    assert abs(float(weight.mean())) < 0.002


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(8, 8, 1), (28, 28, 1), (32, 32, 3), (9, 5, 3)])
def test_logits_are_the_head_of_the_features(name: str, shape: tuple[int, int, int]) -> None:
    model = build_model(name, shape, 7, 0).eval()
    images = torch.rand(3, shape[2], shape[0], shape[1])
    with torch.no_grad():
        features = model.features(images)
        logits = model(images)
    assert features.shape == (3, model.head.in_features)
    assert logits.shape == (3, 7)
    torch.testing.assert_close(logits, linear(features, model.head.weight, model.head.bias))


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_of_one_can_be_trained_on(name: str) -> None:
    model = build_model(name, (8, 8, 1), 10, 0).train()
    assert model(torch.rand(1, 1, 8, 8)).isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_equal_seeds_give_equal_weights_and_leave_the_global_generator_alone(name: str) -> None:
    before = torch.random.get_rng_state()
    first, again, other = (build_model(name, (8, 8, 1), 10, seed) for seed in (5, 5, 6))
    assert torch.equal(torch.random.get_rng_state(), before)
    for key, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[key])
    assert not torch.equal(first.head.weight, other.head.weight)


def test_threads_that_build_at_the_same_time_get_equal_weights() -> None:
    def weights(_: int) -> Tensor:
        return build_model("resnet8", CIFAR, 10, 5).state_dict()["stem.weight"]

    expected = weights(0)
    with ThreadPoolExecutor(4) as threads:
        assert all(torch.equal(each, expected) for each in threads.map(weights, range(200)))


def test_an_unknown_network_is_refused_with_what_is_allowed() -> None:
    with pytest.raises(ConfigError, match=r"model='resnet9': allowed is auto \| resnet8"):
        build_model("resnet9", CIFAR, 10, 0)


def test_auto_is_the_small_network_for_digits_alone() -> None:
    assert resolve_model_name("auto", "digits") == "small-cnn"
    assert resolve_model_name("auto", "cifar10") == "resnet8"
    assert resolve_model_name("resnet8", "digits") == "resnet8"
