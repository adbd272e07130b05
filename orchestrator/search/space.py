"""Search files: YAML + ``key=value`` → one frozen, checked `SearchConfig`, before Ray starts.

``search_spaces/demo.yaml`` shows every section of such a file. What can be wrong with it is
reported in one line that names the file, the key, the value and what is allowed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

from morel_core.errors import ConfigError, MorelError, check
from morel_core.registry import suggestion
from orchestrator.config import RunConfig, compose, flatten, names_first, with_overrides
from orchestrator.search.checks import (
    check_attacks,
    check_ladder,
    check_population,
    check_scheduler,
)
from orchestrator.search.parameters import ChoiceParameter, Parameter, SearchSpace, Values
from orchestrator.search.settings import GoalConfig, SearchSettings
from orchestrator.search.space_builder import (
    build_baselines,
    build_parameters,
    check_names,
    check_points,
    in_order,
    section_of,
)
from orchestrator.settings.building import build
from orchestrator.settings.interpolation import number
from orchestrator.settings.yaml_files import find_file, packaged, parse_overrides, read_yaml

GOAL_KEYS = tuple(f.name for f in dataclasses.fields(GoalConfig))


@dataclass(frozen=True, kw_only=True)
class SearchConfig(SearchSettings):
    """A checked search: its settings, its space, and the run that its trials change."""

    name: str
    source: str
    """The file, as errors name it."""
    space: SearchSpace
    base: RunConfig
    """Recipe, the file's ``overrides`` and the command line's; ``resources`` is its scaling."""
    parent: str | None = None
    """Run id of the campaign that it belongs to."""
    tags: Values = field(default_factory=lambda: Values())
    """Of its run and its trials' in MLflow, beside their own."""

    @property
    def total_trials(self) -> int:
        """Trials of the whole search: points × grid combinations."""
        cells = len(self.space.grid())
        if self.searcher.name != "grid":
            return self.num_trials * cells
        return min(self.num_trials * cells, len(self.planned()))

    def planned(self) -> list[tuple[str | None, Values]]:
        """Points known beforehand, as (baseline name or None, raw values), in order.

        The baselines, each with every grid combination; with the searcher ``grid`` then all others.
        """
        space = self.space
        plan: list[tuple[str | None, Values]] = [
            (name, space.restrict({**point, **cell}))
            for name, point in space.baselines.items()
            for cell in space.grid()
        ]
        if self.searcher.name == "grid":
            done = [params for _, params in plan]
            plan += [(None, params) for params in space.combinations() if params not in done]
        return plan

    def trial_config(self, params: Mapping[str, Any]) -> RunConfig:
        """The run of a trial with raw values ``params``; raises `ConfigError`."""
        return with_overrides(self.base, self.space.overrides(params))


def load_search(name_or_path: str, overrides: Sequence[str] = ()) -> SearchConfig:
    """A search by name or file, with ``key=value`` overrides, checked as far as is possible.

    Args:
        name_or_path: a file of ``search_spaces/`` by name, or any file.
        overrides: for the search or for its run, as on the command line (`split_overrides`).

    Raises:
        MorelError: no such file, or broken YAML.
        ConfigError: the first thing that is wrong, where it stands, and what is allowed.
    """
    name, source, mapping = read_file(name_or_path)
    search_items, run_items = split_overrides(overrides)
    given, run_given = parse_overrides(search_items), parse_overrides(run_items)
    if "methods" in mapping:
        raise MorelError(f"{source}: compares methods: a campaign runs with morel campaign")
    with placed(source, given | run_given):
        for key in names_first(given):
            put(mapping, key, given[key])
        return check_search(name, source, mapping, run_given)


def read_file(name_or_path: str) -> tuple[str, str, dict[str, Any]]:
    """A file of ``search_spaces/`` by name, or any file: its name, how errors call it, its keys."""
    path = find_file("search_spaces", name_or_path)
    own = path in packaged("search_spaces").values()
    return path.stem, f"search_spaces/{path.name}" if own else str(path), read_yaml(path)


@contextmanager
def placed(source: str, given: Mapping[str, Any]) -> Generator[None]:
    """Inside, an error says where it stands: on the command line, for keys ``given`` there."""
    try:
        yield
    except ConfigError as error:
        typed = any(error.key == key or error.key.startswith(f"{key}.") for key in given)
        place = "command line" if typed else source
        raise ConfigError(f"{place}: {error.key}", error.value, error.allowed) from None
    except MorelError as error:
        raise MorelError(f"{source}: {error}") from None


def split_overrides(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """``key=value`` items for the search file, and those for the run of every trial.

    A key belongs to the search if its first part is a key of the search file. ``objective`` is in
    both: ``objective.metric`` and ``constraints`` are the search's, all others the run's.
    ``seed`` is the searcher's; ``overrides.seed`` is what the trials train with.
    """
    search_keys = [f.name for f in dataclasses.fields(SearchSettings)]
    run_keys = [f.name for f in dataclasses.fields(RunConfig)]
    search: list[str] = []
    run: list[str] = []
    for item in overrides:
        key, _, value = item.partition("=")
        first, _, rest = key.strip().partition(".")
        if first == "objective":
            (search if rest in GOAL_KEYS else run).append(item)
        elif first in search_keys:
            search.append(item)
        elif first in run_keys or "=" not in item:
            run.append(item)
        else:
            known = search_keys + [name for name in run_keys if name not in search_keys]
            raise ConfigError(key.strip(), value, f"unknown key; {suggestion(first, known)}")
    return search, run


def put(mapping: dict[str, Any], key: str, value: Any) -> None:
    """Set a key of a search file; parameters' names may hold dots.

    A new name of the searcher or scheduler drops the settings of the old one.
    """
    section, _, rest = key.partition(".")
    if not rest:
        mapping[section] = value
        return
    inner = mapping.get(section)
    if not isinstance(inner, dict):
        inner = mapping[section] = {}
    inner = cast(dict[str, Any], inner)
    if section == "parameters" and rest not in inner and not isinstance(value, dict):
        name, _, rest = rest.rpartition(".")
        check(name in inner, "parameters", name or rest, suggestion(name or rest, list(inner)))
        inner = section_of(inner[name], f"parameters.{name}")
    elif section in ("baselines", "ladder") and "." in rest:
        name, _, rest = rest.partition(".")
        inner[name] = section_of(inner.get(name) or {}, f"{section}.{name}")
        inner = cast(dict[str, Any], inner[name])
    elif section in ("searcher", "scheduler") and rest == "name" and inner.get("name") != value:
        inner.clear()
    inner[rest] = value


def check_resources(config: SearchConfig, available_cpus: float, available_gpus: float) -> None:
    """Raise `ConfigError` if one trial of the search asks for more than there is."""
    asked = config.resources
    for kind, each, there in (
        ("cpus", asked.cpus_per_worker, available_cpus),
        ("gpus", asked.gpus_per_worker, available_gpus),
    ):
        need = asked.workers * each
        check(
            need <= there,
            f"{config.source}: resources.{kind}_per_worker",
            each,
            f"one trial asks for {need:g} {kind.upper()[:-1]}s ({asked.workers} x {each:g}), but"
            f" there are {there:g}: lower resources.workers or resources.{kind}_per_worker",
        )


# --- checks --------------------------------------------------------------------------------------


def check_search(
    name: str, source: str, mapping: Mapping[str, Any], run_given: Mapping[str, Any]
) -> SearchConfig:
    """The search of a file's ``mapping`` with overrides for its run; raises `ConfigError`.

    Args:
        name: of the search space.
        source: the file, as errors name it.
        mapping: keys of `SearchSettings`.
        run_given: dotted settings that win over the mapping's ``overrides``.
    """
    settings = build(SearchSettings, number(mapping))
    find_file("recipes", settings.recipe)
    parameters = in_order(build_parameters(settings.parameters))
    base = _base(settings, parameters, run_given, source)
    check_names(parameters, base)
    space = SearchSpace(parameters, build_baselines(settings.baselines, parameters, base))
    _check_counts(settings, space)
    epochs, every = base.training.epochs, base.evaluation.every
    settings = dataclasses.replace(settings, scheduler=settings.scheduler.patient(epochs, every))
    check(
        not base.evaluation.asynchronous,
        "evaluation.asynchronous",
        True,
        "false in a search: its scheduler ranks trials by each epoch's numbers as it is reported",
    )
    check_scheduler(settings.scheduler, settings.objective, base)
    check_ladder(settings.ladder, base)
    if settings.scheduler.name == "pbt":
        check_population(settings, space, epochs, every)
    check_attacks("final.attacks", settings.final.attacks, base.evaluation.attack)
    check_points(space, base)
    values = {f.name: getattr(settings, f.name) for f in dataclasses.fields(settings)}
    search = SearchConfig(**values, name=name, source=source, space=space, base=base)
    if search.searcher.name == "grid":
        every, cells = len(search.planned()), len(space.grid())
        allowed = (
            f"at least {-(-every // cells)}: searcher grid tries every value with every other, in "
            f"{every} trials; name fewer values, or a searcher that samples (random, quasi_random)"
        )
        check(search.total_trials == every, "num_trials", search.num_trials, allowed)
    return search


def _base(
    settings: SearchSettings,
    parameters: Mapping[str, Parameter],
    run_given: Mapping[str, Any],
    source: str,
) -> RunConfig:
    """The run that trials change; a setting cannot be both fixed and searched."""
    fixed, resources = flatten(settings.overrides), settings.resources
    scaling = {
        "scaling.num_workers": resources.workers,
        "scaling.cpus_per_worker": resources.cpus_per_worker,
        "scaling.gpus_per_worker": resources.gpus_per_worker,
    }
    for prefix, values in (("overrides.", fixed), ("", run_given)):
        for key, value in values.items():
            searched = f"{source} searches over it: narrow parameters.{key}, or use another file"
            check(key not in parameters, prefix + key, value, searched)
            workers = "the workers of a trial are set by resources.workers"
            check(key not in scaling, prefix + key, value, workers)
    try:
        return with_overrides(
            compose(settings.recipe),
            {**fixed, **run_given, **settings.ladder.overrides(), **scaling},
        )
    except ConfigError as error:
        if settings.ladder.rungs and error.key.startswith("evaluation.rungs"):
            place = error.key.replace("evaluation", "ladder", 1)
            raise ConfigError(place, error.value, error.allowed) from None
        ours = any(f"{key}.".startswith(f"{error.key}.") for key in fixed if key not in run_given)
        raise (error.within("overrides") if ours else error) from None


def _check_counts(settings: SearchSettings, space: SearchSpace) -> None:
    """The number of trials fits the baselines, and the searcher fits the parameters."""
    points, fixed = settings.num_trials, len(space.baselines)
    hours = settings.budget.gpu_hours
    check(
        hours is None or settings.resources.gpus_per_worker > 0,
        "budget.gpu_hours",
        hours,
        "nothing here spends any: set resources.gpus_per_worker, or write budget.cpu_hours",
    )
    names = ", ".join(space.baselines)
    check(points >= fixed, "num_trials", points, f"at least the {fixed} baselines ({names})")
    if settings.searcher.name == "grid":
        for name, parameter in space.sampled.items():
            check(
                isinstance(parameter, ChoiceParameter),
                f"parameters.{name}",
                parameter.describe(),
                "searcher grid tries every value: write type grid or choice, or another searcher",
            )
    else:
        check(
            bool(space.sampled) or points == fixed,
            "num_trials",
            points,
            f"nothing is sampled after the {fixed} baselines ({names}): write that number, or"
            " searcher.name grid",
        )
