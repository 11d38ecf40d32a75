"""The model card that a site writes: of what the model's file says of it, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence

from ahfal_app.results.model_card import UNKNOWN, facts_list, plain, start_text, uses_text
from ahfal_app.results.units import percent
from ahfal_app.training.model_use import ModelUse


def card_of_use(classes: Sequence[str], use: ModelUse, with_personal: bool) -> str:
    """Return a model card as Markdown, with the headings of a run's own.

    Parameters
    ----------
    classes : Sequence[str]
        Names of the classes.
    use : ModelUse
        What the file says of the model.
    with_personal : bool
        Whether the site's own model lies beside it.
    """
    kind = "vectors" if use.vectors else "images"
    sections = [
        "# Model Card",
        f"A classifier of {kind} for {len(classes)} classes, trained by federated active learning "
        f"with {use.labels} labels of all sites together. The {kind} stayed at the sites.",
        "## Model Details",
        _details(classes, use),
        "## Uses",
        uses_text(kind),
        "## Bias, Risks, and Limitations",
        _limitations(use, kind, with_personal),
        "## How to Get Started with the Model",
        start_text(kind),
        "## Evaluation",
        _evaluation(use),
        "## Model Card Contact",
        UNKNOWN,
    ]
    return "\n\n".join(sections) + "\n"


def _details(classes: Sequence[str], use: ModelUse) -> str:
    name = plain(use.backbone.name) if use.backbone else "nothing"
    return facts_list(
        ("Developed by", UNKNOWN),
        ("Model type", plain(use.network)),
        ("License", UNKNOWN),
        ("Finetuned from", name),
        ("Classes", ", ".join(map(plain, classes))),
        ("Model of", _when(use)),
        ("Software", f"ahfal {plain(use.code)}"),
    )


def _limitations(use: ModelUse, kind: str, with_personal: bool) -> str:
    lines = [
        f"- Privacy of the class histograms: `{use.privacy}`. Updates of the model are not covered "
        "by it; what a model has learnt of single samples was not measured.",
        "- The labels were chosen, not drawn: their classes are not in the proportions of the "
        f"sites' {kind}.",
    ]
    if use.chosen_by:
        lines.append(
            f"- It was chosen by its {plain(use.chosen_by)} in the test whose figures are below: "
            "they are optimistic."
        )
    if with_personal:
        lines.append(
            "- `personal.safetensors` beside it is this site's own, trained further on this site's "
            f"labels; on {kind} from elsewhere it may be much worse. `comparison.json` has both on "
            "what this site has held out."
        )
    return "\n".join(lines)


def _evaluation(use: ModelUse) -> str:
    shown = "was not told" if use.accuracy is None else f"is {percent(use.accuracy)}"
    return (
        f"Its accuracy in the run's test {shown}. How it does on the site's own, nobody knows yet."
    )


def _when(use: ModelUse) -> str:
    if use.cycle is None or use.round is None:
        return "an unknown cycle"
    best = f", the best by {plain(use.chosen_by)}" if use.chosen_by else ""
    return f"cycle {use.cycle + 1}, round {use.round}{best}"
