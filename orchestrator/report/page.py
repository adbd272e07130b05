"""The page: sections filled from what is recorded, and one file out of it."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from morel_core.errors import MorelError
from orchestrator.compare.runs import Score
from orchestrator.messages.masking import masked
from orchestrator.report import (
    course_charts,
    evaluations,
    parameter_charts,
    strength_charts,
    training_chart,
)
from orchestrator.report.answer import (
    answer,
    cost_rows,
    place,
    quoted,
    reproduce,
    verification_seconds,
)
from orchestrator.report.ball import Ball, ball_of
from orchestrator.report.charts import attacks_of, both
from orchestrator.report.data import Recorded, Trial, flat_text, robust_first
from orchestrator.report.doubts import doubts
from orchestrator.report.front_chart import front
from orchestrator.report.importance import GOOD, importance
from orchestrator.report.reading import load
from orchestrator.tracking.connection import open_client

MOST_AXES = 8
"""Parameters beyond which parallel coordinates cannot be read."""
FILE = "report.html"


@dataclass(frozen=True, kw_only=True)
class Written:
    """A report that was made."""

    path: Path
    size: int
    """Bytes."""
    seconds: float
    recorded: str
    """Run id that has it as an artifact; empty if none has."""
    missing: list[str]
    """Parts that are not in it, and why."""


def write_report(
    uri: str,
    experiment: str,
    *,
    search: str | None = None,
    out: Path | None = None,
    pictures: bool = True,
) -> Written:
    """Read MLflow, write the page, and log it to the run of the search or campaign.

    Args:
        uri: the tracking URI.
        experiment: an MLflow experiment.
        search: a search or campaign of it; default: the newest, or the trainings if there is none.
        out: the file; default: ``<name>.html`` in the working directory.
        pictures: look at images through the winner's network, which takes torch and the data.

    Raises:
        MorelError: MLflow does not answer, has no such runs, or the file cannot be written.
    """
    started = time.perf_counter()
    recorded = load(uri, experiment, search)
    html, missing = render(recorded, pictures=pictures)
    path = out or Path(f"{recorded.title}.html")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(html, encoding="utf-8")
    except OSError as error:
        raise MorelError(
            f"--out {path}: cannot be written ({error.strerror}): name another file"
        ) from None
    owner = ""
    if recorded.subject is not None:
        failed = _log(recorded, html)
        missing += [failed] if failed else []
        owner = "" if failed else recorded.subject.run_id
    return Written(
        path=path,
        size=len(html.encode()),
        seconds=time.perf_counter() - started,
        recorded=owner,
        missing=missing,
    )


def _log(recorded: Recorded, html: str) -> str:
    """Add the page to the subject's run; why that failed, else nothing: the file is there."""
    from mlflow.exceptions import MlflowException

    assert recorded.subject is not None
    try:
        client = open_client(recorded.uri, create=False)
        client.log_text(recorded.subject.mlflow_id, html, FILE)
    except (MlflowException, MorelError, OSError) as error:
        return f"the page is not in MLflow: {(str(error).splitlines() or [''])[0]}"
    return ""


def render(recorded: Recorded, *, pictures: bool = True) -> tuple[str, list[str]]:
    """The page, without the credentials of any address, and what is missing from it."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("orchestrator.report", "assets"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made, missing = _pictures(recorded, wanted=pictures)
    assets = Path(__file__).parent / "assets"
    html = environment.get_template("page.html").render(
        **_context(recorded),
        pictures=made,
        no_pictures=missing[0] if missing else "",
        style=Markup((assets / "page.css").read_text()),
        script=Markup((assets / "page.js").read_text()),
    )
    return masked(html), missing


def _pictures(recorded: Recorded, *, wanted: bool) -> tuple[dict[str, Any] | None, list[str]]:
    """The pictures of the winner's network, or why there are none."""
    again = f"morel report {recorded.experiment}"
    again += f" --search {recorded.subject.run_id}" if recorded.subject else ""
    if not wanted:
        return None, [f"Left out by --no-pictures; {again} makes them."]
    if recorded.winner is None or not recorded.config:
        return None, ["There is no measured network to look through."]
    from orchestrator.report.pictures import make

    try:
        made = make(recorded, recorded.winner)
    except Exception as error:  # data or network may be elsewhere: the report is made all the same
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        return None, [
            f"Not made: {reason}; where network and data can be read, {again} makes them."
        ]
    planes = [
        {
            "title": plane.title,
            "explained": f"{100 * plane.explained:.0f} %",
            "chart": strength_charts.scatter(plane.points, made.labels, plane.title),
        }
        for plane in made.planes
    ]
    return {"made": made, "planes": planes}, []


# --- sections -------------------------------------------------------------------------------------


def _context(recorded: Recorded) -> dict[str, Any]:
    subject = recorded.subject
    verification = verification_seconds(recorded)
    ended = [trial for trial in recorded.trials if trial.ended]
    whole = [trial for trial in recorded.trials if trial.whole]
    return {
        "recorded": recorded,
        "kind": subject.kind if subject else "trainings",
        "description": recorded.definition.get("search", {}).get("description", ""),
        "made": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "uri": recorded.uri,
        "answer": answer(recorded),
        "whole": len(whole),
        "front": both(lambda width: front(recorded, width)) if whole else None,
        "attack": recorded.trials[0].attack if recorded.trials else "",
        **_parameters(recorded),
        "curves": _curves(recorded),
        **_strength(recorded),
        "course": both(lambda width: course_charts.course(recorded, width)) if ended else None,
        "states": Counter(trial.state for trial in recorded.trials).most_common(),
        "cost": both(lambda width: course_charts.cost(recorded, verification, width))
        if recorded.trials
        else None,
        "cost_rows": cost_rows(recorded),
        "campaign": _campaign(recorded),
        "doubts": doubts(recorded),
        "rows": [_row(recorded, trial) for trial in _winner_first(recorded)],
        "quoted": quoted(recorded.winner) if recorded.winner else "RUN",
        "where": place(recorded),
        "radii": _radii(recorded),
    }


def _parameters(recorded: Recorded) -> dict[str, Any]:
    """Parallel coordinates and importances."""
    found = importance(recorded)
    keys = [key for key in recorded.searched if all(key in t.point for t in recorded.trials)]
    conditional = [key for key in recorded.searched if key not in keys]
    if not isinstance(found, str):  # where not all fit, the most important ones
        order = [each.key for each in found]
        keys.sort(key=lambda key: order.index(key) if key in order else len(order))
    left_out = [*conditional, *keys[MOST_AXES:]]
    keys = [key for key in recorded.searched if key in keys[:MOST_AXES]]
    chart, filters = parameter_charts.parallel(recorded, keys) if keys else (None, [])
    bars = None
    if not isinstance(found, str):
        rows = [(each.key, each.value, each.low, each.high) for each in found]
        bars = both(lambda width: parameter_charts.bars(rows, "Parameter importance", width))
    return {
        "parallel": chart,
        "filters": filters,
        "left_out": left_out,
        "importance": bars,
        "no_importance": found if isinstance(found, str) else "",
        "good": f"{100 * GOOD:.0f} %",
    }


def _curves(recorded: Recorded) -> list[dict[str, Any]]:
    bounds = training_chart.curve_bounds(recorded)
    panels: list[dict[str, Any]] = []
    for trial in _winner_first(recorded):
        if trial.run.run_id not in recorded.curves:
            continue
        chart = training_chart.curves(recorded, trial, bounds)
        if chart is None:
            continue
        gap = training_chart.overfitting_gap(recorded, trial)
        best = trial.run.metrics.get("best.epoch")
        panels.append(
            {
                "name": trial.name,
                "won": trial is recorded.winner,
                "chart": chart,
                "gap": None if gap is None else f"{100 * gap:.1f}",
                "best": None if best is None else f"{best:.0f}",
            }
        )
    return panels


def _strength(recorded: Recorded) -> dict[str, Any]:
    """Against ε, and by class."""
    series = evaluations.by_radius(recorded)
    classes, note = None, ""
    ball = ball_of(recorded)
    if recorded.winner is not None and ball is not None:
        labelled = [each for each in recorded.measured(recorded.winner) if each.labels]
        best = evaluations.best_record(labelled, ball)
        if best is not None:
            rows = evaluations.per_class(best, ball)
            classes = both(lambda width: strength_charts.per_class(rows, width))
            outcomes = best.record["outcomes"].items()
            inside = [name for name, each in outcomes if name != "clean" and ball.holds(each)]
            images = f"{len(best.labels or [])} images ({best.record['split']})"
            note = f"{', '.join(inside)} on {images}"
    return {
        "radius": both(lambda width: strength_charts.by_radius(series, width)) if series else None,
        "series": [name for name, _ in series],
        "classes": classes,
        "classes_note": note,
    }


def _radii(recorded: Recorded) -> str:
    """Around the search's own, for a sweep."""
    ball = ball_of(recorded) or Ball(norm="linf", eps=8 / 255)
    return " ".join(ball.radius(share) for share in (0.5, 1, 1.5, 2))


def _campaign(recorded: Recorded) -> dict[str, Any] | None:
    """The method comparison's tables and sentences."""
    report = recorded.campaign
    if report is None:
        return None
    from orchestrator.campaign import tables

    return {
        "head": tables.head_lines(report),
        "tables": [
            ("Methods: per cent, mean ± standard deviation [95 %]", *tables.method_table(report)),
            ("Differences in points [95 %]", *tables.comparison_table(report)),
            ("Settings", *tables.settings_table(report)),
        ],
        "sentences": [pair.sentence for pair in report.comparisons],
        "lost": tables.lost_lines(report),
        "notes": report.notes,
    }


def _winner_first(recorded: Recorded) -> list[Trial]:
    won = recorded.winner
    return sorted(recorded.trials, key=lambda trial: (trial is not won, robust_first(trial)))


def _row(recorded: Recorded, trial: Trial) -> dict[str, Any]:
    """A trial in the table of all."""

    def cell(value: Score | None) -> str:
        return str(value) if value else "–"

    marks = [
        word
        for word, holds in (
            ("winner", trial is recorded.winner),
            ("baseline", trial.baseline is not None),
            ("front", trial in recorded.front),
            ("masked?", bool(trial.masking)),
        )
        if holds
    ]
    attacks = list(trial.run.robust("holdout"))
    measured = trial.attack if trial.robust else (attacks[0] if attacks else "")
    seconds = trial.training_s + trial.evaluation_s or trial.run.seconds
    return {
        "number": trial.number,
        "name": trial.name,
        "marks": marks,
        "clean": cell(trial.clean),
        "robust": cell(trial.any_robust),
        "attack": measured if measured != trial.attack else "",
        "verified": cell(trial.verified),
        "how": attacks_of(trial) if trial.verified else "",
        "epochs": "–" if trial.run.epochs is None else str(trial.run.epochs),
        "seconds": "–" if seconds is None else f"{seconds:.0f}",
        "why": trial.run.stop_reason,
        "settings": flat_text(trial.point),
        "command": reproduce(recorded, trial),
    }
