"""The docs: what is generated is up to date, what they point to is there."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
from support.official import FOUND, REPOSITORIES

ROOT = Path(__file__).parents[1]
_GLOBS = ("*.md", "docs/*.md", "results/**/README.md", "benchmarks/*.md")
PAGES = sorted(page for glob in _GLOBS for page in ROOT.glob(glob) if page.name != "CHANGELOG.md")
_NAMED = re.compile(r"`((?:ahfal_app|tests|conf|docker|benchmarks)/[\w./-]+)`")


@pytest.fixture(scope="module")
def generator() -> dict[str, object]:
    return runpy.run_path(str(ROOT / "docs" / "generate.py"))


def test_generated_parts_are_up_to_date(generator: dict[str, object]) -> None:
    """`uv run python docs/generate.py` writes them anew."""
    for name in generator["FILES"]:
        text = (ROOT / name).read_text(encoding="utf-8")
        assert generator["generated"](text) == text, name


def test_all_parts_are_used_and_replaced(generator: dict[str, object]) -> None:
    files = [(ROOT / name).read_text(encoding="utf-8") for name in generator["FILES"]]
    used = {part for text in files for part in re.findall(r"(?:#|<!--) generated: ([a-z ]+)", text)}
    assert {part.strip() for part in used} == set(generator["PARTS"])
    stale = "<!-- generated: settings -->\n\nOUTDATED\n\n<!-- end -->\n"
    assert "| setting |" in generator["generated"](stale)
    assert "OUTDATED" not in generator["generated"](stale)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), target
        if anchor and there.suffix == ".md":
            assert anchor in _anchors(there), target


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_bytes()) <= 9_000


def test_every_strategy_is_discussed() -> None:
    """A reminder for those of this repository; the table of all is generated."""
    from ahfal_app.plugins import STRATEGIES

    text = (ROOT / "docs" / "strategies.md").read_text(encoding="utf-8")
    assert all(f"`{name}`" in text for name in STRATEGIES.own_names())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_files_of_the_package_that_are_named_are_there(page: Path) -> None:
    for path in re.findall(
        r"`((?:ahfal_app|tests|conf|docker|benchmarks)/[\w./-]+)`", page.read_text()
    ):
        if (ROOT / path).suffix and not (ROOT / path).exists():
            # A file that the reader is to write.
            assert "logit_gap" in path, path


def test_repositories_of_the_authors_are_named() -> None:
    """Those of the tests beside their code, at the commits that the table was made with."""
    text = (ROOT / "docs" / "official-code.md").read_text(encoding="utf-8")
    rows = [f"| `{owner}/{name}` | `{commit}` |" for name, (owner, commit) in REPOSITORIES.items()]
    assert all(row in text for row in rows)
    assert text.count(FOUND) == 1


def test_every_strategy_is_accounted_for_beside_the_authors_code() -> None:
    """Compared, or said why it is not; those of other packages are theirs to compare."""
    from ahfal_app.plugins import STRATEGIES

    text = (ROOT / "docs" / "official-code.md").read_text(encoding="utf-8")
    said = text.partition(FOUND)[0] + text.partition("<!-- end -->")[2]
    assert [name for name in STRATEGIES.own_names() if f"`{name}`" not in said] == []


def _anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    plain = (re.sub(r"[`*]|\[([^]]*)\]\([^)]*\)", r"\1", title) for title in titles)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in plain}
