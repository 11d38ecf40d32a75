"""The backbone that a run is to have: whether its weights are here, and how fast it is here."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping

import torch

from ahfal_app.backbones import Backbone
from ahfal_app.client.node_config import at_site, path_of
from ahfal_app.config import Settings, parse_settings
from ahfal_app.data.features import Batches, batches_for, extracting
from ahfal_app.data.site.files import list_images
from ahfal_app.data.sources import load_dataset
from ahfal_app.deployment.doctor.finding import Finding, failure, good
from ahfal_app.errors import AhfalError, ConfigError
from ahfal_app.training.choices import backbone_of, resolve_device
from ahfal_app.training.compilation import extraction_compiles_from

#: Digits of a hash that are told.
_DIGITS = 12

#: What may be given of the server's hash; fewer digits could be those of another by chance.
_HASH = re.compile(r"[0-9a-f]{8,64}", re.IGNORECASE)


def check_backbone(
    node_config: Mapping[str, object], run: Mapping[str, object], server_hash: str = ""
) -> Iterator[Finding]:
    """Load the backbone as a run would, tell its hash, and how long this site's features take.

    Parameters
    ----------
    node_config : Mapping[str, object]
        What the site says of itself; `backbone-weights` is its file.
    run : Mapping[str, object]
        The run's settings that start with `backbone`, and `feature-views`.
    server_hash : str
        The hash that the server has, or its beginning; empty where it is not known.
    """
    try:
        settings = at_site(parse_settings(dict(run)), node_config)
        backbone = backbone_of(settings)
        device = resolve_device(settings.device)
    except ConfigError as error:
        yield from (failure("backbone", problem) for problem in error.problems)
        return
    yield _check_hash(backbone, server_hash)
    try:
        images = _images(node_config, settings)
        new = images * (settings.feature_views + 1)
        batches = batches_for(new, device, extraction_compiles_from(settings.compile))
        rate, seconds = _measured(backbone, device, batches, new)
    except (AhfalError, OSError, RuntimeError) as error:
        yield failure("features", str(error))
        return
    how = ""
    if device.type == "cpu":
        how = ", compiled" if batches.is_compiled else ", not compiled"
    yield good(
        "features",
        f"{rate:.0f} images a second on {device.type}{how}: {images} images{_viewed(settings)} "
        f"take about {seconds:.0f} s, once",
    )


def _check_hash(backbone: Backbone, server_hash: str) -> Finding:
    """Tell the backbone's hash, or hold it against the server's."""
    size, own = backbone.preprocessing.size, backbone.digest
    found = f"{backbone.name}, {backbone.features} features of {size}x{size} pixels"
    if not server_hash:
        hint = "its hash, which the server's must be equal to"
        return good("backbone", f"{found}; {hint}: {own[:_DIGITS]}")
    if not _HASH.fullmatch(server_hash):
        return failure(
            "backbone",
            f"--backbone-hash {server_hash!r}: allowed is the server's hash or its beginning, 8 to "
            "64 hexadecimal digits",
        )
    told = max(_DIGITS, len(server_hash))
    if own.startswith(server_hash.lower()):
        return good("backbone", f"{found}; its hash is the server's: {own[:told]}")
    return failure(
        "backbone",
        f"{found}; weights and preprocessing have the hash {own[:told]} here, and {server_hash} at "
        "the server; allowed is the same file of weights (backbone-weights), the same "
        "--backbone-size and --backbone-crop as the run's, and the same version of its library",
    )


def _measured(
    backbone: Backbone, device: torch.device, batches: Batches, new: int
) -> tuple[float, float]:
    """Return images a second, and about how many seconds new ones take, compiling counted."""
    size = backbone.preprocessing.size
    pixels_BHWC = torch.zeros((batches.size, size, size, 3), dtype=torch.uint8)
    with extracting(backbone, device, batches.compiled_size) as extract:
        begin = time.perf_counter()
        extract(pixels_BHWC)  # The first batch makes what all others use.
        start = time.perf_counter()
        extract(pixels_BHWC)
        rate = batches.size / (time.perf_counter() - start)
    return rate, start - begin + max(0, new - batches.size) / rate


def _viewed(settings: Settings) -> str:
    views = settings.feature_views
    return f" and {views} view{'s' * (views > 1)} of each" if views else ""


def _images(node_config: Mapping[str, object], settings: Settings) -> int:
    """Return how many images there are, without decoding those of a site."""
    if "data" not in node_config:
        return len(load_dataset(settings).train)
    present, _ = list_images(path_of(node_config["data"]), settings.image_column, [])
    return len(present)
