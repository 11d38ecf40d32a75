"""Backbones: real weights, preprocessing, files that are refused, hashes."""

from __future__ import annotations

import importlib
import io
import sys
from collections.abc import Iterator
from http.client import HTTPMessage
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from safetensors.torch import load_file, save_file
from support.efficientnet_lite import TIMM_NAME, converted_weights, original_network, write_weights
from support.registering import register
from support.small_backbone import NAME, small_backbone
from support.small_backbone import write_weights as write_small
from torch import nn

from ahfal_app.backbones import Made, Preprocessing, backbone_problem, load_backbone
from ahfal_app.data.features import FeatureStore
from ahfal_app.errors import ConfigError
from ahfal_app.plugins import BACKBONES

WANTED = Preprocessing(4, "bilinear", (0.5, 0.4, 0.3), (0.5, 0.25, 0.2))


def problem_of(name: str, weights: str, size: int = 32) -> str:
    with pytest.raises(ConfigError) as error:
        load_backbone(name, weights, size)
    (problem,) = error.value.problems
    return problem


@pytest.fixture(scope="module")
def lite_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "lite0.safetensors"
    write_weights(path)
    return path


@pytest.mark.slow
def test_converted_weights_give_what_the_original_network_gives() -> None:
    ours = timm.create_model(TIMM_NAME, pretrained=False).eval()
    ours.load_state_dict(converted_weights())
    images = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        logits = ours(images)
        torch.testing.assert_close(logits, original_network()(images), rtol=1e-5, atol=1e-5)
    assert logits.std() > 0.1


def test_a_backbone_has_the_features_under_the_classifier(lite_file: Path) -> None:
    backbone = load_backbone(f"timm/{TIMM_NAME}", str(lite_file), 96)
    assert backbone.features == 1280
    original = original_network()
    images = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        logits = original._fc(backbone.network(images))  # type: ignore[operator,union-attr]
        torch.testing.assert_close(logits, original(images), rtol=1e-5, atol=1e-5)
    wanted = backbone.preprocessing
    assert (wanted.size, wanted.interpolation, wanted.crop) == (96, "bicubic", 1.0)
    assert wanted.mean_C == wanted.std_C == (0.5, 0.5, 0.5)
    assert not any(parameter.requires_grad for parameter in backbone.network.parameters())


def test_torchvision_says_its_preprocessing() -> None:
    backbone = load_backbone("torchvision/mobilenet_v3_small", "none", 32, crop=True)
    assert backbone.features == 1024
    assert backbone.preprocessing.crop == 224 / 256
    assert backbone.preprocessing.mean_C == (0.485, 0.456, 0.406)


def test_images_are_scaled_and_standardised() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 9, 7, 3)).astype(np.uint8)
    found = WANTED(torch.from_numpy(pixels)).permute(0, 2, 3, 1).numpy()
    for image, values in zip(pixels, found, strict=True):
        scaled = np.asarray(Image.fromarray(image).resize((4, 4), Image.Resampling.BILINEAR))
        expected = (scaled / 255 - np.array(WANTED.mean_C)) / np.array(WANTED.std_C)
        # Pillow rounds twice to whole numbers: steps of 1/255, divided by the deviation.
        assert np.abs(values - expected).max() < 1 / 255 / 0.2


def test_the_middle_is_cut_out_as_in_training() -> None:
    wanted = Preprocessing(4, "bicubic", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), crop=0.5)
    pixels = torch.arange(64, dtype=torch.uint8).reshape(1, 8, 8, 1)
    expected = pixels[0, 2:6, 2:6, 0].float() / 255
    for channel in wanted(pixels)[0]:
        torch.testing.assert_close(channel, expected)


def test_white_stays_white_and_no_image_changes_another() -> None:
    wanted = Preprocessing(6, "bicubic", (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
    checks = torch.zeros(1, 4, 4, 3, dtype=torch.uint8)
    checks[:, ::2] = 255
    found = wanted(checks)
    assert float(found.min()) >= 0.0
    assert float(found.max()) <= 1.0
    dark = torch.full((1, 4, 4, 3), 100, dtype=torch.uint8)
    both = wanted(torch.cat([dark, checks]))
    torch.testing.assert_close(both[:1], wanted(dark))


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_files_of_weights_are_used(tmp_path: Path, suffix: str) -> None:
    path = write_small(tmp_path / "weights.safetensors", change=0.5)
    if suffix == ".pth":
        state = {f"module.{key}": value for key, value in load_file(path).items()}
        path = tmp_path / "weights.pth"
        torch.save({"state_dict": state, "epoch": 3}, path)
    backbone, untrained = small_backbone(str(path)), small_backbone()
    first = next(iter(backbone.network.state_dict()))
    difference = backbone.network.state_dict()[first] - untrained.network.state_dict()[first]
    torch.testing.assert_close(difference, torch.full_like(difference, 0.5))
    assert backbone.digest != untrained.digest


def test_a_hash_follows_from_weights_and_preprocessing(tmp_path: Path) -> None:
    same = write_small(tmp_path / "same.safetensors")
    assert small_backbone(str(same)).digest == small_backbone().digest
    assert small_backbone(size=48).digest != small_backbone().digest


def test_other_weights_are_refused_by_their_first_keys(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    state = load_file(write_small(tmp_path / "right.safetensors"))
    first = sorted(state)[0]
    save_file({**{k: v for k, v in state.items() if k != first}, "extra.x": torch.zeros(1)}, path)
    problem = problem_of(NAME, str(path))
    assert f"1 missing keys, the first {first!r}" in problem
    assert "1 unexpected keys, the first 'extra.x'" in problem
    save_file({**state, first: torch.zeros(3, 1)}, path)
    assert f"{first} has the shape (3, 1) and not" in problem_of(NAME, str(path), 48)


VIT = "test_vit"


def vit_state(tmp_path: Path, size: int = 96) -> dict[str, torch.Tensor]:
    """Return the weights of a small vision transformer, made for images of this size."""
    network = timm.create_model(VIT, pretrained=False, img_size=size)
    state: dict[str, torch.Tensor] = network.state_dict()
    save_file(state, tmp_path / "vit.safetensors")
    return state


@pytest.fixture
def _restored() -> Iterator[None]:
    """See that the class of timm's transformers loads as ever after a file was converted."""
    kind = type(timm.create_model(VIT))
    yield
    assert kind.load_state_dict is nn.Module.load_state_dict


@pytest.mark.usefixtures("_restored")
def test_a_file_for_another_grid_is_read_as_timm_reads_it(tmp_path: Path) -> None:
    vit_state(tmp_path)
    path = tmp_path / "vit.safetensors"
    found = load_backbone(f"timm/{VIT}", str(path), 160).network.state_dict()
    overlay = {"file": str(path), "hf_hub_id": None}
    timms = timm.create_model(VIT, pretrained=True, num_classes=0, pretrained_cfg_overlay=overlay)
    expected = timms.state_dict()
    assert found.keys() == expected.keys()
    assert found["pos_embed"].shape == (1, 101, 64)
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=0, atol=0)


@pytest.mark.usefixtures("_restored")
def test_a_file_with_its_authors_names_is_read_as_timm_reads_it(tmp_path: Path) -> None:
    state = vit_state(tmp_path, 160)
    path = tmp_path / "open-clip.pth"
    # As OpenCLIP names them, beside a network for texts.
    tower = {f"visual.trunk.{key}": value for key, value in state.items() if "head" not in key}
    torch.save({**tower, "transformer.x": torch.zeros(1)}, path)
    converted = load_backbone(f"timm/{VIT}", str(path), 160)
    own = load_backbone(f"timm/{VIT}", str(tmp_path / "vit.safetensors"), 160)
    assert converted.digest == own.digest


@pytest.mark.usefixtures("_restored")
def test_what_is_converted_is_still_refused_by_its_first_keys(tmp_path: Path) -> None:
    state = vit_state(tmp_path)
    path = tmp_path / "more.safetensors"
    save_file({**{k: v for k, v in state.items() if k != "cls_token"}, "x": torch.zeros(1)}, path)
    problem = problem_of(f"timm/{VIT}", str(path), 160)
    # The grid is no problem any more.
    assert problem.endswith(
        "these have, once converted, 1 missing keys, the first 'cls_token', 1 unexpected keys, the "
        "first 'x'"
    )


@pytest.mark.usefixtures("_restored")
def test_a_file_that_timm_cannot_convert_is_refused_by_its_first_keys(tmp_path: Path) -> None:
    state = vit_state(tmp_path)
    path = tmp_path / "no-grid.safetensors"
    save_file({**state, "pos_embed": torch.zeros(7)}, path)
    problem = problem_of(f"timm/{VIT}", str(path), 160)
    assert problem.endswith("these have pos_embed has the shape (7,) and not (1, 101, 64)")


@pytest.mark.usefixtures("_restored")
def test_weights_of_another_architecture_are_refused_by_name(tmp_path: Path) -> None:
    path = write_small(tmp_path / "efficientnet.safetensors")
    problem = problem_of(f"timm/{VIT}", str(path), 160)
    assert problem.startswith(f"backbone='timm/{VIT}' with backbone-weights={str(path)!r}: allowed")
    assert "missing keys, the first 'blocks.0.attn.proj.bias'" in problem
    assert "unexpected keys, the first 'blocks.0.0.bn1.bias'" in problem
    vit_state(tmp_path)
    problem = problem_of(NAME, str(tmp_path / "vit.safetensors"))
    assert "unexpected keys, the first 'blocks.0.attn.proj.bias'" in problem


@pytest.mark.parametrize("prefix", ["_orig_mod.module.", "module._orig_mod."])
def test_names_that_were_wrapped_twice_are_unwrapped(tmp_path: Path, prefix: str) -> None:
    state = load_file(write_small(tmp_path / "weights.safetensors", change=0.5))
    path = tmp_path / "wrapped.pth"
    torch.save({"module": {f"{prefix}{key}": value for key, value in state.items()}}, path)
    plain = small_backbone(str(tmp_path / "weights.safetensors"))
    assert small_backbone(str(path)).digest == plain.digest


class Malice:
    """What runs code where it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (open, ("/dev/null",))


def test_files_that_hold_code_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"state_dict": Malice()}, path)
    assert "could run code, and is refused" in problem_of(NAME, str(path))


def test_files_that_are_no_weights_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"nothing of the kind")
    assert "cannot be read" in problem_of(NAME, str(path))
    assert "no such file" in problem_of(NAME, str(tmp_path / "none.pth"))
    torch.save([1, 2], tmp_path / "list.pth")
    assert "allowed is a state dictionary" in problem_of(NAME, str(tmp_path / "list.pth"))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("timm/resnet5O", "did you mean 'resnet50'?"),
        ("torchvision/resnet19", "did you mean 'resnet18'?"),
        ("resnet18", "allowed is none | timm/<name> | torchvision/<name>"),
    ],
)
def test_unknown_names_are_refused(name: str, said: str) -> None:
    assert said in str(backbone_problem(name))


@pytest.mark.parametrize("weights", ["none", "pretrained", "a file"])
def test_an_unknown_tag_is_refused_whatever_the_weights(tmp_path: Path, weights: str) -> None:
    if weights == "a file":
        weights = str(write_small(tmp_path / "weights.safetensors"))
    problem = problem_of("timm/resnet50.a1_in1", weights)
    assert problem.startswith("backbone='timm/resnet50.a1_in1': allowed is timm/resnet50, alone or")
    assert "a1_in1k | a1h_in1k | " in problem
    assert problem.endswith("; did you mean 'a1_in1k'?")


@pytest.mark.parametrize("tag", ["nope", ""])
def test_a_tag_that_is_near_none_is_refused_without_a_suggestion(tag: str) -> None:
    problem = str(backbone_problem(f"timm/resnet18.{tag}"))
    assert "allowed is timm/resnet18, alone or with one of its tags: a1_in1k | " in problem
    assert "did you mean" not in problem


def test_what_timm_has_renamed_takes_no_tag() -> None:
    assert backbone_problem("timm/convnext_tiny_in22ft1k") is None
    problem = str(backbone_problem("timm/convnext_tiny_in22ft1k.x"))
    assert problem.endswith("allowed is timm/convnext_tiny_in22ft1k without a tag")


@pytest.mark.parametrize("name", ["resnet18", "resnet18.a1_in1k", "test_vit_relpos.untrained"])
def test_names_are_taken_with_their_tags_and_without(name: str) -> None:
    assert backbone_problem(f"timm/{name}") is None


class Maps(nn.Module):
    """Gives maps, as a network without pooling does."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images


def maps() -> Made:
    return Made(Maps(), WANTED)


def test_a_backbone_without_pooled_features_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, BACKBONES, "maps", f"{__name__}:maps")
    assert "allowed is a network with pooled features" in problem_of("maps", "none")


def test_features_of_other_code_are_computed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though its weights are the same: it has none."""
    code = """
from torch import nn
from ahfal_app.backbones import Made, Preprocessing

def build():
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return Made(network, Preprocessing(8, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)))
"""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # It would hold for the other text.
    register(monkeypatch, BACKBONES, "own", "own_backbone:build")
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3)).astype(np.uint8)

    def features(text: str) -> np.ndarray:
        (tmp_path / "own_backbone.py").write_text(text)
        monkeypatch.delitem(sys.modules, "own_backbone", raising=False)
        importlib.invalidate_caches()
        load_backbone.cache_clear()
        backbone = load_backbone("own", "none")
        store = FeatureStore(tmp_path / "data", backbone, torch.device("cpu"))
        return np.array(store.of(images, "images").values_MD)

    before, after = features(code), features(code.replace("AdaptiveAvg", "AdaptiveMax"))
    assert (after > before + 0.1).all()
    assert np.array_equal(features(code), before)


def test_weights_that_cannot_be_downloaded_are_told_with_their_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    create = timm.create_model

    def offline(name: str, pretrained: bool = False, **options: object) -> nn.Module:
        if pretrained:
            raise ConnectionError("no route to host")
        return create(name, pretrained=False, **options)

    monkeypatch.setattr(timm, "create_model", offline)
    problem = problem_of("timm/resnet18", "pretrained")
    assert "cannot be loaded from the network (ConnectionError: no route to host)" in problem
    assert "fetch model.safetensors of timm/resnet18.a1_in1k from the" in problem


@pytest.mark.parametrize(
    "error",
    [
        OSError("no route to host"),
        RuntimeError('invalid hash value (expected "f37072fd", got "e3b0c442")'),
        EOFError("Ran out of input"),
    ],
)
def test_torchvisions_weights_that_cannot_be_downloaded_are_told_with_their_place(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def failing(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", failing)
    problem = problem_of("torchvision/resnet18", "pretrained")
    assert f"cannot be loaded from the network ({type(error).__name__}: {error})" in problem
    assert "fetch https://download.pytorch.org/models/resnet18-f37072fd.pth where" in problem


def test_the_loader_of_torchvision_is_not_asked_where_no_weights_are_wanted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no network of weights")

    monkeypatch.setattr(torchvision.models, "get_model", broken)
    with pytest.raises(RuntimeError, match="no network of weights"):
        load_backbone("torchvision/resnet18", "none", 40)


def cut_off(*_arguments: object, **_named: object) -> None:
    raise URLError("no route to host")


def test_weights_of_torchvision_that_cannot_be_downloaded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """No file of before is used, and none is left."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", cut_off)
    problem = problem_of("torchvision/resnet18", "pretrained")
    assert "the weights of torchvision/resnet18 cannot be loaded from the network" in problem
    assert "(URLError: <urlopen error no route to host>)" in problem
    assert "fetch https://download.pytorch.org/models/resnet18-f37072fd.pth where there" in problem
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_weights_of_torchvision_that_arrive_in_part(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", lambda *_arguments: Half())
    problem = problem_of("torchvision/resnet18", "pretrained")
    assert "(RuntimeError: invalid hash value" in problem
    assert "and give the file as backbone-weights" in problem


class Half(io.BytesIO):
    """What a connection gives that breaks."""

    headers = HTTPMessage()

    def __init__(self) -> None:
        super().__init__(b"half of the weights")

    def info(self) -> HTTPMessage:
        return self.headers


def test_weights_of_timm_that_are_not_there_without_a_network(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With the library's own way to the file, which is told that there is no network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    problem = problem_of("timm/resnet18", "pretrained")
    said = "the weights of timm/resnet18 cannot be loaded from the network (LocalEntryNotFoundErr"
    assert said in problem
    assert "fetch model.safetensors of timm/resnet18.a1_in1k from the Hugging" in problem
