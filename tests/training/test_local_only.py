"""Training on one client's labels alone against a plain loop, and batches of a single sample."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ahfal_app.data.augmentation import Augmentation
from ahfal_app.data.device import DeviceImages
from ahfal_app.data.images import Images
from ahfal_app.models import Classifier, build_model
from ahfal_app.query import LocalOnlyTraining
from ahfal_app.training.local_only import train_local_only_model
from ahfal_app.training.sgd import batches

TRAINING = LocalOnlyTraining(
    epochs=4,
    batch_size=8,
    learning_rate=0.05,
    momentum=0.9,
    weight_decay=1e-3,
    decay_after=2,
    decay_counts_steps=False,
    stop_accuracy=1.1,
)
NONE = Augmentation(0, False)


def make_images(size: int = 40) -> DeviceImages:
    draw = np.random.default_rng(0)
    pixels = draw.integers(0, 256, (size, 6, 6, 1)).astype(np.uint8)
    labels = draw.integers(0, 3, size)
    return DeviceImages(Images(pixels, labels), (0.5,), (0.25,), torch.device("cpu"))


def make_model(seed: int = 0) -> Classifier:
    return build_model("small-cnn", (6, 6, 1), 3, seed).to(memory_format=torch.channels_last)


def train(model: Classifier, rows: Tensor, seed: int = 0, **changes: object) -> int:
    images = make_images()
    augmentation = changes.pop("augmentation", NONE)
    assert isinstance(augmentation, Augmentation)
    teacher = changes.pop("teacher", None)
    assert teacher is None or isinstance(teacher, Classifier)
    return train_local_only_model(
        model,
        images,
        rows,
        images.labels_N[rows],
        dataclasses.replace(TRAINING, **changes),  # type: ignore[arg-type]
        augmentation,
        "fp32",
        torch.Generator().manual_seed(seed),
        teacher,
    )


def plain_loop(model: Classifier, rows: Tensor, rate_at: list[float]) -> None:
    """A textbook's loop, with the learning rate of each step written down."""
    images, draws = make_images(), torch.Generator().manual_seed(0)
    pixels = images.images_NHWC[rows].permute(0, 3, 1, 2).float()
    inputs = ((pixels / 255 - 0.5) / 0.25).contiguous(memory_format=torch.channels_last)
    labels = images.labels_N[rows]
    optimizer = torch.optim.SGD(model.parameters(), lr=1, momentum=0.9, weight_decay=1e-3)
    rates = iter(rate_at)
    model.train()
    for _ in range(4):
        order = torch.randperm(len(rows), generator=draws)
        for chosen in order.split(8):
            optimizer.param_groups[0]["lr"] = next(rates)
            optimizer.zero_grad()
            cross_entropy(model(inputs[chosen]), labels[chosen]).backward()
            optimizer.step()


@pytest.mark.parametrize(
    ("unit", "rates"),
    [("epoch", [0.05] * 6 + [0.005] * 6), ("step", [0.05] * 2 + [0.005] * 10)],
)
def test_equals_a_plain_loop_with_either_schedule(unit: str, rates: list[float]) -> None:
    """Three batches an epoch; the rate drops after two epochs, or after two steps."""
    model, plain = make_model(), make_model()
    rows = torch.arange(3, 23)
    assert train(model, rows, decay_counts_steps=unit == "step") == 4
    plain_loop(plain, rows, rates)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-5, atol=1e-6)


def test_stops_when_the_labelled_set_is_learnt() -> None:
    model, rows = make_model(), torch.arange(20)
    epochs = train(model, rows, epochs=200, decay_after=200, stop_accuracy=0.99)
    assert 1 < epochs < 200
    images = make_images()
    with torch.no_grad():
        right = model.eval()(images.batch(rows)).argmax(dim=1) == images.labels_N[rows]
    assert float(right.float().mean()) >= 0.99
    again = make_model()
    train(again, rows, epochs=epochs - 1, decay_after=200, stop_accuracy=0.99)
    with torch.no_grad():
        right = again.eval()(images.batch(rows)).argmax(dim=1) == images.labels_N[rows]
    assert float(right.float().mean()) < 0.99


def test_distils_as_a_plain_loop_does() -> None:
    """(1 - w) CE + w T² Σ p_t (log p_t - log p), p by softmax(z / T), mean over the batch."""
    model, plain, teacher = make_model(), make_model(), make_model(7).eval()
    images, rows = make_images(), torch.arange(8)
    train(model, rows, epochs=1, distil_weight=0.25, distil_temperature=3.0, teacher=teacher)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(0))
    inputs, labels = images.batch(rows[order]), images.labels_N[rows[order]]
    optimizer = torch.optim.SGD(plain.parameters(), 0.05, momentum=0.9, weight_decay=1e-3)
    logits = plain.train()(inputs)
    told = (teacher(inputs).detach() / 3).softmax(dim=1)
    divergence = (told * (told.log() - (logits / 3).log_softmax(dim=1))).sum(dim=1).mean()
    (0.75 * cross_entropy(logits, labels) + 0.25 * 9 * divergence).backward()
    optimizer.step()
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-5, atol=1e-6)


def test_a_weight_of_nothing_distils_nothing() -> None:
    model, plain = make_model(), make_model()
    train(model, torch.arange(20), teacher=make_model(7).eval(), distil_weight=0.0)
    train(plain, torch.arange(20))
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value)


def test_stops_after_so_many_epochs_without_a_lower_loss() -> None:
    """Without a step the loss is the same in each epoch: the first is the lowest."""
    rows = torch.arange(8)
    still = {"learning_rate": 0.0, "weight_decay": 0.0, "epochs": 50}
    for patience in (1, 3):
        assert train(Plain(), rows, patience=patience, **still) == 1 + patience
    assert train(make_model(), rows, patience=2, epochs=6, decay_after=99) == 6


class Plain(Classifier):
    """A linear network without weights, whose loss is that of chance for each sample."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(36, 3)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def features(self, images: Tensor) -> Tensor:
        return images.flatten(1)


class Spy(nn.Module):
    """Records what batches a network sees, and in which mode."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(36, 3)
        self.seen: list[tuple[bool, Tensor]] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append((self.training, images.detach().clone()))
        logits: Tensor = self.head(images.flatten(1))
        return logits


@pytest.mark.parametrize("augmentation", [NONE, Augmentation(2, False)])
def test_when_to_stop_is_judged_in_evaluation_mode_on_augmented_images(
    augmentation: Augmentation,
) -> None:
    spy, rows = Spy(), torch.arange(20)
    train(spy, rows, epochs=1, augmentation=augmentation)  # type: ignore[arg-type]
    assert [training for training, _ in spy.seen] == [True] * 3 + [False]
    judged = spy.seen[-1][1]
    assert judged.shape == (20, 1, 6, 6)
    assert torch.equal(judged, make_images().batch(rows)) == (augmentation == NONE)


def test_a_schedule_of_nothing_starts_low() -> None:
    model, slow = make_model(), make_model()
    train(model, torch.arange(8), decay_after=0)
    train(slow, torch.arange(8), decay_after=99, learning_rate=0.005)
    for name, value in slow.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value)


def test_nothing_to_learn_changes_nothing() -> None:
    model = make_model()
    assert train(model, torch.empty(0, dtype=torch.int64)) == 0
    assert all(
        torch.equal(value, make_model().state_dict()[name])
        for name, value in model.state_dict().items()
    )


class Narrow(Classifier):
    """A network whose batch norm has one number a sample, so that it cannot train on one."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(36)
        self.head = nn.Linear(36, 3)

    def features(self, images: Tensor) -> Tensor:
        normed: Tensor = self.norm(images.flatten(1))
        return normed


@pytest.mark.parametrize("size", [1, 2, 8, 9, 17])
def test_single_samples_are_not_normalised_by_themselves(size: int) -> None:
    model = Narrow()
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        model(torch.zeros(1, 1, 6, 6))
    assert train(model, torch.arange(size), epochs=2) == 2


class TestBatches:
    @pytest.mark.parametrize(
        ("size", "sizes"), [(2, [2]), (8, [8]), (9, [9]), (10, [8, 2]), (16, [8, 8]), (17, [8, 9])]
    )
    def test_a_single_row_joins_the_batch_before(self, size: int, sizes: list[int]) -> None:
        split = batches(torch.arange(size), 8)
        assert [len(batch) for batch in split] == sizes
        assert torch.cat(split).tolist() == list(range(size))

    def test_a_row_that_is_all_there_is_comes_twice(self) -> None:
        assert [batch.tolist() for batch in batches(torch.tensor([7]), 8)] == [[7, 7]]


def test_equal_generators_give_equal_bits_and_the_global_one_is_left_alone() -> None:
    before = torch.random.get_rng_state()
    models = [make_model() for _ in range(3)]
    for model, seed in zip(models, (4, 4, 5), strict=True):
        train(model, torch.arange(20), seed=seed, augmentation=Augmentation(1, True))
    assert torch.equal(torch.random.get_rng_state(), before)
    first, second, third = (model.state_dict() for model in models)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], third[name]) for name in first)
