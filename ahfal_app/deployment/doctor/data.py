"""The images that a site has, decoded as a run would decode them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from ahfal_app.config import parse_settings
from ahfal_app.data.not_used import told
from ahfal_app.data.sources import load_dataset
from ahfal_app.deployment.doctor.finding import Finding, failure, good, warning
from ahfal_app.errors import ConfigError, DatasetError

_KEYS = ("dataset", "data-dir")


def check_data(node_config: Mapping[str, object]) -> Iterator[Finding]:
    """Load the data set that the site names; what is decoded is kept for the run."""
    own = {key: str(node_config[key]) for key in _KEYS if key in node_config}
    try:
        dataset = load_dataset(parse_settings(own))
    except ConfigError as error:
        yield failure("data", "; ".join(error.problems))
        return
    except (DatasetError, OSError) as error:
        yield failure("data", str(error))
        return
    labels_N = dataset.train.labels_N
    one, several = ("vector", "vectors") if dataset.holds_vectors else ("image", "images")
    yield good("data", f"{dataset.name}: {len(labels_N)} {several} can be read")
    if dataset.not_used:
        yield warning("data", f"found and not used: {told(dataset.not_used)}")
    counts_C = np.bincount(labels_N, minlength=len(dataset.class_names))
    missing = [name for name, n in zip(dataset.class_names, counts_C, strict=True) if not n]
    if missing:
        yield failure("labels", f"no {one} has the label {', '.join(missing)}: check the labels")
    else:
        fewest = int(counts_C.min())
        yield good("labels", f"{len(counts_C)} classes, the rarest with {fewest} {several}")
