"""Searched parameters: parallel coordinates, and importances as bars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from orchestrator.report.charts import (
    WIDE,
    cut,
    describe,
    shade,
    whole_percent,
)
from orchestrator.report.data import Recorded, Trial, value_text
from orchestrator.report.svg import (
    CHAR,
    Scale,
    group,
    line,
    number,
    picture,
    polyline,
    scale,
    tag,
    text,
    tip,
)

MANY = 60
"""Trials from which on their lines are thin."""
LEAST, MOST = 0.85, 1.2
"""Shares of their drawn width between which parallel coordinates are shown: they are scrolled
sideways below, and their text is larger than the page's above."""


def parallel(recorded: Recorded, keys: Sequence[str]) -> tuple[Markup, list[dict[str, Any]]]:
    """Parallel coordinates of ``keys`` and robust accuracy, and what the page filters by.

    Whole trials are coloured by robust accuracy; of others it would not compare: they are dashed
    and end before its axis.
    """
    step, height = 132.0, 380.0
    width = max(WIDE, 2 * 60 + step * len(keys))
    spaces = recorded.definition.get("search", {}).get("parameters", {})
    axes = [_Axis(recorded.trials, key, height, spaces.get(key, {})) for key in keys]
    robust = [t.robust.value for t in recorded.trials if t.whole and t.robust]
    last = scale(robust, height - 16, 40.0, pad=0.02, within=(0.0, 1.0))
    positions = [60 + (width - 120) * index / len(keys) for index in range(len(keys) + 1)]
    parts: list[Markup] = []
    order = sorted(recorded.trials, key=lambda t: t.robust.value if t.whole and t.robust else -1.0)
    order.sort(key=lambda trial: trial is recorded.winner)  # above all others
    for trial in order:
        if not all(key in trial.point for key in keys):
            continue
        shares = [axis.share(trial.point[key]) for key, axis in zip(keys, axes, strict=True)]
        points = [
            (x, axis.at(trial.point[key]))
            for x, key, axis in zip(positions, keys, axes, strict=False)
        ]
        kind = "stopped"
        if trial.whole and trial.robust:
            points.append((positions[-1], last(trial.robust.value)))
            shares.append(last.share(trial.robust.value))
            kind = shade(trial.robust.value, min(robust), max(robust))
        kind += " won" if trial is recorded.winner else ""
        parts.append(
            tip(
                [polyline(points, f"way {kind}")],
                describe(trial),
                "point",
                data_trial=trial.number,
                data_shares=" ".join(f"{share:.3f}" for share in shares),
            )
        )
    titles: list[Markup] = []
    for index, (x, key, axis) in enumerate(zip(positions, keys, axes, strict=False)):
        titles += _axis_marks(x, key.rpartition(".")[2], axis.ticks(), height, up=index % 2)
    ticks = [(last(value), whole_percent(value)) for value in last.ticks(6)]
    titles += _axis_marks(positions[-1], "robust %", ticks, height, up=len(keys) % 2)
    chart = picture(
        width,
        height,
        "Searched parameters and robust accuracy of each trial",
        group(parts, class_="points"),
        group(titles, aria_hidden="true"),
        group([_brush(x, i, height) for i, x in enumerate(positions)], aria_hidden="true"),
        class_="parallel many" if len(order) > MANY else "parallel",
        style=f"min-width: {LEAST * width:.0f}px; max-width: {MOST * width:.0f}px",
    )
    filters = [axis.filter(key) for key, axis in zip(keys, axes, strict=True)]
    if robust:
        entry = {"key": "robust accuracy, %", "low": 100 * last.low, "high": 100 * last.high}
        filters.append({**entry, "log": False, "values": None})
    return chart, filters


class _Axis:
    """Where a parameter's values are on its axis."""

    def __init__(
        self, trials: Sequence[Trial], key: str, height: float, space: Mapping[str, Any]
    ) -> None:
        values = [trial.point[key] for trial in trials if key in trial.point]
        self.names: list[str] | None = None
        top, bottom = 40.0, height - 16
        if all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
            log = bool(space.get("log")) and min(values) > 0
            self.scale = scale(values, bottom, top, log=log, pad=0.0)
            return
        self.names = sorted({value_text(value) for value in values})
        self.scale = Scale(low=-0.5, high=len(self.names) - 0.5, start=bottom, end=top)

    def _number(self, value: Any) -> float:
        return float(value) if self.names is None else float(self.names.index(value_text(value)))

    def share(self, value: Any) -> float:
        return self.scale.share(self._number(value))

    def at(self, value: Any) -> float:
        return self.scale(self._number(value))

    def ticks(self) -> list[tuple[float, str]]:
        if self.names is not None:
            return [(self.scale(i), cut(name, 14)) for i, name in enumerate(self.names)]
        found = self.scale.ticks(5)
        return [(self.scale(value), number(value)) for value in found]

    def filter(self, key: str) -> dict[str, Any]:
        scale = self.scale
        return {
            "key": key,
            "low": scale.low,
            "high": scale.high,
            "log": scale.log,
            "values": self.names,
        }


def _axis_marks(
    x: float, title: str, ticks: Sequence[tuple[float, str]], height: float, *, up: int
) -> list[Markup]:
    """An axis; neighbours' titles stand at two heights, so that long ones do not meet."""
    parts = [line(x, 40, x, height - 16, "axis")]
    parts.append(text(x, 14 if up else 30, cut(title, 24), "title", "middle"))
    for at, content in ticks:
        parts += [line(x - 3, at, x + 3, at, "axis"), text(x + 6, at + 4, content, "tick halo")]
    return parts


def _brush(x: float, axis: int, height: float) -> Markup:
    """Where an axis is dragged along to keep a part of it, and what shows the part kept."""
    top, length = 40, height - 16 - 40
    kept = tag("rect", x=x - 5, y=top, width=10, height=0, class_="kept")
    hold = tag("rect", x=x - 11, y=top, width=22, height=length, class_="hold")
    return group([kept, hold], class_="brush", data_axis=axis)


def bars(rows: Sequence[tuple[str, float, float, float]], title: str, width: float) -> Markup:
    """Horizontal bars of shares in [0, 1]: name, value, and the ends of an interval."""
    left = min(0.45 * width, max(len(name) for name, *_ in rows) * CHAR + 12)
    x = Scale(low=0.0, high=1.0, start=left, end=width - 52)
    parts: list[Markup] = []
    for index, (name, value, low, high) in enumerate(rows):
        y = 14.0 + 30 * index
        said = f"{name}: {value:.2f}, in 8 of 10 resamplings {low:.2f} to {high:.2f}"
        shown = cut(name, int((left - 8) / CHAR))
        parts.append(
            tip(
                [
                    tag(
                        "rect",
                        x=left,
                        y=y,
                        width=max(1.0, x(value) - left),
                        height=16,
                        class_="bar",
                    ),
                    line(x(low), y + 8, x(high), y + 8, "err strong"),
                    text(left - 8, y + 13, shown, "label", "end"),
                    text(max(x(high), x(value)) + 6, y + 13, f"{value:.2f}", "tick"),
                ],
                said,
                "point",
            )
        )
    return picture(width, 30.0 * len(rows) + 10, title, group(parts, class_="points"))
