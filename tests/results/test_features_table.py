"""What a report says of the features that a run has computed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.fake_run import make_fake_run

from ahfal_app.results.report import write_report
from ahfal_app.results.tables import features_table


def environment_of(extracted: dict[str, tuple[int, float]], views: int = 0) -> dict[str, object]:
    """Return what a run on a backbone says of where it ran."""
    return {
        "backbone": {
            "name": "timm/resnet18",
            "sha256": "0" * 64,
            "features": 512,
            "views": views,
            "extracted": {
                split: {"images": images, "seconds": seconds}
                for split, (images, seconds) in extracted.items()
            },
        }
    }


def test_images_seconds_and_rate_of_each_split_are_told() -> None:
    table = features_table(environment_of({"test": (500, 8.0), "train": (60_000, 1_200.0)}))
    assert table is not None
    assert table.headings == ("Split", "Computed", "Time", "Images/s")
    assert table.rows == [
        ("test", "500", "8.0 s", "62"),
        ("train", "60,000", "20 min 00 s", "50"),
    ]
    assert table.title == "Features of timm/resnet18 (512 of an image); all others were there"


def test_views_are_told_and_a_split_that_was_there_has_no_rate() -> None:
    table = features_table(environment_of({"test": (0, 0.01), "train": (30, 0.5)}, views=2))
    assert table is not None
    assert table.rows == [("test", "0", "0.01 s", "n/a"), ("train", "30", "0.5 s", "60")]
    assert "512 of an image, 2 views of each training image besides" in table.title


@pytest.mark.parametrize(
    "environment",
    [{}, environment_of({}), environment_of({"test": (0, 0.01), "train": (0, 0.02)})],
    ids=["no backbone", "no split", "all were there"],
)
def test_nothing_is_told_where_nothing_was_computed(environment: dict[str, object]) -> None:
    assert features_table(environment) is None


def test_the_report_has_the_table(tmp_path: Path) -> None:
    folder = make_fake_run(tmp_path, num_clients=2, samples=100, rounds=1, cycles_done=1)
    assert "Features of timm" not in write_report(folder).read_text()
    path = folder / "environment.json"
    told = environment_of({"train": (4_000, 100.0)})
    path.write_text(json.dumps({**json.loads(path.read_text()), **told}))
    text = write_report(folder).read_text()
    assert "Features of timm/resnet18 (512 of an image)" in text
    after = text[text.index("Features of timm/resnet18") :]
    cells = [after.index(cell) for cell in (">train<", ">4,000<", ">1 min 40 s<", ">40<")]
    assert cells == sorted(cells)
