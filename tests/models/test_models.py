"""Networks: published counts, their graphs, seeds, and small inputs."""

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

CIFAR, MNIST = (32, 32, 3), (28, 28, 1)
NAMES = model_names()


def parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def multiply_accumulates(model: torch.nn.Module, shape: tuple[int, int, int]) -> int:
    height, width, channels = shape
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.zeros(1, channels, height, width))
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


def reference_preact_resnet8(state: dict[str, Tensor], images: Tensor, training: bool) -> Tensor:
    """The pre-activation graph, written down once more from its description."""

    def rectified(x: Tensor, name: str) -> Tensor:
        mean, var = state[f"{name}.running_mean"].clone(), state[f"{name}.running_var"].clone()
        weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
        return relu(batch_norm(x, mean, var, weight, bias, training))

    x = conv2d(images, state["stem.weight"], padding=1)
    for block, stride in enumerate((1, 2, 2)):
        name = f"blocks.{block}"
        inner = rectified(x, f"{name}.bn1")
        if stride == 2:
            x = conv2d(inner, state[f"{name}.shortcut.weight"], stride=2)
        inner = conv2d(inner, state[f"{name}.conv1.weight"], stride=stride, padding=1)
        inner = rectified(inner, f"{name}.bn2")
        x = x + conv2d(inner, state[f"{name}.conv2.weight"], padding=1)
    pooled = rectified(x, "bn").mean(dim=(2, 3))
    return linear(pooled, state["head.weight"], state["head.bias"])


REFERENCES = {"resnet8": reference_resnet8, "preact-resnet8": reference_preact_resnet8}


def randomised(name: str, seed: int, parameters: dict[str, int] | None = None) -> torch.nn.Module:
    """A network whose normalisation is not the identity, as after training."""
    model = build_model(name, CIFAR, 10, seed, parameters)
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for value in module.state_dict().values():
                if value.is_floating_point():
                    value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
    return model


@pytest.mark.parametrize(
    ("name", "shape", "num_classes", "head_kernel", "count", "macs"),
    [
        ("resnet8", CIFAR, 10, 3, 77_946, 12_501_632),
        ("resnet8", CIFAR, 100, 3, 83_796, 12_507_392),
        ("resnet8", MNIST, 10, 3, 77_658, 9_345_920),
        ("resnet8", MNIST, 100, 3, 83_508, 9_351_680),
        ("preact-resnet8", CIFAR, 10, 3, 77_850, 12_501_632),
        ("preact-resnet8", MNIST, 10, 3, 77_562, 9_345_920),
        ("mobilenet-v2", CIFAR, 10, 3, 5_513_482, 374_878_720),
        ("mobilenet-v2", CIFAR, 100, 3, 5_628_772, 374_993_920),
        ("mobilenet-v2", MNIST, 10, 3, 5_512_906, 286_567_936),
        ("mobilenet-v2", CIFAR, 10, 1, 2_236_682, 165_163_520),
        ("mobilenet-v2", MNIST, 100, 1, 2_351_396, 126_119_936),
    ],
)
def test_published_counts(
    name: str,
    shape: tuple[int, int, int],
    num_classes: int,
    head_kernel: int,
    count: int,
    macs: int,
) -> None:
    model = build_model(
        name, shape, num_classes, 0, {"head-kernel": head_kernel} if name == "mobilenet-v2" else {}
    )
    assert parameters(model) == count
    assert multiply_accumulates(model, shape) == macs


def test_resnet8_has_the_published_buffers() -> None:
    model = build_model("resnet8", CIFAR, 10, 0)
    assert sum(buffer.numel() for buffer in model.buffers()) == 583
    assert len(model.state_dict()) == 46


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", REFERENCES)
def test_resnets_compute_the_published_graphs(name: str, training: bool) -> None:
    model = randomised(name, 3).train(training)
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        expected = REFERENCES[name](state, images, training)
        torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-4)


def stock_mobilenet(head_kernel: int) -> torch.nn.Module:
    """torchvision's own MobileNetV2, with the strides and the kernel changed from outside."""
    from torchvision.models import MobileNetV2  # Half as long to load as torch itself.

    stages = [
        [1, 16, 1, 1],
        [6, 24, 2, 1],
        [6, 32, 3, 2],
        [6, 64, 4, 2],
        [6, 96, 3, 1],
        [6, 160, 3, 1],
        [6, 320, 1, 1],
    ]
    network = MobileNetV2(num_classes=10, inverted_residual_setting=stages, dropout=0.0)
    network.features[0][0].stride = (1, 1)
    padding = head_kernel // 2
    network.features[18][0] = torch.nn.Conv2d(320, 1280, head_kernel, padding=padding, bias=False)
    return network


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("head_kernel", [1, 3])
def test_mobilenet_computes_the_published_graph(head_kernel: int, training: bool) -> None:
    model = randomised("mobilenet-v2", 3, {"head-kernel": head_kernel}).train(training)
    stock = stock_mobilenet(head_kernel).train(training)
    # Both register their layers in the order of the graph.
    stock.load_state_dict(dict(zip(stock.state_dict(), model.state_dict().values(), strict=True)))
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(model(images), stock(images), rtol=1e-4, atol=1e-4)


def test_mobilenet_starts_with_the_published_deviations() -> None:
    model = build_model("mobilenet-v2", CIFAR, 10, 0)
    assert float(model.head.weight.detach().std()) == pytest.approx(0.01, rel=0.02)
    assert not model.head.bias.any()
    last = [module for module in model.modules() if isinstance(module, torch.nn.Conv2d)][-1]
    assert float(last.weight.detach().std()) == pytest.approx(math.sqrt(2 / (9 * 1280)), rel=0.01)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("resnet8", (64, 8, 8)),
        ("preact-resnet8", (64, 8, 8)),
        ("mobilenet-v2", (1280, 8, 8)),
        ("small-cnn", (32, 32, 32)),
    ],
)
def test_feature_maps_have_the_sizes_of_the_last_layers(
    name: str, size: tuple[int, int, int]
) -> None:
    model = build_model(name, CIFAR, 10, 0).eval()
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        map_BcHW = model.feature_map(images)
        assert map_BcHW.shape == (2, *size)
        assert torch.equal(model.features_of_map(map_BcHW), model.features(images))


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


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_equal_seeds_give_equal_weights_and_leave_the_global_generator_alone(name: str) -> None:
    before = torch.random.get_rng_state()
    first, again, other = (build_model(name, (8, 8, 1), 10, seed) for seed in (5, 5, 6))
    assert torch.equal(torch.random.get_rng_state(), before)
    for key, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[key])
    assert not torch.equal(first.head.weight, other.head.weight)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet8", "mobilenet-v2", "torchvision/shufflenet_v2_x0_5"])
def test_threads_that_build_at_the_same_time_get_equal_weights(name: str) -> None:
    def weights(_: int) -> Tensor:
        first: Tensor = next(build_model(name, (8, 8, 1), 10, 5).parameters())
        return first

    expected = weights(0)
    with ThreadPoolExecutor(4) as threads:
        assert all(torch.equal(each, expected) for each in threads.map(weights, range(12)))


def test_an_unknown_network_is_refused_with_what_is_allowed() -> None:
    with pytest.raises(ConfigError, match=r"model='resnet9': allowed is auto \| linear \| mlp \| "):
        build_model("resnet9", CIFAR, 10, 0)


def test_auto_is_the_small_network_for_digits_alone() -> None:
    assert resolve_model_name("auto", "digits") == "small-cnn"
    assert resolve_model_name("auto", "cifar10") == "resnet8"
    assert resolve_model_name("resnet8", "digits") == "resnet8"
