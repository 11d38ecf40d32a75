"""Mean and deviation over sites: by a reference, of vectors of any scale, and of pixels."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ahfal_app.data import totals
from ahfal_app.data.augmentation import NO_AUGMENTATION
from ahfal_app.data.images import DataFormat, Images
from ahfal_app.data.moments import ByReference, Moments, OfPixels, OfVectors, moments_for
from ahfal_app.data.preparation import channel_moments
from ahfal_app.errors import DatasetError


def _format(numbers: int, vectors: bool, measured: bool) -> DataFormat:
    side = 1 if vectors else 4
    pair = ((0.5,) * numbers, (2.0,) * numbers) if measured else ((), ())
    return DataFormat(("a", "b"), (side, side, numbers), *pair, NO_AUGMENTATION, vectors)


def _images(samples: np.ndarray) -> Images:
    return Images(samples, np.zeros(len(samples), np.int64))


def _vectors(values_ND: np.ndarray) -> Images:
    return _images(values_ND[:, None, None, :].astype(np.float32))


def _over_sites(
    moments: Moments, images: Images, ends: list[int]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and deviation when the samples are distributed over sites."""
    parts = np.split(np.arange(len(images)), sorted(ends))
    total = np.zeros(moments.size, np.int64)
    for rows in parts:
        sums = moments.of(images, rows)
        moments.check(sums, len(images))
        total += sums
    moments.check(total, len(images), len(parts))
    return moments.standardisation(total, len(parts))


def test_which_sums_are_taken_depends_on_what_is_known():
    assert isinstance(moments_for(_format(3, vectors=True, measured=True)), ByReference)
    assert isinstance(moments_for(_format(3, vectors=True, measured=False)), OfVectors)
    assert isinstance(moments_for(_format(3, vectors=False, measured=False)), OfPixels)


# --- pixels --------------------------------------------------------------------------------------


def test_pixels_by_hand():
    """Two images of two pixels, at one site each.

    Of the first channel, the means are 0.2 and 0.8, those of the squares 0.04 and 0.64: so the mean
    is 0.5, and the variance 0.34 - 0.25 = 0.09. The second channel is constant.
    """
    first, second = [[51, 10], [51, 10]], [[204, 10], [204, 10]]
    images = _images(np.array([[first], [second]], np.uint8))
    mean, deviation = _over_sites(OfPixels(2), images, [1])
    assert mean == (0.5, float(f"{10 / 255:.6g}"))
    assert deviation == (0.3, 1.0)


@given(
    pixels=arrays(np.uint8, (9, 4, 4, 3)),
    ends=st.lists(st.integers(1, 8), max_size=4, unique=True),
)
def test_pixels_of_all_sites_are_those_of_their_images_together(
    pixels: np.ndarray, ends: list[int]
):
    mean, deviation = _over_sites(OfPixels(3), _images(pixels), ends)
    expected_mean, expected_deviation = channel_moments(pixels)
    assert mean == pytest.approx(expected_mean, rel=1e-5, abs=1e-12)
    assert deviation == pytest.approx(expected_deviation, rel=1e-5)


def test_only_the_images_that_can_be_used_count():
    pixels = np.full((3, 4, 4, 1), 255, np.uint8)
    pixels[1] = 0
    sums = OfPixels(1).of(_images(pixels), np.array([0, 2]))
    assert OfPixels(1).standardisation(sums, 1) == ((1.0,), (1.0,))


def test_a_constant_picture_has_no_deviation_over_however_many_sites():
    """A third is no number of any base of two: each site rounds it."""
    pixels = np.full((30, 4, 4, 1), 85, np.uint8)
    assert _over_sites(OfPixels(1), _images(pixels), list(range(1, 30)))[1] == (1.0,)


# --- vectors of any scale ------------------------------------------------------------------------


@settings(max_examples=25)
@given(
    values=arrays(np.float32, (12, 2), elements=st.floats(-1, 1, width=32)),
    scale=st.integers(-30, 39),
    shift=st.sampled_from([0.0, 1.0, -3.0]),
    ends=st.lists(st.integers(1, 11), max_size=4, unique=True),
)
def test_vectors_of_any_scale_have_the_moments_of_all_together(
    values: np.ndarray, scale: int, shift: float, ends: list[int]
):
    vectors = np.ldexp(values + np.float32(shift), scale).astype(np.float32)
    vectors = np.clip(vectors, -totals.LARGEST, totals.LARGEST)
    mean, deviation = _over_sites(OfVectors(2), _vectors(vectors), ends)
    exact = [[Fraction(float(x)) for x in column] for column in vectors.T]
    for column, found_mean, found in zip(exact, mean, deviation, strict=True):
        centre = sum(column) / 12
        variance = float(sum((x - centre) ** 2 for x in column) / 12)
        largest = float(max(map(abs, column)))
        assert found_mean == pytest.approx(float(centre), rel=1e-5, abs=1e-9 * largest + 2**-60)
        # What is far smaller than the numbers themselves is their rounding, and counts as none.
        if variance > max(1e-9 * largest**2, 2.0**-80):
            assert found == pytest.approx(variance**0.5, rel=1e-4)
        elif variance == 0:
            assert found == 1.0


def test_numbers_whose_squares_are_rounded_away_have_totals():
    vectors = np.full((12, 2), 8.9706755e-20, np.float32)
    mean, deviation = _over_sites(OfVectors(2), _vectors(vectors), [])
    assert mean == pytest.approx((8.97e-20,) * 2, rel=0.05)
    assert deviation == (1.0, 1.0)


def test_parts_put_together_are_the_numbers():
    values = np.array([0.0, 1.5, -1.5, 2.0**70, -(2.0**70), 2.0**-64, -(2.0**-64), 12345.678])
    squares = np.array([0.0, 2.25, 2.25, 2.0**109, 2.0**109, 2.0**-96, 2.0**-96, 1e9])
    joined = totals.joined(totals.split(7, values, squares), 1)
    assert joined.count == 7
    assert [Fraction(total, 2**64) for total in joined.sums_D] == [
        *map(Fraction, values[:-1]),
        Fraction(round(Fraction(values[-1]) * 2**64), 2**64),
    ]
    assert [Fraction(total, 2**128) for total in joined.squares_D] == [*map(Fraction, squares)]


def test_a_number_beyond_what_can_be_summed_is_refused():
    values = np.array([[1.0, 2.0**40], [1.0, -(2.0**41)]])
    assert OfVectors(2).of(_vectors(values), np.array([0]))[0] == 1
    with pytest.raises(DatasetError, match=r"the number ±2\.2e\+12; allowed with dataset='none'"):
        OfVectors(2).of(_vectors(values), np.array([0, 1]))


def test_most_samples_with_the_largest_numbers_do_not_overflow():
    count, largest = totals.MOST_SAMPLES, totals.LARGEST
    sums = totals.split(count, np.array([-count * largest]), np.array([count * largest**2]))
    assert np.abs(sums).max() < 2**62
    OfVectors(1).check(sums, count)
    assert OfVectors(1).standardisation(sums, 1)[0] == (pytest.approx(-largest, rel=1e-5),)


# --- sums that cannot be -------------------------------------------------------------------------


def _spoilt(moments: Moments, images: Images) -> list[np.ndarray]:
    honest = moments.of(images, np.arange(len(images)))
    changes = ((0, 0), (0, -1), (0, 10**6), (1, -1), (1, 2**48), (3, 2**30), (7, -(2**30)))
    spoilt = []
    for place, value in changes:
        other = honest.copy()
        other[place] = value
        spoilt.append(other)
    # A sum of squares that is less than the sum allows for.
    less = honest.copy()
    less[4:] = 0
    return [*spoilt, less]


@pytest.mark.parametrize("moments", [OfPixels(1), OfVectors(1)])
def test_sums_that_no_samples_have_are_refused(moments: Moments):
    pixels = np.full((5, 4, 4, 1), 200, np.uint8)
    images = _images(pixels) if isinstance(moments, OfPixels) else _vectors(np.full((5, 1), 3.0))
    moments.check(moments.of(images, np.arange(5)), 10)
    for sums in _spoilt(moments, images):
        with pytest.raises(ValueError, match="moments"):
            moments.check(sums, 10)


def test_pixels_are_neither_above_white_nor_below_black():
    for mean, square in ((1.1, 1.21), (-0.1, 0.01), (0.5, 1.5)):
        with pytest.raises(ValueError, match="sums that no samples have"):
            OfPixels(1).check(totals.split(4, np.array([4 * mean]), np.array([4 * square])), 10)


# --- by a reference ------------------------------------------------------------------------------


@given(
    values=arrays(np.float32, (12, 2), elements=st.floats(-50, 50, width=32)),
    ends=st.lists(st.integers(1, 11), max_size=3, unique=True),
)
def test_moments_by_a_reference_are_those_of_the_vectors_together(
    values: np.ndarray, ends: list[int]
):
    reference = ByReference(np.array([3.0, -1.0]), np.array([7.0, 2.0]))
    mean, deviation = _over_sites(reference, _vectors(values), ends)
    assert mean == pytest.approx(values.mean(axis=0, dtype=float), abs=1e-3)
    spread = values.std(axis=0, dtype=float)
    expected = np.where(spread < 0.05, deviation, spread)
    assert deviation == pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize("sums", [[0, 0, 0], [11, 0, 0], [1, 2**27, 0], [1, 0, -1], [1, 0, 2**40]])
def test_sums_by_a_reference_that_no_vectors_have_are_refused(sums: list[int]):
    reference = ByReference(np.array([0.0]), np.array([1.0]))
    with pytest.raises(ValueError, match="moments"):
        reference.check(np.array(sums), 10)
