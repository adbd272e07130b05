"""Trials over time, and what they cost."""

from __future__ import annotations

import math
from collections.abc import Callable

from markupsafe import Markup

from orchestrator.report.charts import (
    MARGIN_BOTTOM,
    MARGIN_LEFT,
    MARGIN_RIGHT,
    MARGIN_TOP,
    whole,
)
from orchestrator.report.data import Recorded, Trial
from orchestrator.report.svg import (
    Frame,
    Scale,
    group,
    line,
    mark,
    number,
    picture,
    tag,
    text,
    tip,
)

STATES = ("finished", "stopped", "failed", "diverged", "running", "killed")
"""Classes of bars; another state looks like ``running``."""


def course(recorded: Recorded, width: float) -> Markup:
    """Trials over wall time: a bar each, a tick an epoch, pale while cheaper rungs measure it."""
    trials = [trial for trial in recorded.trials if trial.ended]
    begin = min(trial.run.started for trial in trials)
    seconds = max((trial.ended or begin) for trial in trials) - begin
    unit, word = _unit(seconds)
    row = max(5.0, min(20.0, 1600.0 / len(trials)))
    height = row * len(trials) + MARGIN_TOP + MARGIN_BOTTOM
    bottom, right = height - MARGIN_BOTTOM, width - MARGIN_RIGHT
    x = Scale(low=0.0, high=seconds / unit or 1.0, start=MARGIN_LEFT, end=right)
    grid = [text(MARGIN_LEFT, MARGIN_TOP - 10, "trial", "title")]
    grid.append(text(right, bottom + 36, f"wall time, {word}", "title", "end"))
    for value in x.ticks(max(2, int(width / 90))):
        grid.append(line(x(value), MARGIN_TOP, x(value), bottom, "grid"))
        grid.append(text(x(value), bottom + 17, number(value), "tick", "middle"))

    def when(time: float) -> float:
        return x((time - begin) / unit)

    every = math.ceil(13.0 / row)  # of the numbers, so that they do not meet
    rows = [
        _bar(recorded, trial, when, MARGIN_TOP + row * index, row, numbered=index % every == 0)
        for index, trial in enumerate(trials)
    ]
    title = "Trials over time"
    return picture(
        width, height, title, group(grid, aria_hidden="true"), group(rows, class_="points")
    )


def _unit(seconds: float) -> tuple[float, str]:
    if seconds < 300:
        return 1.0, "s"
    return (60.0, "min") if seconds < 3 * 3600 else (3600.0, "h")


def _bar(
    recorded: Recorded,
    trial: Trial,
    when: Callable[[float], float],
    top: float,
    row: float,
    *,
    numbered: bool,
) -> Markup:
    """One trial; ``when`` gives the place of a time, in unix seconds."""
    began, ended = trial.run.started, trial.ended or trial.run.started
    state = trial.state if trial.state in STATES else "running"
    measured = _decisive_from(recorded, trial)
    ends = (when(began), min(when(ended), max(when(began), when(measured))), when(ended))
    drawn = [
        tag("rect", x=a, y=top + 1, width=max(1.5, b - a), height=row - 2, class_=f"run {kind}")
        for a, b, kind in ((*ends[:2], f"{state} pale"), (*ends[1:], state))
        if b > a
    ]
    places = [when(step.time) for step in trial.steps[:-1]]
    if row >= 8 and ends[2] - ends[0] >= 4 * len(places):
        drawn += [line(at, top + 2, at, top + row - 2, "step") for at in places]
    if trial is recorded.winner:
        drawn.append(mark("star", ends[2], top + row / 2, min(7.0, row / 2), "mark won"))
    if numbered:
        drawn.append(text(MARGIN_LEFT - 6, top + row / 2 + 4, str(trial.number), "tick", "end"))
    rung = trial.run.metrics.get("best.rung")
    said = [
        f"{trial.name}: {trial.state}, {trial.run.stop_reason}",
        f"{trial.run.epochs or 0} epochs" + (f", the best one on rung {rung:.0f}" if rung else ""),
        f"{ended - began:.0f} s from its start",
    ]
    return tip(drawn, "; ".join(said), "point", data_trial=trial.number)


def _decisive_from(recorded: Recorded, trial: Trial) -> float:
    """From when on a trial was measured with what decides, in unix seconds."""
    rungs = recorded.definition.get("base", {}).get("evaluation", {}).get("rungs") or []
    if not rungs:
        return trial.run.started
    before = [step.time for step in trial.steps if step.epoch < int(rungs[-1]["epoch"])]
    return max(before, default=trial.run.started)


def cost(recorded: Recorded, verification: dict[str, float], width: float) -> Markup:
    """Seconds of each trial: training, its evaluation, verification and test stacked."""
    trials, height = recorded.trials, 240.0
    sums = [_cost_parts(trial, verification) for trial in trials]
    frame = Frame(
        x=Scale(low=0.5, high=len(trials) + 0.5, start=MARGIN_LEFT, end=width - MARGIN_RIGHT),
        y=Scale(
            low=0.0,
            high=max(1.0, *(sum(parts.values()) for parts in sums)) * 1.05,
            start=height - MARGIN_BOTTOM,
            end=MARGIN_TOP,
        ),
        x_title="trial",
        y_title="seconds",
    )
    each = (frame.x.end - frame.x.start) / len(trials)
    shown: list[Markup] = []
    for index, (trial, parts) in enumerate(zip(trials, sums, strict=True), start=1):
        left, base = frame.x(index) - 0.4 * each, 0.0
        drawn: list[Markup] = []
        for kind, seconds in parts.items():
            if seconds:
                top = frame.y(base + seconds)
                drawn.append(
                    tag(
                        "rect",
                        x=left,
                        y=top,
                        width=max(1.0, 0.8 * each),
                        height=frame.y(base) - top,
                        class_=f"part {kind}",
                    )
                )
                base += seconds
        said = ", ".join(f"{kind} {seconds:.1f} s" for kind, seconds in parts.items() if seconds)
        shown.append(
            tip(drawn, f"{trial.name}: {said or 'nothing'}", "point", data_trial=trial.number)
        )
    return picture(
        width,
        height,
        "Seconds of each trial",
        frame.draw(whole),
        group(shown, class_="points"),
    )


def _cost_parts(trial: Trial, verification: dict[str, float]) -> dict[str, float]:
    training = trial.training_s or (trial.run.metrics.get("train.seconds", 0.0))
    return {
        "training": training,
        "evaluation": trial.evaluation_s,
        "verification": verification.get(trial.run.run_id, 0.0),
    }


def total_cost(recorded: Recorded, verification: dict[str, float]) -> dict[str, float]:
    """Seconds of all trials, by what they were spent on."""
    total = {"training": 0.0, "evaluation": 0.0, "verification": 0.0}
    for trial in recorded.trials:
        for kind, seconds in _cost_parts(trial, verification).items():
            total[kind] += seconds
    return total
