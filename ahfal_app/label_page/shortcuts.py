"""Which key stands for which class."""

from __future__ import annotations

import string

#: Skips an image, so it stands for no class.
SKIP_KEY = "s"

_KEYS = "1234567890" + string.ascii_lowercase.replace(SKIP_KEY, "")


def shortcuts(num_classes: int) -> list[str]:
    """Return a key for each class: digits, then letters, then none (empty)."""
    return [_KEYS[index] if index < len(_KEYS) else "" for index in range(num_classes)]
