"""What a process loads once and every message uses: data, partition, model, recipe.

Flower's simulation serves many clients from one process, the in-process engine all of
them; loading anything anew for each message would cost more than training.
"""

from __future__ import annotations

import copy
import os
import threading
from functools import cached_property
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray

from ahfal_app.config import DEFAULT_NUM_CLIENTS, Settings
from ahfal_app.data.cache import data_dir
from ahfal_app.data.device import DeviceImages
from ahfal_app.data.images import DataFormat
from ahfal_app.data.partition import Partition, make_partition
from ahfal_app.data.site.loading import SiteData, SiteFolders, load_site
from ahfal_app.data.sources import ImageDataset, load_dataset
from ahfal_app.errors import ConfigError
from ahfal_app.models import Classifier, build_model, resolve_model_name
from ahfal_app.seeds import torch_seed
from ahfal_app.training.compilation import resolve_compile
from ahfal_app.training.memory import keep_freed_memory
from ahfal_app.training.sgd import Recipe, resolve_precision
from ahfal_app.training.update import is_trained_elsewhere


class Resources:
    """Data on the device, the partition, and a model for each thread.

    Parameters
    ----------
    settings : Settings
        Read are those that `_MADE_OF` names, and the parameters of the model and the data set.
    site : SiteData | None
        A client's own data, where it does not hold a part of a data set that all share.

    Raises
    ------
    DatasetError, PartitionError, ConfigError
        The data set, the partition, the model or the device cannot be had.
    """

    def __init__(self, settings: Settings, site: SiteData | None = None) -> None:
        keep_freed_memory()
        self._settings = settings
        self._local = threading.local()
        self._newest_recipe: tuple[Settings | None, Recipe | None] = (None, None)
        self.device = resolve_device(settings.device)
        self.site = site
        self.dataset: ImageDataset = site.dataset if site else load_dataset(settings)
        self.model_name = resolve_model_name(settings.model, self.dataset.name)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self.dataset.num_classes

    @property
    def global_counts_C(self) -> NDArray[np.int64]:
        """True class counts of the whole training set. Shape (C,)."""
        return np.bincount(self.dataset.train.labels_N, minlength=self.num_classes)

    @cached_property
    def partition(self) -> Partition:
        """The split of the training set over the clients."""
        settings = self._settings
        num_clients = settings.num_clients or DEFAULT_NUM_CLIENTS
        labels_N = self.dataset.train.labels_N
        return make_partition(settings, labels_N, self.num_classes, num_clients)

    def client_rows(self, client: int) -> NDArray[np.int64]:
        """Return a client's rows of the training set: its sample ids, strictly increasing."""
        return self.site.ids_N if self.site else self.partition.indices[client]

    @cached_property
    def train_images(self) -> DeviceImages:
        """The training images on the device."""
        dataset = self.dataset
        return DeviceImages(dataset.train, dataset.mean_C, dataset.std_C, self.device)

    @cached_property
    def test_images(self) -> DeviceImages:
        """The test images on the device."""
        dataset = self.dataset
        return DeviceImages(dataset.test, dataset.mean_C, dataset.std_C, self.device)

    def new_model(self, cycle: int, purpose: str = "model") -> Classifier:
        """Return a freshly initialised model; equal for equal (seed, purpose, cycle)."""
        seed = torch_seed(self._settings.seed, purpose, cycle)
        return build_model(
            self.model_name,
            self.dataset.image_shape,
            self.num_classes,
            seed,
            self._settings.parameters_of("model"),
        )

    @cached_property
    def trainable_names(self) -> tuple[str, ...]:
        """Names of the model's trainable parameters, as in its state and in its order.

        A parameter that layers share has several, and its state an array of each: all must
        fare the same in aggregation, as the last one wins when the state is loaded.
        """
        parameters = self.model().named_parameters(remove_duplicate=False)
        return tuple(name for name, parameter in parameters if parameter.requires_grad)

    def state(self) -> dict[str, torch.Tensor]:
        """Return all that this thread's model holds, by name: its own memory, not copies."""
        name = f"state on {self._model_device().type}"
        if not hasattr(self._local, name):
            setattr(self._local, name, dict(self.model().state_dict()))
        return cast(dict[str, torch.Tensor], getattr(self._local, name))

    def model_with(self, tensors: dict[str, torch.Tensor]) -> Classifier:
        """Return this thread's model with other weights, of the names and shapes of `state`.

        What `load_state_dict` does, without its walk through all modules.
        """
        state = self.state()
        if state.keys() != tensors.keys():
            raise KeyError(f"{sorted(state.keys() ^ tensors.keys())[:3]}: missing or unknown")
        with torch.no_grad():
            for name, tensor in tensors.items():
                state[name].copy_(tensor)
        return self.model()

    def loaded_model(self, tensors: dict[str, torch.Tensor]) -> Classifier:
        """Return a model of its own with these weights, where this thread's model is."""
        model = copy.deepcopy(self.model())
        model.load_state_dict(tensors)
        return model

    def model(self) -> Classifier:
        """Return this thread's model; its weights are whatever it last held.

        It is on the device, but on the CPU where something else trains it.
        """
        device = self._model_device()
        name = f"model on {device.type}"
        if not hasattr(self._local, name):
            model = self.new_model(0).to(device)
            setattr(self._local, name, model.to(memory_format=torch.channels_last))
        return cast(Classifier, getattr(self._local, name))

    def _model_device(self) -> torch.device:
        return torch.device("cpu") if is_trained_elsewhere() else self.device

    def recipe(self, settings: Settings) -> Recipe:
        """Return the recipe of local training, with nothing left to be decided."""
        # Every message asks, mostly about the same object.
        known, recipe = self._newest_recipe
        if known is settings and recipe is not None:
            return recipe
        recipe = self._recipe(settings)
        self._newest_recipe = (settings, recipe)
        return recipe

    def _recipe(self, settings: Settings) -> Recipe:
        device, model = self.device, self.model_name
        return Recipe(
            local_epochs=settings.local_epochs,
            batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            lr_decay_epochs=settings.lr_decay_epochs,
            lr_decay_factor=settings.lr_decay_factor,
            augmentation=self.dataset.augmentation,
            precision=resolve_precision(settings.precision, device, model),
            compile=resolve_compile(settings.compile, device, model, self._sample_passes(settings)),
        )

    def _sample_passes(self, settings: Settings) -> int:
        """Return how many samples the whole run trains on, epochs and rounds counted."""
        num_samples = len(self.dataset.train.labels_N)
        cycles = range(min(settings.num_cycles, num_samples))
        labels = sum(settings.labels_due(cycle, num_samples) for cycle in cycles)
        return int(labels * settings.rounds * settings.local_epochs * settings.client_fraction)


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


_Key = tuple[object, ...]

_memo: dict[_Key, Resources] = {}
_sites: dict[SiteFolders, tuple[_Key, Resources]] = {}
_lock = threading.Lock()


def resources(settings: Settings) -> Resources:
    """Return the process's resources for these settings, loading them at the first call."""
    key = _key(settings)
    with _lock:
        if key not in _memo:
            _memo.clear()  # One run at a time: another data set replaces the last one.
            _memo[key] = Resources(settings)
        return _memo[key]


def site_resources(
    settings: Settings, folders: SiteFolders, data_format: DataFormat, room: int | None = None
) -> Resources:
    """Return the process's resources for a site's own data, loading them at the first call.

    What comes into the folder later is noticed by the next process; a SuperNode starts one for
    each message.

    Parameters
    ----------
    settings : Settings
        The run's settings, with those of the site.
    folders : SiteFolders
        Where the site keeps what.
    data_format : DataFormat
        What all sites' data have in common.
    room : int | None
        As of `load_site`.

    Raises
    ------
    DatasetError, LabelFileError
        The site's data cannot be used.
    PolicyRefused
        Decoded images would take more room.
    """
    key = (*_key(settings), data_format)
    with _lock:
        if folders not in _sites or _sites[folders][0] != key:
            site = load_site(folders, data_format, data_dir(settings), settings.image_column, room)
            _sites[folders] = (key, Resources(settings, site))
        return _sites[folders][1]


#: What a process's resources are made of; of the rest `recipe` is asked anew each time.
_MADE_OF = (
    "dataset",
    "data_dir",
    "image_column",
    "label_column",
    "classes",
    "image_size",
    "test_fraction",
    "max_train_samples",
    "max_test_samples",
    "num_clients",
    "partition",
    "alpha",
    "min_partition_size",
    "partition_attempts",
    "seed",
    "augment",
    "model",
    "device",
)


def _key(settings: Settings) -> _Key:
    fields = tuple(getattr(settings, name) for name in _MADE_OF)
    parameters = (settings.parameters_of("model"), settings.parameters_of("dataset"))
    return (*fields, *(tuple(sorted(each.items())) for each in parameters))
