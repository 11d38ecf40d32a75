"""What a process loads once and every message uses: data, partition, model, recipe.

Flower's simulation serves many clients from one process, the in-process engine all of
them; loading anything anew for each message would cost more than training.
"""

from __future__ import annotations

import copy
import hashlib
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property, partial
from typing import Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray

from ahfal_app.arrivals import Arrivals, make_arrivals
from ahfal_app.arrivals.core.looks import changed_images
from ahfal_app.arrivals.core.paths import changed
from ahfal_app.backbones import Backbone
from ahfal_app.config import DEFAULT_NUM_CLIENTS, Settings
from ahfal_app.data.augmentation import NO_AUGMENTATION, Augmentation
from ahfal_app.data.cache import data_dir
from ahfal_app.data.device import DeviceFeatures, DeviceImages
from ahfal_app.data.features import Features, FeatureStore, ImageRows
from ahfal_app.data.images import DataFormat, Images
from ahfal_app.data.partition import Partition, make_partition
from ahfal_app.data.preparation import parted_tests
from ahfal_app.data.site.loading import SiteData, SiteFolders, load_site
from ahfal_app.data.site.validation import Validation, load_validation
from ahfal_app.data.sources import ImageDataset
from ahfal_app.data.vectors import VectorColumns
from ahfal_app.data.views import WithViews
from ahfal_app.errors import MessageRefused
from ahfal_app.flat import Layout
from ahfal_app.models import Classifier, build_model
from ahfal_app.models.core.finetuned import finetuned
from ahfal_app.seeds import numpy_generator, torch_seed
from ahfal_app.training.choices import (
    backbone_of,
    check_views,
    dataset_of,
    network_for,
    resolve_device,
)
from ahfal_app.training.compilation import extraction_compiles_from, resolve_compile
from ahfal_app.training.flat import FlatAccess, FlatTensors
from ahfal_app.training.memory import keep_freed_memory
from ahfal_app.training.sgd import Recipe, resolve_precision
from ahfal_app.training.update import is_trained_elsewhere

_Split = Literal["train", "test", "held-out", "validation"]

#: Images whose pixels are hashed at a time.
_HASHED_AT_ONCE = 1024


class Resources:
    """Data on the device, the partition, and a model for each thread.

    Parameters
    ----------
    settings : Settings
        Read are those that `_MADE_OF` names, and the parameters of the model and the data set.
    site : SiteData | None
        A client's own data, where it does not hold a part of a data set that all share.
    room : int | None
        Bytes that features may take at a site; None: as many as they need.
    load_tests : Callable[[], Validation] | None
        Loads what a site tests with, if it has a folder for that.

    Raises
    ------
    DatasetError, PartitionError, ConfigError
        The data set, the partition, the backbone, the model or the device cannot be had.
    """

    def __init__(
        self,
        settings: Settings,
        site: SiteData | None = None,
        room: int | None = None,
        load_tests: Callable[[], Validation] | None = None,
    ) -> None:
        keep_freed_memory()
        self._room = room
        self._load_tests = load_tests
        self._settings = settings
        self._local = threading.local()
        self._lock = threading.RLock()
        self._splits: dict[str, DeviceImages] = {}
        self._arrivals: dict[_Key, Arrivals] = {}
        #: Images whose features were computed here, and the seconds that took, by split.
        self.extracted: dict[str, tuple[int, float]] = {}
        self._newest_recipe: tuple[Settings | None, Recipe | None] = (None, None)
        self.device = resolve_device(settings.device)
        self.site = site
        self.dataset: ImageDataset = site.dataset if site else dataset_of(settings)
        self._held_out: Images | None = None
        if settings.held_out and site is None and settings.has_dataset:
            tests, self._held_out = parted_tests(
                self.dataset.test, settings.held_out, settings.seed
            )
            self.dataset = replace(self.dataset, test=tests)
        self.model_name = network_for(settings, self.dataset)
        check_views(settings, self.dataset)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self.dataset.num_classes

    @property
    def has_features(self) -> bool:
        """Whether every sample has features that no training of this run has made."""
        return self.dataset.holds_vectors or self._settings.uses_features

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

    def arrivals(self, settings: Settings) -> Arrivals | None:
        """Return when simulated clients' samples arrive; None where all are there, or at a site."""
        if not settings.simulates_arrivals or self.site is not None:
            return None
        key = arrivals_key(settings)
        with self._lock:
            if key not in self._arrivals:
                indices, labels_N = self.partition.indices, self.dataset.train.labels_N
                self._arrivals[key] = make_arrivals(settings, indices, labels_N, self.num_classes)
            return self._arrivals[key]

    @cached_property
    def train(self) -> Images:
        """The training samples as they look: where images change over time, as they arrived."""
        settings, train = self._settings, self.dataset.train
        arrivals = self.arrivals(settings) if settings.covariate_drift != "none" else None
        if arrivals is None:
            return train
        levels_T = self.levels(settings)
        # Vectors were refused before.
        images_NHWC = np.array(cast(NDArray[np.uint8], train.images_NHWC))
        for client, each in enumerate(arrivals.clients):
            levels_N = np.where(each.cycle_N >= 0, levels_T[each.cycle_N], 0.0)
            generator = numpy_generator(settings.seed, "arrivals.covariate", client)
            images_NHWC[each.rows_N] = changed_images(
                images_NHWC[each.rows_N], levels_N, settings.covariate_drift, generator
            )
        images_NHWC.setflags(write=False)
        return replace(train, images_NHWC=images_NHWC)

    def levels(self, settings: Settings) -> NDArray[np.float64]:
        """Return how far images have changed that arrive in each cycle, from 0 to 5. Shape (T,)."""
        period = settings.severity_period
        return settings.severity * changed(settings.severity_path, settings.num_cycles, period)

    def test_images_at(self, settings: Settings, cycle: int) -> DeviceImages:
        """Return the test images as they would look if they arrived in a cycle.

        Each changes with the same draws in every cycle.
        """
        level = float(self.levels(settings)[cycle])
        if level == 0:
            return self.test_images
        test = self.dataset.test
        generator = numpy_generator(settings.seed, "arrivals.covariate.test")
        images_NHWC = changed_images(
            cast(NDArray[np.uint8], test.images_NHWC),
            np.full(len(test), level),
            settings.covariate_drift,
            generator,
        )
        looked = replace(test, images_NHWC=images_NHWC)
        return self._placed(looked, "test", _digest(images_NHWC))

    def client_rows(self, client: int) -> NDArray[np.int64]:
        """Return a client's rows of the training set: its sample ids, strictly increasing."""
        return self.site.ids_N if self.site else self.partition.indices[client]

    @cached_property
    def backbone(self) -> Backbone | None:
        """The network whose features the model takes, if there is one."""
        settings = self._settings
        return backbone_of(settings) if settings.uses_backbone else None

    @property
    def facts_name(self) -> str:
        """The network by which it is decided how training runs: of a whole backbone, nothing."""
        settings = self._settings
        whole = settings.uses_backbone and not settings.uses_features
        return settings.backbone if whole else self.model_name

    @property
    def train_images(self) -> DeviceImages:
        """The training images on the device, or their features; these are computed once."""
        return self._on_device("train")

    @property
    def test_images(self) -> DeviceImages:
        """The test images on the device, or their features."""
        return self._on_device("test")

    @property
    def held_out_images(self) -> DeviceImages | None:
        """The test images that are held out, as `test_images`; None where there are none."""
        return self._on_device("held-out") if self._held_out is not None else None

    @property
    def has_validation(self) -> bool:
        """Whether a site has a folder of images to test with."""
        return self._load_tests is not None

    @property
    def validation_images(self) -> DeviceImages | None:
        """What a site tests with, on the device, or features; None where it has no folder for it.

        Raises
        ------
        DatasetError, LabelFileError, PolicyRefused
            As of `load_validation`.
        """
        return self._on_device("validation") if self._load_tests is not None else None

    def check_validation(self) -> None:
        """Decode what a site tests with, and compute its features, so that its faults are told."""
        if self._load_tests is not None and self.dataset.format.is_measured:
            _ = self.validation_images
        elif self._load_tests is not None:
            self._load_tests()

    def _on_device(self, split: _Split) -> DeviceImages:
        # Clients of a process ask at the same time, and features are computed by one of them.
        with self._lock:
            if split not in self._splits:
                self._splits[split] = self._make(split)
            return self._splits[split]

    def _make(self, split: _Split) -> DeviceImages:
        dataset = self.dataset
        if not dataset.format.is_measured:
            raise MessageRefused("data: not told what they are normalised with")
        tests = self._load_tests() if split == "validation" and self._load_tests else None
        own = self.train if split == "train" else dataset.test
        if split == "held-out" and self._held_out is not None:
            own = self._held_out
        images = tests.images if tests is not None else own
        look = ""
        if split == "train" and self._settings.covariate_drift != "none":
            look = _digest(cast(NDArray[np.uint8], images.images_NHWC))
        return self._placed(images, split, look, tests)

    def _placed(
        self, images: Images, split: _Split, look: str = "", tests: Validation | None = None
    ) -> DeviceImages:
        """Put images on the device, or their features; `look` tells changed ones by pixels."""
        dataset = self.dataset
        if self.backbone is None:
            return DeviceImages(images, dataset.mean_C, dataset.std_C, self.device)
        if not self._settings.uses_features:
            wanted = self.backbone.preprocessing
            return DeviceImages(images, wanted.mean_C, wanted.std_C, self.device)
        if tests is not None:
            # Kept apart: of those in `data` the features go with the images.
            store = self._store(self.backbone, tests.cache_name)
            pixels_NHWC = cast(NDArray[np.uint8], images.images_NHWC)
            features = store.of(pixels_NHWC, tests.fingerprint, None, self._room)
            store.forget_others(features)
        else:
            features = self._features(images, split, self.backbone, look)
        self.extracted[split] = (features.computed, features.seconds)
        return DeviceFeatures(features, images.labels_N, self.device)

    def _features(self, images: Images, split: str, backbone: Backbone, look: str = "") -> Features:
        site = self.site
        wanted_N = site.ids_N if site and split == "train" else None
        content = f"{self.dataset.fingerprint} {split}{look and f' {look}'}".encode()
        content += wanted_N.tobytes() if wanted_N is not None else b""
        if split != "train" and (held_out := self._settings.held_out):
            content += f" {held_out} held out {self._settings.seed}".encode()
        store = self._store(backbone, site.cache_name if site else "")
        # No backbone goes with vectors.
        pixels_NHWC = cast(NDArray[np.uint8], images.images_NHWC)
        rows: ImageRows = pixels_NHWC
        if split == "train" and (views := self._settings.feature_views):
            how = self.dataset.augmentation
            content += f" {views} views {how.padding} {how.flip}".encode()
            rows = WithViews(pixels_NHWC, how, views)
            wanted_N = rows.rows(wanted_N) if wanted_N is not None else None
        fingerprint = hashlib.sha256(content).hexdigest()
        features = store.of(rows, fingerprint, wanted_N, self._room)
        if site and split == "train":
            store.forget_others(features)
        return features

    def _store(self, backbone: Backbone, owner: str) -> FeatureStore:
        settings = self._settings
        # Only where somebody says so: a saved model computes in single precision, and gives what
        # the run has tested.
        how = extraction_compiles_from(settings.compile), settings.precision == "bf16"
        return FeatureStore(data_dir(settings), backbone, self.device, owner, *how)

    def standardise(self, mean_C: tuple[float, ...], std_C: tuple[float, ...]) -> None:
        """Normalise data by another mean and deviation from now on."""
        self.dataset = replace(self.dataset, mean_C=mean_C, std_C=std_C)
        # A new table, as a copy of this object may share the old one.
        self._splits = {}

    def new_model(self, cycle: int, purpose: str = "model") -> Classifier:
        """Return a freshly initialised model; equal for equal (seed, purpose, cycle)."""
        seed, settings = torch_seed(self._settings.seed, purpose, cycle), self._settings
        shape = self.dataset.image_shape
        if self.backbone is not None:
            shape = (1, 1, self.backbone.features)
        parameters = settings.parameters_of("model")
        model = build_model(self.model_name, shape, self.num_classes, seed, parameters)
        if self.backbone is None or settings.uses_features:
            return model
        return finetuned(self.backbone, model, settings.tune)

    @cached_property
    def trainable_names(self) -> tuple[str, ...]:
        """Names of the model's trainable parameters, as in its state and in its order.

        A parameter that layers share has several, and its state an array of each: all must
        fare the same in aggregation, as the last one wins when the state is loaded.
        """
        parameters = self.model().named_parameters(remove_duplicate=False)
        return tuple(name for name, parameter in parameters if parameter.requires_grad)

    @property
    def layout(self) -> Layout:
        """Which arrays a model's state has; the same object always."""
        return self._access().layout

    def model_with(self, tensors: Mapping[str, torch.Tensor]) -> Classifier:
        """Return this thread's model with other weights, of the names and shapes of its state.

        What `load_state_dict` does, without its walk through all modules.
        """
        self._access().set(tensors)
        return self.model()

    def model_tensors(self) -> FlatTensors:
        """Return a copy of all that this thread's model holds, by name, on its device."""
        return self._access().read()

    def _access(self) -> FlatAccess:
        name = f"state on {self._model_device().type}"
        if not hasattr(self._local, name):
            setattr(
                self._local, name, FlatAccess(self.model().state_dict(keep_vars=True), move=True)
            )
        return cast(FlatAccess, getattr(self._local, name))

    def loaded_model(self, tensors: Mapping[str, torch.Tensor]) -> Classifier:
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
        device, model = self.device, self.facts_name
        height, width, _ = self.dataset.image_shape
        return Recipe(
            local_epochs=settings.local_epochs,
            batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            lr_decay_epochs=settings.lr_decay_epochs,
            lr_decay_factor=settings.lr_decay_factor,
            augmentation=self._augmentation(settings),
            precision=resolve_precision(settings.precision, device, model, height * width),
            compile=resolve_compile(
                settings.compile, device, model, self._sample_passes(settings), height * width
            ),
        )

    def _augmentation(self, settings: Settings) -> Augmentation:
        """Return what is drawn for a training image: of features a view, if there are any."""
        if not settings.uses_features:
            return self.dataset.augmentation
        return replace(NO_AUGMENTATION, views=settings.feature_views)

    def _sample_passes(self, settings: Settings) -> int:
        """Return how many samples the whole run trains on, epochs and rounds counted."""
        num_samples = len(self.dataset.train.labels_N)
        cycles = range(min(settings.num_cycles, num_samples))
        clients = settings.num_clients or DEFAULT_NUM_CLIENTS
        labels = sum(settings.labels_of_all(cycle, num_samples, clients) for cycle in cycles)
        return int(labels * settings.rounds * settings.local_epochs * settings.client_fraction)


_Key = tuple[object, ...]

_memo: dict[_Key, Resources] = {}
_sites: dict[SiteFolders, tuple[_Key, Resources]] = {}
_lock = threading.Lock()


def resources(settings: Settings, data_format: DataFormat | None = None) -> Resources:
    """Return the process's resources for these settings, loading them at the first call.

    Parameters
    ----------
    settings : Settings
        The run's settings.
    data_format : DataFormat | None
        What vectors are standardised by, where it is not their own mean and deviation, or images
        where there are none to measure.
    """
    key = _key(settings)
    with _lock:
        if key not in _memo:
            _memo.clear()  # One run at a time: another data set replaces the last one.
            _memo[key] = Resources(settings)
        loaded = _memo[key]
        own = loaded.dataset.format
        if data_format is None or (own.is_measured and not own.vectors):
            return loaded
        wanted = (data_format.mean_C, data_format.std_C)
        if wanted == (loaded.dataset.mean_C, loaded.dataset.std_C):
            return loaded
        if (*key, wanted) not in _memo:
            other = copy.copy(loaded)
            other.standardise(*wanted)
            _memo[*key, wanted] = other
        return _memo[*key, wanted]


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
            columns = VectorColumns(settings.vector_column, settings.shown_column)
            cache, column = data_dir(settings), settings.image_column
            site = load_site(folders, data_format, cache, column, room, columns)
            tests = partial(
                load_validation, folders, data_format, cache, column, site, room, columns
            )
            has_tests = folders.validation is not None
            made = Resources(settings, site, room, tests if has_tests else None)
            _sites[folders] = (key, made)
        return _sites[folders][1]


#: What a process's resources are made of; of the rest `recipe` is asked anew each time.
_MADE_OF = (
    "dataset",
    "data_dir",
    "image_column",
    "label_column",
    "vector_column",
    "shown_column",
    "standardise",
    "classes",
    "image_size",
    "image_channels",
    "vector_length",
    "test_fraction",
    "max_train_samples",
    "max_test_samples",
    "held_out",
    "num_clients",
    "partition",
    "alpha",
    "min_partition_size",
    "partition_attempts",
    "seed",
    "augment",
    "model",
    "backbone",
    "backbone_weights",
    "backbone_size",
    "backbone_crop",
    "tune",
    "feature_views",
    "device",
)


#: What arrivals depend on besides the partition.
_ARRIVALS = (
    "arrivals",
    "arrival_start",
    "arrival_rate",
    "arrival_order",
    "arrival_exhausted",
    "arrival_replacement",
    "pool_memory",
    "num_cycles",
    "seed",
)


def arrivals_key(settings: Settings) -> _Key:
    """Return all that arrivals depend on besides the partition."""
    parameters = settings.parameters_of("arrival-order")
    own = tuple(getattr(settings, name) for name in _ARRIVALS)
    return (*own, *sorted(parameters.items()))


def _key(settings: Settings) -> _Key:
    fields = tuple(getattr(settings, name) for name in _MADE_OF)
    parameters = (settings.parameters_of("model"), settings.parameters_of("dataset"))
    key = (*fields, *(tuple(sorted(each.items())) for each in parameters))
    return key if settings.covariate_drift == "none" else (*key, *_looks(settings))


def _digest(images_NHWC: NDArray[np.uint8]) -> str:
    """Return the hash of pixels, which hang on more than settings name at one place."""
    content = hashlib.sha256(str(images_NHWC.shape).encode())
    for start in range(0, len(images_NHWC), _HASHED_AT_ONCE):
        content.update(images_NHWC[start : start + _HASHED_AT_ONCE].tobytes())
    return content.hexdigest()


def _looks(settings: Settings) -> _Key:
    """Return all that decides how images look."""
    how = (settings.covariate_drift, settings.severity, settings.severity_path)
    return (*how, settings.severity_period, *arrivals_key(settings))
