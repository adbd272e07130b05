"""Clean against robust accuracy: the front, its rivals and what was verified."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

from orchestrator.compare.runs import Score
from orchestrator.report.charts import (
    MARGIN_BOTTOM,
    MARGIN_LEFT,
    MARGIN_RIGHT,
    MARGIN_TOP,
    attacks_of,
    describe,
    whole_percent,
)
from orchestrator.report.data import Recorded, Trial
from orchestrator.report.svg import (
    Frame,
    Wanted,
    group,
    line,
    mark,
    picture,
    place_labels,
    polyline,
    scale,
    tip,
)


def front(recorded: Recorded, width: float) -> Markup:
    """Clean against robust accuracy of the trials whose numbers compare, in per cent.

    Search numbers are circles, verified ones diamonds, the winner is a star; members of the front
    have 95 % intervals and the border of what they dominate.
    """
    height = max(300.0, 0.62 * width)
    shown = [trial for trial in recorded.trials if trial.whole]
    verified = [t for t in shown if t.verified and t.verified_clean]
    detailed = {t.run.run_id: t for t in [*recorded.front, *verified]}
    if recorded.winner and recorded.winner.whole:
        detailed[recorded.winner.run.run_id] = recorded.winner
    held = [_pair(t.clean, t.robust) for t in shown]
    checked = [_pair(t.verified_clean, t.verified) for t in verified]
    spread = [_pair(t.clean, t.robust) for t in detailed.values()]
    frame = Frame(
        x=scale(
            [v for x, _ in [*held, *checked] for v in [x.value]]
            + [end for x, _ in [*spread, *checked] for end in _ends(x)],
            MARGIN_LEFT,
            width - MARGIN_RIGHT,
            within=(0.0, 1.0),
        ),
        y=scale(
            [v for _, y in [*held, *checked] for v in [y.value]]
            + [end for _, y in [*spread, *checked] for end in _ends(y)],
            height - MARGIN_BOTTOM,
            MARGIN_TOP,
            within=(0.0, 1.0),
        ),
        x_title="clean accuracy, %",
        y_title="robust accuracy, %",
    )
    members = {trial.run.run_id for trial in recorded.front}
    parts = [frame.draw(whole_percent, whole_percent), _border(recorded.front, frame)]
    last: list[Markup] = []
    star: list[Markup] = []  # above all others
    for trial in shown:
        clean, robust = _pair(trial.clean, trial.robust)
        won = trial is recorded.winner
        inside = trial.run.run_id in detailed
        drawn = [_interval(clean, robust, frame, "err")] if inside else []
        x, y = frame.x(clean.value), frame.y(robust.value)
        kind = "member" if trial.run.run_id in members else "other"
        if trial.masking or not trial.eligible:
            drawn.append(mark("cross", x, y, 5, "mark bad"))
        else:
            drawn.append(mark("circle", x, y, 5 if inside else 4, f"mark {kind}"))
        if trial.baseline:
            drawn.append(mark("square", x, y, 8, "ring"))
        if won:
            drawn.append(mark("star", x, y, 8, "mark won"))
        element = tip(drawn, describe(trial), "point", data_trial=trial.number)
        if won:
            star.append(element)
        else:
            (last if inside or trial.baseline else parts).append(element)
    for trial in verified:
        clean, robust = _pair(trial.verified_clean, trial.verified)
        x, y = frame.x(clean.value), frame.y(robust.value)
        before = _pair(trial.clean, trial.robust)
        link = line(frame.x(before[0].value), frame.y(before[1].value), x, y, "link")
        label = (
            f"{trial.name}, verified: clean {clean} %, robust {robust} %, by {attacks_of(trial)}"
        )
        drawn = [link, _interval(clean, robust, frame, "err verified")]
        drawn.append(mark("diamond", x, y, 6, "mark verified"))
        last.append(tip(drawn, label, "point", data_trial=trial.number))
    labels = place_labels(
        [
            Wanted(
                frame.x(x.value),
                frame.y(y.value),
                trial.name,
                must=trial is recorded.winner or trial.baseline is not None,
                trial=trial.number,
            )
            for trial in _label_order(recorded, shown)
            for x, y in [_pair(trial.clean, trial.robust)]
        ],
        [(frame.x(x.value), frame.y(y.value)) for x, y in [*held, *checked]],
        width,
        height - MARGIN_BOTTOM,
    )
    points = group([*parts[2:], *last, *star], class_="points")
    return picture(width, height, "Clean against robust accuracy", *parts[:2], points, labels)


def _label_order(recorded: Recorded, shown: Sequence[Trial]) -> list[Trial]:
    named = [recorded.winner] if recorded.winner in shown and recorded.winner else []
    named += [trial for trial in shown if trial.baseline]
    named += [*recorded.front, *[trial for trial in shown if trial.verified]]
    return list({trial.run.run_id: trial for trial in named}.values())


def _pair(x: Score | None, y: Score | None) -> tuple[Score, Score]:
    nothing = Score(math.nan)
    return x or nothing, y or nothing


def _ends(value: Score) -> list[float]:
    return [end for end in (value.low, value.high) if end is not None]


def _interval(clean: Score, robust: Score, frame: Frame, class_: str) -> Markup:
    x, y = frame.x(clean.value), frame.y(robust.value)
    parts: list[Markup] = []
    if clean.low is not None and clean.high is not None:
        parts.append(line(frame.x(clean.low), y, frame.x(clean.high), y, class_))
    if robust.low is not None and robust.high is not None:
        parts.append(line(x, frame.y(robust.low), x, frame.y(robust.high), class_))
    return Markup("").join(parts)


def _border(members: Sequence[Trial], frame: Frame) -> Markup:
    """What the front dominates, down to both axes."""
    points = sorted((t.clean.value, t.robust.value) for t in members if t.clean and t.robust)
    numbers = " ".join(str(trial.number) for trial in members)
    if not points:
        return Markup("")
    corners = [(frame.x.start, frame.y(points[0][1]))]
    for (x, y), following in zip(points, [*points[1:], None], strict=True):
        corners.append((frame.x(x), frame.y(y)))
        below = frame.y.start if following is None else frame.y(following[1])
        corners.append((frame.x(x), below))
    return polyline(corners, "border", data_members=numbers)
