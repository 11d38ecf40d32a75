"""Partitions: every row once, equal for equal seeds, as skewed as asked, always an end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from ahfal_app.config import Settings
from ahfal_app.data import partition as partition_module
from ahfal_app.data.partition import Partition, make_partition, partition_names
from ahfal_app.errors import PartitionError

OWN = ("dirichlet-capped", "dirichlet-balanced", "iid")
LABELS = np.repeat(np.arange(10), 500)
#: Where Flower's partitioner takes part, which takes a second for a few thousand rows.
FEW_LABELS = LABELS[::5]


def split(labels: NDArray[np.int64], num_clients: int, **settings: Any) -> Partition:
    return make_partition(Settings(**settings), labels, int(labels.max()) + 1, num_clients)


def check_rows(partition: Partition, num_rows: int, num_clients: int) -> NDArray[np.int64]:
    """Check that each row is dealt out once, and return the sizes."""
    assert len(partition.indices) == num_clients
    for rows in partition.indices:
        assert rows.dtype == np.int64
        assert not rows.flags.writeable
        assert (np.diff(rows) > 0).all()
    np.testing.assert_array_equal(np.sort(np.concatenate(partition.indices)), np.arange(num_rows))
    return np.array([len(rows) for rows in partition.indices])


def proportions(partition: Partition, labels: NDArray[np.int64]) -> NDArray[np.float64]:
    classes = int(labels.max()) + 1
    return np.stack(
        [np.bincount(labels[rows], minlength=classes) / len(rows) for rows in partition.indices]
    )


@st.composite
def cases(draw: st.DrawFn) -> tuple[NDArray[np.int64], int, float, int]:
    """Draw labels of very uneven classes, a number of clients, alpha and a seed."""
    counts = draw(st.lists(st.integers(0, 80), min_size=2, max_size=12))
    labels = np.repeat(np.arange(len(counts)), counts)
    order = np.random.default_rng(draw(st.integers(0, 99))).permutation(len(labels))
    num_clients = draw(st.integers(1, 15))
    alpha = draw(st.sampled_from([1e-300, 1e-6, 0.01, 0.1, 0.5, 1.0, 10.0, 1e6]))
    return labels[order], num_clients, alpha, draw(st.integers(0, 2**31 - 1))


@pytest.mark.parametrize("name", OWN)
@hypothesis_settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(case=cases())
def test_any_request_ends_with_a_partition_or_the_named_error(
    name: str, case: tuple[NDArray[np.int64], int, float, int]
) -> None:
    labels, num_clients, alpha, seed = case
    wanted: dict[str, Any] = {
        "partition": name,
        "alpha": alpha,
        "seed": seed,
        "min_partition_size": 2,
        "partition_attempts": 100,
    }
    try:
        partition = make_partition(Settings(**wanted), labels, 12, num_clients)
    except PartitionError:
        return
    sizes = check_rows(partition, len(labels), num_clients)
    assert sizes.min() >= 2
    if name != "dirichlet-capped":
        assert sizes.max() - sizes.min() <= 1


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in partition_names() if name != "sites"])
@pytest.mark.parametrize("num_clients", [1, 2, 7, 40])
def test_rows_are_dealt_once_and_equal_for_equal_seeds(
    name: str, num_clients: int, tmp_path: Path
) -> None:
    wanted: dict[str, Any] = {"partition": name, "alpha": 1.0, "min_partition_size": 3}
    first = split(FEW_LABELS, num_clients, data_dir=str(tmp_path / "a"), **wanted)
    check_rows(first, len(FEW_LABELS), num_clients)
    partition_module._partition.cache_clear()
    again = split(FEW_LABELS, num_clients, data_dir=str(tmp_path / "b"), **wanted)
    assert again.fingerprint == first.fingerprint
    for rows, same in zip(first.indices, again.indices, strict=True):
        np.testing.assert_array_equal(rows, same)
    other = split(FEW_LABELS, num_clients, data_dir=str(tmp_path), seed=1, **wanted)
    assert (other.fingerprint == first.fingerprint) == (num_clients == 1)


@pytest.mark.parametrize(
    ("name", "fingerprint"),
    [("dirichlet-capped", "5d4a487b"), ("dirichlet-balanced", "fa5eba6d"), ("iid", "90161759")],
)
def test_partitions_stay_as_they_are_on_all_machines(name: str, fingerprint: str) -> None:
    assert split(LABELS, 10, partition=name).fingerprint.startswith(fingerprint)


@pytest.mark.parametrize("name", ["dirichlet-capped", "dirichlet-balanced"])
def test_smaller_alpha_is_more_skewed(name: str) -> None:
    deviations = [
        np.mean(
            [
                proportions(split(LABELS, 10, partition=name, alpha=alpha, seed=seed), LABELS)
                .std(axis=0)
                .mean()
                for seed in range(10)
            ]
        )
        for alpha in (0.03, 0.3, 3.0, 300.0)
    ]
    assert (np.diff(deviations) < -0.02).all()


@pytest.mark.parametrize(
    ("name", "alpha", "deviation"),
    [
        ("dirichlet-capped", 0.1, 19.9),
        ("dirichlet-capped", 0.5, 12.2),
        ("dirichlet-balanced", 0.1, 18.6),
        ("dirichlet-balanced", 0.5, 11.1),
    ],
)
def test_class_deviations_are_those_of_the_published_splits(
    name: str, alpha: float, deviation: float
) -> None:
    """Percentage points in the 10 % of samples that are labelled first, as for CIFAR-10."""
    labels = np.repeat(np.arange(10), 5000)
    measured = []
    for seed in range(30):
        partition = split(labels, 10, partition=name, alpha=alpha, seed=seed)
        generator = np.random.default_rng(seed)
        labelled = Partition(
            tuple(generator.choice(rows, len(rows) // 10) for rows in partition.indices), ""
        )
        measured.append(100 * proportions(labelled, labels).std(axis=0).mean())
    assert np.mean(measured) == pytest.approx(deviation, abs=0.8)


def test_balanced_sizes_hold_for_uneven_classes_and_huge_alpha() -> None:
    labels = np.repeat([0, 1, 2, 5], [1000, 100, 10, 3])
    partition = split(labels, 4, alpha=1e5)
    sizes = check_rows(partition, len(labels), 4)
    assert sorted(sizes) == [278, 278, 278, 279]
    counts = [np.bincount(labels[rows], minlength=6).tolist() for rows in partition.indices]
    # 1000/4, 100/4, 10/4 and 3/4 for each, nothing of the classes that do not occur.
    for count in counts:
        assert count[3] == count[4] == 0
        np.testing.assert_allclose(count, [250, 25, 2.5, 0, 0, 0.75], atol=2.5)


def test_a_client_over_its_share_gets_nothing_of_later_classes() -> None:
    share = len(LABELS) / 10
    for seed in range(20):
        partition = split(LABELS, 10, partition="dirichlet-capped", alpha=0.1, seed=seed)
        counts = np.stack([np.bincount(LABELS[rows], minlength=10) for rows in partition.indices])
        held_before = np.cumsum(counts, axis=1) - counts
        assert not counts[held_before >= share].any()


@pytest.mark.parametrize("name", OWN)
def test_many_clients_and_classes(name: str) -> None:
    labels = np.tile(np.arange(100), 500)
    check_rows(split(labels, 100, partition=name, alpha=0.1), len(labels), 100)


def test_samples_of_a_class_are_drawn_at_random() -> None:
    """Clients must not get runs of neighbours, which may be alike in sorted data."""
    for name in OWN:
        rows = split(np.repeat([0, 1], 1000), 2, partition=name, alpha=100.0).indices[0]
        zeros = rows[rows < 1000]
        assert zeros.mean() == pytest.approx(500, abs=60)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "num_clients", "message"),
    [
        ({"partition": "dirichlet-balancd"}, 10, "did you mean 'dirichlet-balanced'"),
        ({}, 0, "num-clients=0"),
        ({"min_partition_size": 1}, 5001, "num-clients=5001.*needs 5001.*are 5000"),
        ({"min_partition_size": 501}, 10, "min-partition-size=501"),
        (
            {"partition": "dirichlet-capped", "alpha": 0.01, "partition_attempts": 20},
            100,
            "partition-attempts=20 draws with alpha=0.01.*raise alpha",
        ),
        (
            {"partition": "dirichlet", "alpha": 0.01, "partition_attempts": 20},
            100,
            "partition-attempts=20 draws with alpha=0.01.*raise alpha",
        ),
        (
            {"partition": "dirichlet-balanced", "alpha": 0.01, "partition_attempts": 3},
            10,
            "partition-attempts=3 steps; raise alpha",
        ),
    ],
)
def test_what_cannot_be_split_is_refused_by_name(
    settings: dict[str, Any], num_clients: int, message: str, tmp_path: Path
) -> None:
    with pytest.raises(PartitionError, match=message):
        split(LABELS, num_clients, data_dir=str(tmp_path), **settings)


def test_labels_outside_the_classes_are_refused() -> None:
    with pytest.raises(PartitionError, match="must be from 0 to 8"):
        make_partition(Settings(), LABELS, 9, 10)


@pytest.mark.slow
def test_the_partition_of_flwr_datasets_is_kept_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted: dict[str, Any] = {"partition": "dirichlet", "data_dir": str(tmp_path), "seed": 5}
    first = split(FEW_LABELS, 10, **wanted)
    (kept,) = (tmp_path / "partitions").iterdir()

    partition_module._partition.cache_clear()
    with monkeypatch.context() as patch:
        patch.delattr(partition_module, "_flower_dirichlet")
        assert split(FEW_LABELS, 10, **wanted).fingerprint == first.fingerprint

    content = bytearray(kept.read_bytes())
    content[2000] ^= 1
    kept.write_bytes(content)
    partition_module._partition.cache_clear()
    again = split(FEW_LABELS, 10, **wanted)
    assert again.fingerprint == first.fingerprint
    check_rows(again, len(FEW_LABELS), 10)


@pytest.mark.slow
def test_other_settings_are_kept_apart(tmp_path: Path) -> None:
    common = {"partition": "dirichlet", "data_dir": str(tmp_path)}
    variants: list[dict[str, Any]] = [{}, {"alpha": 0.5}, {"seed": 1}, {"min_partition_size": 9}]
    fingerprints = [split(FEW_LABELS, 10, **common, **variant).fingerprint for variant in variants]
    fingerprints.append(split(FEW_LABELS, 9, **common).fingerprint)
    # A lower limit changes nothing where the first draw keeps it.
    assert len(set(fingerprints)) == 4
    assert len(list((tmp_path / "partitions").iterdir())) == 5
