"""The compose files of `docker/`, read as Compose reads them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

DOCKER = Path(__file__).parents[2] / "docker"

_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*)|:\?[^}]*)?\}")


def load(
    name: str,
    variables: Mapping[str, str] | None = None,
    replaced: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Read a compose file, its variables replaced by their values or defaults.

    In each text the first match of `replaced` is replaced before that: what a container has
    is replaced, what a variable says is not.
    """
    values = variables or {}

    def value(match: re.Match[str]) -> str:
        return values.get(match[1], match[2] or "")

    def text(original: str) -> str:
        old = next((each for each in replaced or {} if each in original), "")
        moved = original.replace(old, (replaced or {})[old]) if old else original
        return _VARIABLE.sub(value, moved)

    document: dict[str, Any] = _map(yaml.safe_load((DOCKER / name).read_text()), text)
    return document


def _map(node: Any, text: Callable[[str], str]) -> Any:
    if isinstance(node, dict):
        return {key: _map(child, text) for key, child in node.items()}
    if isinstance(node, list):
        return [_map(child, text) for child in node]
    return text(node) if isinstance(node, str) else node
