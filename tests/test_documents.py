"""Modules that documents and docstrings name are there, under the name that they give."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "ahfal_app"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("*/*.md"))]

#: Pages whose examples are files that a reader is to write.
TO_BE_WRITTEN = {
    "docs/adding-a-strategy.md": {"ahfal_app/query/logit_gap.py"},
    "docs/backbones.md": {"patches.py"},
    "docs/models.md": {"my_package/shallow.py"},
}
_NAMED = re.compile(r"`([\w./-]+(?:\.py|/))`")


def named(text: str) -> set[str]:
    """Return the modules and folders that a text names, as it names them."""
    return {name for name in _NAMED.findall(text) if name.endswith(".py") or name.count("/") == 1}


def missing(names: set[str], *folders: Path) -> set[str]:
    return {name for name in names if not any((folder / name).exists() for folder in folders)}


def test_what_is_not_there_is_seen():
    text = "`strategy.py` and `server/loop.py`, in `server/` or `batching/`"
    assert missing(named(text), PACKAGE) == {"strategy.py", "batching/"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_pages_name_modules_by_where_they_are(page: Path):
    """From the checkout's root, from the package, or beside the page."""
    name = page.relative_to(ROOT).as_posix()
    if name == "docs/extending.md":
        pytest.skip("its examples are run by a test of their own")
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.M)
    modules = {found for found in named(text) if found.endswith(".py")}
    assert missing(modules - TO_BE_WRITTEN.get(name, set()), ROOT, PACKAGE, page.parent) == set()


def test_the_map_of_the_house_names_what_is_there():
    table = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = [line for line in table.splitlines() if line.startswith("| ")]
    names = set().union(*map(named, rows))
    assert len(names) > 40
    assert missing(names, PACKAGE) == set()
    first = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    assert first == first & {name.split("/")[0] for name in names}


def test_docstrings_name_modules_by_where_they_are():
    """From the checkout's root, from the package, or beside the module."""
    found = {
        module.relative_to(PACKAGE).as_posix(): missing(
            {name for name in named(_docstrings(module)) if name.endswith(".py")},
            *(ROOT, PACKAGE, module.parent),
        )
        for module in PACKAGE.rglob("*.py")
    }
    assert "server/loop.py" in found
    assert {module: names for module, names in found.items() if names} == {}


def _docstrings(module: Path) -> str:
    tree = ast.parse(module.read_text(encoding="utf-8"))
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
    nodes = [node for node in ast.walk(tree) if isinstance(node, kinds)]
    return "\n".join(ast.get_docstring(node) or "" for node in nodes)
