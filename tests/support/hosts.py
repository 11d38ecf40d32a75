"""What hosts have of their own, for sites on one machine: a network, a disk, a clock.

Networks and disks need root; all of it is gone when the block ends.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

_CLOCK_SOURCE = Path(__file__).parent / "clock.c"
_SECONDS = struct.Struct("=q")
_CHUNK_BYTES = 4096


def is_root() -> bool:
    """Return whether networks and disks can be made here."""
    return os.geteuid() == 0 and all(map(shutil.which, ("ip", "mount", "umount")))


def compiler() -> str | None:
    """Return the C compiler that a wrong clock needs."""
    return shutil.which("cc")


@dataclass(frozen=True)
class Network:
    """Hosts on one switch, each a network namespace.

    Attributes
    ----------
    addresses : dict[str, str]
        The address of each host, by name.
    """

    addresses: dict[str, str]

    def within(self, host: str) -> list[str]:
        """Return what goes before a command, for it to run on a host."""
        return ["ip", "netns", "exec", _namespace(host)]

    @contextlib.contextmanager
    def cut(self, host: str) -> Iterator[None]:
        """Pull a host's cable at the switch for as long as the block."""
        _run("ip", "link", "set", self._port(host), "down")
        try:
            yield
        finally:
            _run("ip", "link", "set", self._port(host), "up")

    def connect(self, host: str) -> None:
        """Make a host and plug its cable in."""
        inside = ["ip", "-n", _namespace(host)]
        _run("ip", "netns", "add", _namespace(host))
        cable = ("type", "veth", "peer", "name", "eth0", "netns", _namespace(host))
        _run("ip", "link", "add", self._port(host), *cable)
        _run(*inside, "address", "add", f"{self.addresses[host]}/24", "dev", "eth0")
        _run(*inside, "link", "set", "lo", "up")
        _run(*inside, "link", "set", "eth0", "up")
        _run("ip", "link", "set", self._port(host), "master", _switch(), "up")

    def _port(self, host: str) -> str:
        return f"ah{os.getpid()}p{list(self.addresses).index(host)}"


@contextlib.contextmanager
def network(server: str, sites: Sequence[str]) -> Iterator[Network]:
    """Make a server, with the address given, and sites on one switch."""
    prefix = server.rpartition(".")[0]
    addresses = {site: f"{prefix}.{number}" for number, site in enumerate(sites, 10)}
    made = Network({"server": server, **addresses})
    with contextlib.ExitStack() as stack:
        _run("ip", "link", "add", _switch(), "type", "bridge")
        stack.callback(_run, "ip", "link", "delete", _switch())
        _run("ip", "link", "set", _switch(), "up")
        for host in made.addresses:
            stack.callback(_discard, host)
            made.connect(host)
        yield made


@contextlib.contextmanager
def small_disk(folder: Path, mebibytes: int) -> Iterator[None]:
    """Put a folder, with what is in it, on a disk of its own."""
    aside = folder.with_name(f"{folder.name}-aside")
    shutil.move(folder, aside)
    folder.mkdir()
    _run("mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", str(folder))
    try:
        shutil.copytree(aside, folder, dirs_exist_ok=True)
        yield
    finally:
        _run("umount", str(folder))


@contextlib.contextmanager
def full(folder: Path) -> Iterator[None]:
    """Fill the disk of a folder to its last byte for as long as the block."""
    filler = folder / "filler"
    try:
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(bytes(_CHUNK_BYTES)):
                pass
        yield
    finally:
        filler.unlink()


class Clock:
    """A clock that is wrong by as many seconds as one sets, for processes with `environment`.

    Parameters
    ----------
    folder : Path
        Where the library is compiled to.
    """

    def __init__(self, folder: Path) -> None:
        library = folder / "clock.so"
        _run(str(compiler()), "-O2", "-shared", "-fPIC", "-o", str(library), str(_CLOCK_SOURCE))
        self._file = folder / "clock"
        self._file.write_bytes(_SECONDS.pack(0))
        self.environment = {"LD_PRELOAD": str(library), "AHFAL_TEST_CLOCK": str(self._file)}

    def set(self, seconds: int) -> None:
        """Let the clock be wrong by so many seconds, at once."""
        # In place: the processes have mapped the file.
        with self._file.open("r+b") as file:
            file.write(_SECONDS.pack(seconds))


def _namespace(host: str) -> str:
    return f"ahfal-{os.getpid()}-{host}"


def _switch() -> str:
    return f"ah{os.getpid()}s"


def _discard(host: str) -> None:
    """Remove a host; it takes its end of the cable, and so the cable, along."""
    subprocess.run(["ip", "netns", "delete", _namespace(host)], check=False)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)
