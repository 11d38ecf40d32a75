"""Runs functions of the authors' repositories as they are, without their programs around them.

`AHFAL_OFFICIAL` names a folder that holds the repositories; docs/official-code.md says which.
A repository's modules cannot be imported: they download data when imported, or need libraries and
versions of their time. So single functions and classes are taken from a file's syntax tree and
executed, unchanged, with the names that they use given by the test.
"""

from __future__ import annotations

import ast
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

#: The environment variable, and the commits that the committed table was made with.
FOLDER = "AHFAL_OFFICIAL"
COMMITS = {
    "AL-noise-stability": "d17f94a9e33ccf53a57f1acbbef95f99ff491125",
    "FEAL": "350e52a7872c725e4bc6c871b4d5229b5f8339f4",
    "KAFAL": "f4f1875f96bad756d9c710dafab31202462e0359",
    "LoGo": "536e8cbd6cc8bba55181d8afb5fd09111ea61ac8",
    "TypiClust": "4097a71c348f60492ab22be0c4c9da224e637af6",
    "badge": "a2d18acd372cf0f61d9e75bfb0c879c107fbf9f6",
}


def official(repository: str, path: str, names: list[str], **given: Any) -> SimpleNamespace:
    """Return functions and classes of a repository's file.

    Parameters
    ----------
    repository, path : str
        Folder below `AHFAL_OFFICIAL`, and file within it.
    names : list[str]
        Top-level functions and classes; all of them see each other.
    **given : Any
        Every other global name that they use.
    """
    folder = repository_folder(repository)
    tree = ast.parse((folder / path).read_text(encoding="utf-8"))
    wanted = [
        node
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name in names
    ]
    assert {node.name for node in wanted} == set(names), f"{path} of {repository} has changed"
    namespace: dict[str, Any] = dict(given)
    code = compile(ast.Module(wanted, type_ignores=[]), str(folder / path), "exec")
    exec(code, namespace)
    return SimpleNamespace(**{name: namespace[name] for name in names})


def repository_folder(repository: str) -> Path:
    """Return a repository's folder; the test is skipped where it is not there."""
    root = os.environ.get(FOLDER, "")
    folder = Path(root).expanduser() / repository
    if not root or not folder.is_dir():
        pytest.skip(f"{FOLDER} names no folder with {repository}: see docs/official-code.md")
    return folder


def commit(repository: str) -> str:
    """Return the commit that a repository is at."""
    command = ["git", "-C", str(repository_folder(repository)), "rev-parse", "HEAD"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def loader(dataset: Any, **options: Any) -> DataLoader[Any]:
    """Return a data loader of this process, whatever workers and memory were asked for."""
    return DataLoader(dataset, **{**options, "num_workers": 0, "pin_memory": False})


class Rows(torch.utils.data.Dataset[Any]):
    """Samples that are their own numbers, for networks that look up what they answer."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        return torch.tensor(row), 0


class Looked(torch.nn.Module):
    """A network that gives each sample's row of some matrices."""

    def __init__(self, *outputs: Tensor) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, rows: Tensor) -> tuple[Tensor, ...]:
        return tuple(values[rows] for values in self.outputs)

    def get_embedding_dim(self) -> int:
        return self.outputs[1].shape[1]


class ExactSearch:
    """Nearest neighbours by squared distance in float32, as `faiss.IndexFlatL2` defines them."""

    IndexFlatL2: Any
    index_cpu_to_all_gpus = staticmethod(lambda index: index)

    def __init__(self, width: int) -> None:
        self.rows: NDArray[np.float32] = np.empty((0, width), dtype=np.float32)

    def add(self, rows: NDArray[np.float32]) -> None:
        self.rows = np.concatenate([self.rows, rows])

    def search(
        self, queries: NDArray[np.float32], count: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        squares = ((queries[:, None] - self.rows) ** 2).sum(axis=2, dtype=np.float32)
        order = np.argsort(squares, axis=1, kind="stable")[:, :count]
        return np.take_along_axis(squares, order, axis=1), order


ExactSearch.IndexFlatL2 = ExactSearch


def pairwise_cosine_similarity(first: Tensor, second: Tensor) -> Tensor:
    """Return cosines of rows, as torchmetrics' function of this name does."""
    return torch.nn.functional.normalize(first) @ torch.nn.functional.normalize(second).T


class WithOurNoise:
    """`torch`, but for `randn`, which draws from a generator of ours."""

    def __init__(self) -> None:
        self.generator: np.random.Generator | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def randn(self, size: torch.Size) -> Tensor:
        assert self.generator is not None
        return torch.from_numpy(self.generator.standard_normal(tuple(size), dtype=np.float32))


class Agreement:
    """What the tests found, one row for each method; written as a table at the end."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, str, str, str]] = []

    def add(self, method: str, function: str, compared: str, found: str) -> None:
        self.rows.append((method, function, compared, found))

    def table(self) -> str:
        lines = ["| method | official function | compared | found |", "| --- | --- | --- | --- |"]
        return "\n".join(lines + [f"| {' | '.join(row)} |" for row in sorted(self.rows)]) + "\n"

    def write(self, environment: Mapping[str, str]) -> None:
        path = environment.get("AHFAL_OFFICIAL_TABLE")
        if path and self.rows:
            Path(path).write_text(self.table(), encoding="utf-8")
