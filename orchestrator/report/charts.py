"""What all charts share: widths, margins, words for a trial."""

from __future__ import annotations

from collections.abc import Callable

from markupsafe import Markup

from orchestrator.report.data import Trial, flat_text
from orchestrator.report.svg import (
    tag,
)

WIDE, NARROW = 720.0, 360.0
"""Widths that a chart is drawn for: the page shows one, by the screen's width."""
SHADES = 7
"""Classes ``s0`` (low) to ``s6`` (high) of robust accuracy."""
MARGIN_LEFT, MARGIN_RIGHT, MARGIN_TOP, MARGIN_BOTTOM = 46.0, 14.0, 30.0, 44.0


def both(draw: Callable[[float], Markup]) -> Markup:
    """A chart in both widths."""
    wide = tag("div", draw(WIDE), class_="wide")
    return wide + tag("div", draw(NARROW), class_="narrow")


def percent(value: float) -> str:
    """``53.1 %``."""
    return f"{100 * value:.1f} %"


def shade(value: float, low: float, high: float) -> str:
    """The class of a value in [low, high]."""
    share = 0.5 if high <= low else (value - low) / (high - low)
    return f"s{min(SHADES - 1, max(0, int(share * SHADES)))}"


def describe(trial: Trial) -> str:
    """A trial for a tooltip."""
    parts = [trial.name if trial.baseline is None else f"trial {trial.number}, {trial.name}"]
    if trial.clean:
        parts.append(f"clean {trial.clean} %")
    if trial.any_robust:
        attacks = trial.run.robust("holdout")
        attack = trial.attack if trial.robust else next(iter(attacks))
        parts.append(f"robust {trial.any_robust} % ({attack}, held-out, search number)")
    if trial.verified:
        parts.append(f"verified {trial.verified} %")
    if trial.point:
        parts.append(flat_text(trial.point))
    parts.append(trial.run.stop_reason)
    return "; ".join(parts)


def attacks_of(trial: Trial) -> str:
    """The verification's attacks and images."""
    images = int(trial.run.metrics.get("verified.images", 0))
    return f"{trial.run.tags.get('morel.verified.attacks', 'unknown attacks')} on {images} images"


def whole_percent(value: float) -> str:
    return (
        f"{100 * value:g}"
        if abs(100 * value - round(100 * value, 1)) > 1e-6
        else (f"{round(100 * value, 1):g}")
    )


def cut(content: str, length: int) -> str:
    return content if len(content) <= length else content[: length - 1] + "…"


def whole(value: float) -> str:
    """A whole number as text; nothing for others, which no epoch or trial is called."""
    return f"{value:g}" if value == int(value) else ""
