"""What the files of `docker/` promise, as far as it can be seen without a Docker engine."""

from __future__ import annotations

import configparser
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import venv
from pathlib import Path
from typing import Any

import pytest
from support import compose_files
from support.compose_files import DOCKER

_FILES = ("compose.server.yaml", "compose.site.yaml", "compose.demo.yaml")
_PROJECT = tomllib.loads((DOCKER.parent / "pyproject.toml").read_text())


def _services() -> list[Any]:
    return [
        pytest.param(service, id=f"{file}:{name}")
        for file in _FILES
        for name, service in compose_files.load(file)["services"].items()
    ]


def _pins() -> dict[str, str]:
    pins = _PROJECT["tool"]["uv"]["constraint-dependencies"]
    return dict(pin.split("==") for pin in pins)


def _pinned(package: str) -> str:
    return _pins()[package]


@pytest.mark.parametrize("service", _services())
def test_images_are_pinned_to_the_versions_of_the_project(service: dict[str, Any]):
    name, _, tag = service["image"].partition(":")
    if name.startswith("flwr/"):
        assert tag == _pinned("flwr")
    elif name == "ahfal":
        assert tag == _PROJECT["project"]["version"]
    else:
        assert re.fullmatch(r"\d+\.\d+\.\d+", tag)


@pytest.mark.parametrize("service", _services())
def test_nothing_runs_as_root_or_can_become_it(service: dict[str, Any]):
    user, group = service["user"].split(":")
    assert user.isdigit()
    assert group.isdigit()
    assert "0" not in (user, group)
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["read_only"] is True
    assert "privileged" not in service


@pytest.mark.parametrize("service", _services())
def test_what_stays_is_watched_and_started_again(service: dict[str, Any]):
    if service["restart"] == "no":
        assert service["healthcheck"] == {"disable": True}
        return
    assert service["restart"] == "unless-stopped"
    assert service["healthcheck"]["test"][0] == "CMD"


@pytest.mark.parametrize("service", _services())
def test_secrets_are_mounted_and_cannot_be_changed(service: dict[str, Any]):
    mounts = [volume for volume in service["volumes"] if ":/run/secrets" in volume]
    assert len(mounts) == 1
    assert mounts[0].endswith(":ro")


@pytest.mark.parametrize("path", sorted(p for p in DOCKER.rglob("*") if p.is_file()), ids=str)
def test_no_secret_is_in_the_files(path: Any):
    if path.relative_to(DOCKER).parts[0] in ("secrets", "demo", "state"):
        pytest.skip("not part of the project")
    assert not re.search(r"PRIVATE KEY|BEGIN CERTIFICATE|[A-Za-z0-9+/]{40,}", path.read_text())


@pytest.mark.parametrize("file", _FILES)
def test_the_only_published_port_is_the_proxys(file: str):
    services = compose_files.load(file)["services"]
    assert {name for name, service in services.items() if "ports" in service} <= {"proxy"}


@pytest.mark.parametrize("file", _FILES)
def test_networks_and_neighbours_exist(file: str):
    document = compose_files.load(file)
    for service in document["services"].values():
        assert set(service.get("networks", [])) <= set(document["networks"])
        assert set(service.get("depends_on", [])) <= set(document["services"])


@pytest.mark.parametrize(
    ("file", "services"),
    [
        ("compose.server.yaml", ["superlink", "superexec", "flwr"]),
        ("compose.site.yaml", ["superexec"]),
        ("compose.demo.yaml", ["superlink", "superexec", "superexec-1", "superexec-2"]),
    ],
)
def test_what_runs_code_or_can_start_it_has_no_way_out(file: str, services: list[str]):
    document = compose_files.load(file)
    for name in services:
        for network in document["services"][name]["networks"]:
            assert document["networks"][network]["internal"] is True


def test_what_people_run_at_a_site_sees_what_its_superexec_sees():
    services = compose_files.load("compose.site.yaml")["services"]
    people, superexec = services["ahfal"], services["superexec"]
    assert people["volumes"] == superexec["volumes"]
    assert people["image"] == superexec["image"]
    assert people["entrypoint"] == ["ahfal"]
    assert people["profiles"] == ["people"]
    # The page listens on loopback, which is another one in a network of its own.
    assert people["network_mode"] == "host"
    assert [name for name, each in services.items() if "network_mode" in each] == ["ahfal"]


def test_label_studio_adds_an_extra_and_one_network_and_changes_nothing_else():
    added = compose_files.load("compose.label-studio.yaml", {"AHFAL_LABELLING_NETWORK": "desk"})
    site = compose_files.load("compose.site.yaml")["services"]
    superexec, people = added["services"]["superexec"], added["services"]["ahfal"]
    assert added["services"].keys() == {"superexec", "ahfal"}
    assert superexec["image"] == site["superexec"]["image"].replace("ahfal:", "ahfal-label-studio:")
    assert superexec["networks"] == [*site["superexec"]["networks"], "labelling"]
    assert superexec.keys() == {"image", "build", "networks"}
    assert people == {key: superexec[key] for key in ("image", "build")}
    assert added["networks"] == {"labelling": {"external": True, "name": "desk"}}
    (extra,) = superexec["build"]["args"].values()
    assert extra.strip("[]") in _PROJECT["project"]["optional-dependencies"]
    (argument,) = superexec["build"]["args"]
    dockerfile = (DOCKER / "Dockerfile").read_text()
    assert f'ARG {argument}=""' in dockerfile
    assert f'".${{{argument}}}"' in dockerfile


def test_the_demo_runs_what_server_and_sites_run():
    """Its commands differ in nothing but what a site says of itself."""
    server, site, demo = (compose_files.load(file)["services"] for file in _FILES)
    for name in ("superlink", "superexec", "proxy"):
        assert demo[name].get("command") == server[name].get("command")
        assert demo[name]["image"] == server[name]["image"]
        assert demo[name]["healthcheck"] == server[name]["healthcheck"]
    for number in (1, 2):
        expected = [*site["supernode"]["command"]]
        command = demo[f"supernode-{number}"]["command"]
        assert [word.partition("=")[0] for word in command] == [
            word.partition("=")[0] for word in expected
        ]
        differing = {w.partition("=")[0] for w in set(command) ^ set(expected)}
        assert differing == {"--superlink", "--node-config"}
        assert "--superlink=proxy:8443" in command
        assert demo[f"superexec-{number}"]["entrypoint"] == site["superexec"]["entrypoint"]
        own = demo[f"superexec-{number}"]["command"]
        replaced = f"--runtime-api-address=supernode-{number}:9094"
        assert own == [
            replaced if word.startswith("--runtime-api-address") else word
            for word in site["superexec"]["command"]
        ]


def test_the_systemd_unit_starts_what_the_site_starts():
    """In one process instead of two containers, and reachable from this machine alone."""
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[method-assign, assignment]
    text = (DOCKER / "systemd" / "ahfal-supernode.service").read_text().replace("\\\n", " ")
    unit.read_string(text)
    program, subcommand, *arguments = shlex.split(unit["Service"]["ExecStart"])
    assert (Path(program).name, subcommand) == ("ahfal", "supernode")
    command = _flags(compose_files.load("compose.site.yaml")["services"]["supernode"]["command"])
    own = _flags(arguments)
    assert own.pop("--isolation") == "subprocess"
    assert command.pop("--isolation") == "process"
    # It is for the SuperExec of process isolation.
    assert command.pop("--superexec-auth-secret-file")
    assert own.pop("--host") == "127.0.0.1"
    assert command.pop("--host") == "0.0.0.0"
    assert own.keys() == command.keys()
    assert unit["Service"]["Restart"] == "always"
    assert unit["Service"]["User"] == "ahfal"


def _flags(arguments: list[str]) -> dict[str, str]:
    return {flag: value for flag, _, value in (word.partition("=") for word in arguments)}


def test_a_site_runs_the_code_in_its_image():
    """And not what a server sends, which Flower's own SuperExec would run."""
    services = compose_files.load("compose.site.yaml")["services"]
    assert services["superexec"]["entrypoint"] == ["ahfal", "superexec"]


def test_the_dockerfile_is_built_on_flowers_image_and_runs_as_its_user():
    text = (DOCKER / "Dockerfile").read_text()
    assert f"ARG FLWR_VERSION={_pinned('flwr')}\nFROM flwr/superexec:${{FLWR_VERSION}}\n" in text
    users = re.findall(r"^USER (\S+)$", text, re.MULTILINE)
    assert users[-1] == "49999:49999"
    assert json.dumps(["flower-superexec"]) in text


def test_the_dockerfile_drops_the_extra_that_it_says_it_drops():
    """Its expression matches the manifest as it is written now."""
    (expression,) = re.findall(r"sed -i '(.*)' pyproject.toml", (DOCKER / "Dockerfile").read_text())
    _, old, new, _ = re.split(r"(?<!\\)/", expression)
    text, count = re.subn(old, new, (DOCKER.parent / "pyproject.toml").read_text())
    assert count == 1
    dependencies = tomllib.loads(text)["project"]["dependencies"]
    assert [each for each in dependencies if each.startswith("flwr>=")]
    assert not [each for each in dependencies if "simulation" in each]


def test_what_the_image_copies_is_let_through_by_its_ignore_file():
    text = (DOCKER / "Dockerfile").read_text()
    copied = {
        word for line in re.findall(r"^COPY (.+) \S+$", text, re.MULTILINE) for word in line.split()
    }
    first, *allowed = (DOCKER / "Dockerfile.dockerignore").read_text().split()
    assert first == "*"
    assert {entry.removeprefix("!").partition("/")[0] for entry in allowed} == copied


@pytest.mark.slow
@pytest.mark.parametrize("extras", ["", "[label-studio]"])
def test_the_image_gets_the_versions_that_the_tests_passed_with(tmp_path: Path, extras: str):
    """The Dockerfile's own command, told to say what it would install; without pins it fails."""
    dockerfile = (DOCKER / "Dockerfile").read_text().replace("\\\n", " ")
    (command,) = re.findall(r"^RUN (.+)$", dockerfile, re.MULTILINE)
    project = tmp_path / "project"
    project.mkdir()
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(DOCKER.parent / file, project)
    shutil.copytree(DOCKER.parent / "ahfal_app", project / "ahfal_app")
    venv.create(tmp_path / "image")
    shell = {
        **os.environ,
        "AHFAL_EXTRAS": extras,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    command = command.replace("$(command -v python)", str(tmp_path / "image" / "bin" / "python"))
    done = subprocess.run(
        ["sh", "-c", f"{command} --dry-run"],
        cwd=project,
        env=shell,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    chosen = dict(re.findall(r"^ \+ (\S+?)==(\S+)$", done.stderr, re.MULTILINE))
    assert {"flwr", "torch", "datasets"} <= chosen.keys()
    assert "ray" not in chosen
    assert ("label-studio-sdk" in chosen) == bool(extras)
    for name in chosen.keys() & _pins().keys():
        assert chosen[name] == _pins()[name]
