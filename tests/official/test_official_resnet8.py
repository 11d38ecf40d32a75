"""ResNet-8 of KAFAL's repository, and the same with its blocks of pre-activation."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from support.official import Agreement, official
from torch import Tensor, nn

from ahfal_app.models import Classifier
from ahfal_app.models.preact_resnet8 import PreActResNet8
from ahfal_app.models.resnet8 import ResNet8

pytestmark = [pytest.mark.official, pytest.mark.usefixtures("_cpu")]

CLASSES = 10


def published(block: str) -> nn.Module:
    """Return the authors' network of 8 layers, of one of their two kinds of block."""
    module = official(
        "KAFAL",
        "models/preact_resnet.py",
        ["conv3x3", block, "PreAct_ResNet_Cifar"],
        torch=torch,
        nn=nn,
        math=math,
    )
    network: nn.Module = module.PreAct_ResNet_Cifar(
        getattr(module, block), [1, 1, 1], num_classes=CLASSES
    )
    return network


def with_weights_of(network: nn.Module, other: Classifier) -> None:
    """Copy all weights and statistics into our network, in the order of the layers."""
    values = list(network.state_dict().values())
    own = other.state_dict()
    assert [each.shape for each in values] == [each.shape for each in own.values()]
    other.load_state_dict(dict(zip(own, values, strict=True)))


def draw_everything(network: nn.Module, generator: torch.Generator) -> None:
    """Have no weight and no statistic be what a fresh network has."""
    with torch.no_grad():
        for name, values in network.state_dict().items():
            if name.endswith("running_var") or ("bn" in name and name.endswith("weight")):
                values.copy_(0.5 + torch.rand(values.shape, generator=generator))
            elif "bn" in name and values.dtype.is_floating_point:
                values.copy_(torch.randn(values.shape, generator=generator) / 2)


def relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).detach().abs().max() / theirs.detach().abs().max())


def largest_differences(
    theirs: Any, ours: Classifier, images_BcHW: Tensor
) -> tuple[float, float, float]:
    """Return those of logits, of features, and of weights' gradients."""
    logits_BC, (*_, features_BD) = theirs(images_BcHW)
    own_BC = ours(images_BcHW)
    with torch.no_grad():
        # In training mode a pass moves the statistics, which nothing here depends on.
        own_BD = ours.features(images_BcHW)
    for network, outputs in ((theirs, logits_BC), (ours, own_BC)):
        network.zero_grad()
        outputs.square().sum().backward()
    pairs = zip(theirs.parameters(), ours.parameters(), strict=True)
    gradients = max(relative(own.grad, other.grad) for other, own in pairs)
    return relative(own_BC, logits_BC), relative(own_BD, features_BD), gradients


@pytest.mark.parametrize("precision", ["single", "double"])
@pytest.mark.parametrize(
    ("name", "block", "kind"),
    [
        ("resnet8", "BasicBlock", ResNet8),
        ("preact-resnet8", "PreActBasicBlock", PreActResNet8),
    ],
)
def test_resnet8(
    name: str, block: str, kind: type[ResNet8], precision: str, agreement: Agreement
) -> None:
    """In training and in evaluation, with drawn statistics; also what both leave behind."""
    worst = [0.0, 0.0, 0.0]
    statistics = 0.0
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)
        theirs = published(block)
        draw_everything(theirs, generator)
        ours = kind(3, CLASSES)
        images_BcHW = torch.randn(16, 3, 32, 32, generator=generator)
        if precision == "double":
            theirs, ours, images_BcHW = theirs.double(), ours.double(), images_BcHW.double()
        with_weights_of(theirs, ours)
        for is_training in (False, True):
            # Copies, since each pass in training moves the statistics.
            pair = copy.deepcopy(theirs).train(is_training), copy.deepcopy(ours).train(is_training)
            found = largest_differences(*pair, images_BcHW)
            worst = [max(both) for both in zip(worst, found, strict=True)]
        passes = theirs.train(), ours.train()
        for network in passes:
            with torch.no_grad():
                network(images_BcHW)
        moved = zip(theirs.buffers(), ours.buffers(), strict=True)
        statistics = max(
            statistics, *(relative(own.double(), other.double()) for other, own in moved)
        )
    logits, features, gradients = worst
    agreement.add(
        name,
        f"KAFAL: `PreAct_ResNet_Cifar` of `{block}`",
        f"forward and backward pass of 10 batches of 16, equal weights, {precision} precision",
        f"logits to {logits:.0e}, features to {features:.0e}, gradients to {gradients:.0e}, "
        f"running statistics to {statistics:.0e} of the largest",
    )
    limit = 1e-4 if precision == "single" else 1e-12
    assert max(logits, features, gradients, statistics) < limit
