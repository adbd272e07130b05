"""Who stops the trials of a search early. All count in epochs, which survive a restore.

Tune restores its schedulers as they were when the search began. Those that compare trials at
milestones keep what they saw in the search's folder, in ``scheduler/seen.json``, and read it again.

A diverged trial takes part with the worst numbers, as it reports them. Epochs that are no milestone
take no part, so that numbers of different epochs, and with them of different rungs, never meet.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from typing import Any

from ray.tune.schedulers import (
    AsyncHyperBandScheduler,
    FIFOScheduler,
    MedianStoppingRule,
    TrialScheduler,
)

from orchestrator import storage
from orchestrator.compare.pareto import best_first, ranks
from orchestrator.search.milestones import milestones
from orchestrator.search.pbt import PopulationTraining
from orchestrator.search.space import SearchConfig
from orchestrator.search.trial import STOP_REASON
from orchestrator.tracking import records

Point = tuple[float, float]


def make_scheduler(search: SearchConfig, limit: int = 1) -> TrialScheduler:
    """The scheduler that a search asks for; ``limit``: trials at a time, which pbt sees to."""
    match search.scheduler.name:
        case "asha" | "hyperband":
            return Halving(search)
        case "pareto":
            return ParetoHalving(search)
        case "median":
            return Median(time_attr="epoch", grace_period=search.scheduler.grace_period or 1)
        case "pbt":
            return PopulationTraining(search, limit)
        case "none":
            return FIFOScheduler()


def explain(tune_trial: Any, reason: str) -> None:
    """Say why a trial is stopped."""
    setattr(tune_trial, STOP_REASON, reason)
    tune_trial.invalidate_json_state()


class Records:
    """What was seen at milestones, in a file of the search's folder.

    Args:
        search: whose folder it is.
    """

    def __init__(self, search: SearchConfig) -> None:
        self._path = f"{search.base.storage_path}/{search.base.name}/scheduler/seen.json"

    def read(self) -> dict[str, Any]:
        """What was written last; empty at first."""
        return json.loads(storage.read_text(self._path) or "{}")

    def write(self, content: Mapping[str, Any]) -> None:
        """Replace what was written."""
        storage.write(self._path, json.dumps(content).encode())


class Halving(AsyncHyperBandScheduler):
    """Asynchronous successive halving (Li et al. 2020), with several brackets HyperBand.

    Ray's, with brackets drawn from the search's seed, and with a memory.
    """

    def __init__(self, search: SearchConfig) -> None:
        settings, epochs = search.scheduler, search.base.training.epochs
        super().__init__(
            time_attr="epoch",
            max_t=epochs,
            grace_period=min(settings.grace_period or 1, epochs),
            reduction_factor=settings.reduction_factor or 2,
            brackets=settings.brackets or 1,
        )
        self._seed = search.seed
        self._milestones = set(milestones(settings, epochs, search.base.evaluation.every))
        self._records = Records(search)
        self._recalled = False

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Put a trial into its bracket: the same one, however often it is added."""
        self._recall()
        dice = random.Random(f"{self._seed} bracket {trial.config['index']}")
        (bracket,) = dice.choices(self._brackets, weights=self._shares())
        self._trial_info[trial.trial_id] = bracket

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Stop a trial that is at a milestone and below the best share there."""
        if not self._counts(result):
            return TrialScheduler.CONTINUE
        decision = super().on_trial_result(tune_controller, trial, result)
        self._keep()
        return decision

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Take in the end of a trial, where others may be compared with it."""
        if self._counts(result):
            super().on_trial_complete(tune_controller, trial, result)
            self._keep()

    def _counts(self, result: Mapping[str, Any]) -> bool:
        epoch = result.get("epoch", 0)
        return epoch in self._milestones or epoch >= self._max_t or bool(result.get("diverged"))

    def _shares(self) -> list[float]:
        """Trials of each bracket in HyperBand, which gives all brackets the same epochs."""
        count, eta = len(self._brackets), self._reduction_factor
        return [eta ** (count - 1 - s) / (count - s) for s in range(count)]

    def _keep(self) -> None:
        self._records.write({"brackets": [dict(rungs_of(b)) for b in self._brackets]})

    def _recall(self) -> None:
        if self._recalled:
            return
        self._recalled = True
        for bracket, kept in zip(
            self._brackets, self._records.read().get("brackets", []), strict=False
        ):
            for milestone, recorded in rungs_of(bracket):
                recorded.update(kept.get(str(milestone), {}))


def rungs_of(bracket: Any) -> list[tuple[int, dict[str, float]]]:
    """Milestones of one of Ray's brackets, and what each trial had there."""
    return bracket._rungs


class ParetoHalving(FIFOScheduler):
    """Successive halving by non-domination of (clean, robust) accuracy.

    After Schmucker et al. (2021). At each milestone a trial is ranked among all that were there
    before it. It goes on while it is on their front, or in the best 1/reduction_factor of them by
    rank, and within a rank by what it adds to the hypervolume. Which of the two accuracies the
    search is for makes no difference.
    """

    def __init__(self, search: SearchConfig) -> None:
        super().__init__()
        epochs, every = search.base.training.epochs, search.base.evaluation.every
        self._milestones = milestones(search.scheduler, epochs, every)
        self._factor = search.scheduler.reduction_factor or 2
        self._points: dict[int, dict[str, Point]] = {m: {} for m in self._milestones}
        self._records = Records(search)
        self._recalled = False

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Remember, after a restore, the points that were seen before."""
        if not self._recalled:
            self._recalled = True
            for milestone, points in self._records.read().get("points", {}).items():
                self._points[int(milestone)] |= {i: tuple(p) for i, p in points.items()}

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Stop a trial that is at a milestone, dominated, and not among the best share."""
        points = self._points.get(result["epoch"])
        if points is None:
            return TrialScheduler.CONTINUE
        self._note(result["epoch"], trial, result)
        place = list(points).index(trial.trial_id)
        if goes_on(list(points.values()), place, self._factor):
            return TrialScheduler.CONTINUE
        mine = points[trial.trial_id]
        above = sum(dominates(other, mine) for other in points.values())
        explain(trial, f"dominated by {above} of {len(points) - 1}")
        return TrialScheduler.STOP

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """A trial that diverged counts as the worst at the next milestone, which it never sees."""
        if result.get("diverged"):
            ahead = [m for m in self._milestones if m >= result["epoch"]]
            if ahead:
                self._note(ahead[0], trial, result)

    def _note(self, milestone: int, trial: Any, result: Mapping[str, Any]) -> None:
        self._points[milestone][trial.trial_id] = records.accuracies(result)
        self._records.write({"points": self._points})


def dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether ``one`` is nowhere below and somewhere above ``other``."""
    return tuple(one) != tuple(other) and all(a >= b for a, b in zip(one, other, strict=True))


def goes_on(points: Sequence[Point], place: int, factor: int) -> bool:
    """Whether the point at ``place`` is on the front, or one of the best len(points) // factor."""
    best = len(points) // factor
    return ranks(points)[place] == 0 or place in best_first(points)[:best]


class Median(MedianStoppingRule):
    """Ray's median rule, except that nobody pauses for others while there is little to compare.

    A paused trial would be saved and loaded again for nothing, and one of several workers would
    lose what it trained since its last checkpoint.
    """

    def _on_insufficient_samples(self, tune_controller: Any, trial: Any, time: float) -> str:
        return TrialScheduler.CONTINUE
