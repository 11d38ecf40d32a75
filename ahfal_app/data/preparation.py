"""What decoding does to any data set: hold out a test split, measure, fingerprint.

Shapes: N images, H height, W width, C channels, K classes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from ahfal_app.data.cache import Description
from ahfal_app.data.images import ImageDataset, Images
from ahfal_app.data.not_used import shown_names
from ahfal_app.data.pixel_counts import LEVELS, channel_counts
from ahfal_app.errors import ConfigError, DatasetError
from ahfal_app.parameters import suggestion
from ahfal_app.seeds import numpy_generator

#: The test split is drawn with this seed and not the run's: all runs share it.
_TEST_SPLIT_SEED = 0

#: Samples that are measured or hashed at a time.
_BLOCK = 1024


def hold_out(
    labels_N: NDArray[np.int64],
    test_fraction: float,
    generator: np.random.Generator | None = None,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Draw a test split that has the classes in the same proportions.

    Each class gives its share, rounded by largest remainder so that the total is right,
    and keeps at least one sample for training.

    Parameters
    ----------
    labels_N : NDArray[np.int64]
        Label of each sample, from 0.
    test_fraction : float
        Share of samples to hold out, between 0 and 1.
    generator : np.random.Generator | None
        Draws which; None: the same for all runs.

    Returns
    -------
    tuple[NDArray[np.int64], NDArray[np.int64]]
        Strictly increasing row numbers for training and for testing.
    """
    counts_K = np.bincount(labels_N)
    wanted_K = counts_K * test_fraction
    tests_K = np.floor(wanted_K).astype(np.int64)
    missing = round(len(labels_N) * test_fraction) - int(tests_K.sum())
    by_remainder_K = np.argsort(tests_K - wanted_K, kind="stable")
    tests_K[by_remainder_K[:missing]] += 1
    tests_K = np.minimum(tests_K, np.maximum(counts_K - 1, 0))

    generator = generator or numpy_generator(_TEST_SPLIT_SEED, "test-split")
    shuffled_N = generator.permutation(len(labels_N))
    by_class_N = shuffled_N[np.argsort(labels_N[shuffled_N], kind="stable")]
    first_K = np.cumsum(counts_K) - counts_K
    rank_N = np.arange(len(labels_N)) - np.repeat(first_K, counts_K)
    is_test_N = rank_N < np.repeat(tests_K, counts_K)
    return np.sort(by_class_N[~is_test_N]), np.sort(by_class_N[is_test_N])


def limited(images: Images, most: int) -> Images:
    """Return a stratified share of at most so many samples; all of them for 0.

    Drawn with a fixed seed, so that all runs use the same samples.
    """
    if most == 0 or most >= len(images):
        return images
    _, rows_N = hold_out(images.labels_N, most / len(images))
    return _taken(images, rows_N)


def parted_tests(tests: Images, held_out: int, seed: int) -> tuple[Images, Images]:
    """Return the test samples that figures are of, and those that are held out of them.

    Parameters
    ----------
    tests : Images
        The test split.
    held_out : int
        How many are held out, of each class its share; every class keeps one for the figures.
    seed : int
        The run's: whatever else it is compared with has the same.

    Raises
    ------
    ConfigError
        There are not so many.
    """
    share = min(1.0, held_out / max(1, len(tests)))
    generator = numpy_generator(seed, "held-out")
    rest_N, rows_M = hold_out(tests.labels_N, share, generator)
    if len(rows_M) != held_out:
        raise ConfigError(
            [
                f"held-out={held_out}: allowed is at most {len(rows_M)} of {len(tests)} test "
                "samples, so that each class keeps one to test with"
            ]
        )
    return _taken(tests, rest_N), _taken(tests, rows_M)


def _taken(images: Images, rows_N: NDArray[np.int64]) -> Images:
    shown = images.shown.taken(rows_N) if images.shown else None
    return Images(images.images_NHWC[rows_N], images.labels_N[rows_N], shown)


def with_classes(
    dataset: ImageDataset, classes: tuple[str, ...], what: str = "classes"
) -> ImageDataset:
    """Return a data set whose labels count in another list of classes.

    Parameters
    ----------
    dataset : ImageDataset
        The data set.
    classes : tuple[str, ...]
        The list, with all of the data set's classes.
    what : str
        What the list is, for the message.

    Raises
    ------
    DatasetError
        The data set has a class that is not in the list.
    """
    if unknown := [name for name in dataset.class_names if name not in classes]:
        raise DatasetError(
            f"{what}: {', '.join(classes)}; the data set has {', '.join(dataset.class_names)}, and "
            f"{unknown[0]!r} is none of them{suggestion(unknown[0], classes)}"
        )
    index_K = np.array([classes.index(name) for name in dataset.class_names], np.int64)
    train, test = (
        Images(split.images_NHWC, index_K[split.labels_N], split.shown)
        for split in (dataset.train, dataset.test)
    )
    content = f"{dataset.fingerprint} {json.dumps(classes)}".encode()
    return dataclasses.replace(
        dataset,
        train=train,
        test=test,
        class_names=classes,
        fingerprint=hashlib.sha256(content).hexdigest(),
    )


def limited_fingerprint(fingerprint: str, sizes: tuple[int, int]) -> str:
    """Return the fingerprint of a data set that was limited to these sizes."""
    return hashlib.sha256(f"{fingerprint} {sizes}".encode()).hexdigest()


def describe(train: Images, test: Images, class_names: Sequence[str]) -> Description:
    """Measure a decoded data set and take its fingerprint.

    Parameters
    ----------
    train, test : Images
        The splits.
    class_names : Sequence[str]
        Names of the classes.
    """
    pixels_NHWC = train.images_NHWC
    measure = channel_moments if pixels_NHWC.dtype == np.uint8 else vector_moments
    mean_C, std_C = measure(pixels_NHWC)
    return Description(
        class_names=tuple(class_names),
        mean_C=mean_C,
        std_C=std_C,
        fingerprint=_fingerprint(train, test, class_names),
        notes=tuple(_notes_on_classes(train, test, class_names)),
    )


def _notes_on_classes(train: Images, test: Images, class_names: Sequence[str]) -> Iterator[str]:
    """Yield which classes one of two splits lacks."""
    labels = [split.labels_N[split.labels_N >= 0] for split in (train, test)]
    counts = [np.bincount(known_N, minlength=len(class_names)) for known_N in labels]
    if not all(counts_C.any() for counts_C in counts):
        return
    train_C, test_C = counts
    for what, own_C, other_C in (("training", train_C, test_C), ("testing", test_C, train_C)):
        missing = np.flatnonzero((own_C == 0) & (other_C > 0))
        if len(missing):
            named = shown_names(class_names[k] for k in missing.tolist())
            yield f"classes that the split for {what} lacks: {named}"


def channel_moments(
    images_NHWC: NDArray[np.generic],
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel, of pixels scaled to [0, 1].

    The standard deviation of a constant channel is given as 1, to be divided by.
    """
    counts_CV = channel_counts(images_NHWC)
    weights_CV = counts_CV / counts_CV.sum(axis=1, keepdims=True)
    values_V = np.arange(LEVELS) / (LEVELS - 1)
    mean_C = weights_CV @ values_V
    variance_C = (weights_CV * (values_V - mean_C[:, None]) ** 2).sum(axis=1)
    std_C = np.where(variance_C > 0, np.sqrt(variance_C), 1.0)
    return tuple(mean_C.tolist()), tuple(std_C.tolist())


def vector_moments(
    vectors_N11D: NDArray[np.generic],
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each number of some vectors.

    They are rounded to six significant digits, as they travel as text with each message. The
    standard deviation of a constant number is given as 1, to be divided by.
    """
    vectors_ND = vectors_N11D.reshape(len(vectors_N11D), -1)
    mean_D = vectors_ND.mean(axis=0, dtype=np.float64)
    variance_D = np.zeros_like(mean_D)
    for start in range(0, len(vectors_ND), _BLOCK):
        variance_D += ((vectors_ND[start : start + _BLOCK] - mean_D) ** 2).sum(axis=0)
    return rounded_moments(mean_D, variance_D / len(vectors_ND))


def rounded_moments(
    mean_D: NDArray[np.float64], variance_D: NDArray[np.float64]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation as vectors are standardised by them."""
    # What is left of a constant number after rounding is no deviation.
    is_constant_D = variance_D <= 1e-12 * mean_D**2
    std_D = np.where(is_constant_D, 1.0, np.sqrt(np.where(is_constant_D, 1.0, variance_D)))
    mean, std = ([float(f"{value:.6g}") for value in each] for each in (mean_D, std_D))
    return tuple(mean), tuple(std)


def _fingerprint(train: Images, test: Images, class_names: Sequence[str]) -> str:
    digest = hashlib.sha256(json.dumps(list(class_names)).encode())
    for split in (train, test):
        digest.update(json.dumps(split.images_NHWC.shape).encode())
        for start in range(0, len(split), _BLOCK):
            digest.update(split.images_NHWC[start : start + _BLOCK].tobytes())
        digest.update(split.labels_N.astype("<i8").tobytes())
    return digest.hexdigest()
