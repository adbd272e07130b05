"""The front of a search as a picture: clean against robust accuracy, both in per cent."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from orchestrator.search.selection import accuracies, comparable, eligible, front
from orchestrator.search.space import SearchConfig
from orchestrator.search.trial import Trial
from orchestrator.tracking import records

GREY, BLUE, ORANGE = "0.6", "tab:blue", "tab:orange"


def draw(search: SearchConfig, trials: Sequence[Trial], winner: Trial | None) -> bytes:
    """A PNG: the front as a step line with 95 % intervals, the other trials as dots.

    Trials that miss a constraint are crosses, baselines have their name, the winner is a star.
    """
    from matplotlib.figure import Figure  # without pyplot, which would look for a display

    figure = Figure(figsize=(7.5, 5.5), dpi=120, layout="constrained")
    axes: Any = figure.subplots()
    members, could = front(search, trials), eligible(search, trials)
    others = _without(could, members)
    missing = _without(comparable(search, trials), could)
    _dots(axes, others, marker="o", color=GREY, label="other trials", s=16)
    _dots(axes, missing, marker="x", color=GREY, label="miss a constraint", s=16)
    _constraints(axes, search)
    _front(axes, members)
    for trial in (t for t in (*others, *missing, *members) if t.baseline):
        _name(axes, trial)
    if winner is not None:
        _dots(axes, [winner], marker="*", color=ORANGE, label="winner", s=220, zorder=4)
    axes.set_xlabel("clean accuracy, held-out, %")
    axes.set_ylabel(f"robust accuracy ({records.evaluation_label(search.base)}), held-out, %")
    axes.set_title(f"{search.base.name}: {len(members)} of {len(trials)} trials on the front")
    axes.grid(alpha=0.3)
    axes.legend(loc="best")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _without(trials: Sequence[Trial], others: Sequence[Trial]) -> list[Trial]:
    known = {trial.run_id for trial in others}
    return [trial for trial in trials if trial.run_id not in known]


def _dots(axes: Any, trials: Sequence[Trial], **style: Any) -> None:
    if trials:
        points = [_percent(trial) for trial in trials]
        axes.scatter([x for x, _ in points], [y for _, y in points], **style)


def _front(axes: Any, members: Sequence[Trial]) -> None:
    """Points with intervals, and the border of what they dominate, down to both axes."""
    ordered = sorted(members, key=accuracies)
    points = [_percent(trial) for trial in ordered]
    xs, ys = [x for x, _ in points], [y for _, y in points]
    axes.errorbar(
        xs,
        ys,
        xerr=_errors(ordered, "best_clean_accuracy"),
        yerr=_errors(ordered, "best_robust_accuracy"),
        fmt="o",
        markersize=5,
        color=BLUE,
        ecolor=BLUE,
        elinewidth=0.8,
        capsize=2,
        label="front, with 95 % intervals",
        zorder=3,
    )
    left, low = axes.get_xlim()[0], axes.get_ylim()[0]
    axes.step([left, *xs, xs[-1]], [ys[0], *ys, low], where="pre", color=BLUE, alpha=0.5)
    axes.set_xlim(left=left)
    axes.set_ylim(bottom=low)


def _errors(trials: Sequence[Trial], key: str) -> list[list[float]]:
    """Distances to both ends of the intervals, in per cent; none where none was recorded."""
    return [
        [100 * abs(t.last[key] - t.last.get(f"{key}_{end}", t.last[key])) for t in trials]
        for end in ("low", "high")
    ]


def _constraints(axes: Any, search: SearchConfig) -> None:
    lines = {"clean_accuracy": axes.axvline, "robust_accuracy": axes.axhline}
    for bound in search.objective.bounds:
        if bound.metric in lines:
            style: dict[str, Any] = {"color": ORANGE, "linestyle": "--", "linewidth": 1}
            lines[bound.metric](100 * bound.bound, label=str(bound), **style)


def _name(axes: Any, trial: Trial) -> None:
    place = _percent(trial)
    axes.scatter(*place, marker="D", s=70, facecolors="none", edgecolors="black", zorder=5)
    axes.annotate(trial.label, place, xytext=(7, -11), textcoords="offset points", fontsize=9)


def _percent(trial: Trial) -> tuple[float, float]:
    clean, robust = accuracies(trial)
    return 100 * clean, 100 * robust
