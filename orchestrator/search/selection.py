"""Which trials of a search are its result, and why others are not: numbers of one rung.

The winner, verified if asked, and the front of clean and robust accuracy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from orchestrator.compare import pareto
from orchestrator.messages.wording import with_interval
from orchestrator.search import goal
from orchestrator.search.space import SearchConfig
from orchestrator.search.trial import Trial
from orchestrator.tracking import records

VERIFYING = "being verified"
BIASED = "the largest of several noisy numbers, so biased upwards"
LISTED = 5
"""So many trials that miss a constraint are named one by one."""


def comparable(search: SearchConfig, trials: Sequence[Trial]) -> list[Trial]:
    """The trials whose numbers may be compared, in their order.

    They came to their own end, are as long as the longest, and were measured on the last rung:
    numbers of different rungs are never compared.
    """
    rungs = len(search.base.evaluation.rungs)
    ended = [t for t in trials if t.state == "finished" and t.measured and t.checkpoint]
    longest = max((trial.length for trial in ended), default=0)
    return [trial for trial in ended if trial.length == longest and trial.rung == rungs]


def left_out(search: SearchConfig, trials: Sequence[Trial]) -> dict[str, list[str]]:
    """Which comparable trials miss a constraint, by run id, and by how much."""
    found = {
        t.run_id: goal.complaints(search.objective, t.last) for t in comparable(search, trials)
    }
    return {run_id: complaints for run_id, complaints in found.items() if complaints}


def eligible(search: SearchConfig, trials: Sequence[Trial]) -> list[Trial]:
    """The comparable trials that keep the search's constraints."""
    out = left_out(search, trials)
    return [trial for trial in comparable(search, trials) if trial.run_id not in out]


def ranked(search: SearchConfig, trials: Sequence[Trial]) -> list[Trial]:
    """The trials that could win, the best search number first; a tie goes to the earlier one.

    With the metric ``tradeoff`` those on the front, the most robust first.
    """
    if search.objective.metric == "tradeoff":
        return front(search, trials)
    metric = f"best_{search.objective.metric}"
    return sorted(
        eligible(search, trials),
        key=lambda trial: (-trial.last[metric], trial.number),
    )


def front(search: SearchConfig, trials: Sequence[Trial]) -> list[Trial]:
    """The eligible trials that none dominates in clean and robust accuracy, most robust first.

    Both are search numbers of the best epoch. A trial whose robust accuracy was found to come from
    masked gradients is no part of it, unless every one is such.
    """
    could = eligible(search, trials)
    could = [t for t in could if t.verified is None or not t.verified.masking] or could
    best = [could[i] for i in pareto.front([accuracies(trial) for trial in could])]
    return sorted(best, key=lambda trial: (-trial.last["best_robust_accuracy"], trial.number))


def accuracies(trial: Trial) -> tuple[float, float]:
    """Clean and robust accuracy of a measured trial's best epoch."""
    return trial.last["best_clean_accuracy"], trial.last["best_robust_accuracy"]


def honest(trials: Sequence[Trial]) -> list[Trial]:
    """The verified trials without evidence of masked gradients."""
    return [t for t in trials if t.verified is not None and not t.verified.masking]


def choose(search: SearchConfig, trials: Sequence[Trial]) -> Trial | None:
    """The winner: by search numbers, or with ``ladder.verify`` by verified ones.

    A trial flagged for masked gradients wins only where every verified one is.
    """
    if not search.ladder.verify.top:
        return next(iter(ranked(search, trials)), None)
    verified = [trial for trial in trials if trial.verified is not None]
    return min(
        honest(verified) or verified,
        key=lambda trial: (
            -getattr(trial.verified, search.objective.scalar),
            trial.number,
        ),
        default=None,
    )


def why_lost(trial: Trial, winner: Trial | None) -> str:
    """What kept a candidate from winning; empty for the winner and for those never verified."""
    if trial is winner or not trial.standing:
        return ""
    if trial.verified is None or trial.verified.masking:
        return trial.standing
    assert winner is not None  # this one could have won
    assert winner.verified is not None
    best = with_interval(winner.verified.worst_case, "accuracy")
    return f"{trial.standing}, where trial {winner.number} has {best} %"


def result_lines(search: SearchConfig, trials: Sequence[Trial], winner: Trial | None) -> list[str]:
    """How the search came out, in sentences: for the terminal and for its page in MLflow."""
    lost = [
        f"Trial {t.number} ({t.label}) lost: {why}." for t in trials if (why := why_lost(t, winner))
    ]
    lost += _left_out_lines(search, trials)
    if winner is None:
        return [f"{_why_nobody(search, trials)}: there is no winner.", *lost]
    attack = records.evaluation_label(search.base)
    value = with_interval(winner.last, "best_robust_accuracy")
    searched = f"held-out robust accuracy {value} % ({attack})"
    head = f"Winner: trial {winner.number} ({winner.label}), "
    if search.objective.metric == "tradeoff":
        head += f"the most robust of the front's {len(front(search, trials))}, "
    if winner.verified is None:
        return [f"{head}{searched}: {BIASED}; test numbers are not.", *lost]
    count = len(honest(trials)) or len([t for t in trials if t.verified])
    lines = [
        f"{head}verified robust accuracy {winner.verified}: the best of {count}, on images that "
        "served the search too, so still slightly biased upwards; test numbers are not.",
        f"Its number in the search was {searched}: {BIASED}.",
    ]
    if winner.verified.masking:
        lines.append(
            f"Every candidate is flagged, the winner too: {' '.join(winner.verified.masking)}"
        )
    return lines + lost


def _why_nobody(search: SearchConfig, trials: Sequence[Trial]) -> str:
    if not comparable(search, trials):
        return "No trial was trained to the end and measured"
    if not eligible(search, trials):
        return f"No trial keeps {' and '.join(search.objective.constraints)}"
    return "No trial was verified"


def _left_out_lines(search: SearchConfig, trials: Sequence[Trial]) -> list[str]:
    out = left_out(search, trials)
    named = [trial for trial in trials if trial.run_id in out]
    lines = [
        f"Trial {t.number} ({t.label}) is left out: {', '.join(out[t.run_id])}."
        for t in named[:LISTED]
    ]
    more = len(named) - LISTED
    return lines + ([f"Left out for a missed constraint too: {more} more."] if more > 0 else [])


def front_rows(search: SearchConfig, trials: Sequence[Trial]) -> list[dict[str, str]]:
    """The front as `rows_of`."""
    return rows_of(front(search, trials))


def rows_of(trials: Sequence[Trial]) -> list[dict[str, str]]:
    """A table of text, a row a measured trial: clean and robust accuracy in per cent."""
    verified = any(trial.verified for trial in trials)
    return [
        {
            "trial": f"{trial.number} ({trial.label})",
            "clean % [95 %]": with_interval(trial.last, "best_clean_accuracy"),
            "robust % [95 %]": with_interval(trial.last, "best_robust_accuracy"),
            **({"verified % [95 %]": _verified_text(trial)} if verified else {}),
        }
        for trial in trials
    ]


def _verified_text(trial: Trial) -> str:
    return with_interval(trial.verified.worst_case, "accuracy") if trial.verified else "–"


def verified_summary(trial: Trial, winner: Trial | None) -> dict[str, Any] | None:
    """A candidate's verification, plain; None for trials that were none."""
    if not trial.standing:
        return None
    summary: dict[str, Any] = {"lost": why_lost(trial, winner) or None}
    if trial.verified is not None:
        summary |= {
            "attacks": trial.verified.attacks,
            "num_images": trial.verified.num_images,
            "masking": trial.verified.masking,
            **trial.verified.metrics,
        }
    return summary
