"""What a search has spent, and whether its training has spent the budget."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from orchestrator.search.selection import ranked
from orchestrator.search.space import SearchConfig
from orchestrator.search.trial import Trial

HOUR = 3600.0


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Seconds, of all drivers of a search together."""

    wall_seconds: float = 0.0
    """While a driver ran."""
    cpu_seconds: float = 0.0
    """CPUs of a trial × seconds of its training, summed over trials; repeated epochs count."""
    gpu_seconds: float = 0.0
    """As ``cpu_seconds``, for GPUs."""
    verification_seconds: float = 0.0
    """Of the candidates' verifications, each on the CPUs and GPUs of one worker; no budget bounds
    them, nor ``test_seconds``."""
    test_seconds: float = 0.0
    """As ``verification_seconds``, of what was measured on the test set."""

    def metrics(self) -> dict[str, float]:
        """As recorded."""
        return {f"cost.{key}": value for key, value in vars(self).items()}

    def __str__(self) -> str:
        """``0.42 GPU-hours, 1.68 CPU-hours``; no GPUs where none were used."""
        gpus = f"{self.gpu_seconds / HOUR:.3g} GPU-hours, " if self.gpu_seconds else ""
        return f"{gpus}{self.cpu_seconds / HOUR:.3g} CPU-hours"


class Meter:
    """Adds up what a search spends.

    Args:
        search: whose ``budget`` and ``resources`` count.
        wall_before: seconds that earlier drivers of this search ran.
        held_before: `Trial.held` under them, by run id; counts until the trial is here again.
        clock: unix seconds.
    """

    def __init__(
        self,
        search: SearchConfig,
        wall_before: float = 0.0,
        held_before: Mapping[str, float] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.search = search
        self._wall_before = wall_before
        self._held_before = dict(held_before or {})
        self._clock = clock
        self._began = clock()

    def cost(self, trials: Sequence[Trial]) -> Cost:
        """What was spent until now, by running trials too."""
        now = self._clock()
        each = self.search.resources.cost(sum(self.held(trials, now).values()))
        return Cost(
            wall_seconds=self._wall_before + now - self._began,
            cpu_seconds=each["cost.cpu_seconds"],
            gpu_seconds=each["cost.gpu_seconds"],
            verification_seconds=sum(t.verified.seconds for t in trials if t.verified),
            test_seconds=sum(t.test_seconds for t in trials),
        )

    def held(self, trials: Sequence[Trial], now: float) -> dict[str, float]:
        """Seconds that each trial has cost, by run id: also those that are not here yet."""
        return self._held_before | {trial.run_id: trial.held_until(now) for trial in trials}

    def over(self, trials: Sequence[Trial]) -> str:
        """The limit of ``budget`` that is reached, as ``budget.gpu_hours spent``; or nothing."""
        budget, cost = self.search.budget, self.cost(trials)
        for key, limit, spent in (
            ("wall_time_s", budget.wall_time_s, cost.wall_seconds),
            ("gpu_hours", budget.gpu_hours, cost.gpu_seconds / HOUR),
            ("cpu_hours", budget.cpu_hours, cost.cpu_seconds / HOUR),
        ):
            if limit is not None and spent >= limit:
                return f"budget.{key} spent"
        return "budget.target reached" if self._target_reached(trials) else ""

    def _target_reached(self, trials: Sequence[Trial]) -> bool:
        """Whether a trial that could win is good enough."""
        target, goal = self.search.budget.target, self.search.objective
        if target is None:
            return False
        for best in ranked(self.search, trials)[:1]:
            return float(best.last[f"best_{goal.scalar}"]) >= target
        return False
