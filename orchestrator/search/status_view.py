"""The status of a search as a person sees it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from orchestrator.driver.lease import Holder
from orchestrator.messages.wording import with_interval
from orchestrator.search import status
from orchestrator.search.budget import Cost

COLOURS = {
    "running": "cyan",
    "waiting": "yellow",
    "stopped": "yellow",
    "finished": "green",
    "failed": "red",
    "diverged": "red",
}
REFRESH_S = 2.0


def head_lines(found: Mapping[str, Any]) -> list[str]:
    """The search as a whole, in sentences."""
    lines = [state_line(found)]
    if found.get("driver") is False:
        return [*lines, f"from MLflow alone: its storage {found['folder']} is not to be seen here"]
    quiet = status.silence(found)
    where = f"on {found['host']}, process {found['pid']}"
    if found.get("holder"):
        lines.append(f"driver on {Holder(**found['holder'])}")
    if quiet is not None:
        lines.append(f"no driver has been heard of for {quiet:.0f} s; the last one ran {where}")
    if found["best"]:
        best = found["best"]
        clean = "–" if best["clean_accuracy"] is None else f"{100 * best['clean_accuracy']:.1f}"
        lines.append(
            f"best so far: trial {best['number']} ({best['label']}), epoch {best['epoch']}: "
            f"robust {with_interval(best, 'robust_accuracy')} %, clean {clean} % "
            f"({found['attack']})"
        )
    if found["there"] and found["state"] not in status.ENDED:
        used = [
            f"{found['used'][kind]:g} of {found['there'][kind]:g} {kind.upper()[:-1]}s"
            for kind in ("cpus", "gpus")
            if found["there"][kind]
        ]
        lines.append(f"in use: {', '.join(used)}")
    budget = ", ".join(f"{key} {value:g}" for key, value in found["budget"].items())
    spent = f"cost: {Cost(**found['cost'])} in {span(found['cost']['wall_seconds'])}"
    lines.append(spent + (f"; budget: {budget}" if budget else ""))
    if found["seconds_left"] is not None and found["state"] == "training" and quiet is None:
        lines.append(f"about {span(found['seconds_left'])} left, if trials go on as so far")
    return lines


def state_line(found: Mapping[str, Any]) -> str:
    """Its state, and how many trials are in which."""
    counts = ", ".join(f"{count} {state}" for state, count in found["counts"].items())
    reason = f" ({found['cut']})" if found.get("cut") else ""
    return f"{found['name']}: {found['state']}{reason}; {found['total_trials']} trials: {counts}"


def span(seconds: float) -> str:
    """``1:02:03``."""
    return str(timedelta(seconds=round(seconds)))


def trial_table(found: Mapping[str, Any]) -> Table:
    """One row a trial."""
    table = Table(header_style="bold")
    rungs = any(trial["rung"] for trial in found["trials"])
    table.add_column("#", justify="right")
    table.add_column("trial", overflow="fold")
    table.add_column("state", no_wrap=True)
    if rungs:
        table.add_column("rung", justify="right")
    table.add_column("epoch", justify="right", no_wrap=True)
    table.add_column("clean %", justify="right")
    table.add_column("robust % [95 %]", justify="right", no_wrap=True)
    table.add_column("time", justify="right", no_wrap=True)
    table.add_column("why", overflow="fold")
    for trial in found["trials"]:
        length = f"/{trial['num_epochs']:.0f}" if trial["num_epochs"] else ""
        numbers = {key: value for key, value in trial.items() if value is not None}
        clean = numbers.get("clean_accuracy")
        interval = "robust_accuracy_low" in numbers
        table.add_row(
            str(trial["number"]),
            Text(trial["label"]),
            Text(trial["state"], style=COLOURS.get(trial["state"], "")),
            *([str(trial["rung"] or "–")] if rungs else []),
            f"{trial['epoch']}{length}",
            "–" if clean is None else f"{100 * clean:.1f}",
            with_interval(numbers, "robust_accuracy") if interval else "–",
            span(trial["held_seconds"]),
            Text(trial["standing"] or trial["why"]),
        )
    return table


def print_status(console: Console, found: Mapping[str, Any]) -> None:
    """All of it."""
    for line in head_lines(found):
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    console.print(trial_table(found))


def show_live(console: Console, look: Callable[[], Mapping[str, Any]]) -> None:
    """Keep it up to date on a terminal until the search ends; elsewhere print it once."""
    found = look()
    if not console.is_terminal:
        print_status(console, found)
        return
    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:
        while True:
            heads = Text("\n".join(head_lines(found)))
            live.update(Group(heads, trial_table(newest_first(found))), refresh=True)
            if found["state"] in status.ENDED or found.get("driver") is False:
                return
            time.sleep(REFRESH_S)
            found = look()


def newest_first(found: Mapping[str, Any]) -> dict[str, Any]:
    """With what runs or waits on top: a long table is cut at the end of the screen."""
    ended = [t["state"] not in ("running", "waiting") for t in found["trials"]]
    order = sorted(range(len(ended)), key=lambda i: (ended[i], -i))
    return {**found, "trials": [found["trials"][i] for i in order]}
