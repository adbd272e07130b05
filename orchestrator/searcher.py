"""Ray Tune's view of a search: baselines, then points from an Optuna sampler, by ask and tell."""

from __future__ import annotations

import math
import pickle
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import (
    BaseSampler,
    NSGAIIISampler,
    NSGAIISampler,
    QMCSampler,
    RandomSampler,
    TPESampler,
)
from optuna.trial import TrialState
from ray.tune.search import Searcher

from morel_core.ladder import Ladder
from orchestrator.parameters import SearchSpace, Values
from orchestrator.search_space import SearchConfig


class QuasiRandomSampler(QMCSampler):
    """Optuna's Sobol sampler over all of a known space.

    Optuna's own takes the space from the first finished trial and draws at random until there is
    one, so that its points depend on timing. A conditional parameter keeps its coordinate and goes
    unread where it is inactive.
    """

    def __init__(self, space: Mapping[str, BaseDistribution], seed: int) -> None:
        with warnings.catch_warnings(
            action="ignore", category=optuna.exceptions.ExperimentalWarning
        ):
            super().__init__(scramble=True, seed=seed)
        self._space = dict(space)

    def infer_relative_search_space(
        self, study: optuna.Study, trial: optuna.trial.FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return self._space


def make_sampler(config: SearchConfig) -> BaseSampler:
    """The Optuna sampler of a search, seeded by it."""
    match config.searcher.name:
        case "tpe":
            startup = config.searcher.startup_trials
            assert startup is not None  # SearcherConfig fills it in
            with warnings.catch_warnings(
                action="ignore", category=optuna.exceptions.ExperimentalWarning
            ):
                return TPESampler(
                    multivariate=True,
                    # Conditional parameters would otherwise be left out of the joint model.
                    group=config.space.conditional,
                    constant_liar=True,
                    n_startup_trials=startup,
                    seed=config.seed,
                )
        case "nsga2" | "nsga3":
            size = config.searcher.population_size
            assert size is not None  # SearcherConfig fills it in
            genetic = NSGAIISampler if config.searcher.name == "nsga2" else NSGAIIISampler
            return genetic(population_size=size, seed=config.seed)
        case "quasi_random":
            return QuasiRandomSampler(config.space.distributions(), config.seed)
        case "random" | "grid":  # a grid is planned beforehand: nothing is left to draw
            return RandomSampler(seed=config.seed)


@dataclass
class OpenTrial:
    """A trial that Optuna waits for: its raw values and the last epoch that was reported."""

    trial: optuna.Trial
    params: Values
    epoch: int = 0


class SpaceSearcher(Searcher):
    """Proposes the trials of a `SearchConfig` to Ray Tune and learns from their results.

    The order is: every baseline with every grid combination; then sampled points, each again with
    every grid combination, so that what a grid compares (seeds, methods) is compared at the same
    points. Tune's config of a trial is ``{"params": raw values, "overrides": dotted settings,
    "baseline": name or None, "index": 0, 1, ...}``, in plain Python types.

    Results must hold ``epoch`` and ``num_epochs`` beside the metric. A trial that reached its last
    epoch is told COMPLETE. One stopped before is told PRUNED with its intermediate values, which
    TPE ranks by the furthest epoch, so that numbers of different epochs, and with them of different
    rungs, never compete; so is one that ran out of patience before the last rung of
    ``evaluation.rungs``. One that crashed, diverged (``diverged`` true, or a metric that is not
    finite) or never measured is told FAIL. One that crashed and reports again (a restored search
    reran it) is a new Optuna trial.
    """

    def __init__(self, config: SearchConfig) -> None:
        super().__init__(metric=config.objective.metric, mode=config.objective.mode)
        self.total_trials = config.total_trials
        self._space: SearchSpace = config.space
        self._last_rung = Ladder.of(config.base.evaluation).last.epoch
        self._grid = config.space.grid()
        self._plan = config.planned()[: self.total_trials]
        self._next = 0
        self._point: Values = {}  # the sampled point that is being crossed with the grid
        self._open: dict[str, OpenTrial] = {}
        self._failed: dict[str, Values] = {}  # Tune may run these again after a restore
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._study = optuna.create_study(
            direction="maximize" if config.objective.mode == "max" else "minimize",
            sampler=make_sampler(config),
            pruner=optuna.pruners.NopPruner(),  # Tune's scheduler decides who stops
        )

    def suggest(self, trial_id: str) -> Any:  # Ray's annotation forgets its own FINISHED
        """The next trial's config, or `Searcher.FINISHED`."""
        index = self._next
        if index >= self.total_trials:
            return Searcher.FINISHED
        self._next += 1
        if index < len(self._plan):
            baseline, known = self._plan[index]
            trial, params = self._ask(known, known)
        else:
            baseline, place = None, (index - len(self._plan)) % len(self._grid)
            if place == 0:
                self._point = {}
            trial, params = self._ask(self._point, self._grid[place])
            self._point |= {name: params[name] for name in params if name in self._space.sampled}
        self._open[trial_id] = OpenTrial(trial, params)
        return {
            "params": params,
            "overrides": self._space.overrides(params),
            "baseline": baseline,
            "index": index,
        }

    def on_trial_result(self, trial_id: str, result: Mapping[str, Any]) -> None:
        """Keep an intermediate value; a repeated epoch (a trial that was restarted) is ignored."""
        value, epoch = self._value(result), result.get("epoch")
        if value is None or epoch is None:
            return
        if trial_id in self._failed:
            params = self._failed.pop(trial_id)
            self._open[trial_id] = OpenTrial(*self._ask(params, params))
        entry = self._open.get(trial_id)
        if entry is not None and epoch > entry.epoch:
            entry.trial.report(value, step=int(epoch))
            entry.epoch = int(epoch)

    def on_trial_complete(
        self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tell Optuna how the trial ended. A second call for the same trial changes nothing."""
        result = result or {}
        self.on_trial_result(trial_id, result)  # Tune does not pass on the one that it stops at
        entry = self._open.pop(trial_id, None)
        if entry is None:
            return
        state = TrialState.FAIL if error else self._outcome(entry, result)
        values = self._value(result) if state is TrialState.COMPLETE else None
        self._study.tell(entry.trial, values, state=state)
        if error:
            self._failed[trial_id] = entry.params

    def save(self, checkpoint_path: str) -> None:
        """Write the state to a file, for `restore`; Tune calls this with its own snapshots."""
        state = (self._study, self._open, self._failed, self._next, self._point)
        Path(checkpoint_path).write_bytes(pickle.dumps(state))

    def restore(self, checkpoint_path: str) -> None:
        """Go on where `save` left off: same sampler state, open trials still open.

        The file is Tune's own state in our storage path; it is trusted as that.
        """
        state = pickle.loads(Path(checkpoint_path).read_bytes())
        self._study, self._open, self._failed, self._next, self._point = state

    def _ask(self, known: Values, fixed: Values) -> tuple[optuna.Trial, Values]:
        """A new Optuna trial: ``known`` values as they are, the rest drawn by the sampler."""
        sampled = {name: known[name] for name in known if name in self._space.sampled}
        if sampled:
            self._study.enqueue_trial(sampled)
        trial = self._study.ask()
        return trial, self._space.suggest(trial, fixed)

    def _outcome(self, entry: OpenTrial, result: Mapping[str, Any]) -> TrialState:
        value = self._value(result)
        if result.get("diverged") or (value is None and result.get(self.metric) is not None):
            return TrialState.FAIL
        epoch, num_epochs = result.get("epoch"), result.get("num_epochs")
        short = epoch is None or num_epochs is None or epoch < num_epochs
        if epoch is not None and result.get("stopped_early"):  # an end of its own, on the last rung
            short = epoch < self._last_rung
        if short:
            return TrialState.PRUNED if entry.epoch else TrialState.FAIL
        return TrialState.FAIL if value is None else TrialState.COMPLETE

    def _value(self, result: Mapping[str, Any]) -> float | None:
        """The metric, if it was measured and is finite."""
        value = result.get(self.metric)
        return float(value) if value is not None and math.isfinite(value) else None
