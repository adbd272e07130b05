"""Which searched parameters the good trials have in common: PED-ANOVA (Watanabe et al. 2023).

It asks of the trials no more than an order, so that those which a scheduler stopped early count
too: whole ones first by robust accuracy, then the others by epochs, then by accuracy (ADR 16), and
those that diverged or failed last.
"""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.report.data import Recorded, Trial, value_text

FEWEST = 20
"""Trials below which the estimate is noise: the quarter that counts as good would be under five."""
GOOD = 0.25
"""Share of the trials that counts as good."""
RESAMPLINGS = 30
"""Of the trials, with replacement, from which the intervals are."""


@dataclass(frozen=True, kw_only=True)
class Importance:
    """Of one parameter; those of all add up to 1."""

    key: str
    value: float
    low: float
    """A tenth of the resamplings is below …"""
    high: float
    """… and one is above."""


def importance(recorded: Recorded, seed: int = 0) -> list[Importance] | str:
    """The parameters, the most important first; or why there are none."""
    trials = ordered(recorded.trials)
    keys = [key for key in recorded.searched if sum(key in t.point for t in trials) >= FEWEST]
    if len(trials) < FEWEST:
        goes_on = (
            f"; morel tune with num_trials={FEWEST} or more goes on" if recorded.subject else ""
        )
        return (
            f"Not estimated: {len(trials)} measured trials are fewer than the {FEWEST} that it "
            f"takes{goes_on}."
        )
    if len(keys) < 2:
        return "Not estimated: fewer than two parameters were searched."
    spaces = recorded.definition.get("search", {}).get("parameters", {})
    ranges = {key: _distribution(trials, key, spaces.get(key, {})) for key in keys}
    whole = _estimate(trials, ranges)
    draw = random.Random(seed)
    again = [
        _estimate(sorted(draw.choices(trials, k=len(trials)), key=_order), ranges)
        for _ in range(RESAMPLINGS)
    ]
    found = [
        Importance(
            key=key,
            value=value,
            low=_quantile([each.get(key, 0.0) for each in again], 0.1),
            high=_quantile([each.get(key, 0.0) for each in again], 0.9),
        )
        for key, value in whole.items()
    ]
    return sorted(found, key=lambda each: -each.value)


def ordered(trials: Sequence[Trial]) -> list[Trial]:
    """The measured trials, best first."""
    return sorted((t for t in trials if t.point and t.any_robust), key=_order)


def _order(trial: Trial) -> tuple[bool, bool, float, float, int]:
    robust = trial.any_robust
    value = -(robust.value if robust else 0.0)
    return (
        trial.state in ("diverged", "failed"),
        not trial.whole,
        0.0 if trial.whole else -float(trial.run.epochs or 0),
        value,
        trial.number,
    )


def _estimate(trials: Sequence[Trial], ranges: Mapping[str, Any]) -> dict[str, float]:
    """The importances of trials in order, by parameter."""
    import optuna
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
    from optuna.trial import create_trial

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="minimize")
    study.add_trials(
        [
            create_trial(
                params={key: _plain(trial.point[key], ranges[key]) for key in here},
                distributions={key: ranges[key] for key in here},
                value=float(rank),
            )
            for rank, trial in enumerate(trials)
            for here in [[key for key in ranges if key in trial.point]]
        ]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that PED-ANOVA is experimental in optuna
        evaluator = PedAnovaImportanceEvaluator(target_quantile=GOOD)
        return get_param_importances(study, evaluator=evaluator, params=list(ranges))


def _distribution(trials: Sequence[Trial], key: str, space: Mapping[str, Any]) -> Any:
    """Optuna's, from the search's definition and the values that were tried."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    values = [trial.point[key] for trial in trials if key in trial.point]
    if not all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        return CategoricalDistribution(sorted({value_text(value) for value in values}))
    bounds = [v for v in (space.get("low"), space.get("high")) if isinstance(v, int | float)]
    low, high = min([*values, *bounds]), max([*values, *bounds])
    return FloatDistribution(float(low), float(high), log=bool(space.get("log")) and low > 0)


def _plain(value: Any, distribution: Any) -> Any:
    categorical = hasattr(distribution, "choices")
    return value_text(value) if categorical else float(value)


def _quantile(values: Sequence[float], share: float) -> float:
    found = sorted(values)
    return found[min(len(found) - 1, max(0, math.floor(share * len(found))))]
