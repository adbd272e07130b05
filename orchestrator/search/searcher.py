"""Ray Tune's view of a search: baselines, then points from an Optuna sampler, by ask and tell."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna.study import StudyDirection
from optuna.trial import TrialState
from ray.tune.search import Searcher

from morel_core.errors import ConfigError
from morel_core.ladder import Ladder
from orchestrator.messages.failures import FAILED
from orchestrator.search import goal
from orchestrator.search.parameters import SearchSpace, Values, is_setting
from orchestrator.search.samplers import make_sampler
from orchestrator.search.space import SearchConfig
from orchestrator.search.trial import IMPOSSIBLE
from orchestrator.search.warm_start import KnownTrial

UNFINISHED = "unfinished"
"""The constraint that a trial misses which did not come to its own end."""


@dataclass
class OpenTrial:
    """A trial that Optuna waits for: its raw values and the last report with numbers."""

    trial: optuna.Trial
    params: Values
    report: dict[str, Any] = field(default_factory=lambda: dict[str, Any]())

    @property
    def epoch(self) -> int:
        """Of ``report``; 0 before the first."""
        return int(self.report.get("epoch", 0))


class SpaceSearcher(Searcher):
    """Proposes the trials of a `SearchConfig` to Ray Tune and learns from their results.

    The order is: every baseline with every grid combination; then sampled points, each again with
    every grid combination, so that what a grid compares (seeds, methods) is compared at the same
    points. Tune's config of a trial is ``{"params": raw values, "overrides": dotted settings,
    "baseline": name or None, "index": 0, 1, ...}``, in plain Python types, and `IMPOSSIBLE` where a
    derived setting has no value.

    Results must hold ``epoch`` and ``num_epochs`` beside what `goal.values` reads. A trial that was
    stopped before its last epoch, or ran out of patience before the last rung of
    ``evaluation.rungs``, misses a constraint of our own: samplers rank it below every trial that
    ended by itself, those that got further first and of these the better, so that numbers of
    different epochs, and with them of different rungs, never compete. (PRUNED is no way to say so:
    studies of several objectives do not know it, and the genetic samplers leave it out.) Of the
    trials that ended, those that keep the search's own constraints come first. One that crashed,
    diverged (``diverged`` true, or a metric that is not finite) or never measured is told FAIL. One
    that crashed and reports again (a restored search reran it) is a new Optuna trial.

    Args:
        config: the search.
        known: trials of earlier searches to learn from; they are none of this search's own.
        again: points by index that a killed driver had begun and not saved: the same come again.
    """

    def __init__(
        self,
        config: SearchConfig,
        known: Sequence[KnownTrial] = (),
        again: Mapping[int, Values] | None = None,
    ) -> None:
        super().__init__(metric=config.objective.scalar, mode="max")
        self.total_trials = config.total_trials
        self._space: SearchSpace = config.space
        self._goal = config.objective
        self._last_rung = Ladder.of(config.base.evaluation).last.epoch
        self._grid = config.space.grid()
        self._plan = config.planned()[: self.total_trials]
        self._next = 0
        self._left: list[int] = []  # before that one, and never begun
        self._again = dict(again or {})
        self._points: dict[int, Values] = {}  # those sampled, each to be crossed with the grid
        self._open: dict[str, OpenTrial] = {}
        self._failed: dict[str, Values] = {}  # Tune may run these again after a restore
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        accuracies = 2 if config.objective.metric == "tradeoff" else 1
        self._study = optuna.create_study(
            directions=[StudyDirection.MAXIMIZE] * accuracies,
            sampler=make_sampler(config),
            pruner=optuna.pruners.NopPruner(),  # Tune's scheduler decides who stops
        )
        for trial in known:
            self._tell(OpenTrial(*self._ask(trial.params, trial.params)), trial.report)

    def suggest(self, trial_id: str) -> Any:  # Ray's annotation forgets its own FINISHED
        """The next trial's config, or `Searcher.FINISHED`."""
        index = self._left.pop(0) if self._left else self._next
        if index >= self.total_trials:
            return Searcher.FINISHED
        self._next = max(self._next, index + 1)
        if index < len(self._plan):
            baseline, known = self._plan[index]
            trial, params = self._ask(known, known)
        else:
            baseline, (point, cell) = None, self._place(index)
            known = self._again.get(index, self._points.get(point, {}))
            trial, params = self._ask(known, self._grid[cell])
            self._note(index, params)
        self._open[trial_id] = OpenTrial(trial, params)
        return {"params": params, **self._settings(params), "baseline": baseline, "index": index}

    def _settings(self, params: Values) -> dict[str, Any]:
        """The settings of a point; of one that has none also why, and its trial will fail."""
        try:
            return {"overrides": self._space.overrides(params)}
        except ConfigError as error:
            raw = {name: value for name, value in params.items() if is_setting(name)}
            return {"overrides": raw, IMPOSSIBLE: str(error)}

    def _place(self, index: int) -> tuple[int, int]:
        """Which sampled point, and which grid combination."""
        return divmod(index - len(self._plan), len(self._grid))

    def _note(self, index: int, params: Values) -> None:
        """Keep what was sampled, for the grid's other combinations."""
        sampled = {name: params[name] for name in params if name in self._space.sampled}
        point, _ = self._place(index)
        self._points[point] = self._points.get(point, {}) | sampled

    def go_on_from(self, proposed: Mapping[int, Values], left: Sequence[int]) -> None:
        """Go on behind the trials that are ``proposed``; those ``left`` come again, and first.

        Args:
            proposed: raw values of all that are known, by index. They may be newer than what
                `restore` has read.
            left: indices among them of trials that never began.
        """
        self._next, self._left = max(proposed, default=-1) + 1, list(left)
        self._again |= {index: proposed[index] for index in left}
        self._points = {}
        for index in sorted(proposed):
            if index >= len(self._plan):
                self._note(index, proposed[index])

    def on_trial_result(self, trial_id: str, result: Mapping[str, Any]) -> None:
        """Keep a report with numbers; a repeated epoch (a restarted trial) is ignored."""
        epoch = result.get("epoch")
        if epoch is None or FAILED in result or goal.values(self._goal, result) is None:
            return
        if trial_id in self._failed:
            params = self._failed.pop(trial_id)
            self._open[trial_id] = OpenTrial(*self._ask(params, params))
        entry = self._open.get(trial_id)
        if entry is not None and epoch > entry.epoch:
            entry.report = {k: v for k, v in result.items() if isinstance(v, int | float)}

    def on_trial_complete(
        self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False
    ) -> None:
        """Tell Optuna how the trial ended. A second call for the same trial changes nothing."""
        result = result or {}
        error = error or FAILED in result
        self.on_trial_result(trial_id, result)  # Tune does not pass on the one that it stops at
        entry = self._open.pop(trial_id, None)
        if entry is None:
            return
        self._tell(entry, result, error=error)
        if error:
            self._failed[trial_id] = entry.params

    def save(self, checkpoint_path: str) -> None:
        """Write the state to a file, for `restore`; Tune calls this with its own snapshots."""
        state = (self._study, self._open, self._failed, self._next, self._points)
        Path(checkpoint_path).write_bytes(pickle.dumps(state))

    def restore(self, checkpoint_path: str) -> None:
        """Go on where `save` left off: same sampler state, open trials still open.

        The file runs what code it holds: `orchestrator.search.seals` has found it to be ours.
        """
        state = pickle.loads(Path(checkpoint_path).read_bytes())
        self._study, self._open, self._failed, self._next, self._points = state

    def _ask(self, known: Values, fixed: Values) -> tuple[optuna.Trial, Values]:
        """A new Optuna trial: ``known`` values as they are, the rest drawn by the sampler."""
        sampled = {name: known[name] for name in known if name in self._space.sampled}
        if sampled:
            self._study.enqueue_trial(sampled)
        trial = self._study.ask()
        return trial, self._space.suggest(trial, fixed)

    def _tell(self, entry: OpenTrial, result: Mapping[str, Any], *, error: bool = False) -> None:
        found = None if error else self._values(entry, result)
        if found is None:
            self._study.tell(entry.trial, state=TrialState.FAIL)
            return
        for name, miss in self._misses(entry, result, found).items():
            entry.trial.set_constraint(name, miss)
        self._study.tell(entry.trial, found)

    def _values(self, entry: OpenTrial, result: Mapping[str, Any]) -> list[float] | None:
        """What the trial reached; None if that means nothing."""
        found = goal.values(self._goal, result)
        if result.get("diverged") or (found is None and result.get(self.metric) is not None):
            return None
        if self._short(result):
            return goal.values(self._goal, entry.report)
        return found

    def _misses(
        self, entry: OpenTrial, result: Mapping[str, Any], found: list[float]
    ) -> dict[str, float]:
        """The constraints of a trial that reached ``found``, and by how much it misses each.

        Together at most 1 for one that came to its end, and more for any other.
        """
        if self._short(result):
            return {UNFINISHED: 1 + 1 / (entry.epoch + goal.merit(found))}
        misses = goal.misses(self._goal, result)
        return {str(bound): miss / len(misses) for bound, miss in misses.items()}

    def _short(self, result: Mapping[str, Any]) -> bool:
        """Whether a trial that ended with ``result`` had more to train, or to be measured by."""
        epoch, num_epochs = result.get("epoch"), result.get("num_epochs")
        if epoch is not None and result.get("stopped_early"):  # an end of its own, on the last rung
            return epoch < self._last_rung
        return epoch is None or num_epochs is None or epoch < num_epochs
