"""Sums over test sets: they add up, tell what the pooled samples tell, and are checked."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import (
    balanced_accuracy_score,
    confusion_matrix,
    f1_score,
    log_loss,
    roc_auc_score,
)

from ahfal_app.evaluation import EvaluationSums, evaluation_sums, figures_of
from ahfal_app.evaluation.sums import CONFIDENCE_BINS, MOST_LOSS, RANK_BINS, UNITS, vector_size

CLASSES = 3


def draws(
    seed: int, size: int, scale: float = 2.0
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    draw = np.random.default_rng(seed)
    return draw.normal(size=(size, CLASSES)) * scale, draw.integers(0, CLASSES, size)


def softmax(logits_NC: NDArray[np.float64]) -> NDArray[np.float64]:
    shares = np.exp(logits_NC - logits_NC.max(axis=1, keepdims=True))
    return shares / shares.sum(axis=1, keepdims=True)


def test_by_hand() -> None:
    """Three samples of classes 0, 0 and 1; the second is taken for class 1."""
    shares = np.array([[0.9, 0.06, 0.04], [0.2, 0.7, 0.1], [0.25, 0.5, 0.25]])
    sums = evaluation_sums(np.log(shares), np.array([0, 0, 1]))
    assert sums.confusion_CC.tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert sums.loss == pytest.approx(-np.log([0.9, 0.2, 0.5]).mean(), abs=2 / UNITS)
    tested, right, confidence = sums.calibration_3K
    # 0.9 lies above 13/15, 0.7 above 10/15 and 0.5 above 7/15.
    assert np.flatnonzero(tested).tolist() == [7, 10, 13]
    assert right[[7, 10, 13]].tolist() == [1, 0, 1]
    assert (confidence[[7, 10, 13]] / UNITS).round(5).tolist() == [0.5, 0.7, 0.9]
    # With three classes the middle is at -ln 2. ln(0.9 / 0.1) lies 2.890 above it, ln(0.2 / 0.8)
    # 0.693 below: asinh(4 x) is 3.142 and -1.744, of an end of 4.852 with 128 bins on either side.
    assert np.flatnonzero(sums.ranks_2CB[0, 0]).tolist() == [128 - 47, 128 + 82]
    assert sums.ranks_2CB[1].sum(axis=1).tolist() == [3, 3, 3]


@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.lists(st.integers(0, 60), max_size=4))
def test_sums_over_sites_are_those_of_the_pooled_samples(
    seed: int, size: int, cuts: list[int]
) -> None:
    logits, labels = draws(seed, size)
    whole = evaluation_sums(logits, labels)
    places = sorted(min(cut, size) for cut in cuts)
    parts = [
        evaluation_sums(logits[part], labels[part]) for part in np.split(np.arange(size), places)
    ]
    total = EvaluationSums.total(parts, CLASSES)
    assert total.to_vector().tolist() == whole.to_vector().tolist()


@pytest.mark.slow
@given(st.integers(0, 2**32 - 1), st.integers(2, 80), st.sampled_from([0.01, 1.0, 30.0]))
def test_figures_are_those_of_scikit_learn_on_the_pooled_samples(
    seed: int, size: int, scale: float
) -> None:
    """Exact for counts; areas to half of the pairs that share a bin; loss to its rounding."""
    logits, labels = draws(seed, size, scale)
    shares, predicted = softmax(logits), logits.argmax(axis=1)
    figures = figures_of(evaluation_sums(logits, labels))
    assert figures.sums.confusion_CC.tolist() == (
        confusion_matrix(labels, predicted, labels=range(CLASSES)).tolist()
    )
    there = sorted(set(labels.tolist()))
    occurs = sorted({*labels.tolist(), *predicted.tolist()})
    recalls = [(predicted[labels == c] == c).mean() for c in there]
    assert figures.metrics["balanced-accuracy"] == pytest.approx(np.mean(recalls))
    if 1 < len(occurs) == len(there):
        assert figures.metrics["balanced-accuracy"] == pytest.approx(
            balanced_accuracy_score(labels, predicted)
        )
    assert figures.metrics["macro-f1"] == pytest.approx(
        f1_score(labels, predicted, labels=occurs, average="macro", zero_division=0)
    )
    if (shares[np.arange(size), labels] > 1e-12).all():
        assert figures.metrics["loss"] == pytest.approx(
            log_loss(labels, shares, labels=range(CLASSES)), abs=1e-5
        )
    for c in range(CLASSES):
        area, resolution = figures.auroc_C[c], figures.auroc_resolution_C[c]
        if len({*(labels == c).tolist()}) == 1:
            assert area is None
            continue
        assert area is not None
        assert resolution is not None
        # In the order of the log-odds, which do not tie where probabilities round to 1.
        others = np.delete(logits, c, axis=1)
        odds = logits[:, c] - np.logaddexp.reduce(others, axis=1)
        assert abs(area - roc_auc_score(labels == c, odds)) <= resolution + 1e-9


@given(st.integers(0, 2**32 - 1), st.integers(1, 50))
def test_calibration_error_against_a_slow_one(seed: int, size: int) -> None:
    logits, labels = draws(seed, size)
    shares, predicted = softmax(logits), logits.argmax(axis=1)
    confidence, right = shares.max(axis=1), predicted == labels
    total = 0.0
    for k in range(CONFIDENCE_BINS):
        inside = np.ceil(confidence * CONFIDENCE_BINS) == k + 1
        total += abs(right[inside].sum() - confidence[inside].sum())
    found = figures_of(evaluation_sums(logits, labels)).metrics["calibration-error"]
    assert found == pytest.approx(total / size, abs=1e-5)


@pytest.mark.parametrize("logit", [-1e30, 1e30, -80.0, 80.0])
def test_extreme_logits_are_counted(logit: float) -> None:
    sums = evaluation_sums(np.array([[0.0, logit, 0.0]]), np.array([1]))
    figures = figures_of(sums)
    assert EvaluationSums.from_vector(sums.to_vector(), CLASSES, 1).num_samples == 1
    assert figures.metrics["loss"] == pytest.approx(MOST_LOSS if logit < 0 else 0.0, abs=1e-5)
    assert (sums.ranks_2CB[0, 1] == 1).argmax() == (0 if logit < 0 else RANK_BINS - 1)


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan, 1e300])
def test_logits_of_a_model_that_has_come_apart_are_counted(bad: float) -> None:
    logits = np.array([[bad, 0.0, 0.0], [0.0, 1.0, 0.0], [bad, bad, bad]])
    sums = evaluation_sums(logits, np.array([1, 1, 2]))
    assert EvaluationSums.from_vector(sums.to_vector(), CLASSES, 3).num_samples == 3
    figures = figures_of(sums)
    assert all(value is None or np.isfinite(value) for value in figures.metrics.values())


def test_no_samples_have_no_figures() -> None:
    figures = figures_of(EvaluationSums.nothing(CLASSES))
    assert set(figures.metrics.values()) == {None}
    assert figures.intervals == {}
    assert figures.accuracy.bounds is None


def test_one_sample_has_a_wide_interval() -> None:
    figures = figures_of(evaluation_sums(np.array([[5.0, 0.0, 0.0]]), np.array([0])))
    assert figures.metrics["accuracy"] == 1.0
    low, high = figures.intervals["accuracy"]
    assert low < 0.25
    assert high == 1.0
    assert "auroc" not in figures.intervals


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.data())
def test_what_no_test_comes_to_is_refused(seed: int, size: int, data: st.DataObject) -> None:
    """Whatever single number is changed, but for what stays within its bounds."""
    vector = evaluation_sums(*draws(seed, size)).to_vector()
    sums = EvaluationSums.from_vector(vector, CLASSES, size)
    assert sums.to_vector().tolist() == vector.tolist()
    place = data.draw(st.integers(0, len(vector) - 1))
    changed = vector.copy()
    changed[place] += data.draw(st.sampled_from([-1, 1, 2**40, -(2**62)]))
    loss_at = 1 + CLASSES**2
    confidence = range(loss_at + 1 + 2 * CONFIDENCE_BINS, loss_at + 1 + 3 * CONFIDENCE_BINS)
    if (place == loss_at or place in confidence) and abs(changed[place] - vector[place]) == 1:
        return  # A unit more or less of what is rounded may well be.
    with pytest.raises(ValueError, match=r"sums|samples tested"):
        EvaluationSums.from_vector(changed, CLASSES, size)


def test_more_samples_than_there_can_be_are_refused() -> None:
    vector = evaluation_sums(*draws(0, 20)).to_vector()
    with pytest.raises(ValueError, match="20 samples tested: allowed is at most 19"):
        EvaluationSums.from_vector(vector, CLASSES, 19)
    with pytest.raises(ValueError, match=f"allowed are {vector_size(CLASSES + 1)}"):
        EvaluationSums.from_vector(vector, CLASSES + 1, 20)
