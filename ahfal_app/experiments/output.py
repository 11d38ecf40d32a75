"""The file that a command is told to write by `--out`."""

from __future__ import annotations

import tempfile
from pathlib import Path

from ahfal_app.errors import ConfigError
from ahfal_app.storage.files import write_text


def check_output(out: Path, suffix: str) -> None:
    """Refuse a place where a file of this kind cannot be written, and make its folder.

    Called before anything is computed, so that nothing is computed in vain.

    Parameters
    ----------
    out : Path
        The file; it is replaced if it is there.
    suffix : str
        What its name must end in, such as `.svg`.

    Raises
    ------
    ConfigError
        The name ends in something else, or there can be no such file there.
    """
    if out.suffix.lower() != suffix or out.is_dir():
        raise ConfigError([f"--out={str(out)!r}: allowed is the name of a file, with {suffix}"])
    folder = out.absolute().parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Whoever may make a folder, or has it, may not always write into it.
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError([_unwritable(out, error)]) from error


def write_output(out: Path, text: str) -> None:
    """Write the file, in one step.

    Raises
    ------
    ConfigError
        It cannot be written.
    """
    try:
        write_text(out.absolute(), text)
    except OSError as error:
        raise ConfigError([_unwritable(out, error)]) from error


def _unwritable(out: Path, error: OSError) -> str:
    return f"--out={str(out)!r}: cannot be written ({error.strerror}); allowed is another place"
