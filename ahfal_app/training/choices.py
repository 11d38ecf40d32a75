"""The data set, network, backbone and device that settings name."""

from __future__ import annotations

import os

import torch

from ahfal_app.backbones import Backbone, Preprocessing, load_backbone
from ahfal_app.config import Settings
from ahfal_app.data.augmentation import NO_AUGMENTATION
from ahfal_app.data.no_data import dataset_of_settings
from ahfal_app.data.sources import ImageDataset, load_dataset
from ahfal_app.errors import ConfigError, ImageSizesDiffer
from ahfal_app.models import AUTO, resolve_model_name
from ahfal_app.models.core.registry import network_facts, networks_for_vectors


def backbone_of(settings: Settings) -> Backbone:
    """Return the backbone that settings name.

    Raises
    ------
    ConfigError
        There is none of that name, or its weights cannot be used.
    """
    return load_backbone(
        settings.backbone, settings.backbone_weights, settings.backbone_size, settings.backbone_crop
    )


def resolve_head_name(settings: Settings, dataset: str, is_vectors: bool = False) -> str:
    """Return the network that `model` means: on a backbone's features, by default a linear one."""
    if settings.uses_backbone and settings.model == AUTO:
        return "linear"
    return resolve_model_name(settings.model, dataset, is_vectors)


def network_for(settings: Settings, dataset: ImageDataset) -> str:
    """Return the network for a data set, and refuse what is made for the other kind of data."""
    name = resolve_head_name(settings, dataset.name, dataset.holds_vectors)
    if not dataset.holds_vectors:
        return name
    problems = []
    if settings.uses_backbone:
        problems.append(
            f"backbone={settings.backbone!r}: takes images, and the data are vectors; "
            "allowed is 'none'"
        )
    elif not network_facts(name).takes_vectors:
        problems.append(
            f"model={settings.model!r}: is made for images, and the data are vectors; "
            f"allowed is auto | {' | '.join(networks_for_vectors())}"
        )
    if problems:
        raise ConfigError(problems)
    return name


def check_views(settings: Settings, dataset: ImageDataset) -> None:
    """Refuse views of images that nothing is done to."""
    if settings.feature_views and dataset.augmentation == NO_AUGMENTATION:
        raise ConfigError(
            [
                f"feature-views={settings.feature_views}: allowed is 0 with "
                f"augment={settings.augment!r}, which augments nothing of {dataset.name}; or "
                "augment='crop' | 'crop-flip'"
            ]
        )


def dataset_of(settings: Settings) -> ImageDataset:
    """Load the data set; images of several sizes are scaled to what a backbone wants."""
    if not settings.has_dataset and settings.uses_backbone:
        return _dataset_for(backbone_of(settings).preprocessing, settings)
    try:
        return load_dataset(settings)
    except ImageSizesDiffer:
        if not settings.uses_backbone:
            raise
        size = backbone_of(settings).preprocessing.size
        return load_dataset(settings.model_copy(update={"image_size": size}))


def _dataset_for(wanted: Preprocessing, settings: Settings) -> ImageDataset:
    """Return a data set without a sample, as a backbone wants its images."""
    mean_C, std_C = wanted.mean_C, wanted.std_C
    if settings.image_channels == 1:
        # Of no use where the backbone makes three channels of one, but a format has one each.
        return dataset_of_settings(settings, wanted.size, ((sum(mean_C) / 3,), (sum(std_C) / 3,)))
    return dataset_of_settings(settings, wanted.size, (mean_C, std_C))


def computing_threads(settings: Settings) -> int:
    """Return the number of processor threads that one client's, or one batch's, work takes."""
    return settings.threads or os.cpu_count() or 1


def fitting_at_once(settings: Settings) -> int:
    """Return how many clients the processor's cores can serve at the same time."""
    return max(1, (os.cpu_count() or 1) // computing_threads(settings))


def resolve_device(device: str) -> torch.device:
    """Return the device that a setting names; `auto` is the GPU where there is one.

    Raises
    ------
    ConfigError
        The named device is not there.
    """
    count = torch.cuda.device_count()
    if device == "auto":
        return torch.device("cuda" if count else "cpu")
    wanted = torch.device(device)
    if wanted.type == "cuda" and (wanted.index or 0) >= count:
        present = ", ".join(["cpu", *(f"cuda:{index}" for index in range(count))])
        raise ConfigError([f"device={device!r}: allowed is auto, or what is there: {present}"])
    return wanted
