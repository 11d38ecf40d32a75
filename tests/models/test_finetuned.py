"""A backbone that is trained: what travels, what stays, where it starts."""

from __future__ import annotations

import pytest
import torch
from support.small_backbone import small_backbone
from timm.layers import DropPath
from torch import nn

from ahfal_app.backbones import load_backbone
from ahfal_app.errors import ConfigError
from ahfal_app.models import Classifier, build_model
from ahfal_app.models.core.finetuned import finetuned

IMAGES = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def tuned(tune: str, seed: int = 0) -> Classifier:
    backbone = small_backbone()
    return finetuned(backbone, build_model("linear", (1, 1, backbone.features), 5, seed), tune)


def step(model: Classifier) -> None:
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    model(IMAGES).square().sum().backward()
    optimizer.step()


def everything(model: Classifier) -> dict[str, torch.Tensor]:
    return {
        name: value.clone() for name, value in [*model.named_parameters(), *model.named_buffers()]
    }


def test_it_gives_what_the_head_gives_of_the_features() -> None:
    model = tuned("all").eval()
    with torch.no_grad():
        features = small_backbone().network(IMAGES)
        torch.testing.assert_close(model.features(IMAGES), features)
        torch.testing.assert_close(model(IMAGES), model.head(features))


def test_each_cycle_starts_from_the_same_weights_with_a_new_head() -> None:
    first, second = tuned("all", seed=0), tuned("all", seed=1)
    step(first)
    again = tuned("all", seed=0).state_dict()
    for name, value in second.state_dict().items():
        assert torch.equal(value, again[name]) == (not name.startswith("head.weight")) or (
            name == "head.bias"
        )
    assert all(not p.requires_grad for p in small_backbone().network.parameters())


def test_frozen_parts_stay_and_do_not_travel() -> None:
    model = tuned("conv_head,bn2,head")
    before = everything(model)
    step(model)
    after = everything(model)
    changed = {name for name, value in after.items() if not torch.equal(value, before[name])}
    state = model.state_dict()
    assert changed <= state.keys()
    assert {name.split(".")[1] for name in changed if "backbone" in name} == {"conv_head", "bn2"}
    # The statistics of batch normalisation, too.
    assert "backbone.bn2.running_mean" in changed
    assert "backbone.bn1.running_mean" not in state


def test_what_travels_is_loaded_and_the_rest_is_ones_own() -> None:
    one, other = tuned("bn2,head"), tuned("bn2,head", seed=1)
    step(one)
    other.load_state_dict(one.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(other.eval()(IMAGES), one.eval()(IMAGES))


def test_small_images_are_scaled_as_the_backbone_wants() -> None:
    model = tuned("all").eval()
    with torch.no_grad():
        assert model(IMAGES[:, :, :8, :8]).shape == (4, 5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["torchvision/resnet18", "timm/test_resnet", "timm/test_vit"])
def test_a_single_image_trains_as_it_is_seen_in_tests(name: str) -> None:
    """By running statistics where a map has shrunk to one pixel."""
    backbone = load_backbone(name, "none", 0 if "vit" in name else 32)
    model = finetuned(backbone, build_model("linear", (1, 1, backbone.features), 5, 0), "all")
    side = backbone.preprocessing.size
    image = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    assert model.train()(image).isfinite().all()


def test_nothing_is_drawn_in_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stochastic depth of timm is switched off; what cannot be is refused by name."""
    backbone = load_backbone("timm/test_vit", "none", 0)
    blocks = [m for m in backbone.network.modules() if type(m).__name__ == "Block"]
    drop = blocks[0].drop_path1 = DropPath(0.5)  # type: ignore[union-attr, assignment]
    head = build_model("linear", (1, 1, backbone.features), 5, 0)
    monkeypatch.setattr("ahfal_app.models.core.finetuned._tried", set())
    model = finetuned(backbone, head, "all").train()
    side = backbone.preprocessing.size
    two = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    before = torch.random.get_rng_state()
    torch.testing.assert_close(model(two), model(two))
    assert torch.equal(torch.random.get_rng_state(), before)
    # Only the copy that is trained: features are computed by the backbone as it is.
    assert drop.drop_prob == 0.5
    blocks[0].drop_path1 = nn.RReLU()
    monkeypatch.setattr("ahfal_app.models.core.finetuned._tried", set())
    with pytest.raises(ConfigError, match="backbone='timm/test_vit' tune='all': allowed is a netw"):
        finetuned(backbone, build_model("linear", (1, 1, backbone.features), 5, 0), "all")
