"""Weights of backbones from files: no code of a file is run, nothing is left out unsaid."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Collection
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, load, nn

from ahfal_app.errors import ConfigError

#: Brings a state dictionary into the form of a network; raises anything where it cannot.
Convert = Callable[[dict[str, Tensor]], dict[str, Tensor]]

#: Where state dictionaries are found in checkpoints of training, as timm looks for them.
_INSIDE = ("state_dict_ema", "model_ema", "state_dict", "model", "module", "model_state")

#: What wrappers of training put before the names of parameters, in either order.
_PREFIXES = ("_orig_mod.", "module.", "_orig_mod.")


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a state dictionary, of safetensors or of torch without code.

    Raises
    ------
    ConfigError
        There is no such file, it holds code, or it holds no tensors by name.
    """
    where = f"backbone-weights={str(path)!r}"
    if not path.is_file():
        raise ConfigError([f"{where}: no such file; allowed is a file, `pretrained` or `none`"])
    try:
        if path.suffix == ".safetensors":
            found: object = load_file(path)
        else:
            found = load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ConfigError(
            [
                f"{where}: it holds more than tensors, which could run code, and is refused; "
                "allowed is a state dictionary, of safetensors or of torch.save"
            ]
        ) from error
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise ConfigError(
            [f"{where}: cannot be read ({error}); allowed is safetensors or torch.save's"]
        ) from error
    return _state_dict(found, where)


def _state_dict(found: object, where: str) -> dict[str, Tensor]:
    for key in _INSIDE:
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
            break
    if not isinstance(found, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in found.items()
    ):
        raise ConfigError([f"{where}: allowed is a state dictionary: tensors by name"])
    for prefix in _PREFIXES:
        if found and all(key.startswith(prefix) for key in found):
            found = {key.removeprefix(prefix): value for key, value in found.items()}
    return found


def load_weights(
    network: nn.Module,
    state: dict[str, Tensor],
    where: str,
    classifier: Collection[str],
    convert: Convert | None = None,
) -> None:
    """Load a state dictionary into a network without its classifier.

    Parameters
    ----------
    network : nn.Module
        Changed in place.
    state : dict[str, Tensor]
        By name.
    where : str
        What it is, for messages.
    classifier : Collection[str]
        Names of modules that the weights may have and the network does not: they are left out.
    convert : Convert | None
        Is asked where the weights do not fit as they are.

    Raises
    ------
    ConfigError
        The weights are those of another network.
    """
    kept = _headless(network, state, classifier)
    differences, how = _differences(network, kept), ""
    if differences and convert is not None:
        try:
            kept = _headless(network, convert(state), classifier)
        except Exception as error:
            # Made for files of this network, it says nothing that helps with those of another.
            raise _refusal(where, differences) from error
        differences, how = _differences(network, kept), ", once converted,"
    if differences:
        raise _refusal(where, differences, how)
    network.load_state_dict(kept, strict=False)


def _headless(
    network: nn.Module, state: dict[str, Tensor], classifier: Collection[str]
) -> dict[str, Tensor]:
    own = network.state_dict()
    heads = tuple(f"{name}." for name in classifier)
    return {key: value for key, value in state.items() if key in own or not key.startswith(heads)}


def _differences(network: nn.Module, state: dict[str, Tensor]) -> list[str]:
    """Say what keeps a state dictionary from being the network's; nothing where it is."""
    own = network.state_dict()
    # Counters of batches are not in every file, and change no feature.
    missing = sorted(k for k in own.keys() - state.keys() if not k.endswith("num_batches_tracked"))
    unexpected = sorted(state.keys() - own.keys())
    shapes = [
        f"{key} has the shape {tuple(state[key].shape)} and not {tuple(value.shape)}"
        for key, value in own.items()
        if key in state and state[key].shape != value.shape
    ]
    return [
        f"{len(keys)} {kind} keys, the first {keys[0]!r}"
        for kind, keys in (("missing", missing), ("unexpected", unexpected))
        if keys
    ] + shapes[:1]


def _refusal(where: str, differences: list[str], how: str = "") -> ConfigError:
    return ConfigError(
        [f"{where}: allowed are weights of this network; these have{how} {', '.join(differences)}"]
    )
