"""Numbers as people read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def percent(value: float | None) -> str:
    """``93.1``, or a dash."""
    return "–" if value is None else f"{100 * value:.1f}"


def with_interval(values: Mapping[str, Any], key: str) -> str:
    """``87.3 [83.2, 90.6]`` in per cent; a dash where it was not measured.

    A trial that diverged reports the worst number, and no interval.
    """
    if f"{key}_low" not in values:
        return "–"
    value, low, high = (100 * values[key + end] for end in ("", "_low", "_high"))
    return f"{value:.1f} [{low:.1f}, {high:.1f}]"


def duration(seconds: float) -> str:
    """``45 s``, ``3 min 20 s``, ``2 h 5 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
