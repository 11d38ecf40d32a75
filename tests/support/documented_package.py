"""The package of a user's own that docs/extending.md describes, made of the pages' examples."""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"

#: Settings that choose one of each.
SETTINGS: dict[str, object] = {
    "strategy": "ward-logit-gap",
    "strategy.model": "global",
    "oracle": "ward-tired-reader",
    "oracle.errors": 0.25,
    "dataset": "ward-stripes",
    "dataset.images": 240,
    "model": "ward-shallow",
    "model.width": 8,
    "aggregation": "ward-equal-weights",
    "aggregation.fewest": 3,
    "local-update": "ward-smoothed",
    "local-update.share": 0.2,
    "tracker": "ward-text-lines",
    "tracker.file": "said.txt",
    "stopping": "ward-enough",
    "stopping.labels": 1000000,
    "arrival-order": "ward-rare-first",
    "arrival-order.reverse": True,
    "arrivals": "share",
    "arrival-start": 0.6,
    "arrival-rate": 0.4,
    "num-clients": 3,
    "rounds": 2,
    "local-epochs": 1,
    "cycles": 2,
    "initial-fraction": 0.2,
    "query-fraction": 0.1,
    "partition": "iid",
}

#: The same with its backbone, on whose features a head of ours stands.
ON_BACKBONE: dict[str, object] = {
    **{key: value for key, value in SETTINGS.items() if not key.startswith("model")},
    "backbone": "ward-patches",
    "model": "linear",
}


def write_package(folder: Path) -> Path:
    """Write the package's project into a folder and return its package folder."""
    page = (DOCS / "extending.md").read_text(encoding="utf-8")
    strategy = (DOCS / "adding-a-strategy.md").read_text(encoding="utf-8")
    package = folder / "ward"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text('"""A package of a user\'s own."""\n')
    project = _blocks(page, "toml")[0]
    taken = re.findall(r"\{ ([\w-]+) = ", project)
    (package / "logit_gap.py").write_text(_renamed(_blocks(strategy, "python")[0], taken))
    backbone = (DOCS / "backbones.md").read_text(encoding="utf-8")
    (package / "patches.py").write_text(_blocks(backbone, "python")[0])
    names = re.findall(r"This\s+is\s+all\s+of\s+`(\w+\.py)`", page)
    modules = _blocks(page, "python")
    assert len(names) == len(modules) == 9
    for name, module in zip(names, modules, strict=True):
        (package / name).write_text(_renamed(module, taken))
    (folder / "pyproject.toml").write_text(re.sub(r"\{ ([\w-]+) = ", r"{ ward-\1 = ", project))
    return package


def _renamed(module: str, names: list[str]) -> str:
    """Return a module whose component has a name of its own, should a reader have added it."""
    for name in names:
        module = module.replace(f'"{name}"', f'"ward-{name}"')
    return module


def _blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page, flags=re.DOTALL)
