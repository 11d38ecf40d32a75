"""A data set that is known by name: where it comes from and how the literature treats it.

Shapes: N images, H height, W width, C channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ahfal_app.data.augmentation import NO_AUGMENTATION, Augmentation


@dataclass(frozen=True, eq=False)
class Arrays:
    """A data set in memory.

    Attributes
    ----------
    train_images_NHWC, test_images_NHWC : NDArray[np.uint8] | NDArray[np.float32]
        Pixels from 0 to 255, C of 1 or 3; or vectors of C finite numbers, float32, H and W being 1.
        Without test images a share of the others is held out.
    train_labels_N, test_labels_N : NDArray[np.int64]
        Classes from 0.
    class_names : tuple[str, ...]
        Their names, in order.
    """

    train_images_NHWC: NDArray[np.uint8] | NDArray[np.float32]
    train_labels_N: NDArray[np.int64]
    class_names: tuple[str, ...]
    test_images_NHWC: NDArray[np.uint8] | NDArray[np.float32] | None = None
    test_labels_N: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class KnownDataset:
    """A data set by name: `DATASET` of a module.

    It says either how it is made (`load`) or where Hugging Face has it (`hub`). With a shape,
    classes and a mean it is recognised by its content, too, wherever that comes from.

    Attributes
    ----------
    name : str
        Its name.
    load : Callable[..., Arrays] | None
        Makes it; is given the module's `Parameters` if it has any.
    hub : str
        Its name on Hugging Face.
    configuration : str | None
        The configuration there.
    num_classes : int
        Number of classes; 0: not known.
    image_shape : tuple[int, int, int]
        Height, width and channels.
    mean_C, std_C : tuple[float, ...]
        What pixels scaled to [0, 1] are normalised with; empty: measured.
    augmentation : Augmentation
        What is done at random in training.
    model : str
        The network that `model=auto` means.
    """

    name: str
    load: Callable[..., Arrays] | None = None
    hub: str = ""
    configuration: str | None = None
    num_classes: int = 0
    image_shape: tuple[int, int, int] = (0, 0, 0)
    mean_C: tuple[float, ...] = ()
    std_C: tuple[float, ...] = ()
    augmentation: Augmentation = NO_AUGMENTATION
    model: str = "resnet8"
