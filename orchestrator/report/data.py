"""What is known of a search, a campaign or an experiment, as `reading` finds it in MLflow."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from orchestrator.compare import pareto
from orchestrator.compare.runs import UNMASKED, RunRecord, Score

if TYPE_CHECKING:
    from orchestrator.campaign.report import Report


@dataclass(frozen=True, kw_only=True)
class Step:
    """An epoch of a run, as far as it was recorded."""

    epoch: int
    time: float
    """Unix seconds at its end."""
    training_s: float = 0.0
    evaluation_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The record of an evaluation, with the outcome of each image (docs/adr/0007)."""

    run_id: str
    file: str
    """Its artifact path."""
    record: dict[str, Any]
    findings: list[dict[str, Any]]
    labels: list[int] | None
    """Of its images, where it wrote them."""

    @property
    def seconds(self) -> float:
        """Of all its attacks."""
        return sum(float(o["seconds"]) for o in self.record["outcomes"].values())


@dataclass(frozen=True, kw_only=True)
class Trial:
    """A trial of a search, or a training."""

    run: RunRecord
    number: int
    name: str
    """A baseline's name, else ``trial 7``, else the run's name."""
    point: dict[str, Any]
    """Searched parameter → raw value."""
    steps: list[Step]
    attack: str
    """With which the numbers that decide are measured."""

    @property
    def baseline(self) -> str | None:
        """Its name, if it is one; a campaign's replicates are none."""
        replicate = self.run.tags.get("morel.phase") == "replicates"
        return None if replicate else self.run.tags.get("morel.baseline")

    @property
    def state(self) -> str:
        """finished, stopped, diverged, failed, or MLflow's status in small letters."""
        return self.run.tags.get("morel.state") or self.run.status.lower()

    @property
    def clean(self) -> Score | None:
        """Held-out clean accuracy of its best epoch."""
        return self.run.clean("holdout")

    @property
    def robust(self) -> Score | None:
        """Held-out robust accuracy of its best epoch, under the attack that decides."""
        return self.run.robust("holdout").get(self.attack)

    @property
    def any_robust(self) -> Score | None:
        """The same of whatever attack measured it."""
        return self.robust or next(iter(self.run.robust("holdout").values()), None)

    @property
    def verified_clean(self) -> Score | None:
        """On the images of the verification."""
        return score(self.run, "verified.clean")

    @property
    def verified(self) -> Score | None:
        """Worst case over the verification's attacks, or its one attack."""
        return score(self.run, "verified.robust.worst_case") or next(
            iter(scores(self.run, "verified.robust.").values()), None
        )

    @property
    def masking(self) -> str:
        """Evidence of masked gradients; empty if there is none, or nobody looked."""
        found = self.run.tags.get("morel.masking", "")
        return "" if found == UNMASKED else found

    @property
    def whole(self) -> bool:
        """Whether its numbers compare with the others': its own end, the attack that decides."""
        return self.state == "finished" and self.clean is not None and self.robust is not None

    @property
    def eligible(self) -> bool:
        """Whether it keeps the search's constraints, too."""
        return self.whole and self.run.tags.get("morel.missed", "nothing") == "nothing"

    @property
    def training_s(self) -> float:
        """Seconds of its epochs."""
        return sum(step.training_s for step in self.steps)

    @property
    def evaluation_s(self) -> float:
        """Seconds of measuring them."""
        return sum(step.evaluation_s for step in self.steps)

    @property
    def ended(self) -> float | None:
        """When its training was over: its run in MLflow ends with its last measurement."""
        return self.steps[-1].time if self.steps else self.run.ended


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """All that the report shows, but pictures of the network."""

    uri: str
    experiment: str
    subject: RunRecord | None
    """The run of the search or campaign; None where there are trainings alone."""
    runs: list[RunRecord]
    """All of them, subject included."""
    trials: list[Trial]
    winner: Trial | None
    provisional: bool
    """Nobody has chosen yet: the winner is the best so far."""
    definition: dict[str, Any]
    """``config.yaml`` of the subject."""
    config: dict[str, Any]
    """``config.yaml`` of the winner."""
    evaluations: list[Measured]
    """Of the best trials and the baselines, and of all that were verified or tested."""
    curves: dict[str, dict[str, list[tuple[int, float]]]]
    """Run id → metric → (epoch, value), of the best trials and the baselines."""
    campaign: Report | None
    """Of a campaign that came to its end."""
    others: list[str]
    """Other searches and campaigns of the experiment."""
    gaps: list[str] = field(default_factory=lambda: list[str]())
    """What could not be read, and why."""

    @cached_property
    def front(self) -> list[Trial]:
        """Trials that none dominates in clean and robust accuracy, the most robust first.

        As `orchestrator.search.selection.front` has them.
        """
        could = [trial for trial in self.trials if trial.eligible]
        could = [trial for trial in could if not trial.masking] or could
        points = [(t.clean.value, t.robust.value) for t in could if t.clean and t.robust]
        members = [could[index] for index in pareto.front(points)]
        return sorted(members, key=robust_first)

    @cached_property
    def searched(self) -> list[str]:
        """Parameters that differ between trials, as they were searched."""
        keys = dict.fromkeys(key for trial in self.trials for key in trial.point)
        return [k for k in keys if len({json.dumps(t.point.get(k)) for t in self.trials}) > 1]

    @property
    def metric(self) -> str:
        """What the search made better: robust_accuracy, clean_accuracy or tradeoff."""
        objective = self.definition.get("search", {}).get("objective", {})
        return objective.get("metric", "robust_accuracy")

    @property
    def title(self) -> str:
        """What the report is about."""
        return self.subject.name if self.subject else self.experiment

    def measured(self, trial: Trial) -> list[Measured]:
        """The records of a trial's evaluations."""
        return [found for found in self.evaluations if found.run_id == trial.run.run_id]


def score(run: RunRecord, key: str) -> Score | None:
    """A recorded accuracy with its interval."""
    metrics = run.metrics
    if key not in metrics:
        return None
    return Score(metrics[key], metrics.get(f"{key}_low"), metrics.get(f"{key}_high"))


def scores(run: RunRecord, prefix: str) -> dict[str, Score]:
    """Recorded accuracies by what follows ``prefix``."""
    return {
        key.removeprefix(prefix): found
        for key in sorted(run.metrics)
        if key.startswith(prefix)
        and not key.endswith(("_low", "_high"))
        and (found := score(run, key))
    }


def robust_first(trial: Trial) -> tuple[bool, float, int]:
    """Sorts trials: whole ones by robust accuracy, then the others, the longest first."""
    if trial.whole and trial.robust:
        return False, -trial.robust.value, trial.number
    return True, -float(trial.run.epochs or 0), trial.number


def flat_text(point: Mapping[str, Any]) -> str:
    """``alpha 0.1, temperature 0.05``: parameters for a tooltip."""
    return ", ".join(f"{key.rpartition('.')[2]} {value_text(v)}" for key, v in point.items())


def value_text(value: Any) -> str:
    """A parameter's value, four digits of a fraction."""
    if isinstance(value, bool) or not isinstance(value, float):
        return value if isinstance(value, str) else json.dumps(value)
    return f"{value:.4g}"
