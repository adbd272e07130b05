"""Notes on the pages of a search and of its trials in MLflow."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence

from orchestrator.messages.wording import duration
from orchestrator.notes import (
    NO_BREAK,
    accuracy_table,
    cell,
    commands,
    counted,
    headline,
    link,
    table,
)
from orchestrator.search.budget import Cost
from orchestrator.search.parameters import show
from orchestrator.search.selection import front, ranked, result_lines, rows_of, why_lost
from orchestrator.search.space import SearchConfig
from orchestrator.search.trial import Trial
from orchestrator.tracking import records

BEST, WAYS, NAMED = 10, 6, 5
"""Trials in the table of the best, ways to end, and trials named for each: MLflow keeps 8,000
characters of a note."""


def trial_note(search: SearchConfig, trial: Trial, winner: Trial | None = None) -> str:
    """The note of a trial.

    Args:
        search: that it belongs to.
        trial: which has ended.
        winner: of the search, once that is known.
    """
    metrics = trial_metrics(search, trial)
    name = str(search.base.name)
    point = ", ".join(f"{key} = {show(value)}" for key, value in trial.params.items())
    cost = f"{trial.seconds:.0f} s on {trial.last.get('device', 'unknown')}"
    parts = [
        _verdict(trial, winner, headline(metrics)),
        f"Trial {trial.number} of {link(name, f'run:{name}')}: {cell(point)}. "
        f"Ended: {cell(trial.reason)}. Cost: {cost}.",
        accuracy_table(metrics),
    ]
    if trial.measured:
        again = {f"morel reproduce {trial.run_id}": "again, and compared"}
        parts.append(commands(search.base, again))
    return "\n\n".join(filter(None, parts))


def trial_metrics(search: SearchConfig, trial: Trial) -> dict[str, float]:
    """The accuracies of a trial by their recorded names."""
    found = records.best_metrics(
        trial.last, records.measured_with(search.base, trial.last, "best_")
    )
    found |= trial.verified.metrics if trial.verified else {}
    base = search.base
    return counted(found | trial.test, base.evaluation.num_images or base.data.holdout)


def _verdict(trial: Trial, winner: Trial | None, numbers: str) -> str:
    """How a candidate did, or why a trial has no result; for all others their ``numbers``."""
    if winner is not None and trial is winner:
        return f"Won the search: {cell(trial.standing)}." if trial.standing else f"Won. {numbers}"
    if lost := why_lost(trial, winner):
        return f"Lost: {cell(lost)}."
    if trial.state in ("failed", "diverged"):
        return f"{trial.state.capitalize()}: {cell(trial.reason)}."
    return numbers


def search_note(
    search: SearchConfig, trials: Sequence[Trial], winner: Trial | None, cost: Cost
) -> str:
    """The note of a search: how it came out, the best trials, how trials ended, what it cost."""
    name = str(search.base.name)
    first, *others = (cell(line) for line in result_lines(search, trials, winner))
    what = f" {cell(search.description)}." if search.description else ""
    spent = f"{cost}, {duration(cost.wall_seconds)} of wall time{_beside(cost)}"
    head = f"**{search.name}** on `{search.recipe}`: {len(trials)} trials, {spent}.{what}"
    again = {
        **({f"morel reproduce {name}": "the winner again, and compared"} if winner else {}),
        f"morel report --search {name}": "one page with everything",
        f"morel compare --search {name}": "all trials in a table",
    }
    parts = [
        first,
        f"{head} {link('All trials: table and charts', f'view:{name}')}",
        *others,
        _best(search, trials, winner),
        _ends(trials),
        commands(search.base, again),
    ]
    return "\n\n".join(filter(None, parts))


def _beside(cost: Cost) -> str:
    """What measuring cost after the training, which the cost of trials does not count."""
    parts = {"verification": cost.verification_seconds, "the test set": cost.test_seconds}
    spent = [f"{duration(seconds)} of {what}" for what, seconds in parts.items() if seconds]
    return f" (besides: {' and '.join(spent)})" if spent else ""


def _best(search: SearchConfig, trials: Sequence[Trial], winner: Trial | None) -> str:
    """A table of the front, or of the best by search number; each trial is a link."""
    both = search.objective.metric == "tradeoff"
    members = front(search, trials) if both else ranked(search, trials)
    members = members[:BEST]
    if not members:
        return ""
    rows = rows_of(members)
    for row, trial in zip(rows, members, strict=True):
        row |= {key: value.replace(" ", NO_BREAK) for key, value in row.items() if key != "trial"}
        won = " **won**" if trial is winner else ""
        row["trial"] = link(row["trial"], f"run:{trial.run_id}") + won
    attack = records.evaluation_label(search.base)
    title = "Front of held-out accuracies" if both else "The best by held-out accuracies"
    heading = [key.replace(" ", NO_BREAK) for key in rows[0]]
    lines = table(heading, (list(row.values()) for row in rows))
    return f"{title} ({attack}):\n\n{lines}"


def _ends(trials: Sequence[Trial]) -> str:
    """A table of how trials ended, the most frequent way first."""
    found: dict[str, list[Trial]] = defaultdict(list)
    for trial in trials:
        found[_kind(trial)].append(trial)
    ways = sorted(found.items(), key=lambda item: -len(item[1]))
    rows = [[str(len(ended)), cell(way), _named(ended)] for way, ended in ways[:WAYS]]
    if len(ways) > WAYS:
        rows.append([str(sum(len(ended) for _, ended in ways[WAYS:])), "other reasons", ""])
    return table(["trials", "how they ended", "which"], rows) if rows else ""


def _kind(trial: Trial) -> str:
    """A trial's stop reason without what is its alone."""
    if trial.state == "failed":
        return f"failed: {trial.reason[:80]}"
    return re.sub(r": .*", "", trial.reason, flags=re.DOTALL) or trial.state


def _named(trials: Sequence[Trial]) -> str:
    links = [link(str(trial.number), f"run:{trial.run_id}") for trial in trials[:NAMED]]
    return ", ".join(links) + (" …" if len(trials) > NAMED else "")
