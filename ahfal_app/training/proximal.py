"""The proximal term of FedProx: local training is held near the global model.

Li, Sahu, Zaheer, Sanjabi, Talwalkar and Smith, Federated optimization in heterogeneous
networks, MLSys 2020, equation 2.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ahfal_app.models import Classifier


class ProximalTerm:
    """Half the squared distance of the trainable parameters to the global model's, times mu.

    Parameters
    ----------
    mu : float
        Its weight.
    anchors : Mapping[str, Tensor]
        The global model's trainable parameters by name, as they were received.
    device : torch.device
        Where the trained model is.

    Attributes
    ----------
    mu : float
        As given.
    anchors : Mapping[str, Tensor]
        As given, on the device.
    """

    def __init__(self, mu: float, anchors: Mapping[str, Tensor], device: torch.device) -> None:
        self.mu = mu
        self.anchors = {name: anchor.to(device) for name, anchor in anchors.items()}

    def __call__(self, model: Classifier) -> Tensor:
        """Return the term, a scalar."""
        # The model names a parameter that layers share once, so that it counts once.
        distances = [
            (parameter - self.anchors[name]).square().sum()
            for name, parameter in model.named_parameters()
            if name in self.anchors
        ]
        return 0.5 * self.mu * torch.stack(distances).sum()
