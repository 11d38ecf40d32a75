"""The protocol of the AHFAL paper (section 5.1), and where runs depart from it."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from typing import Any

from ahfal_app.parameters import Scalar

#: What the paper states for all data sets. Weight decay and the drop of the learning rate are not
#: in it: what it leaves open does not count as a departure.
_EVERYWHERE: dict[str, Scalar] = {
    "max-train-samples": 0,
    "max-test-samples": 0,
    "num-clients": 10,
    "partition": "dirichlet-balanced",
    "batch-size": 128,
    "learning-rate": 0.1,
    "momentum": 0.9,
    "initial-fraction": 0.1,
    "query-fraction": 0.05,
    "tau": 12.0,
    "aggregation": "fedavg",
    "client-fraction": 1.0,
    "privacy": "none",
}

_LONG: dict[str, Scalar] = {"rounds": 100, "local-epochs": 5}
_SHORT: dict[str, Scalar] = {"rounds": 10, "local-epochs": 10}

#: What it states for each of its data sets, by short name.
_BY_DATASET: dict[str, dict[str, Scalar]] = {
    "cifar10": {**_LONG, "target-fraction": 0.35},
    "cifar100": {**_LONG, "target-fraction": 0.35},
    "svhn": {**_LONG, "target-fraction": 0.4},
    "mnist": {**_SHORT, "target-fraction": 0.4},
}

# A number alone would not say that 0 stands for all of them.
_ALL = frozenset({"max-train-samples", "max-test-samples"})


def departures(
    dataset: str, settings: Iterable[Mapping[str, Any]], studied: Container[str]
) -> list[str]:
    """Say where runs on one data set depart from the paper's protocol.

    Parameters
    ----------
    dataset : str
        Its short name.
    settings : Iterable[Mapping[str, Any]]
        The runs' flat settings.
    studied : Container[str]
        Keys that are the experiment's subject; they are left out.

    Returns
    -------
    list[str]
        One phrase each; empty where nothing departs.
    """
    if dataset not in _BY_DATASET:
        return [f"the paper has no results on {dataset}"]
    found: dict[str, list[str]] = {}
    for run in settings:
        for key, stated in {**_EVERYWHERE, **_BY_DATASET[dataset]}.items():
            if key not in studied and run[key] != stated:
                values = found.setdefault(f"{key} (paper: {_words(key, stated)})", [])
                values.extend({_words(key, run[key])} - set(values))
    return [f"{key}: {', '.join(values)}" for key, values in found.items()]


def _words(key: str, value: Scalar) -> str:
    return "all" if key in _ALL and value == 0 else str(value)
