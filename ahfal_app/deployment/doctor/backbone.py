"""The backbone that a run is to have: whether its weights are here, and how fast it is here."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

import torch

from ahfal_app.client.node_config import at_site, path_of
from ahfal_app.config import Settings, parse_settings
from ahfal_app.data.features import extracting
from ahfal_app.data.site.files import list_images
from ahfal_app.data.sources import load_dataset
from ahfal_app.deployment.doctor.finding import Finding, failure, good
from ahfal_app.errors import AhfalError, ConfigError
from ahfal_app.training.resources import backbone_of, resolve_device

#: Images that the speed is measured with.
_TRIED = 32


def check_backbone(
    node_config: Mapping[str, object], run: Mapping[str, object]
) -> Iterator[Finding]:
    """Load the backbone as a run would, tell its hash, and how long this site's features take.

    Parameters
    ----------
    node_config : Mapping[str, object]
        What the site says of itself; `backbone-weights` is its file.
    run : Mapping[str, object]
        The run's settings that start with `backbone`, and `feature-views`.
    """
    try:
        settings = at_site(parse_settings(dict(run)), node_config)
        backbone = backbone_of(settings)
        device = resolve_device(settings.device)
    except ConfigError as error:
        yield from (failure("backbone", problem) for problem in error.problems)
        return
    size = backbone.preprocessing.size
    yield good(
        "backbone",
        f"{backbone.name}, {backbone.features} features of {size}x{size} pixels; its hash, which "
        f"the server's must be equal to: {backbone.digest[:12]}",
    )
    pixels_BHWC = torch.zeros((_TRIED, size, size, 3), dtype=torch.uint8)
    try:
        with extracting(backbone, device) as extract:
            extract(pixels_BHWC)  # The first batch makes what all others use.
            start = time.perf_counter()
            extract(pixels_BHWC)
            rate = _TRIED / (time.perf_counter() - start)
        images = _images(node_config, settings)
    except (AhfalError, OSError, RuntimeError) as error:
        yield failure("features", str(error))
        return
    yield good(
        "features",
        f"{rate:.0f} images a second on {device.type}: {images} images{_viewed(settings)} take "
        f"about {images * (settings.feature_views + 1) / rate:.0f} s, once",
    )


def _viewed(settings: Settings) -> str:
    views = settings.feature_views
    return f" and {views} view{'s' * (views > 1)} of each" if views else ""


def _images(node_config: Mapping[str, object], settings: Settings) -> int:
    """Return how many images there are, without decoding those of a site."""
    if "data" not in node_config:
        return len(load_dataset(settings).train)
    present, _ = list_images(path_of(node_config["data"]), settings.image_column, [])
    return len(present)
