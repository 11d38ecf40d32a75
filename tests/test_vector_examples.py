"""The examples of docs/vectors.md, run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs" / "vectors.md"

_EXAMPLES = re.findall(r"^```python\n(.*?)^```", DOCS.read_text(encoding="utf-8"), re.S | re.M)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "least"), [(0, 0.9), (1, 0.9), (2, 0.8)], ids=["table", "text", "images"]
)
def test_example_of_the_documentation_learns(
    number: int, least: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    assert len(_EXAMPLES) == 3
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    found: dict[str, object] = {}
    exec(compile(_EXAMPLES[number], f"{DOCS.name}, example {number + 1}", "exec"), found)
    accuracies = found["result"].accuracies  # type: ignore[attr-defined]
    assert len(accuracies) >= 2
    assert max(accuracies) > least
