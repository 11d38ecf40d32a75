"""A backbone that is trained: what travels, what stays, where it starts."""

from __future__ import annotations

import torch
from support.small_backbone import small_backbone

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
