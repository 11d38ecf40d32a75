"""A ClientApp's process at a site: Flower's, but for whose code it runs.

Flower unpacks and runs the code that the server sends with a run. No rule of a site would hold
against that; so what was sent is left alone, and the code that is installed here runs. Where the
two differ, the server says so as the run starts.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import logging
from collections.abc import Callable, Sequence
from typing import cast

from flwr.clientapp import ClientApp
from flwr.clientapp.client_app import LoadClientAppError
from flwr.common.args import add_args_flwr_app_common, try_obtain_flwr_app_token
from flwr.supercore.constant import SUPERNODE_DEFAULT_CLIENT_ADDRESS
from flwr.supercore.tls import validate_and_resolve_root_certificates
from flwr.supernode.runtime import run_clientapp

# Also in `pyproject.toml`. A door, which nothing below it imports: it is loaded as Flower would.
_MODULE, _ATTRIBUTE = "ahfal_app.client_app", "app"

# A ClientApp is often there before the SuperNode has all of a message, and asks again later:
# in Flower after a second, which is more than such a message takes otherwise.
_PULL, _ASKS_AGAIN_S = "pull_and_inflate_object_from_tree", 0.1

_log = logging.getLogger(__name__)


def installed_app(*_: object, **__: object) -> Callable[..., ClientApp]:
    """Return what gives Flower the installed ClientApp, whatever it asks for."""

    def load(*_: object) -> ClientApp:
        try:
            return cast(ClientApp, getattr(importlib.import_module(_MODULE), _ATTRIBUTE))
        except Exception as error:
            _log.exception("the installed ClientApp cannot be loaded")
            # Of this error Flower tells the server a fixed text, and of others all.
            raise LoadClientAppError("the installed ClientApp cannot be loaded") from error

    return load


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one ClientApp; the arguments are those of `flwr-clientapp`, or of the process.

    That command itself imports all of a SuperNode: a third more time for each message.
    """
    for name, replacement in (
        ("install_from_fab", _leave_alone),
        ("get_load_client_app_fn", installed_app),
        (_PULL, functools.partial(getattr(run_clientapp, _PULL), initial_backoff=_ASKS_AGAIN_S)),
    ):
        getattr(run_clientapp, name)  # A Flower that has another name for it must not go unseen.
        setattr(run_clientapp, name, replacement)
    given = parser().parse_args(arguments)
    run_clientapp.run_clientapp(
        runtime_api_address=given.runtime_api_address,
        token=try_obtain_flwr_app_token(given),
        insecure=given.insecure,
        certificates=validate_and_resolve_root_certificates(
            given.root_certificates, given.insecure
        ),
        parent_pid=given.parent_pid,
        runtime_dependency_install=given.runtime_dependency_install,
    )


def parser() -> argparse.ArgumentParser:
    """Return what reads the arguments of `flwr-clientapp`."""
    parser = argparse.ArgumentParser(description="Run one ClientApp of the installed code")
    parser.add_argument("--runtime-api-address", default=SUPERNODE_DEFAULT_CLIENT_ADDRESS)
    add_args_flwr_app_common(parser=parser)
    return parser


def _leave_alone(*_: object, **__: object) -> None:
    """Do nothing with the code that was sent."""


if __name__ == "__main__":
    main()
