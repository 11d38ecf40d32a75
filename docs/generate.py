"""Write the generated parts of the docs and of `pyproject.toml` anew.

    uv run python docs/generate.py           write them
    uv run python docs/generate.py --check   exit with 1 where one is out of date

A generated part stands between two comments, `generated: <part>` and `end`; `PARTS` makes them.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

from ahfal_app.parameters import parameter_entries
from ahfal_app.plugins import (
    AGGREGATIONS,
    ARRIVAL_ORDERS,
    LOCAL_UPDATES,
    STOPPING,
    STRATEGIES,
    Family,
)
from ahfal_app.settings_table import settings_markdown, settings_toml

ROOT = Path(__file__).parents[1]


def components(family: Family) -> str:
    """Return a table of a family's own components, with their parameters."""
    lines = ["| name | what it does | parameters | from |", "| --- | --- | --- | --- |"]
    for name in family.own_names():
        component = family.component(name)
        summary = (component.__doc__ or "").strip().splitlines()[0]
        entries = parameter_entries(family.setting, family.parameters(name))
        keys = ", ".join(f"`{entry.key}`" for entry in entries) or "none"
        lines.append(f"| `{name}` | {summary} | {keys} | {component.paper} |")
    return "\n".join(lines)


PARTS: dict[str, Callable[[], str]] = {
    "defaults": settings_toml,
    "settings": settings_markdown,
    "strategies": lambda: components(STRATEGIES),
    "aggregations": lambda: components(AGGREGATIONS),
    "local updates": lambda: components(LOCAL_UPDATES),
    "stopping rules": lambda: components(STOPPING),
    "orders of arrival": lambda: components(ARRIVAL_ORDERS),
}

#: Files with generated parts.
FILES = (
    "pyproject.toml",
    "docs/settings.md",
    "docs/strategies.md",
    "docs/aggregation.md",
    "docs/stopping.md",
    "docs/evolving-data.md",
)

_PART = re.compile(
    r"(?P<begin>(?:#|<!--) generated: (?P<name>[a-z ]+?)(?: -->)?\n\n?)"
    r".*?"
    r"(?P<end>\n\n?(?:#|<!--) end(?: -->)?\n)",
    flags=re.DOTALL,
)


def generated(text: str) -> str:
    """Return a file's text with its generated parts as they are to be.

    Raises
    ------
    KeyError
        It asks for a part that nobody makes.
    """
    return _PART.sub(lambda m: m["begin"] + PARTS[m["name"]]().strip() + m["end"], text)


def main() -> int:
    """Write or check all files; return the exit code."""
    stale = []
    for name in FILES:
        path = ROOT / name
        before = path.read_text(encoding="utf-8")
        after = generated(before)
        if after == before:
            continue
        stale.append(name)
        if "--check" not in sys.argv[1:]:
            path.write_text(after, encoding="utf-8")
    if stale:
        print(("out of date: " if "--check" in sys.argv[1:] else "written: ") + ", ".join(stale))
    return int(bool(stale) and "--check" in sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
