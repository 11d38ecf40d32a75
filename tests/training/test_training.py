"""Local training against a plain loop, and prediction and evaluation against hand counts."""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from support.small_training import CPU, RECIPE, ROWS, generator, make_images, make_model
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ahfal_app.client.state import ClientState
from ahfal_app.data.augmentation import Augmentation
from ahfal_app.data.device import DeviceImages
from ahfal_app.data.images import Images
from ahfal_app.models import Classifier, build_model
from ahfal_app.models.core.batch_norm import BatchNorm2d
from ahfal_app.training import compilation, sgd
from ahfal_app.training.compilation import resolve_compile
from ahfal_app.training.optimiser import FusedSGD
from ahfal_app.training.prediction import evaluate, predict
from ahfal_app.training.sgd import (
    LocalUpdate,
    Objective,
    Recipe,
    TrainingResult,
    TrainingState,
    resolve_precision,
    train_locally,
)


def train(
    model: Classifier,
    images: DeviceImages,
    recipe: Recipe,
    state: TrainingState | None = None,
    seed: int = 0,
    rows: Tensor = ROWS,
) -> TrainingResult:
    labels = images.labels_N[rows]
    return train_locally(LocalUpdate(model, images, rows, labels, recipe, state, generator(seed)))


def plain_epochs(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    images: DeviceImages,
    rates: list[float],
    seed: int,
) -> float:
    """Train on `ROWS` as a textbook does; return the mean loss of the last epoch."""
    draws = generator(seed)
    pixels = images.images_NHWC[ROWS].permute(0, 3, 1, 2).double()
    inputs = ((pixels / 255 - 0.5) / 0.25).float().contiguous(memory_format=torch.channels_last)
    labels = images.labels_N[ROWS]
    model.train()
    losses: list[float] = []
    for rate in rates:
        losses = []
        optimizer.param_groups[0]["lr"] = rate
        order = torch.randperm(len(ROWS), generator=draws).tolist()
        for start in range(0, len(order), RECIPE.batch_size):
            chosen = order[start : start + RECIPE.batch_size]
            optimizer.zero_grad()
            loss = cross_entropy(model(inputs[chosen]), labels[chosen])
            loss.backward()
            optimizer.step()
            losses += [loss.item()] * len(chosen)
    return sum(losses) / len(losses)


def plain_optimizer(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(
        model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4, foreach=False
    )


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_optimiser_steps_as_torchs_own_to_the_bit(momentum: float) -> None:
    """A frozen parameter, and one without a gradient, stay as they are."""
    model, plain = make_model(), make_model()
    for each in (model, plain):
        each.conv1.weight.requires_grad_(False)
    optimizer = torch.optim.SGD(
        plain.parameters(), lr=1.0, momentum=momentum, weight_decay=0.01, fused=True
    )
    buffers: dict[str, Tensor] = {}
    for rounds in range(2):
        optimiser = FusedSGD(model, momentum, 0.01, buffers)
        for step in range(3):
            inputs = torch.randn(4, 1, 6, 6, generator=generator(10 * rounds + step))
            optimiser.zero_grad()
            optimizer.zero_grad()
            model.features(inputs).sum().backward()
            plain.features(inputs).sum().backward()
            optimizer.param_groups[0]["lr"] = 0.1 / (step + 1)
            optimizer.step()
            optimiser.step(0.1 / (step + 1))
        buffers = optimiser.buffers
    assert same_bits(model, plain)
    names = {
        name
        for name, parameter in plain.named_parameters()
        if optimizer.state[parameter].get("momentum_buffer") is not None
    }
    assert set(buffers) == names
    assert not {name for name in names if name.startswith(("head", "conv1"))}


def test_batches_that_are_augmented_at_once_are_as_if_each_were_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = dataclasses.replace(RECIPE, augmentation=Augmentation(2, True))
    models = []
    for at_once in (1, 16, 1000):
        monkeypatch.setattr(sgd, "_AUGMENTED_AT_ONCE", at_once)
        models.append(make_model())
        train(models[-1], make_images(), recipe)
    assert same_bits(models[0], models[1])
    assert same_bits(models[0], models[2])


def assert_equal_models(model: nn.Module, other: nn.Module, tolerance: float = 1e-6) -> None:
    for name, value in other.state_dict().items():
        torch.testing.assert_close(
            model.state_dict()[name], value, rtol=tolerance, atol=tolerance, msg=name
        )


def same_bits(model: nn.Module, other: nn.Module) -> bool:
    states = model.state_dict(), other.state_dict()
    return all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def stored(state: TrainingState) -> TrainingState:
    """Return the state as a client finds it in its next round."""
    client = ClientState.in_record({})
    client.save_training(0, 1, state)
    loaded = client.load_training(0, 2)
    assert loaded is not None
    return loaded


def test_a_damaged_file_is_passed_over_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A power cut leaves such files: they are not synced, since they can be computed again."""
    client = ClientState.on_disk(tmp_path)
    client.save_training(0, 1, TrainingState({"weight": torch.ones(2)}, 3))
    client.save_training(0, 2, TrainingState({"weight": torch.zeros(2)}, 6))
    client.save_local_model(0, {"weight": torch.ones(2)})
    (tmp_path / "training-0-2.safetensors").write_bytes(b"")
    found = client.load_training(0, 3)
    assert found is not None
    assert found.epochs == 3
    assert torch.equal(found.momentum["weight"], torch.ones(2))
    for path in tmp_path.glob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-1])
    assert client.load_training(0, 3) is None
    assert client.load_local_model(0) is None
    for name in ("training-0-2", "training-0-1", "local-model-0"):
        assert f"{name}.safetensors is damaged" in caplog.text


@pytest.mark.parametrize("kept", [lambda state: state, stored], ids=["in memory", "stored"])
@pytest.mark.parametrize("channels", [1, 3])
def test_training_equals_a_plain_loop_over_two_rounds(
    kept: Callable[[TrainingState], TrainingState], channels: int
) -> None:
    """The server overwrites the weights in between, and the momentum goes on."""
    images = make_images((6, 6, channels))
    model, plain = make_model(channels=channels), make_model(channels=channels)
    optimizer = plain_optimizer(plain)

    first = train(model, images, RECIPE, seed=1)
    plain_loss = plain_epochs(plain, optimizer, images, [0.05, 0.05], 1)
    assert_equal_models(model, plain)
    assert first.loss == pytest.approx(plain_loss, abs=1e-6)
    assert first.num_examples == 20
    assert first.state.epochs == 2

    for overwritten in (model, plain):
        overwritten.load_state_dict(make_model(channels=channels, seed=9).state_dict())
    second = train(model, images, RECIPE, kept(first.state), seed=2)
    plain_epochs(plain, optimizer, images, [0.05, 0.05], 2)
    assert_equal_models(model, plain)
    assert second.state.epochs == 4
    for name, parameter in plain.named_parameters():
        buffer = optimizer.state[parameter]["momentum_buffer"]
        torch.testing.assert_close(second.state.momentum[name], buffer, rtol=1e-6, atol=1e-6)


def test_fresh_momentum_trains_differently_from_persistent_momentum() -> None:
    images, model, other = make_images(), make_model(), make_model()
    first = train(make_model(), images, RECIPE)
    train(model, images, RECIPE, first.state, seed=1)
    train(other, images, RECIPE, TrainingState({}, first.state.epochs), seed=1)
    assert not same_bits(model, other)


def test_the_learning_rate_drops_after_the_260th_epoch() -> None:
    assert [RECIPE.learning_rate_at(epoch) for epoch in (0, 259)] == [0.05, 0.05]
    assert RECIPE.learning_rate_at(260) == pytest.approx(0.005)
    assert RECIPE.learning_rate_at(10_000) == pytest.approx(0.005)
    never = dataclasses.replace(RECIPE, lr_decay_epochs=0)
    assert never.learning_rate_at(10_000) == 0.05


def test_the_drop_in_the_middle_of_a_round_equals_a_plain_loop() -> None:
    images, model, plain = make_images(), make_model(), make_model()
    recipe = dataclasses.replace(RECIPE, local_epochs=3)
    result = train(model, images, recipe, TrainingState({}, 258))
    plain_epochs(plain, plain_optimizer(plain), images, [0.05, 0.05, 0.005], 0)
    assert_equal_models(model, plain)
    assert result.state.epochs == 261


def test_the_given_momentum_is_not_changed() -> None:
    images = make_images()
    state = train(make_model(), images, RECIPE).state
    before = {name: buffer.clone() for name, buffer in state.momentum.items()}
    train(make_model(), images, RECIPE, state)
    assert all(torch.equal(buffer, before[name]) for name, buffer in state.momentum.items())


def test_without_momentum_only_the_epochs_persist() -> None:
    result = train(make_model(), make_images(), dataclasses.replace(RECIPE, momentum=0.0))
    assert result.state.momentum == {}
    assert result.state.epochs == 2


@pytest.mark.parametrize("num_rows", [1, 7, 8, 9, 17])
def test_every_row_is_trained_on_once_an_epoch(num_rows: int) -> None:
    """Also in a last batch that is smaller, down to a single sample."""
    images, seen = make_images(), []

    def spying(logits: Tensor, labels: Tensor) -> Tensor:
        seen.append(labels)
        return cross_entropy(logits, labels)

    rows = torch.arange(num_rows)
    unique_labels = torch.arange(num_rows) % 3
    train_locally(
        LocalUpdate(
            make_model(), images, rows, unique_labels, RECIPE, None, generator(0), Objective(spying)
        )
    )
    sizes = [len(labels) for labels in seen]
    full, remainder = divmod(num_rows, 8)
    assert sizes == ([8] * full + [remainder] * bool(remainder)) * 2
    assert torch.equal(torch.cat(seen).bincount(), unique_labels.bincount() * 2)


@pytest.mark.parametrize("name", ["small-cnn", "resnet8"])
def test_equal_generators_give_equal_bits_and_the_global_one_is_left_alone(name: str) -> None:
    images = make_images((6, 6, 3))
    recipe = dataclasses.replace(RECIPE, augmentation=Augmentation(2, True))
    models = [make_model(name, 3) for _ in range(3)]
    before = torch.random.get_rng_state()
    for model, seed in zip(models, (4, 4, 5), strict=True):
        train(model, images, recipe, seed=seed)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert same_bits(models[0], models[1])
    assert not same_bits(models[0], models[2])


@pytest.mark.parametrize("mode", [True, False])
def test_the_mode_is_restored(mode: bool) -> None:
    images, model = make_images(), make_model().train(mode)
    train(model, images, RECIPE)
    assert model.training is mode
    predict(model, images, ROWS)
    evaluate(model, images, 3)
    assert model.training is mode


def test_bf16_trains_close_to_fp32_and_keeps_master_weights_in_fp32() -> None:
    images = make_images((6, 6, 3))
    recipe = dataclasses.replace(RECIPE, learning_rate=0.01)
    model, other = make_model("resnet8", 3), make_model("resnet8", 3)
    full = train(model, images, recipe)
    half = train(other, images, dataclasses.replace(recipe, precision="bf16"))
    assert half.loss == pytest.approx(full.loss, rel=0.05)
    assert {parameter.dtype for parameter in other.parameters()} == {torch.float32}
    assert {buffer.dtype for buffer in half.state.momentum.values()} == {torch.float32}


def test_the_loss_gets_float32_logits_under_bf16() -> None:
    kinds = []

    def spying(logits: Tensor, labels: Tensor) -> Tensor:
        kinds.append(logits.dtype)
        return cross_entropy(logits, labels)

    images = make_images()
    recipe = dataclasses.replace(RECIPE, precision="bf16")
    labels = images.labels_N[ROWS]
    objective = Objective(spying)
    train_locally(
        LocalUpdate(make_model(), images, ROWS, labels, recipe, None, generator(0), objective)
    )
    assert set(kinds) == {torch.float32}


@pytest.mark.slow
@pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")), reason="there is no C++ compiler"
)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_compiled_training_is_close_to_eager(precision: str) -> None:
    """With a remainder, and twice, since the second round reuses what the first compiled."""
    images = make_images((6, 6, 3))
    eager = dataclasses.replace(RECIPE, learning_rate=0.01, precision=precision)
    compiled = dataclasses.replace(eager, compile=True)
    model, other, again = (make_model("resnet8", 3) for _ in range(3))
    expected = train(model, images, eager)
    results = [train(each, images, compiled) for each in (other, again)]
    tolerance = 1e-4 if precision == "fp32" else 0.05
    assert results[0].loss == pytest.approx(expected.loss, rel=tolerance)
    assert results[0].loss == results[1].loss
    assert same_bits(other, again)
    if precision == "fp32":
        assert_equal_models(other, model, 1e-3)


def test_auto_precision_follows_the_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    assert resolve_precision("auto", CPU, "resnet8", 1) == "bf16"
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": False})
    assert resolve_precision("auto", CPU, "resnet8", 1) == "fp32"
    assert resolve_precision("auto", CPU, "small-cnn", 10_000) == "fp32"
    assert resolve_precision("bf16", CPU, "resnet8", 1) == "bf16"
    assert resolve_precision("fp32", CPU, "resnet8", 1) == "fp32"


def test_a_small_network_is_worth_bf16_on_images_that_are_not_tiny(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a GPU that was not measured, and it stays as it was."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    assert [resolve_precision("auto", CPU, "small-cnn", n) for n in (64, 255, 256, 1024)] == [
        *("fp32", "fp32", "bf16", "bf16")
    ]
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    assert resolve_precision("auto", torch.device("cuda"), "small-cnn", 1024) == "fp32"


def test_unmeasured_networks_are_not_compiled_by_themselves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compilation, "_has_compiler", lambda: True)
    names = ("resnet8", "small-cnn", "mobilenet-v2", "torchvision/resnet18", "my-own")
    many = 10_000_000

    def resolved(setting: str, passes: int = many, pixels: int = 64) -> list[bool]:
        return [resolve_compile(setting, CPU, name, passes, pixels) for name in names]

    assert resolved("auto") == resolved("auto", pixels=255) == [True, *[False] * 4]
    # Of tiny images alone a compiled step of the small network saves next to nothing.
    assert resolved("auto", pixels=256) == [True, True, *[False] * 3]
    assert not any(resolved("auto", passes=1000, pixels=1024))
    assert not resolve_compile("auto", torch.device("cuda"), "resnet8", many, 1024)
    assert all(resolved("always", passes=1))
    assert not any(resolved("never"))


@pytest.mark.parametrize("side", [8, 9, 32])
def test_what_is_pooled_to_be_compiled_is_the_same(
    side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build_model("small-cnn", (side, side, 1), 10, 0)
    maps = torch.randn(3, 32, side, side, generator=torch.Generator().manual_seed(0))
    expected = model.features_of_map(maps)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    torch.testing.assert_close(model.features_of_map(maps), expected)


class BrightnessModel(Classifier):
    """Class 1 if the first pixel is brighter than average, class 0 otherwise, never class 2."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(1, 3)
        with torch.no_grad():
            self.head.weight.copy_(torch.tensor([[-1.0], [1.0], [0.0]]))
            self.head.bias.copy_(torch.tensor([0.0, 0.0, -100.0]))

    def features(self, images_BcHW: Tensor) -> Tensor:
        return images_BcHW[:, 0, 0, :1]


def bright_images(values: list[int], labels: list[int]) -> DeviceImages:
    pixels = np.array(values, np.uint8).reshape(-1, 1, 1, 1)
    return DeviceImages(Images(pixels, np.array(labels)), (0.0,), (1.0,), CPU)


def test_evaluation_on_a_case_counted_by_hand() -> None:
    images = bright_images([0, 255, 255, 255], [0, 1, 1, 0])
    model = BrightnessModel()
    with torch.no_grad():
        model.head.bias.copy_(torch.tensor([0.5, -0.5, -100.0]))
    result = evaluate(model, images, 3)
    # Logits are (1/2, -1/2) for black, (-1/2, 1/2) for white; a right answer costs ln(1 + 1/e).
    right, wrong = math.log1p(math.exp(-1)), math.log1p(math.exp(1))
    assert result.accuracy == 0.75
    assert result.class_accuracy_C == (0.5, 1.0, None)
    assert result.loss == pytest.approx((3 * right + wrong) / 4, abs=1e-6)


def test_predictions_follow_the_rows_over_several_batches() -> None:
    values = [position % 256 for position in range(2500)]
    images = bright_images(values, [0] * 2500)
    rows = torch.arange(2499, -1, -2)
    predictions = predict(BrightnessModel(), images, rows)
    expected = torch.tensor([values[row] / 255 for row in rows.tolist()])
    torch.testing.assert_close(predictions.embeddings_ND[:, 0], expected)
    torch.testing.assert_close(predictions.logits_NC[:, 1], expected)
    assert predictions.logits_NC.dtype == torch.float32
    assert not predictions.logits_NC.requires_grad


def test_batches_at_the_same_time_give_the_same_bits() -> None:
    model = make_model()
    images = make_images(num_images=5000)
    rows = torch.randperm(5000, generator=torch.Generator().manual_seed(0))
    threads = torch.get_num_threads()
    in_turns = predict(model, images, rows, feature_maps=True)
    at_once = predict(model, images, rows, feature_maps=True, at_once=3)
    assert torch.equal(in_turns.logits_NC, at_once.logits_NC)
    assert torch.equal(in_turns.embeddings_ND, at_once.embeddings_ND)
    assert torch.equal(in_turns.feature_maps_NF, at_once.feature_maps_NF)  # type: ignore[arg-type]
    one, three = evaluate(model, images, 3), evaluate(model, images, 3, at_once=3)
    assert (one.confusion_CC.tolist(), one.loss) == (three.confusion_CC.tolist(), three.loss)
    assert torch.get_num_threads() == threads


def test_large_images_are_predicted_in_smaller_batches() -> None:
    sizes = []

    class Watching(BrightnessModel):
        def features(self, images_BcHW: Tensor) -> Tensor:
            sizes.append(len(images_BcHW))
            return super().features(images_BcHW)

    pixels = np.zeros((5, 128, 256, 1), np.uint8)
    images = DeviceImages(Images(pixels, np.zeros(5, np.int64)), (0.0,), (1.0,), CPU)
    predict(Watching(), images, torch.arange(5))
    assert sizes == [2, 2, 1]


@pytest.mark.slow
def test_predictions_use_running_statistics_and_leave_them_alone() -> None:
    images, model = make_images(), make_model()
    train(model, images, RECIPE)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    together = predict(model, images, ROWS)
    alone = predict(model, images, ROWS[:1])
    torch.testing.assert_close(together.logits_NC[:1], alone.logits_NC, rtol=1e-5, atol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_predictions_of_no_rows_are_empty() -> None:
    predictions = predict(make_model(), make_images(), torch.empty(0, dtype=torch.int64))
    assert predictions.logits_NC.shape == (0, 3)
    assert predictions.embeddings_ND.shape == (0, 64)


@pytest.mark.parametrize(
    "compiled", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["eager", "compiled"]
)
def test_batch_norm_of_a_single_value_goes_by_the_running_statistics(compiled: bool) -> None:
    norm = BatchNorm2d(3)
    norm(torch.randn(8, 3, 2, 2, generator=generator(0)) * 2 + 1)
    state = {name: value.clone() for name, value in norm.state_dict().items()}
    values = torch.tensor([1.0, -2.0, 3.0]).reshape(1, 3, 1, 1)
    run = torch.compile(norm) if compiled else norm
    outputs = run(values)
    expected = (values.flatten() - state["running_mean"]) / (state["running_var"] + 1e-5).sqrt()
    torch.testing.assert_close(outputs.flatten(), expected)
    outputs.square().sum().backward()
    assert norm.weight.grad is not None
    assert norm.weight.grad.all()
    assert all(torch.equal(value, state[name]) for name, value in norm.state_dict().items())


@pytest.mark.slow
def test_compiled_batch_norm_is_torchs() -> None:
    ours, torchs = BatchNorm2d(4), torch.nn.BatchNorm2d(4)
    assert list(ours.state_dict()) == list(torchs.state_dict())
    with torch.no_grad():
        for module in (ours, torchs):
            module.weight.copy_(torch.tensor([1.0, 2.0, -1.0, 0.5]))
            module.bias.copy_(torch.tensor([0.0, 1.0, 2.0, -3.0]))
    compiled = torch.compile(ours)
    values = torch.randn(6, 4, 5, 3, generator=torch.Generator().manual_seed(0)) * 3 + 2
    weights = torch.randn(6, 4, 5, 3, generator=torch.Generator().manual_seed(1))
    gradients = []
    for module in (compiled, torchs):
        inputs = values.clone().requires_grad_()
        outputs = module(inputs)
        (outputs * weights).sum().backward()
        gradients.append((outputs, inputs.grad))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    for name, value in torchs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, rtol=1e-5, atol=1e-6)
    for parameter, other in zip(ours.parameters(), torchs.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-4, atol=1e-4)
    ours.eval(), torchs.eval()
    torch.testing.assert_close(compiled(values), torchs(values))
