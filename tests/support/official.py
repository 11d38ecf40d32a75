"""Runs functions of the authors' repositories as they are, without their programs around them.

`AHFAL_OFFICIAL` names a folder that holds the repositories; docs/official-code.md says which.
A repository's modules cannot be imported: they download data when imported, or need libraries and
versions of their time. So single functions and classes are taken from a file's syntax tree and
executed, unchanged, with the names that they use given by the test.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from ahfal_app.query.core.clustering import k_means

#: The environment variable that names the folder of the repositories.
FOLDER = "AHFAL_OFFICIAL"

#: Comments of a page around the table of what was found.
FOUND, LINES, END = "<!-- found -->", "<!-- lines -->", "<!-- end -->"

#: Where functions and methods are that were run: file, first and last line, by repository and name.
_PLACES: dict[tuple[str, str], tuple[str, int, int]] = {}

#: Whose they are on GitHub, and the commits that the committed table was made with.
REPOSITORIES = {
    "AL-foundation-models": ("sanketx", "aa015d2327231ecb2b1300501196f8169b204540"),
    "AL-noise-stability": ("lixingjian", "d17f94a9e33ccf53a57f1acbbef95f99ff491125"),
    "badge": ("JordanAsh", "a2d18acd372cf0f61d9e75bfb0c879c107fbf9f6"),
    "CHASe": ("junzhang-zj", "4d04b83dcf32b714061c8a5f32e601e21c29bf9e"),
    "FairFAL": ("chenchenzong", "ca14e07bad60c1d1d29a5cb1d6bc8ff81269e87e"),
    "FEAL": ("JiayiChen815", "350e52a7872c725e4bc6c871b4d5229b5f8339f4"),
    "IFAL": ("chenchenzong", "39c3989ff8baf21c99c418aa384c13c4b576d3c6"),
    "KAFAL": ("ycao5602", "f4f1875f96bad756d9c710dafab31202462e0359"),
    "leadq": ("hiyuchang", "0446c0355a3d599f21c2f2961ba32d8aa99fe59f"),
    "LoGo": ("raymin0223", "536e8cbd6cc8bba55181d8afb5fd09111ea61ac8"),
    "TM-FAL": ("IAMJackYan", "6591ddfaabf3e4b388ecf8a5a9bee611253022fc"),
    "TypiClust": ("avihu111", "4097a71c348f60492ab22be0c4c9da224e637af6"),
    "uherding": ("BorealisAI", "75299cd2acaba2a47d5f5218f2b55c28f308aaf7"),
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
    for node in wanted:
        _remember(repository, path, node)
    namespace: dict[str, Any] = dict(given)
    code = compile(ast.Module(wanted, type_ignores=[]), str(folder / path), "exec")
    exec(code, namespace)
    return SimpleNamespace(**{name: namespace[name] for name in names})


def _remember(repository: str, path: str, node: ast.FunctionDef | ast.ClassDef) -> None:
    inside = node.body if isinstance(node, ast.ClassDef) else []
    methods = {f"{node.name}.{m.name}": m for m in inside if isinstance(m, ast.FunctionDef)}
    for name, definition in {node.name: node, **methods}.items():
        assert definition.end_lineno is not None
        _PLACES[repository, name] = path, definition.lineno, definition.end_lineno


def _named(function: str) -> Iterator[tuple[str, str]]:
    """Give the repository and the whole name of each function that a row of the table names.

    A method may be named without its class, which then is that of the one before, or the only one.
    """
    repository, _, names = function.partition(":")
    owner = ""
    for name in re.findall("`([^`]+)`", names):
        known = [n for r, n in _PLACES if r == repository and n.rpartition(".")[2] == name]
        (found,) = {name, f"{owner}.{name}"} & {n for r, n in _PLACES if r == repository} or known
        owner = found.rpartition(".")[0] or owner
        yield repository, found


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


class Settings(dict[str, Any]):
    """Settings that are read as keys and as attributes."""

    __getattr__ = dict.__getitem__


def loader(dataset: Any, **options: Any) -> DataLoader[Any]:
    """Return a data loader of this process, whatever workers and memory were asked for."""
    return DataLoader(dataset, **{**options, "num_workers": 0, "pin_memory": False})


class Rows(torch.utils.data.Dataset[Any]):
    """Samples that are their own numbers, for networks that look up what they answer.

    The first ones have the label 0, the last ones those that are given.
    """

    def __init__(self, size: int, last_labels: Sequence[int] = ()) -> None:
        self.size = size
        self.labels = [0] * (size - len(last_labels)) + [int(label) for label in last_labels]

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, row: int) -> tuple[Any, Any]:
        return torch.tensor(row), self.labels[row]


class Looked(torch.nn.Module):
    """A network that gives each sample's row of some matrices, which are its state."""

    def __init__(self, *outputs: Tensor) -> None:
        super().__init__()
        for number, values in enumerate(outputs):
            self.register_buffer(str(number), values.clone())

    def forward(self, rows: Tensor) -> tuple[Tensor, ...]:
        return tuple(values[rows] for values in self.buffers())

    def get_embedding_dim(self) -> int:
        return list(self.buffers())[1].shape[1]


class ExactSearch:
    """Nearest neighbours by squared distance, in float32 as `faiss.IndexFlatL2` has them."""

    IndexFlatL2: Any
    index_cpu_to_all_gpus = staticmethod(lambda index: index)

    def __init__(self, width: int, dtype: Any = np.float32) -> None:
        self.rows: NDArray[Any] = np.empty((0, width), dtype=dtype)

    def add(self, rows: NDArray[Any]) -> None:
        self.rows = np.concatenate([self.rows, rows.astype(self.rows.dtype)])

    def search(self, queries: NDArray[Any], count: int) -> tuple[NDArray[Any], NDArray[np.int64]]:
        squares = ((queries[:, None] - self.rows) ** 2).sum(axis=2, dtype=self.rows.dtype)
        order = np.argsort(squares, axis=1, kind="stable")[:, :count]
        return np.take_along_axis(squares, order, axis=1), order


ExactSearch.IndexFlatL2 = ExactSearch


class OurClusters:
    """scikit-learn's `KMeans`, but for the clusters, which are those of our `k_means`."""

    cluster_centers_: NDArray[np.float64]
    labels_: NDArray[np.int64]

    def __init__(self, n_clusters: int, generator: np.random.Generator) -> None:
        self._number, self._generator = n_clusters, generator

    def fit(self, points: NDArray[Any] | Tensor) -> None:
        points = np.asarray(points)
        self.labels_ = k_means(torch.from_numpy(points), self._number, self._generator)
        members = [points[self.labels_ == c] for c in range(self._number)]
        # Two alone are equally far from their mean: ever so little nearer to the first.
        self.cluster_centers_ = np.stack(
            [rows.mean(axis=0) * (1 - 1e-9) + rows[0] * 1e-9 for rows in members]
        )

    def predict(self, points: NDArray[Any]) -> NDArray[np.int64]:
        return self.labels_

    def fit_predict(self, points: NDArray[Any] | Tensor) -> NDArray[np.int64]:
        self.fit(points)
        return self.labels_


def pairwise_cosine_similarity(first: Tensor, second: Tensor) -> Tensor:
    """Return cosines of rows, as torchmetrics' function of this name does."""
    return torch.nn.functional.normalize(first) @ torch.nn.functional.normalize(second).T


class Replaced:
    """A module, but for some of its functions."""

    def __init__(self, module: Any, **functions: Any) -> None:
        self._module = module
        vars(self).update(functions)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def first_of_level(values: Tensor) -> Tensor:
    """Return the position of the largest value, the first of those that differ by rounding."""
    return (values >= values.max() - 1e-9).int().argmax()


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
    """What the tests found, one row for each comparison; written as a table at the end."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, str, str, str]] = []

    def add(self, method: str, function: str, compared: str, found: str) -> None:
        self.rows.append((method, function, compared, found))

    def table(self) -> str:
        lines = ["| method | official function | compared | found |", "| --- | --- | --- | --- |"]
        return "\n".join(lines + [f"| {' | '.join(row)} |" for row in sorted(self.rows)]) + "\n"

    def lines(self) -> str:
        """Say on which lines the functions are that the table names, at the tested commits."""
        named = {place for _, function, _, _ in self.rows for place in _named(function)}
        rows = [(repository, name, *_PLACES[repository, name]) for repository, name in named]
        return "\n".join(
            [
                "| repository | function | file | lines |",
                "| --- | --- | --- | --- |",
                *(f"| {r} | `{n}` | {p} | {a} to {b} |" for r, n, p, a, b in sorted(rows)),
                "",
            ]
        )

    def write(self, environment: Mapping[str, str]) -> None:
        """Put tables into the file that `AHFAL_OFFICIAL_TABLE` names, between its comments."""
        path = environment.get("AHFAL_OFFICIAL_TABLE")
        if path and self.rows:
            page = Path(path).read_text(encoding="utf-8")
            for begin, table in ((FOUND, self.table()), (LINES, self.lines())):
                before, _, rest = page.partition(begin)
                after = rest.partition(END)[2]
                page = f"{before}{begin}\n\n{table}\n{END}{after}"
            Path(path).write_text(page, encoding="utf-8")
