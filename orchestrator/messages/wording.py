"""Numbers as people read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from morel_core.statistics import PairedT


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


def seeds_difference(test: PairedT | None) -> str:
    """``+1.25 [+0.10, +2.40]`` in points, or a dash; no interval where no seed differs."""
    if test is None:
        return "–"
    low, high = 100 * test.low, 100 * test.high
    interval = f"[{low:+.2f}, {high:+.2f}]" if test.spread_known else "under every seed"
    return f"{100 * test.difference:+.2f} {interval}"


def duration(seconds: float) -> str:
    """``45 s``, ``3 min 20 s``, ``2 h 5 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
