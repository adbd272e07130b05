"""Population-based training (Jaderberg et al. 2017): a Tune scheduler that keeps trials in step.

Each trial pauses at each exchange until all that still train are there. Then the worst of them take
over the checkpoints of the best and go on under settings near theirs. So only numbers of equal
epochs are compared, any number of trials may share the cluster, and the same seed makes the same
search. Trials of different grid combinations are different populations.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

from ray.train._internal.session import _TrainingResult  # pyright: ignore[reportPrivateUsage]
from ray.tune import Checkpoint
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from orchestrator import storage
from orchestrator.compare.pareto import best_first, ranks
from orchestrator.search import goal
from orchestrator.search.exploration import explore
from orchestrator.search.milestones import milestones
from orchestrator.search.population import Exchange, Place, Population, workers_name
from orchestrator.search.space import SearchConfig
from orchestrator.tracking import records

WAITING, STARTING, RUNNING = "PAUSED", "PENDING", "RUNNING"  # of Ray's Trial


class PopulationTraining(FIFOScheduler):
    """Keeps the trials of a search in step, and moves networks between them.

    Every trial waits, from the beginning, until this scheduler has it run: a limit on concurrent
    trials of Tune's own would count paused ones and never let the last of a population begin.

    Args:
        search: with ``scheduler.name: pbt``.
        limit: trials at a time.
    """

    def __init__(self, search: SearchConfig, limit: int) -> None:
        super().__init__()
        training, evaluation = search.base.training, search.base.evaluation
        self._search = search
        # One trial more for each that runs may wait in Tune's own queue, where the cluster's
        # resources hold it back, so that it takes over the process of one that pauses.
        in_process = search.resources.workers == 1 and search.max_concurrent is None
        self._limit = 2 * limit if in_process else limit
        self._epochs = milestones(search.scheduler, training.epochs, evaluation.every)
        self._folder = f"{search.base.storage_path}/{search.base.name}"
        self._population: Population | None = None
        self._seen: set[str] = set()

    @property
    def population(self) -> Population:
        """What was decided so far, by this driver or one before it."""
        if self._population is None:
            self._population = Population.read(self._folder)
        return self._population

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Let a new trial wait, and a restored one where its newest exchange had put it."""
        if trial.trial_id in self._seen:  # it failed, and tries again from its checkpoint
            return
        self._seen.add(trial.trial_id)
        if trial.status != STARTING:
            return
        newest = self.population.newest(number_of(trial))
        if newest is not None:
            epoch, place = newest
            self._put(trial, place, move=position(trial) <= epoch)
        trial.set_status(WAITING)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Save and wait at an exchange."""
        at_exchange = result["epoch"] in self._epochs and not records.own_end(result)
        return TrialScheduler.PAUSE if at_exchange else TrialScheduler.CONTINUE

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        """The next trial that may run; makes the exchange when all have come to it."""
        trials = tune_controller.get_trials()
        live = [trial for trial in trials if not trial.is_finished()]
        here = [t for t in live if t.status == WAITING and position(t) == self._next_epoch]
        if here and len(here) == len(live) and len(trials) >= self._search.total_trials:
            self._exchange(here, position(here[0]))
        if sum(trial.status in (STARTING, RUNNING) for trial in live) >= self._limit:
            return None
        until = self._next_epoch or math.inf
        waiting = [t for t in live if t.status == WAITING and position(t) < until]
        return min(waiting, key=lambda t: (position(t), t.config["index"]), default=None)

    @property
    def _next_epoch(self) -> int | None:
        """Of the next exchange; None after the last."""
        done = [exchange.epoch for exchange in self.population.exchanges]
        return next((epoch for epoch in self._epochs if epoch not in done), None)

    def _exchange(self, trials: Sequence[Any], epoch: int) -> None:
        donors = self._donors(trials, epoch)
        places = {number_of(trial): self._place(trial, donors) for trial in trials}
        self.population.exchanges.append(Exchange(epoch=epoch, places=places))
        self.population.write(self._folder)  # before it happens: a restart makes it happen
        for trial in trials:
            self._forget(trial)
            if number_of(trial) in donors:
                self._put(trial, places[number_of(trial)], move=True)

    def _forget(self, trial: Any) -> None:
        """Remove what a trial saved before this exchange: nobody goes on from it any more."""
        manager, newest = trial.run_metadata.checkpoint_manager, trial.latest_checkpoint_result
        storage_path = self._search.base.storage_path
        for saved in manager._checkpoint_results:
            if saved.checkpoint.path != newest.checkpoint.path:
                storage.remove(storage.uri(storage_path, saved.checkpoint.path))
        manager._checkpoint_results = [newest]
        began = [0, *(exchange.epoch for exchange in self.population.exchanges)]
        if self._search.resources.workers > 1:
            for epoch in began[-3:-2]:  # the stretch that ended here began one exchange later
                storage.remove(f"{self._folder}/{workers_name(trial.trial_id, epoch)}")

    def _donors(self, trials: Sequence[Any], epoch: int) -> dict[int, Any]:
        """For the number of each trial that takes over a network, the trial it takes it from."""
        grid = [name for cell in self._search.space.grid()[:1] for name in cell]
        cells: dict[tuple[Any, ...], list[Any]] = {}
        for trial in sorted(trials, key=lambda trial: trial.config["index"]):
            cells.setdefault(tuple(trial.config["params"][name] for name in grid), []).append(trial)
        donors: dict[int, Any] = {}
        for members in cells.values():
            reports = [trial.latest_checkpoint_result.metrics for trial in members]
            points = [records.accuracies(report) for report in reports]
            missing = [bool(goal.complaints(self._search.objective, r)) for r in reports]
            for loser, winners in takeovers(self._search, points, missing):
                dice = self._dice("donor", epoch, members[loser])
                donors[number_of(members[loser])] = members[dice.choice(winners)]
        return donors

    def _place(self, trial: Any, donors: Mapping[int, Any]) -> Place:
        donor = donors.get(number_of(trial))
        params, source = trial.config["params"], donor or trial
        saved = source.latest_checkpoint_result
        spent = trial.latest_checkpoint_result.metrics.get("time_total_s", 0.0)  # its own costs
        dice = self._dice("explore", position(trial), trial)
        return Place(
            trained_with=dict(params),
            params=explore(self._search, donor.config["params"], dice) if donor else dict(params),
            donor=number_of(donor) if donor else None,
            checkpoint=saved.checkpoint.path,
            report=plain(saved.metrics) | {"time_total_s": spent, "trial_id": trial.trial_id},
        )

    def _dice(self, what: str, epoch: int, trial: Any) -> random.Random:
        return random.Random(f"{self._search.seed} {what} {epoch} {trial.config['index']}")

    def _put(self, trial: Any, place: Place, *, move: bool) -> None:
        """Give a trial its settings, and with ``move`` the checkpoint to go on from."""
        overrides = self._search.space.overrides(place.params)
        trial.set_config(trial.config | {"params": place.params, "overrides": overrides})
        if move:
            files = trial.storage.storage_filesystem
            trial.run_metadata.checkpoint_manager._latest_checkpoint_result = _TrainingResult(
                checkpoint=Checkpoint(place.checkpoint, files), metrics=dict(place.report)
            )
            trial.run_metadata.invalidate_cache()


def number_of(trial: Any) -> int:
    """A trial's number, from 1."""
    return int(trial.config["index"]) + 1


def position(trial: Any) -> int:
    """The epoch that a trial would go on from."""
    saved = trial.latest_checkpoint_result
    return int(saved.metrics["epoch"]) if saved is not None else 0


def takeovers(
    search: SearchConfig, points: Sequence[tuple[float, float]], missing: Sequence[bool] = ()
) -> list[tuple[int, list[int]]]:
    """Who takes over a network, and from which trials he may, by (clean, robust) accuracy.

    The worst ``scheduler.quantile`` of the trials, rounded up and at most half, from as many of the
    best; from those only that are truly better: by the objective, for a trade-off by rank. Trials
    ``missing`` a constraint of the search are worse than all others.
    """
    missing = missing or [False] * len(points)
    quantile, metric = search.scheduler.quantile or 0.0, search.objective.metric
    count = min(math.ceil(quantile * len(points)), len(points) // 2)
    if metric == "tradeoff":
        values: list[float] = [-float(rank) for rank in ranks(points)]
        order = best_first(points)
    else:
        values = [point[metric == "robust_accuracy"] for point in points]
        order = sorted(range(len(points)), key=lambda i: (-values[i], i))
    order = sorted(order, key=lambda i: missing[i])
    worth = [(not missing[i], values[i]) for i in range(len(points))]
    taking: list[tuple[int, list[int]]] = []
    for loser in order[len(points) - count :]:
        better = [winner for winner in order[:count] if worth[winner] > worth[loser]]
        if better:
            taking.append((loser, better))
    return taking


def plain(report: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers and words of a report, without its lists."""
    return {k: v for k, v in report.items() if isinstance(v, int | float | str | bool)}
