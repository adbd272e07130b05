"""The kinds of entries of a search space, and the space they make together.

An entry's name is a setting of the run (``objective.alpha``, ``seed``) or, without a dot, a helper
variable that only ``derived`` entries and conditions read.
"""

from __future__ import annotations

import dataclasses
import itertools
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from morel_core.errors import ConfigError, check
from orchestrator.config import RunConfig
from orchestrator.search.expression import Expression, parse

Values = dict[str, Any]
Scalar = int | float | str | bool | None

TOP_LEVEL = frozenset(
    f.name
    for f in dataclasses.fields(RunConfig)
    if f.default is not dataclasses.MISSING  # sections have a factory
)


def is_setting(name: str) -> bool:
    """Whether ``name`` is a setting of the run, not a helper variable."""
    return "." in name or name in TOP_LEVEL


@dataclass(frozen=True, kw_only=True)
class FloatParameter:
    """A real number in ``[low, high]``, uniform or (``log``) uniform in its logarithm."""

    low: float
    """Least value."""
    high: float
    """Largest value."""
    step: float | None = None
    """Only low, low + step, …; not with log."""
    log: bool = False
    """Uniform in the logarithm."""
    when: Values = field(default_factory=lambda: Values())
    """Drawn only if each of these parameters has the value, or one of the values, given here."""

    def __post_init__(self) -> None:
        check(self.low < self.high, "low", self.low, f"must be below high = {self.high}")
        check(not self.log or self.low > 0, "low", self.low, "must be > 0 with log: true")
        check(self.step is None or self.step > 0, "step", self.step, "null or > 0")
        check(not (self.log and self.step), "step", self.step, "not with log: true")
        check_last_step(self.high, self.distribution.high)

    @cached_property
    def distribution(self) -> FloatDistribution:
        with warnings.catch_warnings(action="ignore"):  # an uneven step is our error, above
            return FloatDistribution(self.low, self.high, log=self.log, step=self.step)

    def suggest(self, trial: optuna.trial.BaseTrial, name: str) -> float:
        return float(trial.suggest_float(name, self.low, self.high, step=self.step, log=self.log))

    def contains(self, value: Any) -> bool:
        return is_number(value) and in_steps(value, self.low, self.high, self.step)

    def extremes(self) -> list[tuple[str, Any]]:
        return [("low", self.low), ("high", self.high)]

    def describe(self) -> str:
        return describe_range(self.low, self.high, self.step)


@dataclass(frozen=True, kw_only=True)
class IntParameter:
    """A whole number from ``low`` to ``high``, both included."""

    low: int
    """Least value."""
    high: int
    """Largest value."""
    step: int = 1
    """Only low, low + step, …"""
    log: bool = False
    """Uniform in the logarithm."""
    when: Values = field(default_factory=lambda: Values())
    """As of a float."""

    def __post_init__(self) -> None:
        check(self.low < self.high, "low", self.low, f"must be below high = {self.high}")
        check(not self.log or self.low > 0, "low", self.low, "must be > 0 with log: true")
        check(self.step >= 1, "step", self.step, "must be >= 1")
        check(not self.log or self.step == 1, "step", self.step, "not with log: true")
        check_last_step(self.high, self.distribution.high)

    @cached_property
    def distribution(self) -> IntDistribution:
        with warnings.catch_warnings(action="ignore"):
            return IntDistribution(self.low, self.high, log=self.log, step=self.step)

    def suggest(self, trial: optuna.trial.BaseTrial, name: str) -> int:
        return int(trial.suggest_int(name, self.low, self.high, step=self.step, log=self.log))

    def contains(self, value: Any) -> bool:
        whole = is_number(value) and float(value).is_integer()
        return whole and in_steps(value, self.low, self.high, self.step)

    def extremes(self) -> list[tuple[str, Any]]:
        return [("low", self.low), ("high", self.high)]

    def describe(self) -> str:
        return "a whole number " + describe_range(self.low, self.high, self.step)


@dataclass(frozen=True, kw_only=True)
class ListedValues:
    """A few values, without an order."""

    values: list[Any]
    """What it may be."""

    def __post_init__(self) -> None:
        check_values(self.values)

    def contains(self, value: Any) -> bool:
        return value in self.values

    def extremes(self) -> list[tuple[str, Any]]:
        return [("values", value) for value in self.values]

    def describe(self) -> str:
        return f"one of {self.values}"


@dataclass(frozen=True, kw_only=True)
class ChoiceParameter(ListedValues):
    """One of a few values."""

    when: Values = field(default_factory=lambda: Values())
    """As of a float."""

    @cached_property
    def distribution(self) -> CategoricalDistribution:
        return CategoricalDistribution(self.values)

    def suggest(self, trial: optuna.trial.BaseTrial, name: str) -> Scalar:
        return trial.suggest_categorical(name, self.values)


@dataclass(frozen=True, kw_only=True)
class GridParameter(ListedValues):
    """Values that are all tried: every point of the search is crossed with every combination."""


@dataclass(frozen=True, kw_only=True)
class DerivedParameter:
    """A value computed from other parameters."""

    expression: str
    """Arithmetic over other entries, as in ``attack.eps / 4``."""

    def __post_init__(self) -> None:
        try:
            parse(self.expression)
        except ValueError as error:
            raise ConfigError("expression", self.expression, str(error)) from None

    @cached_property
    def parsed(self) -> Expression:
        return parse(self.expression)


Sampled = FloatParameter | IntParameter | ChoiceParameter
Parameter = Sampled | GridParameter | DerivedParameter
KINDS: dict[str, type[Parameter]] = {
    "float": FloatParameter,
    "int": IntParameter,
    "choice": ChoiceParameter,
    "grid": GridParameter,
    "derived": DerivedParameter,
}


@dataclass(frozen=True)
class SearchSpace:
    """What is searched: checked parameters, what each depends on before it, and fixed points."""

    parameters: Mapping[str, Parameter]
    baselines: Mapping[str, Values]
    """Points evaluated first: a raw value for every sampled parameter that is active there."""

    @cached_property
    def sampled(self) -> dict[str, Sampled]:
        return {n: p for n, p in self.parameters.items() if isinstance(p, Sampled)}

    @cached_property
    def conditional(self) -> bool:
        """Whether any parameter is drawn only under a condition."""
        return any(is_conditional(parameter) for parameter in self.sampled.values())

    def distributions(self) -> dict[str, BaseDistribution]:
        """Optuna's distribution of every sampled parameter, conditional ones included."""
        return {name: parameter.distribution for name, parameter in self.sampled.items()}

    def grid(self) -> list[Values]:
        """Every combination of the grid parameters; ``[{}]`` without any."""
        grids = {n: p.values for n, p in self.parameters.items() if isinstance(p, GridParameter)}
        return [dict(zip(grids, cell, strict=True)) for cell in itertools.product(*grids.values())]

    def active(self, name: str, values: Mapping[str, Any]) -> bool:
        """Whether ``name`` is drawn at a point; ``values`` holds what comes before it."""
        parameter = self.parameters[name]
        return not isinstance(parameter, Sampled) or all(
            parent in values and values[parent] in allowed_values(allowed)
            for parent, allowed in parameter.when.items()
        )

    def restrict(self, values: Mapping[str, Any]) -> Values:
        """``values`` in the order of the space, without inactive and derived parameters."""
        kept: Values = {}
        for name, parameter in self.parameters.items():
            raw = not isinstance(parameter, DerivedParameter)
            if raw and name in values and self.active(name, kept):
                kept[name] = values[name]
        return kept

    def suggest(self, trial: optuna.trial.BaseTrial, fixed: Mapping[str, Any]) -> Values:
        """Raw values of one point, drawn by Optuna define-by-run.

        Args:
            trial: an open Optuna trial; only active sampled parameters enter it.
            fixed: a value for every grid parameter.
        """
        values: Values = {}
        for name, parameter in self.parameters.items():
            if isinstance(parameter, GridParameter):
                values[name] = fixed[name]
            elif isinstance(parameter, Sampled) and self.active(name, values):
                values[name] = parameter.suggest(trial, name)
        return values

    def combinations(self) -> list[Values]:
        """Every point of a space of choices and grids; for the searcher ``grid``."""
        points: list[Values] = [{}]
        for name, parameter in self.parameters.items():
            if not isinstance(parameter, ChoiceParameter | GridParameter):
                continue
            grown: list[Values] = []
            for point in points:
                if self.active(name, point):
                    grown += [{**point, name: value} for value in parameter.values]
                else:
                    grown.append(point)
            points = grown
        return points

    def overrides(self, params: Mapping[str, Any]) -> Values:
        """Dotted settings of the run at raw values ``params``: derived ones in, helpers out.

        Raises:
            ConfigError: a derived expression has no value there (division by zero, say).
        """
        values = dict(params)
        for name, parameter in self.parameters.items():
            if isinstance(parameter, DerivedParameter):
                try:
                    values[name] = parameter.parsed.evaluate(values)
                except ValueError as error:
                    raise ConfigError(name, parameter.expression, str(error)) from None
        return {name: values[name] for name in values if is_setting(name)}

    def baseline_params(self, name: str) -> Values:
        """Raw values of the fixed point ``name``, grid parameters left out."""
        return dict(self.baselines[name])

    def label_of(self, baseline: str | None, params: Mapping[str, Any]) -> str:
        """A point's name: of a baseline its own, and where in the grid, if there is any."""
        if baseline is None:
            return self.label(params)
        cell = {name: params[name] for name in self.grid()[0]}
        return " ".join(filter(None, [baseline, self.label(cell)]))

    def label(self, params: Mapping[str, Any]) -> str:
        """A point in a few words, ``"k1=0.1 alpha=1e-05"``: last parts of the keys, plain ASCII."""
        short = [name.rpartition(".")[2] for name in params]
        return " ".join(
            f"{last if short.count(last) == 1 else name}={show(params[name])}"
            for name, last in zip(params, short, strict=True)
        )


def is_conditional(parameter: Parameter) -> bool:
    """Whether a parameter is drawn only under a condition."""
    return isinstance(parameter, Sampled) and bool(parameter.when)


def allowed_values(condition: Any) -> list[Any]:
    """The right side of a ``when`` entry as a list."""
    return condition if isinstance(condition, list) else [condition]


def show(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def in_steps(value: float, low: float, high: float, step: float | None) -> bool:
    if not low <= value <= high:
        return False
    steps = (value - low) / step if step else 0.0
    return abs(steps - round(steps)) < 1e-6


def describe_range(low: float, high: float, step: float | None) -> str:
    return f"from {low:g} to {high:g}" + (f" in steps of {step:g}" if step and step != 1 else "")


def check_last_step(high: float, last: float) -> None:
    """Optuna lowers an upper bound that no step reaches; here the file says what is searched."""
    check(high == last, "high", high, f"not reached by whole steps from low; the last is {last:g}")


def check_values(values: list[Any]) -> None:
    check(len(values) > 0, "values", values, "at least one value")
    for value in values:
        check(
            value is None or isinstance(value, bool | int | float | str),
            "values",
            value,
            "numbers, words, true, false or null; a list is written as a derived parameter",
        )
        check(values.count(value) == 1, "values", value, "listed more than once")
