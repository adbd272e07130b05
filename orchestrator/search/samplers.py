"""The Optuna samplers of a search, seeded by it and, where they learn, started quasi-randomly."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
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
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from orchestrator.search.space import SearchConfig


def make_sampler(config: SearchConfig) -> BaseSampler:
    """The Optuna sampler of a search, seeded by it."""
    with warnings.catch_warnings(action="ignore", category=optuna.exceptions.ExperimentalWarning):
        return _sampler(config)


def _sampler(config: SearchConfig) -> BaseSampler:
    asked, seed = config.searcher, config.seed
    sobol = QuasiRandomSampler(config.space.distributions(), seed)
    match asked.name:
        case "tpe":
            startup = asked.startup_trials
            assert startup is not None  # SearcherConfig fills it in
            tpe = TPESampler(
                multivariate=True,
                # Conditional parameters would otherwise be left out of the joint model.
                group=config.space.conditional,
                constant_liar=True,
                n_startup_trials=startup,
                seed=seed,
            )
            return StartedSampler(tpe, sobol, startup)
        case "nsga2" | "nsga3":
            size = asked.population_size
            assert size is not None  # SearcherConfig fills it in
            genetic = NSGAIISampler if asked.name == "nsga2" else NSGAIIISampler
            return StartedSampler(genetic(population_size=size, seed=seed), sobol)
        case "quasi_random":
            return sobol
        case "random" | "grid":  # a grid is planned beforehand: nothing is left to draw
            return RandomSampler(seed=seed)


class QuasiRandomSampler(QMCSampler):
    """Optuna's Sobol sampler over all of a known space.

    Optuna's own takes the space from the first finished trial and draws at random until there is
    one, so that its points depend on timing. A conditional parameter keeps its coordinate and goes
    unread where it is inactive.
    """

    def __init__(self, space: Mapping[str, BaseDistribution], seed: int) -> None:
        super().__init__(scramble=True, seed=seed)
        self._space = dict(space)

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return self._space


class StartedSampler(BaseSampler):
    """A sampler that learns, with points of a Sobol sequence until it has something to learn from.

    Optuna's own draw each coordinate of their first points independently, which leaves larger
    holes. A genetic sampler's start is its first generation; TPE's its startup trials.
    """

    def __init__(
        self,
        learner: TPESampler | NSGAIISampler | NSGAIIISampler,
        start: QuasiRandomSampler,
        startup_trials: int = 0,
    ) -> None:
        self.learner = learner
        self._start = start
        self._startup_trials = startup_trials

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return self._now(study, trial).infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._now(study, trial).sample_relative(study, trial, search_space)

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        return self.learner.sample_independent(study, trial, param_name, param_distribution)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Give the trial its generation.

        Optuna does so when it draws for a trial, and so never for one whose values are all given: a
        baseline, or a point that is tried with another seed.
        """
        self.learner.before_trial(study, trial)
        if not isinstance(self.learner, TPESampler):
            self.learner.get_trial_generation(study, trial)

    def after_trial(
        self,
        study: Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        self.learner.after_trial(study, trial, state, values)

    def _now(self, study: Study, trial: FrozenTrial) -> BaseSampler:
        if isinstance(self.learner, TPESampler):
            ended = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
            starting = len(ended) < self._startup_trials
        else:
            starting = self.learner.get_trial_generation(study, trial) == 0
        return self._start if starting else self.learner
