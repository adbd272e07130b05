"""SVG from numbers: elements, scales, axes, marks. Colours and fonts are the page's CSS classes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from markupsafe import Markup, escape

CHAR = 7.0
"""Width of a character of the labels, at most on average."""
LINE = 15.0

Element = Markup


def tag(name: str, *content: object, **attributes: object) -> Markup:
    """An element; contents and attribute values are escaped unless they are elements.

    ``class_`` is ``class``, other underscores become hyphens, None leaves an attribute out.
    """
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_short(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    inside = Markup("").join(escape(part) for part in content)
    return Markup(f"<{name}{given}>{inside}</{name}>")


def _short(value: object) -> object:
    """Tenths of a pixel are enough, and make a small file."""
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else value


def group(elements: Iterable[Markup], **attributes: object) -> Markup:
    """Elements in a ``<g>``."""
    return tag("g", Markup("").join(elements), **attributes)


def text(x: float, y: float, content: str, class_: str = "", anchor: str = "start") -> Markup:
    """A line of text from its baseline; ``anchor``: start, middle or end."""
    return tag(
        "text",
        content,
        x=x,
        y=y,
        class_=class_ or None,
        text_anchor=None if anchor == "start" else anchor,
    )


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> Markup:
    """A straight line."""
    return tag("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def polyline(points: Iterable[tuple[float, float]], class_: str, **data: object) -> Markup:
    """A line through points."""
    places = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return tag("polyline", points=places, class_=class_, **data)


def tip(content: Iterable[Markup], label: str, class_: str = "", **data: object) -> Markup:
    """Something with a tooltip: by mouse, by keyboard (the page's script) and for screen readers.

    Without the script the browser shows the title.
    """
    return tag(
        "g",
        *content,
        tag("title", label),
        class_=f"tip {class_}".strip(),
        role="img",
        aria_label=label,
        **data,
    )


def picture(
    width: float,
    height: float,
    title: str,
    *content: Markup,
    class_: str = "",
    **attributes: object,
) -> Markup:
    """The whole ``<svg>``, ``title`` for screen readers."""
    return tag(
        "svg",
        *content,
        viewBox=f"0 0 {width:g} {height:g}",
        role="group",
        aria_label=title,
        class_=f"chart {class_}".strip(),
        **attributes,
    )


# --- scales ---------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Scale:
    """From values to pixels."""

    low: float
    high: float
    start: float
    """Where ``low`` is."""
    end: float
    log: bool = False

    def share(self, value: float) -> float:
        """0 at ``low``, 1 at ``high``; one half where they are the same."""
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return 0.5 if high == low else (value - low) / (high - low)

    def __call__(self, value: float) -> float:
        return self.start + self.share(value) * (self.end - self.start)

    def ticks(self, count: int = 5) -> list[float]:
        """Some ``count`` round values inside."""
        if self.log:
            found = _powers(self.low, self.high)
            if len(found) >= 2:
                return found[:: math.ceil(len(found) / count)]
        return round_values(self.low, self.high, count)


def scale(
    values: Iterable[float],
    start: float,
    end: float,
    *,
    log: bool = False,
    pad: float = 0.06,
    within: tuple[float, float] = (-math.inf, math.inf),
) -> Scale:
    """A scale that holds all ``values`` with some room, and does not leave ``within``."""
    found = [value for value in values if math.isfinite(value)]
    low, high = (min(found), max(found)) if found else (0.0, 1.0)
    if log:
        return Scale(low=low, high=high, start=start, end=end, log=True)
    room = pad * (high - low) or pad * abs(high) or pad
    low, high = max(within[0], low - room), min(within[1], high + room)
    return Scale(low=low, high=high, start=start, end=end)


def round_values(low: float, high: float, count: int) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten in [low, high], about ``count`` of them."""
    if not high > low:
        return [low]
    raw = (high - low) / max(1, count)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def _powers(low: float, high: float) -> list[float]:
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    return [10.0**exponent for exponent in range(first, last + 1)]


def number(value: float) -> str:
    """``0.05``, ``120``, ``1e-5``: as short as it can be read."""
    if value == 0:
        return "0"
    if abs(value) >= 1e5 or abs(value) < 1e-3:
        mantissa, exponent = f"{value:.2e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    return f"{value:.4g}"


# --- axes -----------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Frame:
    """The plane of a chart."""

    x: Scale
    y: Scale
    x_title: str
    y_title: str

    def draw(
        self, x_text: Callable[[float], str] = number, y_text: Callable[[float], str] = number
    ) -> Markup:
        """Grid, tick labels and titles."""
        left, right = self.x.start, self.x.end
        bottom, top = self.y.start, self.y.end
        columns = max(2, int((right - left) / 70))
        rows = max(2, int((bottom - top) / 45))
        parts: list[Markup] = []
        for value in self.x.ticks(columns):
            at = self.x(value)
            parts += [line(at, top, at, bottom, "grid")]
            parts += [text(at, bottom + 17, x_text(value), "tick", "middle")]
        for value in self.y.ticks(rows):
            at = self.y(value)
            parts += [line(left, at, right, at, "grid")]
            parts += [text(left - 6, at + 4, y_text(value), "tick", "end")]
        parts += [line(left, bottom, right, bottom, "axis"), line(left, top, left, bottom, "axis")]
        parts += [text(left, top - 10, self.y_title, "title")]
        parts += [text(right, bottom + 36, self.x_title, "title", "end")]
        return group(parts, aria_hidden="true")


# --- marks ----------------------------------------------------------------------------------------


def mark(shape: str, x: float, y: float, size: float, class_: str) -> Markup:
    """A mark around (x, y): circle, diamond, square, cross, star or triangle."""
    if shape == "circle":
        return tag("circle", cx=x, cy=y, r=size, class_=class_)
    return tag("path", d=_outline(shape, x, y, size), class_=class_)


def _outline(shape: str, x: float, y: float, size: float) -> str:
    if shape == "cross":
        s = size * 0.8
        left, right, top, bottom = (f"{at:.1f}" for at in (x - s, x + s, y - s, y + s))
        return f"M{left},{top}L{right},{bottom}M{left},{bottom}L{right},{top}"
    if shape == "star":
        radii = [size * 1.5 if index % 2 == 0 else size * 0.62 for index in range(10)]
        angles = [math.pi * (index / 5 - 0.5) for index in range(10)]
    else:
        corners = {"diamond": 4, "square": 4, "triangle": 3}[shape]
        turn = math.pi / 4 if shape == "square" else -math.pi / 2
        radii = [size * 1.3] * corners
        angles = [turn + 2 * math.pi * index / corners for index in range(corners)]
    points = [
        f"{x + r * math.cos(a):.1f},{y + r * math.sin(a):.1f}"
        for r, a in zip(radii, angles, strict=True)
    ]
    return f"M{'L'.join(points)}Z"


class Wanted(NamedTuple):
    """A label and the point it belongs to."""

    x: float
    y: float
    content: str
    must: bool = False
    """Set further away, at the end of a line, where there is no room beside its point."""
    trial: int | None = None
    """Number of the trial that it names, with which it is filtered."""


def place_labels(
    wanted: Sequence[Wanted],
    marks: Sequence[tuple[float, float]],
    right: float,
    bottom: float,
) -> Markup:
    """The labels beside their points, without covering a mark or each other.

    The first ones come first; one for which there is no room is left to its tooltip.
    """
    taken: list[tuple[float, float, float, float]] = [
        (x - 5, y - 5, x + 5, y + 5) for x, y in marks
    ]
    parts: list[Markup] = []
    for x, y, content, must, trial in wanted:
        width = len(content) * CHAR
        choices = [
            (x + 10, y + 4, "start"),
            (x - 10, y + 4, "end"),
            (x, y - 12, "middle"),
            (x, y + 21, "middle"),
            (x + 8, y - 10, "start"),
            (x - 8, y - 10, "end"),
            (x + 8, y + 18, "start"),
            (x - 8, y + 18, "end"),
        ]
        near = len(choices)
        if must:
            for far in (36, 64, 96):
                choices += [(x + far, y - far, "start"), (x - far, y - far, "end")]
                choices += [(x + far, y + far, "start"), (x - far, y + far, "end")]
        for index, (left, base, anchor) in enumerate(choices):
            begin = left - {"start": 0.0, "middle": width / 2, "end": width}[anchor]
            box = (begin, base - LINE + 3, begin + width, base + 3)
            inside = box[0] >= 2 and box[2] <= right and box[1] >= 2 and box[3] <= bottom
            if inside and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                drawn = [line(x, y, left, base - 4, "link")] if index >= near else []
                drawn.append(text(left, base, content, "label", anchor))
                parts.append(group(drawn, data_trial=trial))
                break
    return group(parts, aria_hidden="true")


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
