"""Whether the clients of a process train together, as one tensor program, or in turns."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ahfal_app.errors import ConfigError
from ahfal_app.models import model_names, network_facts


@dataclass(frozen=True)
class BatchingChoice:
    """How clients train, and why."""

    together: bool
    reason: str


def resolve_client_batching(setting: str, device: torch.device, model_name: str) -> BatchingChoice:
    """Return how the clients of one process train.

    Parameters
    ----------
    setting : str
        `auto`, `always` or `never`.
    device : torch.device
        Where they train.
    model_name : str
        The network.

    Raises
    ------
    ConfigError
        `always` with a network whose copies cannot be stacked.
    """
    if setting == "never":
        return BatchingChoice(False, "as client-batching=never says")
    if not network_facts(model_name).stackable:
        if setting == "always":
            allowed = ", ".join(name for name in model_names() if network_facts(name).stackable)
            raise ConfigError(
                [f"client-batching='always' with model={model_name!r}: allowed with {allowed}"]
            )
        return BatchingChoice(False, f"copies of {model_name} cannot be stacked")
    if setting == "always":
        return BatchingChoice(True, "as client-batching=always says")
    if device.type == "cpu" and network_facts(model_name).together_pays_on_cpu:
        return BatchingChoice(True, f"{model_name} is small matrix products, which fit into one")
    if device.type == "cpu":
        return BatchingChoice(False, "on a CPU that was measured to be faster than together")
    return BatchingChoice(True, "a GPU has room for all of them at once")
