"""Which trial of a search wins, and why the others lost: numbers of one rung, verified if asked."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator import records
from orchestrator.search_space import SearchConfig
from orchestrator.trials import Trial

NO_EVIDENCE = ("not_converged",)
"""Findings that speak of an attack's strength, not of the network's gradients."""
VERIFYING = "being verified"
BIASED = "the largest of several noisy numbers, so biased upwards"


def with_interval(values: Mapping[str, Any], key: str) -> str:
    """``87.3 [83.2, 90.6]`` in per cent; a dash where it was not measured."""
    if key not in values:
        return "–"
    value, low, high = (100 * values[key + end] for end in ("", "_low", "_high"))
    return f"{value:.1f} [{low:.1f}, {high:.1f}]"


@dataclass(frozen=True, kw_only=True)
class Verified:
    """A trial's best network under the verification's attacks, on the first held-out images."""

    document: str
    """All of it as JSON, as `orchestrator.worker.measure_verified` gives it."""
    attacks: list[str]
    """Names of the attacks, of which the worst case per image counts."""
    clean_accuracy: float
    worst_case: dict[str, float]
    """``accuracy`` under all of them, ``accuracy_low``, ``accuracy_high``."""
    num_images: int
    masking: list[str]
    """Evidence that its gradients mislead attacks; an honest network has none."""
    metrics: dict[str, float]
    """As recorded."""

    @staticmethod
    def from_json(document: str) -> Verified:
        """What a verification wrote; raises ValueError or KeyError if it is none."""
        content = json.loads(document)
        record, worst = content["evaluation"], content["worst_case"]
        attacks = [name for name in record["outcomes"] if name != "clean"]
        metrics = records.test_metrics({**record, "split": "verified"})
        if len(attacks) > 1:
            metrics |= {
                f"verified.robust.{key.replace('accuracy', 'worst_case')}": value
                for key, value in worst.items()
            }
        return Verified(
            document=document,
            attacks=attacks,
            clean_accuracy=record["outcomes"]["clean"]["accuracy"],
            worst_case=worst,
            num_images=record["outcomes"]["clean"]["num_images"],
            masking=[
                finding["reason"]
                for finding in content["findings"]
                if finding["code"] not in NO_EVIDENCE
            ],
            metrics=metrics,
        )

    def __str__(self) -> str:
        """``61.0 [51.2, 70.0] % (square_linf_0.1, 100 held-out images)``."""
        attacks, images = ", ".join(self.attacks), f"{self.num_images} held-out images"
        return f"{with_interval(self.worst_case, 'accuracy')} % ({attacks}; {images})"

    @property
    def robust_accuracy(self) -> float:
        """The worst case over the attacks."""
        return self.worst_case["accuracy"]


def ranked(search: SearchConfig, trials: Sequence[Trial]) -> list[Trial]:
    """The trials that could win, the best search number first; a tie goes to the earlier one.

    They came to their own end, are as long as the longest, and were measured on the last rung:
    numbers of different rungs are never compared.
    """
    rungs, metric = len(search.base.evaluation.rungs), f"best_{search.objective.metric}"
    ended = [t for t in trials if t.state == "finished" and t.measured and t.checkpoint]
    longest = max((trial.length for trial in ended), default=0)
    return sorted(
        (trial for trial in ended if trial.length == longest and trial.rung == rungs),
        key=lambda trial: (_descending(search, trial.last[metric]), trial.number),
    )


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
            _descending(search, getattr(trial.verified, search.objective.metric)),
            trial.number,
        ),
        default=None,
    )


def _descending(search: SearchConfig, value: float) -> float:
    return -value if search.objective.mode == "max" else value


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
    if winner is None:
        what = "verified" if search.ladder.verify.top else "trained to the end and measured"
        return [f"No trial was {what}: there is no winner.", *lost]
    attack = records.evaluation_label(search.base)
    value = with_interval(winner.last, "best_robust_accuracy")
    searched = f"held-out robust accuracy {value} % ({attack})"
    head = f"Winner: trial {winner.number} ({winner.label}), "
    if winner.verified is None:
        return [f"{head}{searched}: {BIASED}; test numbers are not."]
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


def summary_note(search: SearchConfig, trials: Sequence[Trial], winner: Trial | None) -> str:
    """Markdown for the search's page: what was searched, and what came out."""
    head = f"**{search.name}** on `{search.recipe}`: {len(trials)} trials."
    return "\n\n".join([head, *result_lines(search, trials, winner)])


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
