"""Files of weights as timm reads them: for another grid of patches, with their authors' names.

timm has a function for each family of networks that brings such files into the network's form, and
hands it to nobody. So timm is let load the file's tensors, and what reaches the network is caught.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn

from torch import Tensor, nn


class _Reached(Exception):
    """Carries what a network was about to load."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        super().__init__()
        self.state = state


def as_timm_reads(name: str, network: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dictionary in the form that a network of timm's has.

    Only one thread may be in here, which draws from torch's global generator.

    Parameters
    ----------
    name : str
        What timm calls the network.
    network : nn.Module
        Such a network, without its classifier; it is not changed.
    state : dict[str, Tensor]
        As it is in the file.

    Raises
    ------
    Exception
        Whatever timm raises where it cannot make anything of the file.
    """
    import timm

    with _reaching(type(network)):
        try:
            timm.create_model(
                name,
                pretrained=True,
                num_classes=0,
                pretrained_cfg_overlay={"state_dict": dict(state)},
            )
        except _Reached as reached:
            return reached.state
    raise RuntimeError(f"timm has loaded nothing into {name}")


@contextmanager
def _reaching(kind: type[nn.Module]) -> Iterator[None]:
    """Raise `_Reached` where a network of this class is to load a state dictionary."""

    def reached(_: nn.Module, state: Mapping[str, Tensor], *__: object, **___: object) -> NoReturn:
        raise _Reached(dict(state))

    patched: Any = kind
    # Of the class itself: it may have inherited it.
    own = vars(kind).get("load_state_dict")
    patched.load_state_dict = reached
    try:
        yield
    finally:
        if own is None:
            del patched.load_state_dict
        else:
            patched.load_state_dict = own
