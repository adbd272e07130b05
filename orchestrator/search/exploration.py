"""How population-based training changes settings while networks train (Jaderberg et al. 2017)."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from typing import Any

from morel_core.errors import ConfigError
from orchestrator.search.parameters import (
    ChoiceParameter,
    DerivedParameter,
    FloatParameter,
    GridParameter,
    IntParameter,
    Sampled,
    SearchSpace,
    Values,
)
from orchestrator.search.space import SearchConfig

FACTORS = (0.8, 1.2)


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
