"""Flower's SuperNode, but for the SuperExec that it starts beside it: AHFAL's own.

It takes the arguments of `flower-supernode`. With `--isolation=process` it starts none, and this
is Flower's SuperNode as it is.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from flwr.supernode import start_client_internal
from flwr.supernode.cli import flower_supernode

# `-P`: no module is taken from the folder in which this happens to be started.
_SUPEREXEC = (sys.executable, "-P", "-m", "ahfal_app.deployment.superexec")
_FLOWERS = "flower-superexec"


class _Processes:
    """What stands for the module `subprocess` in Flower's."""

    @staticmethod
    def Popen(command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
        """Start AHFAL's SuperExec in place of Flower's; nothing else is started there."""
        name, *arguments = command
        if name != _FLOWERS:
            raise RuntimeError(f"{name!r}: expected is {_FLOWERS!r}")
        return subprocess.Popen([*_SUPEREXEC, *arguments], **options)  # noqa: S603  # our own


def main(arguments: Sequence[str] | None = None) -> None:
    """Run Flower's SuperNode; without arguments, with those of the process."""
    if arguments is not None:
        sys.argv = ["flower-supernode", *arguments]
    name = "subprocess"
    getattr(start_client_internal, name)  # A Flower that has another name must not go unseen.
    setattr(start_client_internal, name, _Processes)
    flower_supernode()


if __name__ == "__main__":
    main()
