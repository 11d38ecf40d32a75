"""A site with a backbone: its features stay, its weights are its own, a difference is refused."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from support.attacks import CLASSES, FOLDER, IMAGES, Target
from support.site_images import write_images, write_labels
from support.small_backbone import SETTINGS, features_in, small_backbone, write_weights

from ahfal_app.data.augmentation import Augmentation
from ahfal_app.training import resources

RUN = {**SETTINGS, "model": "linear"}
SAME = {"backbone": small_backbone().digest}


@pytest.mark.slow
def test_features_are_computed_at_the_site_when_it_joins(tmp_path: Path) -> None:
    target = Target(tmp_path)
    reply = target.send("query.join", RUN, order=SAME)
    assert not reply.has_error(), reply.error
    assert reply.content.config_records["config"]["backbone"] == SAME["backbone"]
    (folder,) = (path for path in (tmp_path / "site/decoded/features").iterdir() if path.is_dir())
    assert folder.name.startswith("site-")
    assert (folder / "features.f16").stat().st_size == 60 * 2 * small_backbone().features
    # Nothing of the features is in the answer: it has a few numbers and hashes.
    assert not reply.content.array_records
    assert len(str(reply.content)) < 4000


def joined(target: Target) -> tuple[int, dict[bytes, bytes]]:
    """Have a site join anew; return how many features it computed, and which it has."""
    resources._sites.clear()  # As in deployment, where each message has a process of its own.
    reply = target.send("query.join", RUN, order=SAME)
    assert not reply.has_error(), reply.error
    ((_, loaded),) = resources._sites.values()
    return loaded.extracted["train"][0], features_in(target.site / "decoded")


@pytest.mark.slow
def test_at_its_next_join_a_site_computes_new_images_only(tmp_path: Path) -> None:
    target = Target(tmp_path)
    images = target.site / "images"
    computed, first = joined(target)
    assert (computed, len(first)) == (IMAGES, IMAGES)
    assert joined(target) == (0, first)
    write_images(images, range(100, 103), CLASSES)
    computed, second = joined(target)
    assert (computed, len(second)) == (3, IMAGES + 3)
    assert first.items() <= second.items()
    for path in (images / FOLDER).iterdir():
        path.unlink()
    computed, third = joined(target)
    assert (computed, third) == (0, {key: second[key] for key in second.keys() - first.keys()})


@pytest.mark.slow
def test_a_site_without_images_has_no_features(tmp_path: Path) -> None:
    target = Target(tmp_path)
    joined(target)
    for path in (target.site / "images" / FOLDER).iterdir():
        path.unlink()
    resources._sites.clear()
    reply = target.send("query.join", RUN, order=SAME)
    assert str(reply.error.reason).startswith("[images]")
    kept = (target.site / "decoded" / "features").rglob("*")
    assert [path for path in kept if path.is_dir() or path.stat().st_size] == []


@pytest.mark.slow
def test_features_of_images_for_testing_go_with_these(tmp_path: Path) -> None:
    tests = tmp_path / "tests"
    write_labels(tests / "labels.csv", truth := write_images(tests, range(100, 104), CLASSES))
    target = Target(tmp_path, validation=str(tests))

    def rows() -> list[int]:
        resources._sites.clear()  # As in deployment, where each message has a process of its own.
        reply = target.send("query.join", {**RUN, "evaluate": "sites"}, order=SAME)
        assert not reply.has_error(), reply.error
        files = (tmp_path / "site/decoded/features").glob("site-*/features.f16")
        return sorted(path.stat().st_size // (2 * small_backbone().features) for path in files)

    assert rows() == [4, IMAGES]
    (tests / next(iter(truth))).unlink()
    assert rows() == [3, IMAGES]


@pytest.mark.slow
def test_views_are_computed_at_the_site_and_count_for_its_room(tmp_path: Path) -> None:
    target = Target(tmp_path)
    # The format that the server tells says that nothing is augmented, but for this one.
    target.data_format = dataclasses.replace(target.data_format, augmentation=Augmentation(2, True))
    told = {**RUN, "feature-views": 2, "augment": "crop-flip"}
    reply = target.send("query.join", told, order=SAME)
    assert not reply.has_error(), reply.error
    (file,) = (tmp_path / "site/decoded/features").glob("site-*/features.f16")
    # Of 60 images; a view that is not moved is the image itself.
    rows = file.stat().st_size // (2 * small_backbone().features)
    assert 2 * 60 < rows <= 3 * 60


def test_another_backbone_is_refused_before_anything_is_computed(tmp_path: Path) -> None:
    target = Target(tmp_path)
    target.refused("query.join", "settings", RUN, order={"backbone": "0" * 64})
    assert not (tmp_path / "site/decoded/features").exists()


def test_a_site_names_its_own_weights(tmp_path: Path) -> None:
    weights = write_weights(tmp_path / "weights.safetensors")
    told = {**RUN, "backbone-weights": "/srv/weights.pth"}
    target = Target(tmp_path, **{"backbone-weights": str(weights)})
    reply = target.send("query.join", told, order=SAME)
    assert not reply.has_error(), reply.error


def test_a_file_that_a_server_names_is_refused(tmp_path: Path) -> None:
    target = Target(tmp_path)
    told = {**RUN, "backbone-weights": str(target.site / "truth.csv")}
    target.refused("query.join", "message", told, order=SAME)


def test_an_order_without_the_hash_is_refused(tmp_path: Path) -> None:
    Target(tmp_path).refused("query.join", "message", RUN)
