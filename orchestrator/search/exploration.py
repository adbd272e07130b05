"""How population-based training changes settings while networks train (Jaderberg et al. 2017)."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from morel_core.errors import ConfigError, check
from orchestrator.search.ladder import milestones
from orchestrator.search.parameters import (
    ChoiceParameter,
    DerivedParameter,
    FloatParameter,
    GridParameter,
    IntParameter,
    Sampled,
    SearchSpace,
    Values,
    is_setting,
)
from orchestrator.search.settings import SearchSettings

if TYPE_CHECKING:
    from orchestrator.search.space import SearchConfig

FACTORS = (0.8, 1.2)
ALLOWED_DATA = ("augmentation", "crop_padding", "erasing", "cutmix", "extra_ratio")
FIXED = {
    *("seed", "objective.morel", "optimizer.name", "optimizer.no_decay_on_norm_and_bias"),
    *("training.patience", "training.ema_decay", "training.swa_start_epoch"),
}


def explore(search: SearchConfig, params: Values, dice: random.Random) -> Values:
    """Raw values to go on with, near ``params``.

    One sampled parameter after the other is drawn anew with probability ``scheduler.resample``,
    else moved: a float to 0.8 or 1.2 times its value, or by its step; a whole number by its step; a
    choice not at all. Bounds clip. A move whose run would be refused is not made. A parameter that
    becomes active by a move is drawn.
    """
    point, resample = dict(params), search.scheduler.resample or 0.0
    for name, parameter in search.space.sampled.items():
        if name not in point:
            continue
        anew = dice.random() < resample
        value = draw(parameter, dice) if anew else moved(parameter, point[name], dice)
        candidate = completed(search.space, {**point, name: value}, dice)
        if _runs(search, candidate):
            point = candidate
    return point


def draw(parameter: Sampled, dice: random.Random) -> Any:
    """A value of a parameter by its own distribution."""
    if isinstance(parameter, ChoiceParameter):
        return dice.choice(parameter.values)
    low, high, share = parameter.low, parameter.high, dice.random()
    if isinstance(parameter, IntParameter):
        if parameter.log:
            value = math.exp(math.log(low - 0.5) + share * math.log((high + 0.5) / (low - 0.5)))
            return min(max(round(value), parameter.low), parameter.high)
        return dice.randrange(parameter.low, parameter.high + 1, parameter.step)
    if parameter.step:
        return low + parameter.step * dice.randint(0, round((high - low) / parameter.step))
    if parameter.log:
        return min(max(low * (high / low) ** share, low), high)
    return low + (high - low) * share


def moved(parameter: Sampled, value: Any, dice: random.Random) -> Any:
    """A neighbour of a value, inside the bounds."""
    if isinstance(parameter, ChoiceParameter):
        return value
    up = dice.random() < 0.5
    if isinstance(parameter, FloatParameter) and not parameter.step:
        beside = value * FACTORS[up]
    else:
        step = parameter.step or 1
        beside = value + (step if up else -step)
    return min(max(beside, parameter.low), parameter.high)


def completed(space: SearchSpace, values: Mapping[str, Any], dice: random.Random) -> Values:
    """``values`` without what is inactive there, and with a draw for what is active and missing."""
    point: Values = {}
    for name, parameter in space.parameters.items():
        if isinstance(parameter, DerivedParameter) or not space.active(name, point):
            continue
        if name in values:
            point[name] = values[name]
        elif not isinstance(parameter, GridParameter):
            point[name] = draw(parameter, dice)
    return point


def _runs(search: SearchConfig, params: Values) -> bool:
    try:
        search.trial_config(params)
    except ConfigError:
        return False
    return True


def check_population(settings: SearchSettings, space: SearchSpace, epochs: int, every: int) -> None:
    """Raise `ConfigError` where population-based training of a search makes no sense.

    Args:
        settings: of the search file, with ``scheduler.name: pbt``.
        space: what is searched.
        epochs: of every trial.
        every: ``evaluation.every``.
    """
    name, interval = settings.searcher.name, settings.scheduler.interval
    check(
        name in ("random", "quasi_random", "grid"),
        "searcher.name",
        name,
        "random, quasi_random or grid with scheduler pbt: the settings of its trials change, so "
        "that there is nothing to be learned for other points",
    )
    check(
        not settings.warm_start,
        "warm_start",
        settings.warm_start,
        "empty with scheduler pbt: its first settings are drawn, not learned",
    )
    check(
        settings.num_trials >= 2, "num_trials", settings.num_trials, "at least 2 with scheduler pbt"
    )
    check(
        bool(milestones(settings.scheduler, epochs, every)),
        "scheduler.interval",
        interval,
        f"an exchange comes before the last of training.epochs = {epochs}, at an epoch that is "
        f"measured (evaluation.every = {every})",
    )
    check(bool(space.sampled), "parameters", list(space.parameters), "pbt needs one to change")
    for key in space.parameters:
        check(
            not (is_setting(key) and _stays(key) and _changes(space, key)),
            f"parameters.{key}",
            "searched",
            "a network that goes on under other settings keeps this one: fix it under overrides, "
            "or make it a grid, whose combinations are populations of their own",
        )


def _stays(key: str) -> bool:
    """Whether a setting cannot change while a network trains."""
    section, _, rest = key.partition(".")
    return key in FIXED or section == "model" or (section == "data" and rest not in ALLOWED_DATA)


def _changes(space: SearchSpace, name: str) -> bool:
    """Whether an exchange may change a parameter: all but grids, and what follows from them."""
    parameter = space.parameters[name]
    if isinstance(parameter, DerivedParameter):
        return any(_changes(space, read) for read in parameter.parsed.names)
    return not isinstance(parameter, GridParameter)
