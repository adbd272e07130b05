"""Accuracy against the radius and by class; points of an embedding."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from markupsafe import Markup

from orchestrator.compare.runs import Score
from orchestrator.report.charts import (
    MARGIN_BOTTOM,
    MARGIN_LEFT,
    MARGIN_RIGHT,
    MARGIN_TOP,
    whole_percent,
)
from orchestrator.report.svg import (
    CHAR,
    Frame,
    Scale,
    group,
    line,
    mark,
    number,
    picture,
    polyline,
    scale,
    tag,
    text,
    tip,
)


def by_radius(series: Sequence[tuple[str, Sequence[tuple[float, Score]]]], width: float) -> Markup:
    """Robust accuracy against ε, a line for each network, with 95 % intervals."""
    height = max(260.0, 0.45 * width)
    points = [point for _, found in series for point in found]
    frame = Frame(
        x=scale(
            [eps for eps, _ in points],
            MARGIN_LEFT,
            width - MARGIN_RIGHT,
            pad=0.03,
            within=(0.0, math.inf),
        ),
        y=Scale(low=0.0, high=1.0, start=height - MARGIN_BOTTOM, end=MARGIN_TOP),
        x_title="ε",
        y_title="accuracy in the worst case, %",
    )
    shown: list[Markup] = []
    for index, (name, found) in enumerate(series):
        colour = f"c{index % 4}"
        shown.append(
            polyline([(frame.x(e), frame.y(v.value)) for e, v in found], f"curve {colour}")
        )
        for eps, value in found:
            x = frame.x(eps)
            drawn = [mark(_SHAPES[index % 4], x, frame.y(value.value), 5, f"mark {colour}")]
            if value.low is not None and value.high is not None:
                drawn.insert(
                    0, line(x, frame.y(value.low), x, frame.y(value.high), f"err {colour}")
                )
            shown.append(tip(drawn, f"{name}, ε = {number(eps)}: {value} %", "point"))
    return picture(
        width,
        height,
        "Robust accuracy against ε",
        frame.draw(number, whole_percent),
        group(shown, class_="points"),
    )


_SHAPES = ("circle", "diamond", "square", "triangle")


def per_class(rows: Sequence[tuple[str, Score, Score]], width: float) -> Markup:
    """Clean (circle) and robust (diamond) accuracy of each class, with 95 % intervals."""
    row = 24.0
    height = row * len(rows) + MARGIN_TOP + MARGIN_BOTTOM
    left = max(len(name) for name, *_ in rows) * CHAR + 14
    frame = Frame(
        x=Scale(low=0.0, high=1.0, start=left, end=width - MARGIN_RIGHT),
        y=Scale(low=0.0, high=0.0, start=height - MARGIN_BOTTOM, end=MARGIN_TOP),
        x_title="accuracy, %",
        y_title="class",
    )
    grid: list[Markup] = [text(4, MARGIN_TOP - 10, frame.y_title, "title")]
    for value in frame.x.ticks(5):
        at = frame.x(value)
        grid.append(line(at, MARGIN_TOP, at, height - MARGIN_BOTTOM, "grid"))
        grid.append(text(at, height - MARGIN_BOTTOM + 17, whole_percent(value), "tick", "middle"))
    grid.append(
        text(width - MARGIN_RIGHT, height - MARGIN_BOTTOM + 36, frame.x_title, "title", "end")
    )
    shown: list[Markup] = []
    for index, (name, clean, robust) in enumerate(rows):
        y = MARGIN_TOP + row * (index + 0.5)
        drawn = [text(left - 8, y + 4, name, "label", "end")]
        for value, shape, kind, at in (
            (clean, "circle", "clean", y - 4),
            (robust, "diamond", "robust", y + 4),
        ):
            low, high = value.low or 0.0, 1.0 if value.high is None else value.high
            drawn.append(line(frame.x(low), at, frame.x(high), at, f"err {kind}"))
            drawn.append(mark(shape, frame.x(value.value), at, 4, f"mark {kind}"))
        shown.append(tip(drawn, f"class {name}: clean {clean} %, robust {robust} %", "point"))
    return picture(
        width,
        height,
        "Accuracy of each class",
        group(grid, aria_hidden="true"),
        group(shown, class_="points"),
    )


def scatter(points: Iterable[tuple[float, float]], labels: Sequence[int], title: str) -> Markup:
    """Points in the plane, coloured and written by class."""
    plane, size = list(points), 340.0
    x = scale([a for a, _ in plane], 10.0, size - 10)
    y = scale([b for _, b in plane], size - 10, 10.0)
    dots = [
        text(x(a), y(b) + 4, str(label), f"k{label % 8}", "middle")
        for (a, b), label in zip(plane, labels, strict=True)
    ]
    box = tag("rect", x=1, y=1, width=size - 2, height=size - 2, class_="box")
    return picture(size, size, title, box, group(dots, class_="classes"))
