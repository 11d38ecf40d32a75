"""Cycles that start from a model that is there already."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from ahfal_app.data.augmentation import NO_AUGMENTATION
from ahfal_app.data.images import DataFormat
from ahfal_app.errors import ConfigError
from ahfal_app.server.initial_model import ModelFacts, initial_standardisation, with_initial
from ahfal_app.training.model_use import ModelUse

FACTS = ModelFacts(("cat", "dog"), "")
Model = dict[str, NDArray[Any]]


def model(start: float, classes: int = 2) -> Model:
    return {
        "body.weight": np.full((3, 3), start, np.float32),
        "head.weight": np.full((classes, 3), start, np.float32),
        "head.bias": np.full(classes, start, np.float32),
    }


def saved(path: Path, of: Model, metadata: dict[str, str] | None) -> str:
    save_file(of, path, metadata)
    return str(path)


def of_vectors(numbers: int) -> DataFormat:
    moments = ((0.0,) * numbers, (1.0,) * numbers)
    return DataFormat(("cat", "dog"), (1, 1, numbers), *moments, NO_AUGMENTATION, vectors=True)


def started(path: str, fresh: Model, facts: ModelFacts = FACTS) -> tuple[Model, list[str]]:
    notes: list[str] = []
    return with_initial(path, fresh, facts, notes.append), notes


def values(of: Model) -> dict[str, float]:
    return {name: float(array.flat[0]) for name, array in of.items()}


@pytest.mark.parametrize("metadata", [FACTS.to_metadata(), None])
def test_the_same_classes_keep_their_head(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    found, notes = started(saved(tmp_path / "m", model(1.0), metadata), model(0.0))
    assert (set(values(found).values()), notes) == ({1.0}, [])


@pytest.mark.parametrize("classes", [("dog", "cat"), ("cat", "dog", "fox")])
def test_other_classes_get_a_new_head_and_that_is_said(
    tmp_path: Path, classes: tuple[str, ...]
) -> None:
    path = saved(tmp_path / "m", model(1.0), FACTS.to_metadata())
    found, notes = started(path, model(0.0, len(classes)), ModelFacts(classes, ""))
    assert values(found) == {"body.weight": 1.0, "head.weight": 0.0, "head.bias": 0.0}
    assert notes == [f"initial-model={path!r} has other classes: the head is made new"]


def test_a_folder_of_a_run_means_its_model(tmp_path: Path) -> None:
    saved(tmp_path / "model.safetensors", model(1.0), FACTS.to_metadata())
    found, _ = started(str(tmp_path), model(0.0))
    assert set(values(found).values()) == {1.0}


def test_equal_models_are_equal_files(tmp_path: Path) -> None:
    """With what is said of them, which safetensors would write in an order that varies."""
    files = [Path(saved(tmp_path / str(i), model(1.0), FACTS.to_metadata())) for i in range(20)]
    assert len({file.read_bytes() for file in files}) == 1


def other_network(of: Model) -> Model:
    return {**of, "extra": np.zeros(1, np.float32)}


def other_body(of: Model) -> Model:
    return {**of, "body.weight": np.zeros((2, 2), np.float32)}


def without_head(of: Model) -> Model:
    return {name: array for name, array in of.items() if name != "head.bias"}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (other_network, "has besides 'extra'"),
        (other_body, "has another 'body.weight'"),
        (without_head, "lacks 'head.bias'"),
    ],
)
def test_another_network_is_refused_by_the_first_difference(
    tmp_path: Path, change: Any, said: str
) -> None:
    path = saved(tmp_path / "m", change(model(1.0)), None)
    with pytest.raises(ConfigError, match=said):
        started(path, model(0.0))


def test_another_backbone_is_refused(tmp_path: Path) -> None:
    metadata = ModelFacts(("cat", "dog"), "ab" * 32).to_metadata()
    path = saved(tmp_path / "m", model(1.0), metadata)
    with pytest.raises(ConfigError, match="backbone abababababab, this run has none"):
        started(path, model(0.0))


VECTORS = ModelFacts(FACTS.classes, "", takes_vectors=True)


def use(mean: tuple[float, ...], deviation: tuple[float, ...]) -> dict[str, object]:
    """Return what a model of vectors says of its use."""
    return ModelUse(
        network="linear",
        parameters={},
        tune="head",
        backbone=None,
        shape=(1, 1, len(mean)),
        mean=mean,
        deviation=deviation,
        labels=4,
        accuracy=None,
        privacy="none",
        code="0",
        vectors=True,
    ).model_dump(mode="json")


def test_a_model_of_vectors_is_none_of_images(tmp_path: Path) -> None:
    metadata = VECTORS.to_metadata(use((0.0,) * 3, (1.0,) * 3))
    path = saved(tmp_path / "m", model(1.0), metadata)
    assert started(path, model(0.0), VECTORS)[1] == []
    with pytest.raises(ConfigError, match="it takes vectors"):
        started(path, model(0.0))


def test_a_head_on_vectors_of_another_length_is_not_made_new(tmp_path: Path) -> None:
    longer = {**model(1.0), "head.weight": np.zeros((2, 4), np.float32)}
    with pytest.raises(ConfigError, match=r"has another 'head.weight'"):
        started(saved(tmp_path / "m", longer, None), model(0.0))


@pytest.mark.parametrize(
    ("kept", "wanted", "found"),
    [
        (((1.0, 2.0), (3.0, 4.0)), "federation", ((1.0, 2.0), (3.0, 4.0))),
        (((0.0, 0.0), (1.0, 1.0)), "none", ((0.0, 0.0), (1.0, 1.0))),
    ],
)
def test_vectors_are_standardised_as_the_model_was_trained(
    tmp_path: Path, kept: Any, wanted: str, found: Any
) -> None:
    path = saved(tmp_path / "m", model(1.0), VECTORS.to_metadata(use(*kept)))
    assert initial_standardisation(path, of_vectors(2), wanted) == found
    silent = saved(tmp_path / "silent", model(1.0), VECTORS.to_metadata())
    assert initial_standardisation(silent, of_vectors(2), wanted) is None


def test_another_standardisation_than_the_models_is_refused(tmp_path: Path) -> None:
    metadata = VECTORS.to_metadata(use((1.0, 2.0), (3.0, 4.0)))
    path = saved(tmp_path / "m", model(1.0), metadata)
    with pytest.raises(ConfigError, match="takes standardised vectors"):
        initial_standardisation(path, of_vectors(2), "none")
    with pytest.raises(ConfigError, match="vectors of 2 numbers, and the data have 3"):
        initial_standardisation(path, of_vectors(3), "federation")


def test_images_that_nobody_has_measured_are_normalised_as_the_model_was_trained(
    tmp_path: Path,
) -> None:
    own = {**use((0.25,), (0.5,)), "vectors": False, "shape": (8, 8, 1)}
    path = saved(tmp_path / "m", model(1.0), FACTS.to_metadata(own))
    grey = DataFormat(("cat", "dog"), (8, 8, 1), (), (), NO_AUGMENTATION)
    assert initial_standardisation(path, grey, "federation") == ((0.25,), (0.5,))
    assert initial_standardisation(path, of_vectors(1), "federation") is None
    with pytest.raises(ConfigError, match="images of 1 channels, and image-channels=3"):
        initial_standardisation(path, replace(grey, image_shape=(8, 8, 3)), "federation")


@pytest.mark.parametrize("said", ["[]", "{", '{"classes": 3}', '{"backbone": 3}'])
def test_metadata_of_somebody_else_are_refused(tmp_path: Path, said: str) -> None:
    path = saved(tmp_path / "m", model(1.0), {"ahfal": said})
    with pytest.raises(ConfigError, match="cannot be read"):
        started(path, model(0.0))


@pytest.mark.parametrize(
    "spoilt", [{"mean": [1.0]}, {"mean": ["a", "b"]}, {"deviation": [0.0, 1.0]}, {"shape": 2}]
)
def test_a_description_that_no_run_writes_is_refused(tmp_path: Path, spoilt: Any) -> None:
    metadata = VECTORS.to_metadata({**use((1.0, 2.0), (3.0, 4.0)), **spoilt})
    with pytest.raises(ConfigError, match="initial-model="):
        initial_standardisation(
            saved(tmp_path / "m", model(1.0), metadata), of_vectors(2), "federation"
        )


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m").write_bytes(b"\x80\x04pickle")
    for path, said in (
        (str(tmp_path / "m"), "cannot be read"),
        ("nothing", "no such file or folder"),
        (str(tmp_path), "allowed is a file"),
    ):
        with pytest.raises(ConfigError, match=said):
            started(path, model(0.0))


def test_a_network_of_other_parameters_is_refused_but_for_dropout(tmp_path: Path) -> None:
    use = {"parameters": {"normalise": "unit", "scale": 50.0, "dropout": 0.5}}
    path = saved(tmp_path / "m", model(1.0), FACTS.to_metadata(use))
    same = replace(FACTS, parameters={"normalise": "unit", "scale": 50.0, "dropout": 0.0})
    assert started(path, model(0.0), same)[1] == []
    other = replace(FACTS, parameters={"normalise": "none", "scale": 10.0, "dropout": 0.0})
    with pytest.raises(ConfigError, match=r"model\.normalise=unit, model\.scale=50\.0; al"):
        started(path, model(0.0), other)
