"""A rehearsal: a run over sites as it will be, on one machine and in one process.

Whatever a site does is done as its SuperNode would do it: the images are decoded, labels are read
and kept, the oracle is asked. What is not rehearsed are machines, links and keys. The result is
that of the deployment, to the last bit.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from ahfal_app.backbones import PRETRAINED, UNTRAINED
from ahfal_app.client.node_config import at_site
from ahfal_app.client_app import app as client_app
from ahfal_app.config import SITES, Settings
from ahfal_app.deployment.doctor.examination import examine_node, read_node_config
from ahfal_app.deployment.doctor.finding import Verdict
from ahfal_app.engine.in_process import InProcessGrid, SiteNode
from ahfal_app.errors import ConfigError
from ahfal_app.results.progress import Progress
from ahfal_app.results.summary import print_summary
from ahfal_app.server.preflight import check_data, check_settings, with_absolute_paths
from ahfal_app.server.run import execute
from ahfal_app.server.start import prepare
from ahfal_app.training.choices import backbone_of, fitting_at_once

#: The oracle that answers with the file that a site names as `truth`.
_SIMULATED = "simulated"

#: What a rehearsal decides itself: a site's own folders are not touched.
_REPLACED = ("partition-id", "num-partitions", "state-dir", "oracle-dir")

#: Where a site's own file of the backbone's weights lies.
WEIGHTS = "backbone-weights"

_FOLDER = "sites"


def rehearse(values: Mapping[str, object], sites: Sequence[str], console: Console) -> Path:
    """Run over sites on this machine, print the summary and return the run's folder.

    Parameters
    ----------
    values : Mapping[str, object]
        Flat settings of the run; `partition` and `num-clients` follow from the sites.
    sites : Sequence[str]
        What each site's SuperNode will get as `--node-config`; `name` besides, if you like. A site
        with `truth`, a file of all labels, is labelled by it; at the others people label. Labels
        and requests lie in the run's folder, whatever `state-dir` and `oracle-dir` say.
    console : Console
        Where it is told how far it is.

    Raises
    ------
    ConfigError
        A setting or a site cannot be used; nothing was done.
    AhfalError
        The run had to stop.
    """
    nodes = _nodes(sites)
    # Given settings last, so that a contradiction is found and not hidden.
    values = {"partition": SITES, "num-clients": len(nodes), **values}
    settings = _checked(values, len(nodes))
    _examine(nodes, settings, console)
    start = prepare(values)
    placed = [
        _placed(node, start.folder / _FOLDER / node.name, start.settings.data_dir) for node in nodes
    ]
    progress = Progress(console)
    for node in placed:
        if node.node_config.get("oracle", start.settings.oracle) != _SIMULATED:
            progress.note(f"{node.name}: people label in {node.node_config['oracle-dir']}")
    workers = fitting_at_once(start.settings)
    start = replace(start, engine={"name": "in-process", "client_batching": False}, at_once=workers)
    with InProcessGrid(client_app, len(placed), workers, sites=placed) as grid:
        folder = execute(start, grid, progress)
    print_summary(folder, console)
    return folder


@dataclass(frozen=True)
class _Site:
    """What a site says, before it is known where its folders are."""

    name: str
    said: Mapping[str, str | int | float | bool]


def _nodes(sites: Sequence[str]) -> list[_Site]:
    nodes: list[_Site] = []
    problems: list[str] = [] if sites else ["--site: allowed is at least one"]
    for number, text in enumerate(sites):
        said, found = read_node_config(text)
        problems += [f"--site {number}: {problem}" for problem in found]
        if said is None:
            continue
        name = str(said.pop("name", f"site-{number}"))
        if "data" not in said:
            problems.append(f"--site {number}: data: missing; allowed is the folder with its data")
        if Path(name).name != name or name in {node.name for node in nodes}:
            problems.append(f"--site {number}: name={name!r}: allowed is a folder's, each once")
        nodes.append(_Site(name, said))
    if problems:
        raise ConfigError(problems)
    return nodes


def _checked(values: Mapping[str, object], num_sites: int) -> Settings:
    settings = with_absolute_paths(check_settings(values))
    problems = []
    if not settings.has_sites:
        problems.append(f"partition={settings.partition!r}: allowed is {SITES!r}")
    if settings.num_clients != num_sites:
        problems.append(
            f"num-clients={settings.num_clients}: allowed is {num_sites}, the number of --site"
        )
    if settings.resume:
        problems.append(f"resume={settings.resume!r}: a rehearsal is not resumed; start another")
    if problems:
        raise ConfigError(problems)
    return settings


def _examine(nodes: Sequence[_Site], settings: Settings, console: Console) -> None:
    """Look at all sites as `ahfal doctor` does, before anything is started.

    Raises
    ------
    ConfigError
        One of them could not join.
    """
    names = check_data(settings).dataset.class_names
    classes = settings.classes or ("" if any("," in name for name in names) else ",".join(names))
    problems = []
    for node in nodes:
        with tempfile.TemporaryDirectory(prefix="ahfal-rehearsal-") as scratch:
            placed = _placed(node, Path(scratch), settings.data_dir)
            if "truth" not in node.said and placed.node_config.get("oracle", settings.oracle) == (
                _SIMULATED
            ):
                problems.append(
                    f"{node.name}: oracle={_SIMULATED!r}: allowed with truth, a file of all "
                    "labels, or another oracle"
                )
                continue
            for finding in examine_node(placed.node_config, classes):
                line = f"{node.name}: {finding.check}: {finding.text}"
                if finding.verdict is Verdict.FAILURE:
                    problems.append(line)
                elif finding.verdict is Verdict.WARNING and finding.check != "policy":
                    console.print(f"warning: {line}", markup=False, highlight=False, soft_wrap=True)
        problems += _backbone_problems(node, settings)
    if problems:
        raise ConfigError(problems)


def _backbone_problems(node: _Site, settings: Settings) -> list[str]:
    """Say what keeps a site from having the backbone that the server has."""
    if not settings.uses_backbone:
        return []
    if WEIGHTS not in node.said:
        if settings.backbone_weights in (PRETRAINED, UNTRAINED):
            return []
        return [
            f"{node.name}: {WEIGHTS}: missing; allowed is this site's own file, since none that "
            "the server names is read there"
        ]
    try:
        own = backbone_of(at_site(settings, node.said)).digest
    except ConfigError as error:
        return [f"{node.name}: {problem}" for problem in error.problems]
    wanted = backbone_of(settings).digest
    if own == wanted:
        return []
    return [
        f"{node.name}: {WEIGHTS}={node.said[WEIGHTS]!r}: weights and preprocessing have the hash "
        f"{own[:12]} here, and {wanted[:12]} at the server"
    ]


def _placed(node: _Site, folder: Path, data_dir: str) -> SiteNode:
    """Return a site whose labels and requests lie in a folder of the rehearsal."""
    said = {key: value for key, value in node.said.items() if key not in _REPLACED}
    if "truth" in said:
        said["oracle"] = _SIMULATED
        # That people alone may answer is a rule for the run.
        said.pop("policy-oracles", None)
    if data_dir:
        said.setdefault("data-dir", data_dir)
    placed = {"state-dir": str(folder / "state"), "oracle-dir": str(folder / "to-label")}
    return SiteNode(node.name, said | placed)
