"""All settings as tables: for the docs, and for the block of defaults in `pyproject.toml`."""

from __future__ import annotations

import json
from collections.abc import Iterator

from ahfal_app.config import setting_fields
from ahfal_app.parameters import allowed_values, parameter_entries
from ahfal_app.plugins import FAMILIES, Family


def settings_rows() -> list[tuple[str, str, str, str]]:
    """Return (setting, default, allowed, meaning) of every setting and component parameter."""
    rows = [
        (key, _toml_value(field.default), allowed_values(field), str(field.description))
        for key, field in setting_fields().items()
    ]
    rows += [
        (
            parameter.key,
            _toml_value(parameter.default),
            parameter.allowed,
            f"`{name}`: {parameter.meaning}",
        )
        for family, name in _components()
        for parameter in parameter_entries(family.setting, family.parameters(name))
    ]
    return rows


def _components() -> Iterator[tuple[Family, str]]:
    """Yield our own components; another package's are in its own docs."""
    for family in FAMILIES.values():
        for name in family.own_names():
            yield family, name


def settings_markdown() -> str:
    """Return the table of settings."""
    lines = ["| setting | default | allowed | meaning |", "| --- | --- | --- | --- |"]
    for key, default, allowed, meaning in settings_rows():
        cells = (f"`{key}`", f"`{default}`", allowed, meaning)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def settings_toml() -> str:
    """Return the defaults as `[tool.flwr.app.config]`.

    Flower overrides only keys that its manifest lists. Parameters of components are listed
    as empty text, which stands for each parameter's own default.
    """
    lines = ["[tool.flwr.app.config]"]
    lines += [
        f"{_toml_key(key)} = {_toml_value(field.default)}"
        for key, field in setting_fields().items()
    ]
    keys = {
        parameter.key
        for family, name in _components()
        for parameter in parameter_entries(family.setting, family.parameters(name))
    }
    lines += [f'"{key}" = ""' for key in sorted(keys)]
    return "\n".join(lines)


def _toml_key(key: str) -> str:
    # Without quotes a dot would begin a table, and `privacy` is a value besides.
    return f'"{key}"' if "." in key else key


def _toml_value(value: object) -> str:
    return json.dumps(value)
