"""The model card of a run: what the model is, what it was trained on, how good it is, its limits.

Its headings are those of Hugging Face's template. What a run cannot know is left to people, with
the words that the template has for it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from ahfal_app.results.kept import Kept, kept_model
from ahfal_app.results.privacy import describe_privacy
from ahfal_app.results.reading import MODEL, Run, read_run
from ahfal_app.results.units import bounds_text, metric_text, percent, seconds_text
from ahfal_app.storage.files import write_text

CARD = "model-card.md"

#: The template's words for what a run cannot know.
UNKNOWN = "[More Information Needed]"

#: A test set of so few images cannot tell models apart that differ by some percent.
_FEW_TESTS = 1000


def write_model_card(folder: Path) -> Path:
    """Write the model card of a finished run, and return where it is.

    Raises
    ------
    ReportError
        The folder lacks `config.yaml` or `metrics.jsonl`, or a file cannot be read.
    """
    run = read_run(folder)
    path = run.folder / CARD
    write_text(path, model_card(run))
    return path


def model_card(run: Run) -> str:
    """Return the model card of a run that has a last cycle, as Markdown with a YAML head."""
    sections = [
        f"# Model Card for {plain(run.folder.name)}",
        _summary(run),
        "## Model Details",
        _details(run),
        "## Uses",
        uses_text(_kind(run)),
        "## Bias, Risks, and Limitations",
        _limitations(run),
        "## How to Get Started with the Model",
        start_text(_kind(run)),
        "## Training Details",
        _training(run),
        "## Evaluation",
        _evaluation(run),
        "## Environmental Impact",
        _impact(run),
        "## Technical Specifications",
        _technical(run),
        "## Model Card Contact",
        UNKNOWN,
    ]
    return f"---\n{_head(run)}---\n\n" + "\n\n".join(sections) + "\n"


def _head(run: Run) -> str:
    kept = _kept(run)
    result = {
        "task": {"type": _task(run)},
        "dataset": {"name": run.settings.data_name, "type": run.settings.dataset},
        "metrics": [{"type": "accuracy", "value": _rounded(kept.accuracy)}],
    }
    head = {
        "library_name": "ahfal-app",
        "pipeline_tag": _task(run),
        "tags": ["federated-learning", "active-learning"],
        "model-index": [{"name": run.folder.name, "results": [result]}],
    }
    return yaml.safe_dump(head, sort_keys=False, allow_unicode=True)


def _summary(run: Run) -> str:
    kept = _kept(run)
    return (
        f"A classifier of {_kind(run)} for {len(run.class_names)} classes, trained over "
        f"{len(kept.labels_per_client_K)} sites by federated active learning with {kept.labels} "
        f"labels. The {_kind(run)} stayed at the sites."
    )


def _details(run: Run) -> str:
    settings = run.settings
    backbone = f", on features of `{settings.backbone}`" if settings.uses_backbone else ""
    return facts_list(
        ("Developed by", UNKNOWN),
        ("Model type", f"`{settings.model}`{backbone}"),
        ("License", UNKNOWN),
        ("Finetuned from", f"`{settings.backbone}`" if settings.uses_backbone else "nothing"),
        ("Classes", ", ".join(map(plain, run.class_names))),
    )


def uses_text(kind: str) -> str:
    """Return what a model of images or of vectors is for, and what not."""
    return (
        "### Direct Use\n\n"
        f"To tell of which of its classes {kind} are, like those that it was trained on.\n\n"
        "### Out-of-Scope Use\n\n"
        "It gives a class whatever it is given, also for what is of none of them. It was not "
        "tested for any decision about people or their health; whoever uses it for one has to."
    )


def _limitations(run: Run) -> str:
    kept, lines = _kept(run), []
    tests = _tests(run)
    if tests and tests < _FEW_TESTS:
        bounds = _truth_text(run)
        lines.append(
            f"- The test set has {tests} {_kind(run)}: a share of {percent(kept.accuracy)} "
            f"measured on them {bounds}."
        )
    untested = [
        name
        for name, share in zip(run.class_names, kept.class_accuracy_C, strict=True)
        if share is None
    ]
    if kept.is_chosen:
        lines.append(
            f"- It is the model of {kept.where}, chosen by its {kept.metric} in "
            f"this test from {kept.compared} that were tested: its figures are optimistic, and "
            "those of a test that chose nothing may be lower."
        )
    if untested:
        names = ", ".join(map(plain, untested))
        lines.append(f"- Classes without a test {_sample(run)}: {names}.")
    worst = _worst(run, kept)
    if worst:
        lines.append(f"- {worst}")
    privacy = describe_privacy(run)
    lines.append(
        f"- Privacy of the class histograms: `{privacy['mode']}`. Updates of the model are not "
        "covered by it; what a model has learnt of single samples was not measured."
    )
    lines.append(
        "- The labels were chosen, not drawn: their classes are not in the proportions "
        f"of the sites' {_kind(run)}."
    )
    return "\n".join(lines)


def start_text(kind: str) -> str:
    """Return the commands that use a model of images or of vectors."""
    what = kind.upper()
    return (
        "```sh\n"
        f"ahfal predict {MODEL} {what} --out predictions.csv\n"
        f"ahfal evaluate {MODEL} LABELLED_{what}\n"
        f"ahfal export {MODEL} --format onnx\n"
        "```"
    )


def _training(run: Run) -> str:
    settings, kept = run.settings, _kept(run)
    data = run.environment.get("data", {})
    facts = facts_list(
        ("Query strategy", f"`{settings.strategy}`"),
        ("Cycles and rounds", f"{len(run.metrics.cycles)} cycles of {settings.rounds} rounds"),
        (
            "Model of",
            f"{kept.where}{f', the best by {plain(kept.metric)}' if kept.metric else ''}",
        ),
        ("Local training", f"{settings.local_epochs} epochs, batches of {settings.batch_size}"),
        (
            "Optimiser",
            f"SGD, learning rate {settings.learning_rate}, momentum "
            f"{settings.momentum}, weight decay {settings.weight_decay}",
        ),
        ("Aggregation", f"`{settings.aggregation}`"),
        ("Seed", str(settings.seed)),
    )
    origin = (
        f"`{plain(settings.dataset)}`, SHA-256 of the server's copy "
        f"`{data.get('fingerprint', 'unknown')}`"
        if settings.has_dataset
        else f"The sites' own {_kind(run)}; the server has none"
    )
    return (
        "### Training Data\n\n"
        f"{origin}; {kept.labels} labels over {len(kept.labels_per_client_K)} sites.\n\n"
        f"### Training Procedure\n\n{facts}"
    )


def _evaluation(run: Run) -> str:
    kept = _kept(run)
    intervals = kept.tests[0].intervals if kept.tests else {}
    rows = ["| metric | value | 95 % |", "| --- | --- | --- |"]
    rows += [
        f"| {name.replace('-', ' ')} | {metric_text(name, value)} | "
        f"{bounds_text(intervals.get(name)) or 'n/a'} |"
        for name, value in {"accuracy": kept.accuracy, **kept.metrics}.items()
    ]
    untested = f"no test {_sample(run)}"
    by_class = ["| class | recall |", "| --- | --- |"]
    by_class += [
        f"| {plain(name)} | {percent(share) if share is not None else untested} |"
        for name, share in zip(run.class_names, kept.class_accuracy_C, strict=True)
    ]
    tests = _tests(run)
    at_sites = bool(kept.tests) and kept.tests[0].where == "sites"
    where = (
        f"that the sites hold out of their labels (chosen, not drawn from all of their "
        f"{_kind(run)}), or bring for testing alone"
        if at_sites
        else "at the server"
    )
    return (
        "### Testing Data\n\n"
        f"{tests if tests is not None else 'An unknown number of'} {_kind(run)} {where}.\n\n"
        "### Results\n\n" + "\n".join(rows) + "\n\n" + "\n".join(by_class)
    )


def _impact(run: Run) -> str:
    hardware = run.environment.get("hardware", {})
    seconds = sum(run.metrics.seconds.values())
    gpus = ", ".join(map(str, hardware.get("gpus", []))) or "no GPU"
    return facts_list(
        ("Hardware of the server", f"{hardware.get('processor', 'unknown')}, {gpus}"),
        ("Time", seconds_text(seconds)),
        ("Carbon emitted", UNKNOWN),
    )


def _technical(run: Run) -> str:
    code, versions = run.environment.get("code", {}), run.environment.get("versions", {})
    return facts_list(
        ("Software", f"ahfal {code.get('version', 'unknown')}, code `{code.get('hash', '')[:16]}`"),
        ("Versions", ", ".join(f"{name} {version}" for name, version in versions.items())),
    )


def _truth_text(run: Run) -> str:
    """Return in words what the accuracy may be in truth."""
    kept = _kept(run)
    bounds = kept.tests[0].intervals.get("accuracy") if kept.tests else None
    if bounds is None:
        return "may be some percent higher or lower in truth"
    return f"may be {bounds_text(bounds)} in truth (95 %)"


def _worst(run: Run, kept: Kept) -> str:
    shares = [
        (share, name)
        for name, share in zip(run.class_names, kept.class_accuracy_C, strict=True)
        if share is not None
    ]
    if not shares:
        return ""
    share, name = min(shares)
    recognised = f"{percent(share)} of its test {_kind(run)} are recognised"
    return f"Its worst class is {plain(name)}: {recognised}."


def _kept(run: Run) -> Kept:
    return kept_model(run.metrics, run.settings)


def _rounded(share: float | None) -> float | None:
    return None if share is None else round(share, 6)


def _kind(run: Run) -> str:
    """Return what it was trained on: images, or vectors."""
    return str(run.environment.get("data", {}).get("kind", "images"))


def _sample(run: Run) -> str:
    return _kind(run).removesuffix("s")


def _task(run: Run) -> str:
    """Return the task as Hugging Face calls it; of vectors it is the nearest that it has."""
    return "tabular-classification" if _kind(run) == "vectors" else "image-classification"


def _tests(run: Run) -> int | None:
    kept = _kept(run)
    if kept.tests:
        return kept.tests[0].samples
    found: Any = run.environment.get("data", {}).get("test")
    return found if isinstance(found, int) else None


def facts_list(*facts: tuple[str, str]) -> str:
    """Return facts, each with its name, as a list in Markdown."""
    return "\n".join(f"- **{name}:** {value}" for name, value in facts)


def plain(text: str) -> str:
    """Return text that Markdown shows as it is, in one line."""
    one_line = " ".join(text.split())
    return "".join(
        f"\\{letter}" if letter in "\\`*_{}[]<>()#|!~" else letter for letter in one_line
    )
