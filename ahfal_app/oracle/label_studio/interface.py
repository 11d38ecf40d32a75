"""What annotators see in Label Studio, and what their annotations mean."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

from ahfal_app.errors import OracleError
from ahfal_app.label_page.images import for_browser
from ahfal_app.labels.records import LabelRequest, parse_utc
from ahfal_app.oracle import EncodedImage

_CONTROL = "class"
_IMAGE = "image"

#: What a class index, or None for a skipped image, and an annotator's name make.
TaskAnswer = tuple[int | None, str]


def labelling_interface(class_names: Sequence[str]) -> str:
    """Return Label Studio's labelling configuration (XML) with one choice for each class."""
    view = ElementTree.Element("View")
    ElementTree.SubElement(view, "Image", name=_IMAGE, value=f"${_IMAGE}", zoomControl="true")
    choices = ElementTree.SubElement(
        view, "Choices", name=_CONTROL, toName=_IMAGE, choice="single-radio", required="true"
    )
    for name in class_names:
        ElementTree.SubElement(choices, "Choice", value=name)
    return ElementTree.tostring(view, encoding="unicode")


def check_classes(interface: str, class_names: Sequence[str]) -> None:
    """Refuse a project whose choices are no longer the classes; their order is free.

    Raises
    ------
    OracleError
        Somebody has changed them.
    """
    try:
        # It comes from the site's own server.
        root = ElementTree.fromstring(interface)  # noqa: S314
    except ElementTree.ParseError as error:
        raise OracleError(f"labelling interface of the project: {error}") from error
    found = {
        choice.get("alias", "") or choice.get("value", "")
        for choices in root.iter("Choices")
        if choices.get("name") == _CONTROL
        for choice in choices.iter("Choice")
    }
    missing = [name for name in class_names if name not in found]
    unknown = sorted(found - set(class_names))
    if missing or unknown:
        raise OracleError(
            f"labelling interface of the project: somebody has changed the classes; missing: "
            f"{', '.join(missing) or 'none'}; unknown: {', '.join(unknown) or 'none'}; change "
            "them back in the project's settings"
        )


def make_task(
    request: LabelRequest, position: int, image: EncodedImage, class_names: Sequence[str]
) -> tuple[dict[str, object], int]:
    """Return a task as Label Studio imports it, and about how many bytes it is.

    Raises
    ------
    OracleError
        The image cannot be shown.
    """
    content, media_type = for_browser(image.content, image.name)
    encoded = base64.b64encode(content).decode()
    sample = request.samples[position]
    score = request.scores[position] if request.scores else None
    data: dict[str, object] = {
        _IMAGE: f"data:{media_type};base64,{encoded}",
        "file": image.name,
        "request": request.request_id,
        "cycle": request.cycle,
        "position": position + 1,
    }
    if image.link:
        data["link"] = image.link
    if score is not None:
        data["acquisition_score"] = score
    task: dict[str, object] = {
        "data": data,
        "meta": {"request": request.request_id, "sample": sample},
    }
    if request.guesses:
        guess = {
            "from_name": _CONTROL,
            "to_name": _IMAGE,
            "type": "choices",
            "value": {"choices": [class_names[request.guesses[position]]]},
        }
        prediction: dict[str, object] = {
            "result": [guess],
            "model_version": f"cycle {request.cycle}",
        }
        task["predictions"] = [prediction if score is None else prediction | {"score": score}]
    return task, len(encoded)


def task_answers(
    task: Mapping[str, Any], class_names: Sequence[str], with_skips: bool = False
) -> tuple[list[TaskAnswer], list[str]]:
    """Return what annotators said of a task, oldest first, and what of it cannot be used.

    Parameters
    ----------
    task : Mapping[str, Any]
        A task with its annotations.
    class_names : Sequence[str]
        Names of the classes, by class index.
    with_skips : bool
        Whether a skip counts beside a class.
    """
    named: list[TaskAnswer] = []
    skipped: list[TaskAnswer] = []
    problems = []
    for annotation in _by_age(task):
        annotator = _annotator(annotation)
        if annotation["was_cancelled"]:
            (named if with_skips else skipped).append((None, annotator))
            continue
        choices = _choices(annotation)
        if len(choices) == 1 and choices[0] in class_names:
            named.append((class_names.index(choices[0]), annotator))
        else:
            said = " and ".join(map(repr, choices)) or "no class"
            problems.append(
                f"task {task['id']}: annotation {annotation['id']} says {said}, where one class "
                "is needed; it is not used until it is corrected"
            )
    return named or skipped, problems


def answer_times(task: Mapping[str, Any], class_names: Sequence[str]) -> dict[TaskAnswer, str]:
    """Return when each answer to a task was last edited, as `utc_text` writes it.

    Answers of which the server does not say so are left out.

    Parameters
    ----------
    task : Mapping[str, Any]
        A task with its annotations.
    class_names : Sequence[str]
        Names of the classes, by class index.
    """
    times: dict[TaskAnswer, str] = {}
    for annotation in _by_age(task):
        edited = annotation.get("updated_at") or annotation.get("created_at")
        choices = [None] if annotation["was_cancelled"] else _choices(annotation)
        given = parse_utc(str(edited))
        if given is not None and len(choices) == 1 and choices[0] in (None, *class_names):
            label = class_names.index(choices[0]) if choices[0] is not None else None
            times.setdefault((label, _annotator(annotation)), given)
    return times


def settling_answers(task: Mapping[str, Any], class_names: Sequence[str]) -> set[TaskAnswer]:
    """Return the answers to a task that somebody has marked as its ground truth.

    Parameters
    ----------
    task : Mapping[str, Any]
        A task with its annotations.
    class_names : Sequence[str]
        Names of the classes, by class index.
    """
    marked = [a for a in task["annotations"] if a.get("ground_truth")]
    return set(task_answers({**task, "annotations": marked}, class_names)[0])


def _by_age(task: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return sorted(task["annotations"], key=lambda annotation: annotation["id"])


def _choices(annotation: Mapping[str, Any]) -> list[str]:
    return [
        choice
        for result in annotation["result"]
        if result.get("from_name") == _CONTROL
        for choice in result.get("value", {}).get("choices", [])
    ]


def _annotator(annotation: Mapping[str, Any]) -> str:
    """Return who made an annotation: name and address as the server gives them."""
    name = str(annotation.get("created_username") or "").rsplit(",", 1)[0].strip()
    return name or f"user {annotation.get('completed_by')}"
