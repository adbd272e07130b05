"""Entries of a search file → a checked `SearchSpace`, every bound tried on real run configs."""

from __future__ import annotations

import dataclasses
import graphlib
import itertools
import random
from collections.abc import Callable, Mapping
from typing import Any, cast

from morel_core.errors import ConfigError, check
from morel_core.registry import suggestion
from orchestrator.config import NOT_SCIENTIFIC, RunConfig, flatten, to_dict, with_overrides
from orchestrator.search.parameters import (
    KINDS,
    ChoiceParameter,
    DerivedParameter,
    FloatParameter,
    GridParameter,
    IntParameter,
    Parameter,
    Sampled,
    SearchSpace,
    Values,
    allowed_values,
    is_conditional,
    is_setting,
)
from orchestrator.settings.building import build

PAPER = "paper"
FIXED_DATA = ("name", "root", "download", "holdout", "split_seed", "test_size")
CORNERS = 12
"""Combinations of lower and upper ends that are tried before a search starts."""


def build_parameters(entries: Mapping[str, Any]) -> dict[str, Parameter]:
    """Each entry of ``parameters`` by itself, checked; raises `ConfigError`."""
    parameters: dict[str, Parameter] = {}
    for name, entry in entries.items():
        where = f"parameters.{name}"
        check_searchable(name)
        entry = dict(section_of(entry, where))
        kind = entry.pop("type", None)
        if kind not in KINDS:
            raise ConfigError(f"{where}.type", kind, suggestion(str(kind), list(KINDS)))
        if kind == "grid" and "when" in entry:
            allowed = "a grid is crossed with every point, so it cannot depend on one: use choice"
            raise ConfigError(f"{where}.when", entry["when"], allowed)
        cls = KINDS[kind]
        missing = [key for key in required_fields(cls) if entry.get(key) is None]
        check(not missing, where, entry, f"type {kind} also needs {', '.join(missing)}")
        parameters[name] = _located(where, lambda cls=cls, entry=entry: build(cls, entry))
    return parameters


def required_fields(cls: type) -> list[str]:
    return [
        f.name
        for f in dataclasses.fields(cls)
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]


def check_searchable(name: str) -> None:
    """Refuse what must be the same for every trial."""
    section, _, rest = name.partition(".")
    selects = section == "evaluation" or (section == "data" and rest in FIXED_DATA)
    check(
        not selects,
        "parameters",
        name,
        "what selects must be the same for every trial: set it in the recipe or under overrides",
    )
    check(
        name != "training.epochs",
        "parameters",
        name,
        "is not searched: networks of different lengths are not compared, and the scheduler decides"
        " who is trained to the end; set it under overrides",
    )
    hint = (
        "resources: sets the workers" if section == "scaling" else "it does not change the numbers"
    )
    check(section not in NOT_SCIENTIFIC, "parameters", name, f"is not searched: {hint}")


def in_order(parameters: Mapping[str, Parameter]) -> dict[str, Parameter]:
    """Parameters with those that others depend on first; checks conditions and expressions."""
    needs: dict[str, list[str]] = {}
    for name, parameter in parameters.items():
        if isinstance(parameter, DerivedParameter):
            needs[name] = list(parameter.parsed.names)
            _check_expression(name, parameter, parameters)
        else:
            needs[name] = list(parameter.when) if isinstance(parameter, Sampled) else []
            _check_condition(name, parameter, parameters)
    read = {needed for names in needs.values() for needed in names}
    for name in parameters:
        check(
            is_setting(name) or name in read,
            "parameters",
            name,
            "neither a setting (they have a dot: objective.alpha) nor read by a derived parameter",
        )
    try:
        order = list(graphlib.TopologicalSorter(needs).static_order())
    except graphlib.CycleError as error:
        circle = " -> ".join(cast(list[str], error.args[1]))
        raise ConfigError("parameters", circle, "depend on each other in a circle") from None
    return {name: parameters[name] for name in order}


def _check_expression(
    name: str, parameter: DerivedParameter, parameters: Mapping[str, Parameter]
) -> None:
    for read in parameter.parsed.names:
        other = parameters.get(read)
        unknown = f"unknown name {read!r}; {suggestion(read, [n for n in parameters if n != name])}"
        where = f"parameters.{name}.expression"
        check(other is not None, where, parameter.expression, unknown)
        conditional = other is not None and is_conditional(other)
        reason = f"{read} is conditional, so it may have no value"
        check(not conditional, where, parameter.expression, reason)


def _check_condition(name: str, parameter: Parameter, parameters: Mapping[str, Parameter]) -> None:
    when = parameter.when if isinstance(parameter, Sampled) else Values()
    for parent, condition in when.items():
        where = f"parameters.{name}.when.{parent}"
        other = parameters.get(parent)
        if not isinstance(other, IntParameter | ChoiceParameter | GridParameter):
            able = [n for n, p in parameters.items() if not isinstance(p, FloatParameter)]
            allowed = "depends on an int, choice or grid parameter; "
            raise ConfigError(where, condition, allowed + suggestion(parent, able))
        for value in allowed_values(condition):
            check(other.contains(value), where, value, f"{parent} is {other.describe()}")


def check_names(parameters: Mapping[str, Parameter], base: RunConfig) -> None:
    """Settings that no condition guards must exist in the recipe's own dataclasses."""
    known = flatten(to_dict(base))
    for name, parameter in parameters.items():
        if is_setting(name) and not is_conditional(parameter) and name not in known:
            section = name.rpartition(".")[0]
            near = [key for key in known if key.startswith(f"{section}.")] or list(known)
            unknown = f"not a setting of recipe runs; {suggestion(name, near)}"
            raise ConfigError("parameters", name, unknown)


def build_baselines(
    entries: Mapping[str, Any], parameters: Mapping[str, Parameter], base: RunConfig
) -> dict[str, Values]:
    """The fixed points, completed from the run ``base``; raises `ConfigError`."""
    check(
        PAPER in entries,
        "baselines",
        list(entries),
        f"must hold {PAPER!r}, the published setting, which every search also evaluates",
    )
    recipe = flatten(to_dict(base))
    probe = SearchSpace(parameters, {})
    baselines: dict[str, Values] = {}
    for baseline, entry in entries.items():
        where = f"baselines.{baseline}"
        given = section_of({} if entry is None else entry, where)
        for name, value in given.items():
            _check_baseline_value(f"{where}.{name}", name, value, parameters)
        baselines[baseline] = _complete(where, given, recipe, probe)
    return baselines


def _complete(
    where: str, given: Mapping[str, Any], recipe: Mapping[str, Any], space: SearchSpace
) -> Values:
    """``given`` with the recipe's values for the active parameters that it leaves out."""
    missing = object()
    point = {name: given.get(name, recipe.get(name, missing)) for name in space.sampled}
    active: set[str] = set()
    for cell in space.grid():
        active |= space.restrict({**point, **cell}).keys()
    complete: Values = {}
    for name, parameter in space.sampled.items():
        key, value = f"{where}.{name}", point[name]
        if name not in active:
            check(name not in given, key, value, f"has no effect: it needs {parameter.when}")
            continue
        if value is missing:
            raise ConfigError(key, None, f"give a value, {parameter.describe()}")
        outside = f"the recipe's value is outside the search: give one, {parameter.describe()}"
        check(parameter.contains(value), key, value, outside)
        complete[name] = _typed(parameter, value)
    return complete


def _check_baseline_value(
    where: str, name: str, value: Any, parameters: Mapping[str, Parameter]
) -> None:
    match parameters.get(name):
        case None:
            able = [n for n, p in parameters.items() if isinstance(p, Sampled)]
            raise ConfigError(where, value, f"not a parameter; {suggestion(name, able)}")
        case DerivedParameter(expression=text):
            raise ConfigError(where, value, f"is computed from {text!r}: set what that reads")
        case GridParameter():
            allowed = "is a grid parameter, crossed with every baseline: leave it out"
            raise ConfigError(where, value, allowed)
        case parameter:
            check(parameter.contains(value), where, value, f"must be {parameter.describe()}")


def _typed(parameter: Sampled, value: Any) -> Any:
    match parameter:
        case FloatParameter():
            return float(value)
        case IntParameter():
            return int(value)
        case ChoiceParameter():
            return value


def check_points(space: SearchSpace, base: RunConfig) -> None:
    """Build the run at every baseline, every bound and some corners: its own checks speak."""

    tried: list[Values] = []

    def attempt(values: Mapping[str, Any]) -> None:
        overrides = space.overrides(values)
        if overrides not in tried:
            tried.append(overrides)
            with_overrides(base, overrides)

    cell = space.grid()[0]
    for baseline, point in space.baselines.items():
        values = space.restrict({**point, **cell})
        _blame(f"baselines.{baseline}", space.label(values), attempt, values)
    paper = {**space.baselines[PAPER], **cell}
    # Conditional ones first, so that what is wrong with them is not laid on their parents.
    extremes = _extremes(space)
    for name in sorted(extremes, key=lambda name: not is_conditional(space.parameters[name])):
        for bound, value in extremes[name]:
            values = _reach(space, {**paper, name: value}, name)
            _blame(f"parameters.{name}.{bound}", value, attempt, values, name)
    for values in _corners(space):
        _blame("parameters", space.label(values), attempt, values)


def _extremes(space: SearchSpace) -> dict[str, list[tuple[str, Any]]]:
    """(bound, value) pairs of every parameter that is not derived."""
    return {
        name: parameter.extremes()
        for name, parameter in space.parameters.items()
        if not isinstance(parameter, DerivedParameter)
    }


def _blame(
    key: str,
    value: Any,
    attempt: Callable[[Mapping[str, Any]], None],
    values: Mapping[str, Any],
    name: str = "",
) -> None:
    """Run ``attempt(values)``; what it finds wrong is the fault of ``key = value``."""
    try:
        attempt(values)
    except ConfigError as error:
        direct = name == error.key or name.startswith(f"{error.key}.")
        via = "" if direct else f"gives {error.key} = {error.value!r}: "
        raise ConfigError(key, value, via + error.allowed) from None


def _reach(space: SearchSpace, values: Values, name: str) -> Values:
    """``values`` changed so that ``name`` is active, and filled up with lower ends."""
    values = dict(values)

    def satisfy(child: str) -> None:
        parameter = space.parameters[child]
        if isinstance(parameter, Sampled):
            for parent, condition in parameter.when.items():
                allowed = allowed_values(condition)
                if values.get(parent) not in allowed:
                    values[parent] = allowed[0]
                satisfy(parent)

    satisfy(name)
    lower = {n: bounds[0][1] for n, bounds in _extremes(space).items()}
    return space.restrict({**lower, **values})


def _corners(space: SearchSpace) -> list[Values]:
    """Combinations of lower and upper ends: all, or both extremes and a seeded draw of the rest."""
    ends = {name: (bounds[0][1], bounds[-1][1]) for name, bounds in _extremes(space).items()}
    if 2 ** len(ends) <= CORNERS:
        corners = list(itertools.product(*ends.values()))
    else:
        dice = random.Random(0)
        drawn = [tuple(dice.choice(pair) for pair in ends.values()) for _ in range(CORNERS - 2)]
        corners = [*zip(*ends.values(), strict=True), *drawn]
    return [space.restrict(dict(zip(ends, corner, strict=True))) for corner in corners]


def section_of(value: Any, where: str) -> dict[str, Any]:
    """``value`` as a mapping; raises `ConfigError` if it is none."""
    if not isinstance(value, dict):
        raise ConfigError(where, value, "must be a section with keys of its own")
    return cast(dict[str, Any], value)


def _located(where: str, make: Callable[[], Parameter]) -> Parameter:
    try:
        return make()
    except ConfigError as error:
        raise error.within(where) from None
