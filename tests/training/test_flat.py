"""A network's tensors in flat ones, and back."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from torch import nn

from ahfal_app.flat import FlatArrays
from ahfal_app.training.flat import FlatAccess, FlatTensors


def _network() -> nn.Module:
    torch.manual_seed(3)
    network = nn.Sequential(nn.Conv2d(2, 3, 2), nn.BatchNorm2d(3), nn.Conv2d(3, 2, 1, bias=False))
    # Of other strides than their shapes say, as on a CPU.
    return network.to(memory_format=torch.channels_last)


@pytest.mark.parametrize("move", [False, True])
def test_a_network_is_read_and_set_again_whatever_its_memory_looks_like(move: bool) -> None:
    network, other = _network(), _network()
    access = FlatAccess(network.state_dict(keep_vars=True), move)
    flat = access.read()
    assert list(flat) == list(network.state_dict())
    assert {d: part.shape for d, part in flat.parts.items()} == {"float32": (45,), "int64": (1,)}
    assert flat.nbytes == 45 * 4 + 8
    with torch.no_grad():
        for tensor in network.state_dict().values():
            tensor.add_(1)
    # It is a copy.
    for name, tensor in other.state_dict().items():
        assert torch.equal(flat[name], tensor)
        assert not torch.equal(network.state_dict()[name], tensor)
    strides = {name: tensor.stride() for name, tensor in other.state_dict().items()}
    for values in (flat, dict(other.state_dict()), FlatTensors.of(dict(flat))):
        with torch.no_grad():
            network[0].weight.zero_()  # type: ignore[index, union-attr, operator]
        access.set(values)
        for name, tensor in other.state_dict().items():
            assert torch.equal(network.state_dict()[name], tensor)
    assert strides == {name: tensor.stride() for name, tensor in network.state_dict().items()}


def test_a_network_that_was_moved_trains_as_before() -> None:
    images, losses = torch.randn(4, 2, 5, 5), []
    for move in (False, True):
        network = _network()
        access = FlatAccess(network.state_dict(keep_vars=True), move)
        optimiser = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9, fused=True)
        for _ in range(3):
            loss = network(images).square().sum()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        losses.append(access.read().parts["float32"])
        # One flat tensor holds all, and only where they may be moved.
        access.set(FlatTensors(access.layout, {d: p * 0 for d, p in access.read().parts.items()}))
        pointers = {each.untyped_storage().data_ptr() for each in network.parameters()}
        assert len(pointers) == (1 if move else 5)
        assert not any(each.any() for each in network.state_dict().values())
    assert torch.equal(*losses)


def test_tensors_that_somebody_gives_other_memory_are_still_read_and_set() -> None:
    network = _network()
    access = FlatAccess(network.state_dict(keep_vars=True), move=True)
    network[0].weight.data = torch.ones(3, 2, 2, 2)  # type: ignore[union-attr]
    assert torch.equal(access.read()["0.weight"], torch.ones(3, 2, 2, 2))
    zeros = FlatTensors(access.layout, {d: p * 0 for d, p in access.read().parts.items()})
    access.set(zeros)
    assert not any(each.any() for each in network.state_dict().values())


@pytest.mark.parametrize("shared", ["parameter", "memory"])
def test_tensors_that_share_memory_are_not_moved(shared: str) -> None:
    network = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False))
    if shared == "parameter":
        network[1].weight = network[0].weight
    else:
        network[1].weight.data = network[0].weight.data
    access = FlatAccess(network.state_dict(keep_vars=True), move=True)
    access.set({"0.weight": torch.zeros(2, 2), "1.weight": torch.ones(2, 2)})
    assert torch.equal(access.read()["0.weight"], torch.ones(2, 2))
    assert network[0].weight.data_ptr() == network[1].weight.data_ptr()


def test_kernels_lie_as_the_network_has_them_and_look_as_always() -> None:
    layout = FlatAccess(_network().state_dict()).layout
    assert layout.channels_last == {"0.weight"}
    kernel = np.arange(24, dtype=np.float32).reshape(3, 2, 2, 2)
    values = {n: np.zeros(f.shape, f.dtype) for n, f in layout.items()} | {"0.weight": kernel}
    arrays = FlatArrays.of(values, layout)
    assert arrays.layout == layout
    assert np.array_equal(arrays["0.weight"], kernel)
    assert arrays.parts["float32"][:4].tolist() == [0, 4, 1, 5]
    tensors = FlatTensors.copy_of(arrays)
    assert torch.equal(tensors["0.weight"], torch.from_numpy(kernel))
    plain = FlatArrays.of(values)
    assert plain.layout != layout
    assert plain.parts["float32"][:4].tolist() == [0, 1, 2, 3]
    # Arrays of something else are laid out as they are.
    assert FlatArrays.of({"0.weight": kernel}, layout).layout.channels_last == frozenset()
    again = pickle.loads(pickle.dumps(layout))
    assert again == layout
    assert again != plain.layout


def test_flat_tensors_share_memory_with_their_arrays() -> None:
    tensors = FlatTensors.of({"a": torch.ones(2, 2), "n": torch.tensor(3), "b": torch.zeros(3)})
    assert FlatTensors.of(tensors) is tensors
    arrays = tensors.numpy()
    arrays["b"][...] = 7
    assert tensors["b"].tolist() == [7, 7, 7]
    assert tensors["n"].shape == ()
    assert tensors.parts["float32"].tolist() == [1, 1, 1, 1, 7, 7, 7]
    copied = FlatTensors.copy_of(arrays)
    arrays["b"][...] = 8
    assert copied["b"].tolist() == [7, 7, 7]
    of_arrays = FlatArrays.of({"a": np.ones((2, 2), np.float32)})
    assert FlatTensors.copy_of(of_arrays).layout == FlatTensors.of({"a": torch.zeros(2, 2)}).layout


def test_what_is_missing_or_unknown_is_named() -> None:
    access = FlatAccess({"a": torch.ones(2), "b": torch.ones(1)})
    with pytest.raises(KeyError, match="'c'"):
        access.set({"a": torch.ones(2), "b": torch.ones(1), "c": torch.ones(1)})
