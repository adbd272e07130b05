"""Who stops the trials of a search early. All count in epochs, which survive a restore.

Tune restores its schedulers as they were when the search began. Those that compare trials at
milestones keep what they saw and decided in the search's folder, in ``scheduler/seen.json``, and
read it again: a trial that was stopped does not come back to life after a driver's death.

A diverged trial takes part with the worst numbers, as it reports them. Epochs that are no milestone
take no part, so that numbers of different epochs, and with them of different rungs, never meet.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Numbered:
    """A trial for one of Ray's schedulers, under the id that it keeps."""

    trial_id: str


def lasting_id(tune_trial: Any) -> str:
    """Its index in the search: Tune's own id is another one where a trial comes again."""
    return str(tune_trial.config["index"])


class Memory:
    """What was seen at milestones and who was stopped there, in a file of the search's folder.

    Args:
        search: whose folder it is.
    """

    def __init__(self, search: SearchConfig) -> None:
        self._path = f"{search.base.storage_path}/{search.base.name}/scheduler/seen.json"
        self._stopped: dict[str, tuple[int, str]] = {}

    def recall(self) -> dict[str, Any]:
        """What was kept last; empty at first."""
        content = json.loads(storage.read_text(self._path) or "{}")
        self._stopped = {trial: (e, why) for trial, (e, why) in content.get("stopped", {}).items()}
        return content

    def keep(self, **seen: Any) -> None:
        """Replace what was kept."""
        storage.write(self._path, json.dumps({**seen, "stopped": self._stopped}).encode())

    def stop(self, tune_trial: Any, epoch: int, why: str = "") -> None:
        """Note that a trial is stopped, and on the trial why."""
        self._stopped[lasting_id(tune_trial)] = (epoch, why)
        if why:
            setattr(tune_trial, STOP_REASON, why)
            tune_trial.invalidate_json_state()

    def has_stopped(self, tune_trial: Any, result: Mapping[str, Any]) -> bool:
        """Whether a trial was stopped before, here or at an earlier epoch; it says why again."""
        epoch, why = self._stopped.get(lasting_id(tune_trial), (None, ""))
        if epoch is None or result.get("epoch", 0) < epoch:
            return False
        self.stop(tune_trial, epoch, why)
        return True


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
        self._memory = Memory(search)
        self._recalled = False

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Put a trial into its bracket: the same one, however often it is added."""
        self._recall()
        own = lasting_id(trial)
        dice = random.Random(f"{self._seed} bracket {own}")
        (bracket,) = dice.choices(self._brackets, weights=self._shares())
        self._trial_info[own] = bracket

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Stop a trial that is at a milestone and below the best share there."""
        if self._memory.has_stopped(trial, result):
            return TrialScheduler.STOP
        if not self._counts(result):
            return TrialScheduler.CONTINUE
        own = Numbered(lasting_id(trial))
        decision = super().on_trial_result(tune_controller, own, result)  # pyright: ignore[reportArgumentType]
        if decision == TrialScheduler.STOP:
            self._memory.stop(trial, result["epoch"])
        self._keep()
        return decision

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Take in the end of a trial, where others may be compared with it."""
        if self._counts(result):
            own = Numbered(lasting_id(trial))
            super().on_trial_complete(tune_controller, own, result)  # pyright: ignore[reportArgumentType]
            self._keep()

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """Tune has given a trial up."""
        self._trial_info.pop(lasting_id(trial), None)

    def _counts(self, result: Mapping[str, Any]) -> bool:
        epoch = result.get("epoch", 0)
        return epoch in self._milestones or epoch >= self._max_t or bool(result.get("diverged"))

    def _shares(self) -> list[float]:
        """Trials of each bracket in HyperBand, which gives all brackets the same epochs."""
        count, eta = len(self._brackets), self._reduction_factor
        return [eta ** (count - 1 - s) / (count - s) for s in range(count)]

    def _keep(self) -> None:
        self._memory.keep(brackets=[dict(rungs_of(b)) for b in self._brackets])

    def _recall(self) -> None:
        if self._recalled:
            return
        self._recalled = True
        before = self._memory.recall().get("brackets", [])
        for bracket, kept in zip(self._brackets, before, strict=False):
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
        self._memory = Memory(search)
        self._recalled = False

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Remember, after a restore, the points that were seen before."""
        if not self._recalled:
            self._recalled = True
            for milestone, points in self._memory.recall().get("points", {}).items():
                self._points[int(milestone)] |= {i: tuple(p) for i, p in points.items()}

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Stop a trial that is at a milestone, dominated, and not among the best share."""
        if self._memory.has_stopped(trial, result):
            return TrialScheduler.STOP
        points = self._points.get(result["epoch"])
        if points is None:
            return TrialScheduler.CONTINUE
        own = lasting_id(trial)
        points[own] = records.accuracies(result)
        decision = TrialScheduler.CONTINUE
        if not goes_on(list(points.values()), list(points).index(own), self._factor):
            above = sum(dominates(other, points[own]) for other in points.values())
            self._memory.stop(trial, result["epoch"], f"dominated by {above} of {len(points) - 1}")
            decision = TrialScheduler.STOP
        self._memory.keep(points=self._points)
        return decision

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """A trial that diverged counts as the worst at the next milestone, which it never sees."""
        if result.get("diverged"):
            ahead = [m for m in self._milestones if m >= result["epoch"]]
            if ahead:
                self._points[ahead[0]][lasting_id(trial)] = records.accuracies(result)
                self._memory.keep(points=self._points)


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
