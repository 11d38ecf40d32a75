"""Networks of torchvision's and of other packages: adaptation, refusals, whole runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file
from support.registering import register
from support.simulation import Simulation
from torch import Tensor, nn
from torch.nn.functional import conv2d, dropout, linear

from ahfal_app.errors import ConfigError, DuplicateComponent
from ahfal_app.models import Classifier, build_model, model_names, model_problem
from ahfal_app.models.core.batch_norm import BatchNorm2d
from ahfal_app.plugins import MODELS
from ahfal_app.server.preflight import check_data, check_settings

#: One of each kind that is adapted: residual, with dropout, with stochastic depth, windows.
FAMILIES = (
    "resnet18",
    "mobilenet_v3_small",
    "efficientnet_b0",
    *(
        pytest.param(name, marks=pytest.mark.slow)
        for name in ("convnext_tiny", "densenet121", "googlenet", "regnet_y_400mf", "swin_t")
    ),
)

#: One cycle of one round.
SHORT: dict[str, object] = {
    "num-clients": 2,
    "cycles": 2,
    "rounds": 1,
    "initial-fraction": 0.03,
    "query-fraction": 0.02,
    "max-test-samples": 60,
    "precision": "fp32",
}


class OwnClassifier(Classifier):
    """A network with a map of its own, and dropout."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(channels, 8, 3, padding=1)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(8, num_classes)

    def features(self, images_BcHW: Tensor) -> Tensor:
        return self.features_of_map(self.feature_map(images_BcHW))

    def feature_map(self, images_BcHW: Tensor) -> Tensor:
        map_BcHW: Tensor = self.convolution(images_BcHW).relu()
        return map_BcHW

    def features_of_map(self, map_BcHW: Tensor) -> Tensor:
        features_BD: Tensor = self.dropout(map_BcHW.mean(dim=(2, 3)))
        return features_BD


class WrongWidth(OwnClassifier):
    def features_of_map(self, map_BcHW: Tensor) -> Tensor:
        return map_BcHW.flatten(1)

    def features(self, images_BcHW: Tensor) -> Tensor:
        return OwnClassifier.features_of_map(self, self.feature_map(images_BcHW))


class OtherMap(OwnClassifier):
    def feature_map(self, images_BcHW: Tensor) -> Tensor:
        return super().feature_map(images_BcHW) + 1

    def features(self, images_BcHW: Tensor) -> Tensor:
        return self.features_of_map(super().feature_map(images_BcHW))


class TwoOutputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(64, 10)

    def forward(self, images_BcHW: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        logits_BC: Tensor = self.last(images_BcHW.flatten(1))
        return (logits_BC, logits_BC) if self.training else logits_BC


class FunctionalDropout(nn.Module):
    def forward(self, values_BD: Tensor) -> Tensor:
        return dropout(values_BD, 0.5, self.training)


Shape = tuple[int, int, int]


def build_own(image_shape: Shape, num_classes: int) -> nn.Module:
    return OwnClassifier(image_shape[2], num_classes)


def build_wrong_width(image_shape: Shape, num_classes: int) -> nn.Module:
    return WrongWidth(image_shape[2], num_classes)


def build_other_map(image_shape: Shape, num_classes: int) -> nn.Module:
    return OtherMap(image_shape[2], num_classes)


def build_two_outputs(image_shape: Shape, num_classes: int) -> nn.Module:
    return TwoOutputs()


def build_functional_dropout(image_shape: Shape, num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), FunctionalDropout(), nn.Linear(64, num_classes))


def build_rrelu(image_shape: Shape, num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.RReLU(), nn.Linear(8, num_classes))


def build_lazy(image_shape: Shape, num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(12), nn.ReLU(), nn.Linear(12, num_classes))


def build_softmax(image_shape: Shape, num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes), nn.Softmax(1))


def build_too_many_classes(image_shape: Shape, num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes + 1))


def build_not_for_one(image_shape: Shape, num_classes: int) -> nn.Module:
    norm = nn.BatchNorm1d(64, track_running_stats=False)
    return nn.Sequential(nn.Flatten(), norm, nn.Linear(64, num_classes))


def build_normalised_vectors(image_shape: Shape, num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, num_classes))


class Tied(nn.Module):
    """Two layers with one weight, and one normalisation that is used twice."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(channels, 8, 3, padding=1)
        self.first = nn.Conv2d(8, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.second.weight = self.first.weight
        self.norm = nn.BatchNorm2d(8)
        self.same_norm = self.norm
        self.last = nn.Linear(8, num_classes)

    def forward(self, images_BcHW: Tensor) -> Tensor:
        map_BcHW = self.norm(self.first(self.stem(images_BcHW))).relu()
        map_BcHW = self.same_norm(self.second(map_BcHW)).relu()
        logits_BC: Tensor = self.last(map_BcHW.mean(dim=(2, 3)))
        return logits_BC


def build_tied(image_shape: Shape, num_classes: int) -> nn.Module:
    return Tied(image_shape[2], num_classes)


def build_nothing(image_shape: Shape, num_classes: int) -> str:
    return "no network"


def images(size: int, shape: Shape) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(size, shape[2], shape[0], shape[1], generator=generator)


def refusal(name: str, shape: Shape = (8, 8, 1)) -> str:
    with pytest.raises(ConfigError) as caught:
        build_model(name, shape, 10, 0)
    (problem,) = caught.value.problems
    return problem


def test_other_batch_norms_take_a_single_value_by_their_running_statistics(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    register(monkeypatch, MODELS, "odd", f"{__name__}:build_normalised_vectors")
    model = build_model("odd", (8, 8, 1), 10, 0)
    model(images(4, (8, 8, 1)))
    one, few = images(1, (8, 8, 1)), images(3, (8, 8, 1))
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    trained = model(one)
    assert all(torch.equal(value, buffers[name]) for name, value in model.named_buffers())
    torch.testing.assert_close(trained, model.eval()(one))
    model.train()
    # A second pass, as KCFU has one, moves the statistics and changes no gradient of the first.
    gradients = []
    for passes in (1, 2):
        model.load_state_dict({**model.state_dict(), **buffers})
        loss = model(one).square().sum()
        if passes == 2:
            model(few)
        gradients.append(torch.autograd.grad(loss, list(model.parameters())))
    assert any(not torch.equal(b, buffers[name]) for name, b in model.named_buffers())
    for first, second in zip(*gradients, strict=True):
        torch.testing.assert_close(first, second)


class TestTorchvision:
    @pytest.mark.slow
    @pytest.mark.parametrize("family", FAMILIES)
    def test_a_network_of_each_kind(self, family: str) -> None:
        model = build_model(f"torchvision/{family}", (32, 32, 3), 7, 0)
        assert model.training
        model.eval()
        batch = images(2, (32, 32, 3))
        with torch.no_grad():
            features, logits = model.features(batch), model(batch)
            of_map = model.features_of_map(model.feature_map(batch))
        assert features.shape == (2, model.head.in_features)
        assert torch.equal(features, of_map)
        assert torch.equal(logits, linear(features, model.head.weight, model.head.bias))

        # Nothing is drawn in training, and one image is enough.
        model.train()
        before = torch.random.get_rng_state()
        model(images(1, (32, 32, 3))).square().mean().backward()
        assert torch.equal(torch.random.get_rng_state(), before)
        assert all(parameter.grad is not None for parameter in model.parameters())

    def test_equal_seeds_give_equal_states(self) -> None:
        before = torch.random.get_rng_state()
        first, again, other = (
            build_model("torchvision/mobilenet_v3_small", (32, 32, 1), 10, seed).state_dict()
            for seed in (5, 5, 6)
        )
        assert torch.equal(torch.random.get_rng_state(), before)
        assert all(torch.equal(value, again[name]) for name, value in first.items())
        assert not torch.equal(first["head.weight"], other["head.weight"])

    def test_trying_it_leaves_no_trace_in_batch_norm(self) -> None:
        model = build_model("torchvision/resnet18", (32, 32, 3), 10, 0)
        norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
        assert len(norms) == 20
        assert all(type(norm) is BatchNorm2d for norm in norms)
        for norm in norms:
            assert norm.running_mean is not None
            assert norm.num_batches_tracked is not None
            assert not norm.running_mean.any()
            assert not norm.num_batches_tracked.any()

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("side", "stride", "has_pooling"), [(32, 1, False), (64, 1, False), (65, 2, True)]
    )
    def test_the_stem_fits_small_images(self, side: int, stride: int, has_pooling: bool) -> None:
        model = build_model("torchvision/resnet18", (side, side, 3), 10, 0)
        network = model.get_submodule("network")
        assert isinstance(network.conv1, nn.Conv2d)
        assert network.conv1.stride == (stride, stride)
        assert isinstance(network.maxpool, nn.MaxPool2d) is has_pooling

    @pytest.mark.parametrize(
        ("name", "stride"),
        [("resnet18", 1), pytest.param("convnext_tiny", 4, marks=pytest.mark.slow)],
    )
    def test_grey_images_are_seen_as_three_equal_channels(self, name: str, stride: int) -> None:
        one, three = (
            next(
                module
                for module in build_model(f"torchvision/{name}", (32, 32, c), 10, 3).modules()
                if isinstance(module, nn.Conv2d)
            )
            for c in (1, 3)
        )
        # Other strides than 2 are part of a network's design.
        assert one.stride == three.stride == (stride, stride)
        batch = images(2, (32, 32, 1))
        wide = batch.expand(-1, 3, -1, -1)
        expected = conv2d(wide, three.weight, three.bias, three.stride, three.padding)
        torch.testing.assert_close(one(batch), expected, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize(
        ("name", "reason"),
        [
            ("squeezenet1_1", "allowed is a network that ends in an nn.Linear; it has none"),
            pytest.param(
                "vit_b_32",
                "2 images of 32x32x3 in evaluation mode; it says: Wrong image height",
                marks=pytest.mark.slow,
            ),
            pytest.param(
                "alexnet",
                "2 images of 32x32x3 in evaluation mode; it says: Given input size",
                marks=pytest.mark.slow,
            ),
        ],
    )
    def test_what_cannot_be_used_is_refused(self, name: str, reason: str) -> None:
        problem = refusal(f"torchvision/{name}", (32, 32, 3))
        assert problem.startswith(f"model='torchvision/{name}': ")
        assert reason in problem

    def test_an_unknown_name_suggests_the_nearest(self) -> None:
        problem = model_problem("torchvision/resnet19")
        assert problem is not None
        assert problem.startswith("model='torchvision/resnet19': allowed is torchvision/ with one")
        assert problem.endswith("; did you mean 'torchvision/resnet18'?")
        assert model_problem("torchvision/resnet18") is None

    def test_names_that_are_no_classifiers_are_unknown(self) -> None:
        assert model_problem("torchvision/fcn_resnet50") is not None
        assert model_problem("torchvision/") is not None


class TestBeforeTraining:
    def test_settings_know_the_names(self) -> None:
        assert check_settings({"model": "torchvision/resnet18"}).model == "torchvision/resnet18"
        with pytest.raises(ConfigError, match=r"did you mean 'torchvision/resnet18'\?"):
            check_settings({"model": "torchvision/resnet-18"})

    def test_too_small_images_are_found_with_the_data(self, data_dir: Path) -> None:
        settings = check_settings({"model": "torchvision/densenet121", "data-dir": str(data_dir)})
        with pytest.raises(ConfigError, match=r"model='torchvision/densenet121': .* 8x8x1"):
            check_data(settings)

    def test_a_refused_network_leaves_no_folder(self, simulation: Simulation) -> None:
        with pytest.raises(ConfigError, match="torchvision/densenet121"):
            simulation(model="torchvision/densenet121")
        assert not Path(simulation.base["output-dir"]).exists()

    @pytest.mark.slow
    def test_a_client_of_a_built_in_network_loads_nothing_heavy_that_it_does_not_need(self) -> None:
        program = (
            "import sys, ahfal_app.client_app; "
            "from ahfal_app.models import build_model, model_names; model_names(); "
            "build_model('resnet8', (8, 8, 1), 10, 0); "
            "heavy = {'matplotlib', 'pandas', 'scipy', 'sklearn', 'torchvision', 'torch._dynamo'}; "
            "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
        )
        subprocess.run([sys.executable, "-c", program], check=True)


class TestEntryPoints:
    def test_a_classifier_is_taken_as_it_is_but_for_dropout(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        register(monkeypatch, MODELS, "own", f"{__name__}:build_own")
        assert "own" in model_names()
        assert model_problem("own") is None
        model = build_model("own", (8, 8, 1), 10, 0)
        assert isinstance(model, OwnClassifier)
        assert model.training
        assert model.dropout.p == 0.0
        assert model.feature_map(images(2, (8, 8, 1))).shape == (2, 8, 8, 8)

    def test_a_module_gets_a_head(self, monkeypatch: pytest.MonkeyPatch) -> None:
        register(monkeypatch, MODELS, "lazy", f"{__name__}:build_lazy")
        model, again = (build_model("lazy", (8, 8, 1), 10, 3) for _ in range(2))
        assert model.head.in_features == 12
        assert model.features(images(2, (8, 8, 1))).min() >= 0
        for name, value in model.state_dict().items():
            assert torch.equal(value, again.state_dict()[name])

    def test_what_is_shared_stays_shared(self, monkeypatch: pytest.MonkeyPatch) -> None:
        register(monkeypatch, MODELS, "tied", f"{__name__}:build_tied")
        network = build_model("tied", (8, 8, 1), 10, 0).get_submodule("network")
        assert network.second.weight is network.first.weight
        assert network.same_norm is network.norm
        assert type(network.norm) is BatchNorm2d

    @pytest.mark.parametrize(
        ("build", "reason"),
        [
            ("build_softmax", "after its last one it does something else"),
            (
                "build_too_many_classes",
                "logits of 2 images have the shape (2, 11); allowed is (2, 10",
            ),
            (
                "build_wrong_width",
                "features of its map of 2 images have the shape (2, 512); allowed",
            ),
            (
                "build_not_for_one",
                "1 image of 8x8x1 in training mode; it says: Expected more than 1",
            ),
            ("build_two_outputs", "1 image of 8x8x1 in training mode it gives tuple"),
            ("build_functional_dropout", "draws no random numbers in training"),
            ("build_rrelu", "draws no random numbers in training"),
            ("build_nothing", "gives str; allowed is a Classifier or nn.Module"),
            ("SHORT", "is no function; allowed is build(image_shape, num_classes)"),
            ("nowhere", "cannot be loaded: module 'test_foreign_models' has no attribute"),
        ],
    )
    def test_what_cannot_be_used_is_refused(
        self, monkeypatch: pytest.MonkeyPatch, build: str, reason: str
    ) -> None:
        register(monkeypatch, MODELS, "odd", f"{__name__}:{build}")
        problem = refusal("odd")
        assert problem.startswith("model='odd': ")
        assert reason in problem

    @pytest.mark.parametrize("name", ["resnet8", "auto", "torchvision/resnet18"])
    def test_a_taken_name_is_refused(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        register(monkeypatch, MODELS, name, f"{__name__}:build_own")
        with pytest.raises(DuplicateComponent, match=f"{name!r}.*{__name__}:build_own"):
            model_names()

    def test_an_unknown_name_suggests_the_nearest(self, monkeypatch: pytest.MonkeyPatch) -> None:
        register(monkeypatch, MODELS, "shallow", f"{__name__}:build_own")
        problem = model_problem("shalow")
        assert problem is not None
        assert problem.startswith("model='shalow': allowed is auto | linear | mlp | ")
        assert problem.endswith("shallow | small-cnn | torchvision/<name>; did you mean 'shallow'?")


def folder_of_images(folder: Path, side: int) -> Path:
    """Three classes of colours, 20 noisy images each."""
    generator = np.random.default_rng(0)
    for label, colour in enumerate(((200, 60, 60), (60, 200, 60), (60, 60, 200))):
        target = folder / f"class-{label}"
        target.mkdir(parents=True)
        for number in range(20):
            noise = generator.integers(-50, 50, (side, side, 3))
            pixels: NDArray[np.uint8] = (np.array(colour) + noise).astype(np.uint8)
            Image.fromarray(pixels).save(target / f"{number}.png")
    return folder


class TestRuns:
    @pytest.mark.parametrize(
        "model",
        [
            "torchvision/shufflenet_v2_x0_5",
            *(
                pytest.param(name, marks=pytest.mark.slow)
                for name in ("mobilenet-v2", "torchvision/resnet18")
            ),
        ],
    )
    def test_images_in_a_folder(self, simulation: Simulation, tmp_path: Path, model: str) -> None:
        dataset = folder_of_images(tmp_path / "colours", 16)
        values: dict[str, object] = {
            **SHORT,
            "dataset": str(dataset),
            "partition": "iid",
            "initial-fraction": 0.2,
            "query-fraction": 0.1,
            "target-fraction": 0.3,
        }
        small = {"head-kernel": 1} if model == "mobilenet-v2" else {}
        values |= {f"model.{key}": value for key, value in small.items()}
        outcome = simulation(values, model=model)
        assert outcome.summary["model"] == model
        assert [cycle.labels for cycle in outcome.metrics.cycles] == [10, 16]
        trained = load_file(outcome.folder / "model.safetensors")
        fresh = build_model(model, (16, 16, 3), 3, 0, small).state_dict()
        assert trained.keys() == fresh.keys()
        counters = [trained[name] for name in trained if name.endswith("num_batches_tracked")]
        assert counters
        assert all(counter == 1 for counter in counters)
        # In the last cycle's only round, what the server has is the mean of the local models.
        local = [
            load_file(outcome.folder / f"clients/{client}/local-model-1.safetensors")
            for client in range(2)
        ]
        weights = torch.tensor(outcome.metrics.cycles[1].labels_per_client).float()
        for name, value in trained.items():
            if value.is_floating_point():
                mean = sum(w * each[name] for w, each in zip(weights, local, strict=True))
                torch.testing.assert_close(value, mean / weights.sum(), rtol=1e-4, atol=1e-5)

    @pytest.mark.slow
    def test_equal_seeds_give_equal_results_on_any_number_of_threads(
        self, simulation: Simulation
    ) -> None:
        # As torchvision makes it, this network has dropout.
        values = {**SHORT, "model": "torchvision/mobilenet_v3_small", "cycles": 1}
        one, two = (simulation(values, workers=workers) for workers in (1, 2))
        assert one.result == two.result

    @pytest.mark.parametrize("aggregation", ["fedavg", "fedprox", "fedadam", "fedmedian"])
    def test_what_is_shared_has_one_value_in_the_global_model(
        self, simulation: Simulation, monkeypatch: pytest.MonkeyPatch, aggregation: str
    ) -> None:
        register(monkeypatch, MODELS, "tied", f"{__name__}:build_tied")
        values = {**SHORT, "num-clients": 3}  # a median needs as many
        outcome = simulation(values, model="tied", aggregation=aggregation, strategy="entropy")
        trained = load_file(outcome.folder / "model.safetensors")
        for one, other in (("first.weight", "second.weight"), ("norm.bias", "same_norm.bias")):
            assert torch.equal(trained[f"network.{one}"], trained[f"network.{other}"])

    @pytest.mark.slow
    def test_example_of_the_documentation(
        self, simulation: Simulation, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        page = Path(__file__).parents[2] / "docs" / "models.md"
        example = page.read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
        (tmp_path / "documented_shallow.py").write_text(example, encoding="utf-8")
        monkeypatch.syspath_prepend(tmp_path)
        register(monkeypatch, MODELS, "shallow", "documented_shallow:build")
        outcome = simulation(model="shallow", strategy="entropy")
        assert outcome.summary["model"] == "shallow"
        assert len(outcome.metrics.cycles) == 3


@pytest.mark.parametrize(
    ("name", "shape", "parameters", "row"),
    [
        ("resnet8", (32, 32, 3), {}, "| `resnet8` | 32×32, 3 channels |"),
        ("preact-resnet8", (32, 32, 3), {}, "| `preact-resnet8` | 32×32, 3 channels |"),
        ("mobilenet-v2", (32, 32, 3), {}, "| `mobilenet-v2` | 32×32, 3 channels |"),
        (
            "mobilenet-v2",
            (32, 32, 3),
            {"head-kernel": 1},
            "| `mobilenet-v2`, `model.head-kernel=1` | 32×32, 3 channels |",
        ),
        ("small-cnn", (8, 8, 1), {}, "| `small-cnn` | 8×8, 1 channel |"),
    ],
)
def test_documentation_has_the_counts(
    name: str, shape: Shape, parameters: dict[str, int], row: str
) -> None:
    page = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    model = build_model(name, shape, 10, 0, parameters)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert f"{row} {count:,} | " in page
