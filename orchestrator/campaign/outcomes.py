"""What a campaign has found so far, kept in its storage method by method."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal

from orchestrator import storage
from orchestrator.config import RunConfig
from orchestrator.search.budget import Cost
from orchestrator.search.result import SearchResult
from orchestrator.search.trial import Trial
from orchestrator.training.retries import retry_tags

Phase = Literal["tuning", "replicates"]


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """The end of a method's search."""

    search: str
    run_id: str | None
    """Of the winner; None if there is none."""
    label: str
    settings: dict[str, Any]
    """What it chose, by dotted key."""
    holdout: dict[str, float]
    """The winner's accuracies of its best epoch, by which it was chosen."""
    trials: int
    states: dict[str, int]
    """How the trials ended."""
    cost: Cost

    @staticmethod
    def of(result: SearchResult) -> Tuning:
        """What a search ended with."""
        winner, search = result.winner, result.search
        accuracies = ("best_clean_accuracy", "best_robust_accuracy")
        return Tuning(
            search=str(search.base.name),
            run_id=winner.run_id if winner else None,
            label=winner.label if winner else "",
            settings=search.space.overrides(winner.params) if winner else {},
            holdout={key: winner.last[key] for key in accuracies} if winner else {},
            trials=len(result.trials),
            states=dict(Counter(trial.state for trial in result.trials)),
            cost=result.cost,
        )


@dataclass(frozen=True, kw_only=True)
class Replicate:
    """One network of a method."""

    seed: int
    run_id: str
    lost: str
    """Why it has no numbers on the test set; empty if it has."""
    ended: str
    """Why its training stopped."""
    test: dict[str, float]
    """As recorded: accuracies in [0, 1] with ``_low`` and ``_high``, and the number of images."""
    seconds: float
    device: str
    differs: str = ""
    """Why it is not quite the run that its config says; empty if it is."""

    @staticmethod
    def of(trial: Trial, own: RunConfig) -> Replicate:
        """What a trial of the replicates' search ended with, whose config is ``own``."""
        failed = trial.reason if trial.state != "finished" else ""
        lost = trial.untested or failed or "nothing was measured"
        return Replicate(
            seed=int(trial.params["seed"]),
            run_id=trial.run_id,
            lost="" if trial.test else f"{trial.state}: {lost}",
            ended=trial.reason,
            test=trial.test,
            seconds=trial.seconds,
            device=str(trial.last.get("device", "unknown")),
            differs=retry_tags(trial.retries, own, trial.last).get("morel.differs", ""),
        )


@dataclass(frozen=True, kw_only=True)
class Replicates:
    """All networks of a method."""

    search: str
    runs: list[Replicate]
    cost: Cost

    @staticmethod
    def of(result: SearchResult) -> Replicates:
        """What the search over seeds ended with."""
        search = result.search
        runs = [Replicate.of(t, search.trial_config(t.params)) for t in result.trials]
        return Replicates(search=str(search.base.name), runs=runs, cost=result.cost)


@dataclass(frozen=True, kw_only=True)
class MethodOutcome:
    """What is known of a method at the end."""

    tuning: Tuning | None
    """None where nothing was tuned."""
    replicates: Replicates | None
    """None if tuning found no setting."""


def settled(result: SearchResult) -> bool:
    """Whether all trials are trained and measured, or never will be."""
    ended = all(trial.state != "running" and not _lost(trial) for trial in result.trials)
    return ended and (len(result.trials) == result.search.total_trials or bool(result.cut))


def _lost(trial: Trial) -> bool:
    """Whether a measurement of it failed, which the same command tries again."""
    return bool(trial.untested) or (bool(trial.standing) and trial.verified is None)


class OutcomeStore:
    """A file for each method and phase: what is there is not run again."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def save(self, method: str, phase: Phase, outcome: Tuning | Replicates) -> None:
        """Keep the outcome of a phase that is over."""
        content = json.dumps(dataclasses.asdict(outcome), indent=2)
        storage.write(self._path(method, phase), content.encode())

    def tuning(self, method: str) -> Tuning | None:
        """What was kept, if anything."""
        content = self._load(method, "tuning")
        if content is None:
            return None
        return Tuning(cost=Cost(**content.pop("cost")), **content)

    def replicates(self, method: str) -> Replicates | None:
        """What was kept, if anything."""
        content = self._load(method, "replicates")
        if content is None:
            return None
        runs = [Replicate(**run) for run in content["runs"]]
        return Replicates(search=content["search"], runs=runs, cost=Cost(**content["cost"]))

    def _load(self, method: str, phase: Phase) -> dict[str, Any] | None:
        text = storage.read_text(self._path(method, phase))
        return json.loads(text) if text else None

    def _path(self, method: str, phase: Phase) -> str:
        return f"{self.folder}/methods/{method}.{phase}.json"
