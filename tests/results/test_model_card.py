"""The card of a model: what it says follows from the run, and what nobody knows is left open."""

from __future__ import annotations

import json
from pathlib import Path

import yaml
from support.fake_run import make_fake_run
from support.saved_models import QUICK
from support.simulation import SharedRuns

from ahfal_app.results.model_card import CARD, model_card, write_model_card
from ahfal_app.results.reading import read_run

HEADINGS = [
    "Model Details",
    "Uses",
    "Bias, Risks, and Limitations",
    "How to Get Started with the Model",
    "Training Details",
    "Evaluation",
    "Environmental Impact",
    "Technical Specifications",
    "Model Card Contact",
]


def test_it_has_the_templates_headings_and_a_head_that_is_yaml(tmp_path: Path) -> None:
    text = write_model_card(make_fake_run(tmp_path)).read_text()
    _, head, body = text.split("---\n", 2)
    found = yaml.safe_load(head)
    assert found["pipeline_tag"] == "image-classification"
    cycles = read_run(next(tmp_path.iterdir())).metrics.cycles
    value = found["model-index"][0]["results"][0]["metrics"][0]
    assert value == {"type": "accuracy", "value": round(cycles[-1].accuracy, 6)}
    assert [line[3:] for line in body.splitlines() if line.startswith("## ")] == HEADINGS
    assert "[More Information Needed]" in body


def test_it_tells_what_the_run_did(tmp_path: Path) -> None:
    private = {"privacy": "local-dp", "privacy.epsilon": 1.0}
    folder = make_fake_run(tmp_path, strategy="entropy", num_clients=7, **private)
    text, last = model_card(read_run(folder)), read_run(folder).metrics.cycles[-1]
    assert f"trained over 7 sites by federated active learning with {last.labels} labels" in text
    assert "**Query strategy:** `entropy`" in text
    assert "Privacy of the class histograms: `local-dp`" in text
    assert f"`{'d' * 64}`" in text
    shares = [share for share in last.class_accuracy if share is not None]
    worst = last.class_accuracy.index(min(shares))
    assert "Its worst class is " in text
    assert read_run(folder).environment["data"]["class_names"][worst] in text


def test_names_cannot_change_the_page(tmp_path: Path) -> None:
    names = ["a|b", "<img src=x>", "# c", "d\ne", *"fghijk"]
    text = model_card(read_run(make_fake_run(tmp_path, class_names=names)))
    assert "| a\\|b |" in text
    assert "\\<img src=x\\>" in text
    assert "| \\# c |" in text
    assert "| d e |" in text


def test_few_and_missing_test_images_are_said(shared_runs: SharedRuns, tmp_path: Path) -> None:
    text = (shared_runs(QUICK).folder / CARD).read_text()
    assert "- The test set has 60 images: a share of " in text
    folder = make_fake_run(tmp_path)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        if line["kind"] == "cycle":
            line["class_accuracy"][3] = None
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = model_card(read_run(folder))
    assert "- Classes without a test image: cat." in text
    assert "| cat | no test image |" in text
    assert "- The test set has" not in text
