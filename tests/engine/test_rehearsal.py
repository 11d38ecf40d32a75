"""`ahfal rehearse`: a run over sites on this machine, as its sites will be started."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from flwr.app import Context, Message
from rich.console import Console
from support.simulation import Outcome, Simulation
from support.site_images import write_images, write_labels
from support.small_backbone import SETTINGS as BACKBONE
from support.small_backbone import small_backbone, write_weights

from ahfal_app.cli import main
from ahfal_app.client_app import app as client_app
from ahfal_app.config_sources import read_arguments
from ahfal_app.engine.rehearsal import rehearse
from ahfal_app.errors import ConfigError
from ahfal_app.labels.exchange import verify_store

DIGITS = tuple("0123456789")
SETTINGS: dict[str, object] = {
    "model": "mlp",
    "client-batching": "never",
    "rounds": 2,
    "local-epochs": 1,
    "initial-fraction": 0.1,
    "query-fraction": 0.05,
    "target-fraction": 0.15,
}


@pytest.fixture
def sites(tmp_path: Path) -> list[str]:
    """What two sites' SuperNodes get, with a file of all labels each."""
    configs = []
    for number, rows in enumerate((range(200), range(200, 320))):
        root = tmp_path / f"hospital-{number}"
        write_labels(root / "truth.csv", write_images(root / "images", rows, DIGITS))
        configs.append(
            f'name="hospital-{number}" partition-id=7 data="{root / "images"}" '
            f'state-dir="{root / "state"}" oracle="files" oracle-dir="{root / "to-label"}" '
            f'truth="{root / "truth.csv"}"'
        )
    return configs


def rehearsed(simulation: Simulation, sites: list[str], **more: object) -> Outcome:
    output = io.StringIO()
    values = {**SETTINGS, **simulation.base, **more}
    folder = rehearse(values, sites, Console(file=output, width=300))
    return Outcome(folder, output.getvalue())


@pytest.mark.slow
def test_it_is_the_run_over_these_sites_to_the_last_bit(
    simulation: Simulation, sites: list[str], tmp_path: Path
):
    outcome = rehearsed(simulation, sites)
    assert outcome.summary["complete"]
    assert outcome.summary["num_clients"] == 2

    def handler(message: Message, context: Context) -> Message:
        place = int(str(context.node_config["partition-id"]))
        root = tmp_path / f"hospital-{place}"
        context.node_config = {
            "partition-id": place,
            "num-partitions": 2,
            "data": str(root / "images"),
            "state-dir": str(tmp_path / "other" / str(place)),
            "truth": str(root / "truth.csv"),
            "oracle": "simulated",
            "data-dir": simulation.base["data-dir"],
        }
        return client_app(message, context)

    run = {**SETTINGS, "partition": "sites", "num-clients": 2}
    assert outcome.result == simulation(run, handler=handler).result


@pytest.mark.slow
def test_it_needs_no_test_set_of_a_server(simulation: Simulation, sites: list[str], tmp_path: Path):
    root = tmp_path / "for-testing"
    write_labels(root / "labels.csv", write_images(root, range(400, 420), DIGITS))
    own = [f'{sites[0]} validation="{root}"', f"{sites[1]} policy-fewest-tested=2"]
    classes = ",".join(DIGITS)
    without: dict[str, object] = {"dataset": "none", "evaluate": "sites", "classes": classes}
    without |= {"image-size": 8, "image-channels": 1, "cycles": 1}
    outcome = rehearsed(simulation, own, **without)
    kept = json.loads((outcome.folder / "standardisation.json").read_text())
    assert kept["samples"] == 320
    brought, held_out = outcome.metrics.cycles[-1].sites
    assert brought.test.samples == 20
    assert held_out.test.samples == outcome.metrics.cycles[-1].held_out > 0
    with pytest.raises(ConfigError, match="hospital-0: node-config: validation="):
        rehearsed(simulation, [f'{sites[0]} validation="{tmp_path}"', sites[1]], **without)
    with pytest.raises(ConfigError, match="classes='': allowed are at least two names"):
        rehearsed(simulation, own, **{**without, "classes": ""})


@pytest.mark.slow
def test_a_backbone_is_rehearsed_with_the_files_of_the_sites(
    simulation: Simulation, sites: list[str], tmp_path: Path
):
    run = {**BACKBONE, "model": "linear", "cycles": 2, "dataset": "digits"}
    run["backbone-weights"] = str(write_weights(tmp_path / "server.safetensors"))
    weights = write_weights(tmp_path / "site.safetensors")
    named = [f'{site} backbone-weights="{weights}"' for site in sites]
    outcome = rehearsed(simulation, named, **run)
    told = json.loads((outcome.folder / "environment.json").read_text())["backbone"]
    assert told["sha256"] == small_backbone(str(weights)).digest
    assert outcome.summary["complete"]
    # The features of each site's images are its own.
    folders = Path(str(simulation.base["data-dir"])) / "features"
    stores = folders.glob("site-*/features.f16")
    rows = {path.stat().st_size // (2 * told["features"]) for path in stores}
    assert {200, 120} <= rows
    other = write_weights(tmp_path / "other.safetensors", change=0.1)
    with pytest.raises(ConfigError) as caught:
        rehearsed(simulation, [f'{sites[0]} backbone-weights="{other}"', sites[1]], **run)
    assert "hospital-0: backbone-weights=" in str(caught.value)
    assert f"here, and {told['sha256'][:12]} at the server" in str(caught.value)
    assert "hospital-1: backbone-weights: missing; allowed is this site's own" in str(caught.value)


@pytest.mark.slow
def test_a_backbone_that_all_have_needs_no_file(simulation: Simulation, sites: list[str]):
    views = {"feature-views": 1, "augment": "crop"}
    outcome = rehearsed(simulation, sites, **BACKBONE, **{"model": "linear", "cycles": 1}, **views)
    assert outcome.summary["complete"]


@pytest.mark.slow
def test_a_sites_own_folders_are_not_touched(
    simulation: Simulation, sites: list[str], tmp_path: Path
):
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("hospital-*/**/*")}
    outcome = rehearsed(simulation, sites, cycles=1)
    after = {path: path.stat().st_mtime_ns for path in tmp_path.glob("hospital-*/**/*")}
    assert after == before
    for number in range(2):
        found = verify_store(outcome.folder / "sites" / f"hospital-{number}" / "state")
        assert found.ledger.spent == [20, 12][number]


@pytest.mark.slow
def test_where_people_label_is_told(simulation: Simulation, sites: list[str]):
    without = sites[1][: sites[1].index("truth=")]
    outcome = rehearsed(simulation, [sites[0], without], **{"label-deadline": 0.0, "cycles": 1})
    folder = outcome.folder / "sites" / "hospital-1" / "to-label"
    assert f"hospital-1: people label in {folder}" in outcome.log
    assert "hospital-0: people" not in outcome.log
    (request,) = folder.iterdir()
    assert (request / "request.csv").is_file()
    assert "going on without 12 labels; they will be used when they come: hospital-1" in (
        outcome.log
    )


@pytest.mark.slow
def test_it_is_one_command_with_the_file_that_flwr_run_gets(
    simulation: Simulation, sites: list[str], tmp_path: Path
):
    config = tmp_path / "run.toml"
    lines = {**SETTINGS, **simulation.base, "partition": "sites", "cycles": 1}
    text = "".join(f"{key} = {json.dumps(value)}\n" for key, value in lines.items())
    config.write_text(text + 'strategy = "logo"\n"strategy.epochs" = 3\nprivacy.epsilon = 0.0\n')
    values = read_arguments([str(config)])
    assert (values["strategy.epochs"], values["privacy.epsilon"]) == (3, 0.0)
    options = [part for site in sites for part in ("--site", site)]
    with pytest.raises(SystemExit) as caught:
        main(["rehearse", str(config), "strategy=random", "strategy.epochs=", *options])
    assert caught.value.code in (0, None)
    (folder,) = Path(simulation.base["output-dir"]).iterdir()  # type: ignore[arg-type]
    assert Outcome(folder, "").summary["complete"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda sites: [], "--site: allowed is at least one"),
        (lambda sites: [sites[0] + " foo", sites[1]], "--site 0: 'foo' is no key=value"),
        (lambda sites: [sites[0], 'truth="x"'], "--site 1: data: missing"),
        (lambda sites: [sites[0], sites[0]], "name='hospital-0': allowed is a folder's, each once"),
        (lambda sites: [sites[0].replace('"hospital-0"', '"../x"')], "name='../x': allowed is"),
        (
            lambda sites: [sites[0][: sites[0].index("oracle=")] + 'oracle="simulated"'],
            "hospital-0: oracle='simulated': allowed with truth",
        ),
        (
            lambda sites: [sites[0].replace("images", "missing")],
            "hospital-0: data: .*no such folder",
        ),
        (lambda sites: [sites[0].replace("truth.csv", "missing.csv")], "hospital-0: labels: "),
    ],
)
def test_what_cannot_be_used_is_told_before_anything_is_done(
    simulation: Simulation, sites: list[str], change, message: str
):
    with pytest.raises(ConfigError, match=message):
        rehearsed(simulation, change(sites))
    assert not Path(simulation.base["output-dir"]).exists()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num-clients": 3}, "num-clients=3: allowed is 2, the number of --site"),
        ({"partition": "iid"}, "partition='iid': allowed is 'sites'"),
        ({"resume": "."}, "a rehearsal is not resumed"),
        ({"classes": "a,b"}, "classes: a, b; the data set has 0, 1,"),
    ],
)
def test_settings_that_contradict_the_sites_are_refused(
    simulation: Simulation, sites: list[str], settings: dict[str, object], message: str
):
    with pytest.raises(ConfigError, match=message):
        rehearsed(simulation, sites, **settings)


def test_a_simulation_names_the_rehearsal(capsys: pytest.CaptureFixture[str]):
    for engine in ("in-process", "flower"):
        with pytest.raises(SystemExit):
            main(["run", "--engine", engine, "partition=sites"])
        assert "`ahfal rehearse --site …` runs over sites on this machine" in (
            capsys.readouterr().err
        )
