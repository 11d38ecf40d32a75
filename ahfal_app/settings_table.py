"""All settings as tables: for the docs, and for the block of defaults in `pyproject.toml`."""

from __future__ import annotations

import json

from ahfal_app.config import allowed_values, setting_fields
from ahfal_app.query import strategy_table


def settings_rows() -> list[tuple[str, str, str, str]]:
    """Return (setting, default, allowed, meaning) of every setting and strategy parameter."""
    rows = [
        (key, _toml_value(field.default), allowed_values(field), str(field.description))
        for key, field in setting_fields().items()
    ]
    rows += [
        (
            parameter.key,
            _toml_value(parameter.default),
            parameter.allowed,
            f"`{entry.name}`: {parameter.meaning}",
        )
        for entry in strategy_table()
        for parameter in entry.parameters
    ]
    return rows


def settings_markdown() -> str:
    """Return the table of settings for the README."""
    lines = ["| setting | default | allowed | meaning |", "| --- | --- | --- | --- |"]
    for key, default, allowed, meaning in settings_rows():
        cells = (f"`{key}`", f"`{default}`", allowed, meaning)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def settings_toml() -> str:
    """Return the defaults as `[tool.flwr.app.config]`.

    Flower overrides only keys that its manifest lists. Strategy parameters are listed as
    empty text, which stands for each parameter's own default.
    """
    lines = ["[tool.flwr.app.config]"]
    lines += [f"{key} = {_toml_value(field.default)}" for key, field in setting_fields().items()]
    keys = {parameter.key for entry in strategy_table() for parameter in entry.parameters}
    lines += [f'"{key}" = ""' for key in sorted(keys)]
    return "\n".join(lines)


def _toml_value(value: object) -> str:
    return json.dumps(value)
