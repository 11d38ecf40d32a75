"""Networks by name; each module of this package is one, named after its file."""

from __future__ import annotations

from ahfal_app.models.core.base import Classifier
from ahfal_app.models.core.facts import NetworkFacts
from ahfal_app.models.core.registry import (
    AUTO,
    build_model,
    model_names,
    model_problem,
    network_facts,
    network_parameters,
    resolve_model_name,
)

__all__ = [
    "AUTO",
    "Classifier",
    "NetworkFacts",
    "build_model",
    "model_names",
    "model_problem",
    "network_facts",
    "network_parameters",
    "resolve_model_name",
]
