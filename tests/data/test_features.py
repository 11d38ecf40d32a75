"""The store of features: computed once, whole or absent, shared, forgotten with the images."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import torch
from support.killing import killed_in_features
from support.small_backbone import features_in, small_backbone, write_weights

from ahfal_app.data import features as module
from ahfal_app.data.augmentation import NO_AUGMENTATION
from ahfal_app.data.device import DeviceFeatures
from ahfal_app.data.features import Features, FeatureStore, digest_of
from ahfal_app.errors import DatasetError, PolicyRefused

CPU = torch.device("cpu")


def pixels(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 1)).astype(np.uint8)


def store_in(root: Path, owner: str = "") -> FeatureStore:
    return FeatureStore(root, small_backbone(), CPU, owner)


def expected(images: np.ndarray) -> np.ndarray:
    """Features of one image after the other, in float32."""
    backbone = small_backbone()
    with torch.inference_mode():
        each = [backbone.network(backbone.preprocessing(torch.from_numpy(i[None]))) for i in images]
    return torch.cat(each).numpy()


def of_rows(features: Features) -> np.ndarray:
    return np.asarray(features.values_MD[features.rows_N], np.float32)


def test_features_are_those_of_the_backbone_in_float16(tmp_path: Path) -> None:
    images = pixels(7)
    found = store_in(tmp_path).of(images, "a")
    assert found.values_MD.dtype == np.float16
    assert isinstance(found.values_MD, np.memmap)
    assert found.computed == 7
    # float16 has 11 bits; features of some thousandths lose nothing that counts.
    np.testing.assert_allclose(of_rows(found), expected(images), rtol=2e-3, atol=1e-4)


def test_batches_do_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums are rounded in another way, which moves few values, and to their neighbours alone."""
    images = pixels(40)
    found = {}
    for size in (1, 7, 256):
        monkeypatch.setattr(module, "_BATCH_ON_CPU", size)
        found[size] = of_rows(store_in(tmp_path / str(size)).of(images, "a"))
    neighbour = np.spacing(np.abs(found[1]).astype(np.float16)).astype(np.float32)
    # Of values near 0 the error is that of the largest ones.
    near = neighbour + 1e-6 * np.abs(found[1]).max()
    for size in (7, 256):
        assert (np.abs(found[size] - found[1]) <= near).all()
        assert (found[size] == found[1]).mean() > 0.9


@pytest.mark.slow
def test_a_compiled_backbone_gives_the_same_features(tmp_path: Path) -> None:
    """Of three batches the last one is smaller, and goes another way."""
    images = pixels(70)
    compiled = FeatureStore(tmp_path / "compiled", small_backbone(), CPU, compiles_from=70)
    with pytest.MonkeyPatch.context() as patch:
        sizes: list[object] = []
        original = module.extracting

        def watched(*arguments: object) -> object:
            sizes.append(arguments[2])
            return original(*arguments)  # type: ignore[arg-type]

        patch.setattr(module, "extracting", watched)
        found = of_rows(compiled.of(images, "a"))
        few = FeatureStore(tmp_path / "few", small_backbone(), CPU, compiles_from=71)
        few.of(images, "a")
    assert sizes == [32, None]
    np.testing.assert_allclose(found, expected(images), rtol=2e-3, atol=1e-4)


def test_features_in_bf16_are_close_and_kept_apart(tmp_path: Path) -> None:
    images = pixels(40)
    single = store_in(tmp_path).of(images, "a")
    found = FeatureStore(tmp_path, small_backbone(), CPU, in_bf16=True).of(images, "a")
    assert (single.computed, found.computed) == (40, 40)
    values, right = of_rows(found), expected(images)
    # A number of bf16 has 8 bits; errors add up over a few layers.
    np.testing.assert_allclose(values, right, rtol=0.05, atol=0.02 * np.abs(right).max())
    assert (values != of_rows(single)).any()


def test_only_new_images_are_computed(tmp_path: Path) -> None:
    images = pixels(6)
    store_in(tmp_path).of(images[:4], "a")
    mixed = images[[5, 1, 1, 4, 0]]
    found = store_in(tmp_path).of(mixed, "b")
    assert found.computed == 2
    np.testing.assert_allclose(of_rows(found), expected(mixed), rtol=2e-3, atol=1e-4)
    assert store_in(tmp_path).of(mixed, "b").computed == 0


def test_rows_that_are_no_images_have_no_features(tmp_path: Path) -> None:
    found = store_in(tmp_path).of(pixels(4), "a", wanted_N=np.array([0, 3]))
    assert found.rows_N.tolist() == [0, -1, -1, 1]
    assert len(found.values_MD) == 2


@pytest.mark.slow
def test_what_a_killed_process_has_computed_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = pixels(10)
    monkeypatch.setattr(module, "_BATCH_ON_CPU", 2)
    monkeypatch.setattr(module, "_WRITTEN_AFTER", 4)
    written = 0
    append = FeatureStore._append

    def killed(self: FeatureStore, values: np.ndarray, digests: bytes) -> None:
        nonlocal written
        written += 1
        if written == 2:
            # The features are on the disk, half of the last digest is, and then the power fails.
            append(self, values, digests[:-7])
            raise KeyboardInterrupt
        append(self, values, digests)

    monkeypatch.setattr(FeatureStore, "_append", killed)
    with pytest.raises(KeyboardInterrupt):
        store_in(tmp_path).of(images, "a")
    monkeypatch.setattr(FeatureStore, "_append", append)
    found = store_in(tmp_path).of(images, "a")
    assert found.computed == 3  # Four were written before, and three of the next four.
    np.testing.assert_allclose(of_rows(found), expected(images), rtol=2e-3, atol=1e-4)


def compute(root: Path, fingerprint: str) -> int:
    return store_in(root).of(pixels(6), fingerprint).computed


@pytest.mark.slow
def test_processes_share_a_store(tmp_path: Path) -> None:
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        computed = pool.starmap(compute, [(tmp_path, "a"), (tmp_path, "b")])
    assert sorted(computed) == [0, 6]


def test_features_go_when_their_images_go(tmp_path: Path) -> None:
    images = pixels(5)
    store = store_in(tmp_path, "site-1")
    store.of(images, "before")
    left = images[[4, 1]]
    features = store.of(left, "after")
    store.forget_others(features)
    assert (store.folder / "features.f16").stat().st_size == 2 * 2 * small_backbone().features
    again = store.of(left, "after")
    assert again.computed == 0
    np.testing.assert_allclose(of_rows(again), expected(left), rtol=2e-3, atol=1e-4)
    assert store.of(images, "before").computed == 3


NOTED = {"before": [0, 1, 2, 3, 4], "after": [4, 1], "few": [1]}


def remembered(root: Path) -> FeatureStore:
    """Return a store with features of five images, noted for all, for two and for one of them."""
    store = store_in(root, "site-1")
    for fingerprint, rows in NOTED.items():
        store.of(pixels(5)[rows], fingerprint)
    return store


@pytest.mark.slow
def test_features_go_whatever_kills_their_removal(tmp_path: Path) -> None:
    """No image is given another one's features, and in the end there are none but those left."""
    left = pixels(5)[NOTED["after"]]

    def forget(root: Path) -> None:
        store = store_in(root, "site-1")
        store.forget_others(store.of(left, "after"))

    remembered(tmp_path / "counted")
    events = killed_in_features(lambda: forget(tmp_path / "counted"))
    assert events == 3 * 2 + 3 * 2  # Three notes go, and three times a file is replaced.
    for event in range(1, events + 1):
        root = tmp_path / str(event)
        store = remembered(root)
        killed_in_features(lambda root=root: forget(root), event)
        for fingerprint in ("few", "after", "before"):
            images = pixels(5)[NOTED[fingerprint]]
            found = of_rows(store.of(images, fingerprint))
            np.testing.assert_allclose(found, expected(images), rtol=2e-3, atol=1e-4)
        forget(root)
        assert features_in(root).keys() == {digest_of(image) for image in left}


@pytest.mark.slow
def test_features_by_other_backbones_go_with_their_image(tmp_path: Path) -> None:
    """Of another owner they stay, and of the same one where none of its images is gone."""

    def at(size: int, owner: str = "site-1") -> FeatureStore:
        return FeatureStore(tmp_path, small_backbone(size=size), CPU, owner)

    at(32).of(pixels(5), "before")
    at(32, "site-2").of(pixels(5), "before")
    at(40).of(pixels(5)[:3], "before")
    store = at(48)
    store.forget_others(store.of(pixels(5)[:4], "after"))
    assert not at(32).folder.exists()
    assert at(32, "site-2").of(pixels(5), "before").computed == 0
    assert at(40).of(pixels(5)[:3], "before").computed == 0


def test_what_a_killed_process_has_half_replaced_goes(tmp_path: Path) -> None:
    """It may hold features of images that go later."""
    store = store_in(tmp_path, "site-1")
    store.of(pixels(2), "before")
    (store.folder / ".features.f16.0123456789abcdef.tmp").write_bytes(b"half")
    store.of(pixels(3), "after")
    assert len(features_in(tmp_path)) == 3


def test_a_note_that_is_damaged_is_made_again(tmp_path: Path) -> None:
    images = pixels(3)
    store = store_in(tmp_path)
    store.of(images, "a")
    (note,) = store.folder.glob("rows-*")
    note.write_bytes(note.read_bytes()[:-3])
    assert store.of(images, "a").rows_N.tolist() == [0, 1, 2]


def test_no_room_is_told_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(PolicyRefused, match="there is room for 100"):
        store_in(tmp_path).of(pixels(3), "a", room=100)
    usage = module.shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DatasetError, match=r"the features of 3 images take .* the disk has 10"):
        store_in(tmp_path).of(pixels(3), "a")


def test_features_that_are_no_numbers_are_refused_and_not_kept(tmp_path: Path) -> None:
    weights = write_weights(tmp_path / "weights.safetensors", change=float("nan"))
    store = FeatureStore(tmp_path, small_backbone(str(weights)), CPU)
    said = "backbone='timm/test_efficientnet': with these .* gives features that are no numbers"
    with pytest.raises(DatasetError, match=said):
        store.of(pixels(3), "a")
    assert [path.stat().st_size for path in store.folder.iterdir()] == [0, 0]


def test_progress_is_told(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    store_in(tmp_path).of(pixels(3), "a", tell=lambda done, of, rate: told.append((done, of)))
    assert told == [(3, 3)]


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 0, 0, 2]])
def test_a_split_gives_its_rows(tmp_path: Path, order: list[int]) -> None:
    images = pixels(4)
    store = store_in(tmp_path)
    store.of(images, "all")
    found = store.of(images[order], "some")
    split = DeviceFeatures(found, np.arange(4), CPU)
    rows = torch.tensor([2, 0, 2])
    batch = split.batch(rows)
    assert batch.dtype == torch.float32
    np.testing.assert_array_equal(batch[:, :, 0, 0].numpy(), of_rows(found)[[2, 0, 2]])
    raw = split.augmented(rows, NO_AUGMENTATION, torch.Generator())
    assert raw.dtype == torch.float16
    assert len(split) == 4
