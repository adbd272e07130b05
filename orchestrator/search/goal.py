"""What a search makes of a trial's numbers: the values that it optimises, and what it must keep.

A report is the trainer's newest one, with ``best_*`` of the best epoch of its newest rung.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from orchestrator.search.settings import Constraint, GoalConfig
from orchestrator.training.keys import TRAIN_SECONDS

ACCURACIES = ("clean_accuracy", "robust_accuracy")


def values(goal: GoalConfig, report: Mapping[str, Any]) -> list[float] | None:
    """What the searcher learns from a report; None if it was not measured, or is not finite.

    The metric as it stands; of a trade-off clean and robust accuracy of the same network, that of
    the best epoch.
    """
    keys = [goal.metric]
    if goal.metric == "tradeoff":
        prefix = "best_" if all(f"best_{key}" in report for key in ACCURACIES) else ""
        keys = [prefix + key for key in ACCURACIES]
    found = [float(report[key]) for key in keys if report.get(key) is not None]
    return found if len(found) == len(keys) and all(map(math.isfinite, found)) else None


def merit(found: list[float]) -> float:
    """`values` as one number in [0, 1], to rank trials that were stopped at the same epoch.

    Of a trade-off the area that the point dominates.
    """
    return min(1.0, max(0.0, math.prod(found)))


def misses(goal: GoalConfig, report: Mapping[str, Any]) -> dict[Constraint, float]:
    """By how much a trial misses each of the goal's constraints, relative and in [0, 1].

    0 or less where it keeps it; 1 where there is nothing to judge by.
    """
    return {bound: _miss(bound, _kept_to(bound, report)) for bound in goal.bounds}


def complaints(goal: GoalConfig, report: Mapping[str, Any]) -> list[str]:
    """The constraints that a trial misses, each with its value: for people."""
    return [
        f"{bound.metric} {_shown(_kept_to(bound, report))} misses {bound}"
        for bound, miss in misses(goal, report).items()
        if miss > 0
    ]


def seconds(report: Mapping[str, Any]) -> float | None:
    """What the network of a report took to train; by Tune's clock where it does not say."""
    return report.get(TRAIN_SECONDS, report.get("time_total_s"))


def _kept_to(bound: Constraint, report: Mapping[str, Any]) -> float | None:
    if bound.metric == TRAIN_SECONDS:
        return seconds(report)
    return report.get(f"best_{bound.metric}", report.get(bound.metric))


def _miss(bound: Constraint, value: float | None) -> float:
    if value is None or not math.isfinite(value):
        return 1.0
    violation = bound.violation(value)
    return violation / (violation + bound.bound) if violation > 0 else violation


def _shown(value: float | None) -> str:
    return "(not measured)" if value is None else f"{value:.4g}"
