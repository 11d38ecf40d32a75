"""Matplotlib figures as SVG that can stand inside an HTML page, several to a page."""

from __future__ import annotations

import io
import re
import unicodedata
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import matplotlib.style
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

_SVG = "http://www.w3.org/2000/svg"
_XLINK = "http://www.w3.org/1999/xlink"
_HREFS = ("href", f"{{{_XLINK}}}href")

#: Text stays text (it can be searched and read aloud), and `$` in a name is no formula.
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 10.0,
    "axes.titlesize": 10.0,
    "axes.labelsize": 10.0,
    "xtick.labelsize": 9.0,
    "ytick.labelsize": 9.0,
    "legend.fontsize": 9.0,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e3e3e3",
    "grid.linewidth": 0.8,
    "lines.linewidth": 1.6,
    "lines.markersize": 5.5,
}


@dataclass(frozen=True)
class Chart:
    """A figure in words and as an `<svg>` element."""

    name: str
    title: str
    description: str
    svg: str


def draw_chart(
    name: str,
    title: str,
    description: str,
    size: tuple[float, float],
    draw: Callable[[Figure], None],
) -> Chart:
    """Draw a figure; equal input gives equal bytes.

    Parameters
    ----------
    name : str
        Prefix of all ids in the SVG; unique in a page.
    title, description : str
        What people hear who do not see the figure.
    size : tuple of float
        Width and height in inches; the SVG scales with its place in the page.
    draw : Callable[[Figure], None]
        Draws into an empty figure.
    """
    content = _drawn(name, size, draw)
    return Chart(name, title, description, _inline(content, name, title, description))


def _drawn(name: str, size: tuple[float, float], draw: Callable[[Figure], None]) -> bytes:
    """Return the SVG file of a figure."""
    # Starting from the defaults, a person's own matplotlibrc does not change the report.
    style = matplotlib.style.context(["default", {**_STYLE, "svg.hashsalt": name}])
    with style, warnings.catch_warnings():
        # The reader's browser has the glyphs that Matplotlib's own font lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = Figure(figsize=size, dpi=144, layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure)
        buffer = io.BytesIO()
        metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", metadata=metadata, transparent=True)
    return buffer.getvalue()


def tick_label(name: str, longest: int = 16) -> str:
    """Return a name fit for an axis: no control characters (XML forbids them), not too long."""
    kept = "".join(
        " " if unicodedata.category(letter) in {"Cc", "Cs", "Cn"} else letter for letter in name
    ).strip()
    return kept if len(kept) <= longest else kept[: longest - 1] + "…"


def _inline(content: bytes, name: str, title: str, description: str) -> str:
    """Make a whole SVG file an element: own ids, no global style, no fixed size, spoken text."""
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", _XLINK)
    root = ElementTree.fromstring(content)  # noqa: S314  # our own output
    for parent in root.iter():
        for child in list(parent):
            if child.tag in {f"{{{_SVG}}}metadata", f"{{{_SVG}}}style"}:
                parent.remove(child)
    for element in root.iter():
        _prefix_ids(element, name)
    for attribute in ("width", "height", "version"):
        root.attrib.pop(attribute, None)
    root.set("style", "stroke-linejoin: round; stroke-linecap: butt")
    root.set("role", "img")
    root.set("aria-labelledby", f"{name}-title {name}-description")
    for place, (tag, text) in enumerate((("title", title), ("desc", description))):
        element = ElementTree.Element(f"{{{_SVG}}}{tag}")
        element.set("id", f"{name}-{'title' if tag == 'title' else 'description'}")
        element.text = text
        root.insert(place, element)
    return ElementTree.tostring(root, encoding="unicode")


def _prefix_ids(element: ElementTree.Element, name: str) -> None:
    for attribute, value in element.attrib.items():
        if attribute == "id":
            element.set(attribute, f"{name}-{value}")
        elif attribute in _HREFS and value.startswith("#"):
            element.set(attribute, f"#{name}-{value[1:]}")
        elif "url(#" in value:
            element.set(attribute, re.sub(r"url\(#", f"url(#{name}-", value))
