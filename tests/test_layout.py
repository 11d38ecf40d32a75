"""Tests stand where the code that they test stands, and none needs another."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PACKAGE = TESTS.parent / "ahfal_app"

#: Folders of no package: what tests share, whole runs, and other authors' code beside ours.
OTHER_FOLDERS = {"support", "runs", "official"}


def imported_modules(source: str) -> Iterator[str]:
    """Give the full names of what a module imports, those inside functions included."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield from (f"{module}.{alias.name}" for alias in node.names)


def imported_tests(source: str) -> set[str]:
    """Return what a module imports from modules of tests, or from their fixtures' module."""
    return {
        name
        for name in imported_modules(source)
        if any(part.startswith("test_") or part == "conftest" for part in name.split("."))
    }


@pytest.mark.parametrize(
    "line",
    [
        "from test_resume import straight",
        "import test_resume",
        "from runs.test_resume import straight",
        "from tests.runs import test_resume",
        "from .test_resume import straight",
        "from . import test_resume",
        "def test():\n    from conftest import data_dir",
    ],
)
def test_an_import_of_a_test_is_seen(line: str):
    assert imported_tests(line)
    assert not imported_tests("from support.killing import killed_at\nimport ahfal_app.labels")


def test_no_test_needs_another():
    paths = sorted(TESTS.rglob("*.py"))
    found = {str(path.relative_to(TESTS)): imported_tests(path.read_text()) for path in paths}
    assert "runs/test_resume.py" in found
    assert {path: names for path, names in found.items() if names} == {}


def test_folders_are_those_of_the_package():
    folders = {path.parent.relative_to(TESTS) for path in TESTS.rglob("test_*.py")} - {Path()}
    strange = {
        str(folder)
        for folder in folders
        if folder.parts[0] not in OTHER_FOLDERS and not (PACKAGE / folder).is_dir()
    }
    assert strange == set()


def test_what_tests_share_is_no_test():
    tests = [path.name for path in (TESTS / "support").rglob("test_*.py")]
    assert tests == []


def test_no_two_modules_of_tests_have_the_same_name() -> None:
    """pytest imports them by this name, and refuses the second one."""
    names = [path.name for path in TESTS.rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))
