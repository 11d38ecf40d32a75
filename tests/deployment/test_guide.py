"""The guide to a deployment without containers, followed to the letter on one machine.

The blocks of docs/deployment.md are run as they stand there, one after the other; only ports, the
server's name and the folders of images are others.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from support.deployment import NGINX, ROOT, free_ports, processes_of
from support.simulation import Outcome
from support.site_images import write_images, write_labels

from ahfal_app.deployment.certificates import write_certificates
from ahfal_app.labels.exchange import verify_store

pytestmark = pytest.mark.slow

DIGITS = tuple("0123456789")
SITES = ("hospital-1", "hospital-2")
PAGE = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")


def section(title: str, level: int = 2) -> str:
    """Return what stands under a heading, up to the next one of its level or above."""
    mark = "#" * level
    found = re.search(
        rf"^{mark} {re.escape(title)}\n(.*?)(?=^#{{2,{level}}} |\Z)", PAGE, re.M | re.S
    )
    assert found, title
    return found[1]


def blocks(title: str, kind: str = "sh", level: int = 3) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", section(title, level), re.M | re.S)


@dataclass
class Follower:
    """Somebody who types what the guide says.

    Attributes
    ----------
    folder : Path
        Where logs go.
    replaced : dict[str, str]
        What is another here than in the guide.
    """

    folder: Path
    replaced: dict[str, str]
    started: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def text(self, block: str, **more: str) -> str:
        for old, new in {**self.replaced, **more}.items():
            block = block.replace(old, new)
        return block

    def environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "PATH": os.pathsep.join(
                [str(Path(sys.executable).parent), "/usr/sbin", os.environ["PATH"]]
            ),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            # Else each SuperNode would make itself a home in that of whoever runs the tests.
            "HOME": str(self.folder),
        }

    def run(self, block: str, where: Path) -> str:
        """Type a block and wait for its end."""
        done = subprocess.run(
            ["bash", "-e", "-c", self.text(block)],
            cwd=where,
            env=self.environment(),
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    def start(self, name: str, block: str, where: Path, **more: str) -> None:
        """Type a block into a terminal of its own."""
        with (self.folder / f"{name}.log").open("wb") as log:
            self.started[name] = subprocess.Popen(
                ["bash", "-e", "-c", self.text(block, **more)],
                cwd=where,
                env=self.environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def logs(self) -> str:
        """Return the ends of all logs, for a test's failure."""
        return "\n".join(
            f"== {name}\n{(self.folder / f'{name}.log').read_text(errors='replace')[-2000:]}"
            for name in self.started
        )


@contextlib.contextmanager
def following(folder: Path, replaced: dict[str, str]) -> Iterator[Follower]:
    follower = Follower(folder, replaced)
    try:
        yield follower
    finally:
        for process in reversed(follower.started.values()):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        time.sleep(1)
        while left := processes_of(str(folder)):
            for each in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(each, signal.SIGKILL)
            for process in follower.started.values():
                process.poll()
        for process in follower.started.values():
            process.wait()


def test_the_guide_is_complete():
    """Every kind of step is there, and no path that only containers have."""
    server, site = blocks("The server"), blocks("A site")
    assert [block.split()[0] for block in server] == [
        "flower-superlink",
        "until",
        "flower-superexec",
        "mkdir",
    ]
    assert [block.split()[0] for block in site] == ["ahfal"]
    assert not re.findall(r"(?<!\|)/run/secrets(?!\|)", "".join(server + site + blocks("The run")))


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What the guide uses of a checkout, in a folder that may be written."""
    folder = tmp_path / "checkout"
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("ahfal_app", "docker"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / name)
    return folder


def test_the_guide_works_as_it_stands(
    tmp_path: Path, checkout: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("AHFAL_TEST", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    write_certificates(checkout / "secrets", ["server.example.org"], SITES)
    superlink, proxy, *nodes = free_ports(2 + len(SITES))
    replaced = {
        "127.0.0.1:8000": f"127.0.0.1:{superlink}",
        "--port=8000": f"--port={superlink}",
        # Without nginx, sites call the SuperLink itself.
        "server.example.org:8443": f"127.0.0.1:{proxy if NGINX else superlink}",
        "8443": str(proxy),
    }
    with following(tmp_path, replaced) as follower:
        run_superlink, register, run_superexec, run_proxy = blocks("The server")
        follower.start("superlink", run_superlink, checkout)
        printed = follower.run(register, checkout)
        assert printed.count("registered") == len(SITES), printed
        follower.start("superexec", run_superexec, checkout)
        if NGINX:
            follower.start("proxy", run_proxy, checkout)
        (run_site,) = blocks("A site")
        for number, (site, port) in enumerate(zip(SITES, nodes, strict=True)):
            place = tmp_path / site
            images = write_images(place / "images", range(200 * number, 200 * number + 200), DIGITS)
            write_labels(place / "truth.csv", images)
            shutil.copytree(checkout / "secrets" / "sites" / site, place / "secrets")
            own = {
                "partition-id=0": f"partition-id={number}",
                "/srv/images": str(place / "images"),
                "/srv/ahfal": str(place / "state"),
                'oracle="files"': f'oracle="simulated" truth="{place / "truth.csv"}" '
                f'data-dir="{data_dir}"',
                "--port=9094": f"--port={port}",
            }
            follower.start(site, run_site, place, **own)
        run = _run(follower, checkout, data_dir)
    outcome = Outcome(run, "")
    assert outcome.summary["complete"]
    assert outcome.summary["num_clients"] == len(SITES)
    for site in SITES:
        found = verify_store(tmp_path / site / "state")
        assert found.ledger.spent == found.ledger.allotted > 0


def _run(follower: Follower, checkout: Path, data_dir: Path) -> Path:
    """Write the settings as the guide has them, for digits and short, and start the run."""
    (text,) = blocks("4. The run", "toml", level=2)
    settings = tomllib.loads(text)
    assert settings["partition"] == "sites"
    settings |= {
        "dataset": "digits",
        "classes": ",".join(DIGITS),
        "image-size": 0,
        "cycles": 1,
        "rounds": 1,
        "local-epochs": 1,
        "start-timeout": 300.0,
        "output-dir": str(checkout / "runs"),
        "data-dir": str(data_dir),
    }
    lines = [f"{key} = {json.dumps(value)}\n" for key, value in settings.items()]
    (checkout / "run.toml").write_text("".join(lines))
    (start,) = blocks("The run")
    printed = follower.run(start, checkout)
    # As text, its table cuts off what does not fit.
    status = follower.run(
        "export FLWR_HOME=$PWD/flwr-home; flwr list deployment --format json", checkout
    )
    assert "finished:completed" in status, printed + status + follower.logs()
    (folder,) = (checkout / "runs").iterdir()
    return folder
