"""Accuracies over the epochs of a run."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

from orchestrator.report.charts import (
    MARGIN_BOTTOM,
    MARGIN_LEFT,
    MARGIN_RIGHT,
    MARGIN_TOP,
    NARROW,
    percent,
    whole,
    whole_percent,
)
from orchestrator.report.data import Recorded, Trial
from orchestrator.report.svg import (
    Frame,
    Scale,
    group,
    line,
    mark,
    picture,
    polyline,
    tip,
)


def curves(recorded: Recorded, trial: Trial, bounds: tuple[float, float]) -> Markup | None:
    """Held-out clean and robust accuracy of each epoch, the best one and the gap to the last.

    None if fewer than two epochs were measured with the deciding attack.
    """
    found = recorded.curves.get(trial.run.run_id, {})
    clean = found.get("holdout.clean", [])
    robust = found.get(f"holdout.robust.{trial.attack}", [])
    others = {k: v for k, v in found.items() if k.startswith("holdout.robust.")}
    others.pop(f"holdout.robust.{trial.attack}", None)
    if len(clean) < 2:
        return None
    width, height = NARROW, 230.0
    epochs = [epoch for epoch, _ in clean]
    frame = Frame(
        x=Scale(low=min(epochs), high=max(epochs), start=MARGIN_LEFT, end=width - MARGIN_RIGHT),
        y=Scale(low=bounds[0], high=bounds[1], start=height - MARGIN_BOTTOM, end=MARGIN_TOP),
        x_title="epoch",
        y_title="held-out accuracy, %",
    )
    parts = [frame.draw(whole, whole_percent)]

    def path(points: Sequence[tuple[int, float]], class_: str, name: str) -> Markup:
        ends = f"{name}: {percent(points[0][1])} after epoch {points[0][0]}, "
        ends += f"{percent(points[-1][1])} after epoch {points[-1][0]}"
        places = [(frame.x(epoch), frame.y(value)) for epoch, value in points]
        drawn = (
            [polyline(places, class_)]
            if len(places) > 1
            else [mark("circle", *places[0], 3, class_)]
        )
        return tip(drawn, ends, "point")

    shown = [path(clean, "curve clean", "clean")]
    shown += [
        path(points, "curve cheap", f"robust ({key.removeprefix('holdout.robust.')})")
        for key, points in others.items()
        if points
    ]
    if robust:
        shown.append(path(robust, "curve robust", f"robust ({trial.attack})"))
        values = dict(robust)
        best, last = int(trial.run.metrics.get("best.epoch", 0)), robust[-1][0]
        if best in values:
            gap = values[best] - values[last]
            x, y = frame.x(best), frame.y(values[best])
            said = f"best epoch {best}: {percent(values[best])}; last epoch {last}: "
            said += f"{percent(values[last])}; robust overfitting gap {100 * gap:.1f} points"
            drawn = [mark("star", x, y, 6, "mark won")]
            if last != best:
                end = frame.x(last)
                drawn += [line(x, y, end, y, "link")]
                drawn += [line(end, y, end, frame.y(values[last]), "gap")]
            shown.append(tip(drawn, said, "point"))
    return picture(
        width, height, f"Training of {trial.name}", *parts, group(shown, class_="points")
    )


def curve_bounds(recorded: Recorded) -> tuple[float, float]:
    """One scale for all curves: the accuracies from lowest to highest, to tenths."""
    values = [v for c in recorded.curves.values() for points in c.values() for _, v in points]
    if not values:
        return 0.0, 1.0
    low = math.floor(10 * min(values)) / 10
    return min(low, 0.9), 1.0


def overfitting_gap(recorded: Recorded, trial: Trial) -> float | None:
    """Robust accuracy of the best epoch less that of the last, under the deciding attack."""
    found = recorded.curves.get(trial.run.run_id, {}).get(f"holdout.robust.{trial.attack}", [])
    values = dict(found)
    best = int(trial.run.metrics.get("best.epoch", 0))
    return values[best] - found[-1][1] if best in values else None
