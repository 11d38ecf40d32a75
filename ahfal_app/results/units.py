"""Numbers in words: the same everywhere a person reads them."""

from __future__ import annotations

import math


def percent(share: float | None, digits: int = 2) -> str:
    """Return a share in [0, 1] in percent; `n/a` for None."""
    return "n/a" if share is None else f"{100 * share:.{digits}f} %"


def seconds_text(seconds: float) -> str:
    """Return a duration as `8.1 s`, `3 min 05 s` or `2 h 07 min`."""
    if seconds < 0.995:
        return f"{seconds:.2g} s"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def bytes_text(count: int) -> str:
    """Return a number of bytes with a decimal unit, such as `3.12 MB`."""
    # Rounding first: 999,999 bytes are 1 MB and not 1000 kB.
    rounded = float(f"{count:.3g}")
    power = min(int(math.log10(rounded) + 1e-9) // 3, 4) if rounded else 0
    return f"{rounded / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


def bounds_text(bounds: tuple[float, float] | None, digits: int = 1) -> str:
    """Return an interval of shares in percent; empty for None."""
    if bounds is None:
        return ""
    low, high = bounds
    return f"{100 * low:.{digits}f} to {100 * high:.{digits}f} %"


def metric_text(name: str, value: float | None) -> str:
    """Return a metric as people read it: a loss as a number, all others in percent."""
    if value is None:
        return "undefined"
    return f"{value:.4f}" if name == "loss" else percent(value)
