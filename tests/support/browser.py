"""Pages in headless Chromium: what they look like to a reader at several widths."""

from __future__ import annotations

import html
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from support.devtools import Chromium

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))),
    None,
)

#: A large screen and a telephone.
WIDTHS = (1280, 390)

# A frame is as wide as it is told to be, a window is not. The page in it stays as it is: its own
# content security policy lets no script in, so it is looked at from outside.
_HARNESS = """<!DOCTYPE html><meta charset="utf-8"><body style="margin: 0">
{frames}
<pre id="seen"></pre>
<script>
const box = (element) => {{
  const {{x, y, width, height}} = element.getBoundingClientRect();
  return {{x, y, width, height}};
}};
// Parts that a container scrolls are not in anybody's way.
const scrolled = (element) => element.parentElement.closest(".scroll, svg") !== null;
addEventListener("load", () => {{
  const views = [...document.querySelectorAll("iframe")].map((frame) => {{
    const page = frame.contentDocument, root = page.documentElement;
    return {{
      width: frame.clientWidth,
      scrollWidth: root.scrollWidth,
      tooWide: [...page.querySelectorAll("body *")]
        .filter((e) => !scrolled(e) && e.getBoundingClientRect().right > root.clientWidth + 0.5)
        .map((e) => `${{e.tagName}} ${{e.className}}`),
      figures: [...page.querySelectorAll("figure > svg")].map((svg) => ({{
        ...box(svg),
        texts: [...svg.querySelectorAll("text")].map((t) => ({{...box(t), text: t.textContent}})),
      }})),
      tables: page.querySelectorAll("table").length,
      text: page.body.innerText,
      requests: frame.contentWindow.performance.getEntriesByType("resource").map((e) => e.name),
    }};
  }});
  document.getElementById("seen").textContent = JSON.stringify(views);
}});
</script>
"""


@dataclass(frozen=True)
class Seen:
    """What the browser made of a page: a view for each width, and the console's messages."""

    views: list[dict[str, Any]]
    console: list[str]


def look_at(page: str, folder: Path, chromium: Chromium) -> Seen:
    """Open a page at all widths and measure it."""
    frames = "\n".join(
        f'<iframe srcdoc="{html.escape(page)}" style="border: 0; width: {width}px; height: 900px">'
        "</iframe>"
        for width in WIDTHS
    )
    harness = folder / "harness.html"
    harness.write_text(_HARNESS.format(frames=frames))
    with chromium.tab() as tab:
        tab.call("Emulation.setScrollbarsHidden", hidden=True)
        tab.open(harness.as_uri())
        views = json.loads(tab.wait("document.getElementById('seen')?.textContent"))
        return Seen(views, tab.console)
