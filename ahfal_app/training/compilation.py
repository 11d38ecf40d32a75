"""Compilation of the training step, and of a frozen network, where it was measured to pay.

On a CPU with one thread a client, a compiled step of ResNet-8 was measured to be up to 1.25
times as fast as an eager one in bf16, one of the small CNN 1.2 to 1.5 times, and the first round
took 10 to 40 seconds more, the first time on a machine. On a GPU and with other networks it has
not been measured, so `auto` leaves it off there.
"""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from typing import Any

import torch

from ahfal_app.errors import ConfigError
from ahfal_app.models import network_facts

#: Sample passes of a run from which on compiling gains more time than it takes.
_PAYS_FROM = 1_000_000

#: Images from which on a compiled backbone gains more time than compiling takes, about 20 s.
_EXTRACTION_PAYS_FROM = 4_000


def resolve_compile(
    setting: str, device: torch.device, model_name: str, sample_passes: int, pixels: int
) -> bool:
    """Return whether to compile the training step.

    Parameters
    ----------
    setting : str
        `auto`, `always` or `never`.
    device : torch.device
        Where training runs.
    model_name : str
        The network.
    sample_passes : int
        How many samples the whole run trains on, epochs and rounds counted.
    pixels : int
        Of an image.

    Raises
    ------
    ConfigError
        `always`, but there is no C++ compiler, which the CPU needs.
    """
    can = device.type != "cpu" or _has_compiler()
    if setting == "always" and not can:
        raise ConfigError(
            ["compile='always': allowed only where a C++ compiler (g++ or clang++) is"]
        )
    if setting != "auto":
        return setting == "always"
    facts = network_facts(model_name)
    least = 0 if facts.compiling_pays else facts.compiling_pays_from
    pays = least is not None and pixels >= least
    return device.type == "cpu" and can and pays and sample_passes >= _PAYS_FROM


def extraction_compiles_from(setting: str) -> int | None:
    """Return from how many images on a frozen network is compiled on a CPU; None: never.

    `setting` is `auto`, `always` or `never`; where there is no C++ compiler nothing is compiled.
    """
    if setting == "never" or not _has_compiler():
        return None
    return 0 if setting == "always" else _EXTRACTION_PAYS_FROM


def compiled(function: Callable[..., Any], is_full: bool) -> Callable[..., Any]:
    """Return a step function, compiled for full batches or for a remainder of any size.

    The remainder changes with the number of labels; compiled for each size, it would be
    compiled anew in each cycle.
    """
    return _compiled(function, dynamic=not is_full)


@functools.cache
def _compiled(function: Callable[..., Any], dynamic: bool) -> Callable[..., Any]:
    # The C++ wrapper keeps Python, and so its lock, out of the way of clients in other threads.
    options: dict[str, str | int | bool | Callable[..., Any]] = {"cpp_wrapper": True}

    # Each has code of its own, so that the compiler keeps their caches apart.
    if dynamic:

        def remainder(*arguments: Any) -> Any:
            return function(*arguments)

        return torch.compile(remainder, dynamic=True, options=options)

    def full(*arguments: Any) -> Any:
        return function(*arguments)

    return torch.compile(full, dynamic=False, options=options)


@functools.cache
def _has_compiler() -> bool:
    return any(shutil.which(name) for name in ("g++", "clang++"))
