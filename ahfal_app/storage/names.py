"""Names of files as text that can be written down, whatever their bytes are."""

from __future__ import annotations

import re

# What the escape of a byte looks like; bytes below 128 are always text, and never escaped.
_ESCAPE = re.compile(r"\\(?=x[0-9a-f]{2})")


def readable(name: str) -> str:
    r"""Return a file's name as text; different names stay different.

    Parameters
    ----------
    name : str
        As Python has it: a byte that is no UTF-8 is a lone surrogate.

    Returns
    -------
    str
        Such a byte is written as `\xe9`. A backslash that a name has itself stays as it is, unless
        it would be taken for such an escape: then it is written as `\x5c`.
    """
    escaped = _ESCAPE.sub(r"\\x5c", name)
    return escaped.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
