"""Campaign files: YAML + ``key=value`` → one frozen, checked `CampaignConfig`.

``search_spaces/paper_comparison.yaml`` shows every section. A campaign is a search for each method
under one budget, then one more, over seeds, with what that search chose; both are `SearchConfig`s,
checked as those of search files are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from morel_core.errors import ConfigError, MorelError, check
from morel_core.registry import suggestion
from orchestrator.campaign.fitting import fit_baselines, fit_parameters
from orchestrator.campaign.settings import CampaignSettings
from orchestrator.config import (
    NOT_SCIENTIFIC,
    RunConfig,
    compose,
    flatten,
    names_first,
    to_dict,
    with_overrides,
)
from orchestrator.search import space as search_space
from orchestrator.search.checks import check_attacks
from orchestrator.search.parameters import GridParameter, Parameter, Sampled, SearchSpace
from orchestrator.search.settings import (
    BudgetConfig,
    FinalConfig,
    GoalConfig,
    SchedulerConfig,
    SearcherConfig,
    SearchSettings,
    VerifyConfig,
)
from orchestrator.search.space import GOAL_KEYS, SearchConfig, check_search, placed, read_file
from orchestrator.search.space_builder import PAPER, build_parameters, check_searchable, section_of
from orchestrator.settings.building import build
from orchestrator.settings.interpolation import number
from orchestrator.settings.yaml_files import parse_overrides

# Of a search's keys, those that are the campaign's own, and those that would give a method more
# than the others have.
NOT_TUNING = ("description", "recipe", "overrides", "resources", "max_concurrent", "final")
UNEQUAL = ("warm_start",)
TUNING_KEYS = [
    f.name for f in dataclasses.fields(SearchSettings) if f.name not in (*NOT_TUNING, *UNEQUAL)
]


@dataclass(frozen=True, kw_only=True)
class CampaignConfig(CampaignSettings):
    """A checked campaign."""

    name: str
    source: str
    """The file, as errors name it."""
    base: RunConfig
    """Recipe, the file's ``overrides`` and the command line's, before any method's settings."""
    searches: dict[str, SearchConfig]
    """Method → its search; without ``tuning.parameters`` a search over nothing, which is not run.
    Its ``base`` is the method as it is given."""

    @property
    def tuned(self) -> bool:
        """Whether the methods are tuned, or trained as they are given."""
        return bool(self.tuning.get("parameters"))

    @property
    def attack_names(self) -> list[str]:
        """`attacks` as they are recorded, with their balls."""
        from morel_core.attacks.catalogue import make_attacks

        return list(make_attacks(self.attacks, self.base.evaluation.attack))

    @property
    def metrics(self) -> list[str]:
        """What is recorded of every replicate: clean accuracy, then that under each attack."""
        return ["test.clean", *(f"test.robust.{name}" for name in self.attack_names)]

    @property
    def primary_metric(self) -> str:
        """The one of `metrics` that the comparisons are about."""
        return self.metrics[1 if self.primary.metric == "robust_accuracy" else 0]

    def replicates(self, method: str, chosen: Mapping[str, Any]) -> SearchConfig:
        """The search that trains a method anew with every seed, and measures each on the test set.

        Args:
            method: by name.
            chosen: dotted settings that its tuning chose.
        """
        search = self.searches[method]
        name = f"{search.base.name}-seeds"
        grid = GridParameter(values=list(self.seeds))
        return dataclasses.replace(
            search,
            name=name,
            base=with_overrides(search.base, {**chosen, "name": name}),
            space=SearchSpace({"seed": grid}, {"replicate": {}}),
            objective=GoalConfig(),
            searcher=SearcherConfig(name="grid"),
            scheduler=SchedulerConfig(name="none"),
            num_trials=1,
            budget=BudgetConfig(),
            ladder=dataclasses.replace(search.ladder, verify=VerifyConfig()),
            final=FinalConfig(trials="all", attacks=self.attacks),
            reuse=False,  # an earlier campaign's networks are no new evidence
            parameters={},
            baselines={},
            tags={**search.tags, "morel.phase": "replicates"},
        )

    def fixed(self) -> dict[str, Any]:
        """What is fixed before the first trial, plain: a resumed campaign must agree on it.

        Methods and parameters are lists, one leaf each, so that an added one is a difference too.
        Where it runs and how many trials at a time is left open.
        """
        tuning = {**self.tuning}
        for key in ("parameters", "baselines"):
            tuning[key] = [f"{name}: {entry}" for name, entry in tuning.get(key, {}).items()]
        return {
            "primary": dataclasses.asdict(self.primary),
            "report_attacks": self.report_attacks,
            "seeds": self.seeds,
            "pairs": [f"{first} - {second}" for first, second in self.pairs.items()],
            "methods": [f"{m}: {flatten(values or {})}" for m, values in self.methods.items()],
            "tuning": tuning,
            "resources": dataclasses.asdict(self.resources),
            "base": {k: v for k, v in to_dict(self.base).items() if k not in NOT_SCIENTIFIC},
        }


def load_campaign(name_or_path: str, overrides: Sequence[str] = ()) -> CampaignConfig:
    """A campaign by name or file, with ``key=value`` overrides, checked as far as is possible.

    Args:
        name_or_path: a file of ``search_spaces/`` by name, or any file.
        overrides: for the campaign (``seeds=[1,2,3]``, ``tuning.num_trials=4``,
            ``methods.trades.objective.beta=5``), all others for the run of every method.

    Raises:
        MorelError: no such file, or broken YAML.
        ConfigError: the first thing that is wrong, where it stands, and what is allowed.
    """
    name, source, mapping = read_file(name_or_path)
    ours, runs = _split(overrides)
    given, run_given = parse_overrides(ours), parse_overrides(runs)
    if "methods" not in mapping:
        raise MorelError(f"{source}: has no methods to compare: a search runs with morel tune")
    with placed(source, given | run_given):
        for key in names_first(given):
            _put(mapping, key, given[key])
        settings = build(CampaignSettings, number(mapping))
        return _check_campaign(name, source, settings, run_given)


def plan(campaign: CampaignConfig) -> dict[str, Any]:
    """What would run, plain: for ``--dry-run``."""
    epochs, replicates = campaign.base.training.epochs, len(campaign.methods) * len(campaign.seeds)
    trials = {
        m: search.total_trials if campaign.tuned else 0 for m, search in campaign.searches.items()
    }
    return {
        "name": campaign.name,
        "storage": f"{campaign.base.storage_path}/{campaign.name}",
        "primary": campaign.primary_metric,
        "attacks": campaign.attack_names,
        "seeds": campaign.seeds,
        "pairs": campaign.pairs,
        "methods": {
            method: {
                "settings": flatten(campaign.methods[method] or {}),
                "tuned": list(search.space.sampled),
                "trials": trials[method],
                "replicates": len(campaign.seeds),
            }
            for method, search in campaign.searches.items()
        },
        "trials": sum(trials.values()),
        "replicates": replicates,
        "epochs_each": epochs,
        "epochs_at_most": epochs * (sum(trials.values()) + replicates),
    }


# --- checks --------------------------------------------------------------------------------------


def _split(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """``key=value`` items for the campaign, and those for the run of every method."""
    ours = [f.name for f in dataclasses.fields(CampaignSettings)]
    runs = [f.name for f in dataclasses.fields(RunConfig)]
    campaign: list[str] = []
    run: list[str] = []
    for item in overrides:
        key, sign, value = item.partition("=")
        first = key.strip().partition(".")[0]
        known = first in ours or first in runs or not sign
        check(known, key.strip(), value, f"unknown key; {suggestion(first, ours + runs)}")
        (campaign if first in ours else run).append(item)
    return campaign, run


def _put(mapping: dict[str, Any], key: str, value: Any) -> None:
    """Set a key of a campaign file; names of settings and parameters hold dots."""
    first, _, rest = key.partition(".")
    if first == "tuning" and rest:
        tuning = mapping[first] = section_of(mapping.get(first) or {}, first)
        search_space.put(tuning, rest, value)
    elif first == "methods" and "." in rest:
        method, _, setting = rest.partition(".")
        methods = section_of(mapping[first], first)
        methods[method] = {**section_of(methods.get(method) or {}, key), setting: value}
    else:
        search_space.put(mapping, key, value)


def _check_campaign(
    stem: str, source: str, settings: CampaignSettings, run_given: Mapping[str, Any]
) -> CampaignConfig:
    tuning = dict(settings.tuning)
    for key, value in tuning.items():
        unequal = "every method starts from nothing: leave it out"
        check(key not in UNEQUAL, f"tuning.{key}", value, unequal)
        check(key in TUNING_KEYS, f"tuning.{key}", value, suggestion(key, TUNING_KEYS))
    entries = section_of(tuning.pop("parameters", {}), "tuning.parameters")
    if not entries:
        idle = "nothing is tuned without tuning.parameters: leave it out"
        for key, value in tuning.items():
            raise ConfigError(f"tuning.{key}", value, idle)
    _check_fixed(settings, entries, run_given)
    plain = _search(settings, "", source, {}, {}, run_given)
    name = plain.base.name or stem
    parameters = _build_parameters(entries)
    searches: dict[str, SearchConfig] = {}
    for method in settings.methods:
        try:
            own = _search(settings, method, source, parameters, entries, run_given)
            base = dataclasses.replace(own.base, name=f"{name}-{method}")
        except ConfigError as error:
            raise _blamed(error, method, settings) from None
        tags = {"morel.campaign": name, "morel.method": method, "morel.phase": "tuning"}
        searches[method] = dataclasses.replace(
            own, name=f"{stem}-{method}", base=base, parent=name, tags=tags
        )
    names = [n for s in searches.values() for n in (s.base.name, f"{s.base.name}-seeds")]
    clash = "names whose searches do not collide: <method>-seeds is taken"
    check(len(set(names)) == len(names), "methods", list(settings.methods), clash)
    if entries:
        _check_budget(settings, searches)
    ball = plain.base.evaluation.attack
    check_attacks("primary.attack", [settings.primary.attack], ball)
    check_attacks("report_attacks", settings.report_attacks, ball)
    values = {f.name: getattr(settings, f.name) for f in dataclasses.fields(settings)}
    base = dataclasses.replace(plain.base, name=name)
    return CampaignConfig(**values, name=name, source=source, base=base, searches=searches)


def _check_fixed(
    settings: CampaignSettings, entries: Mapping[str, Any], run_given: Mapping[str, Any]
) -> None:
    """What methods and parameters must leave alone, and overrides must leave to them."""
    made = {
        setting: method
        for method, values in settings.methods.items()
        for setting in flatten(section_of(values or {}, f"methods.{method}"))
    }
    places = dict.fromkeys(entries, "tuning.parameters")
    for name, place in {**places, **{n: f"methods.{m}" for n, m in made.items()}}.items():
        same = "the same for every method: set it under overrides"
        check(name != "training.epochs", place, name, same)
        if "." in name:
            try:
                check_searchable(name)
            except ConfigError as error:
                raise ConfigError(place, name, error.allowed) from None
        check(name != "seed", place, name, "the campaign's seeds and tuning.seed say")
    for prefix, values in (("overrides.", flatten(settings.overrides)), ("", run_given)):
        for key, value in values.items():
            check(key != "seed", prefix + key, value, "the campaign's seeds and tuning.seed say")
            theirs = f"methods.{made.get(key)} sets it: change it there, or overrides.{key}"
            check(bool(prefix) or key not in made, prefix + key, value, theirs)


def _search(
    settings: CampaignSettings,
    method: str,
    source: str,
    parameters: Mapping[str, Parameter],
    entries: Mapping[str, Any],
    run_given: Mapping[str, Any],
) -> SearchConfig:
    """The search of one method over those of ``parameters`` that it reads; "" for none's."""
    fixed = {**flatten(settings.overrides), **flatten(settings.methods.get(method) or {})}
    if entries:
        fixed["seed"] = settings.tuning.get("seed", 0)
    made = flatten(settings.methods.get(method) or {})
    own: dict[str, Any] = {}
    if entries:
        run = with_overrides(compose(settings.recipe), {**fixed, **run_given})
        own = fit_parameters(parameters, entries, made, flatten(to_dict(run)))
        some = any(isinstance(parameters[name], Sampled) for name in own)
        check(some, "parameters", list(entries), "some that every method reads, or none at all")
    tuning = {k: v for k, v in settings.tuning.items() if entries and k != "parameters"}
    baselines = tuning.pop("baselines", None) or {PAPER: {}}
    mapping = {
        **tuning,
        "num_trials": tuning.get("num_trials", SearchSettings.num_trials) if entries else 1,
        "recipe": settings.recipe,
        "overrides": fixed,
        "resources": dataclasses.asdict(settings.resources),
        "max_concurrent": settings.max_concurrent,
        "parameters": own,
        "baselines": fit_baselines(baselines, parameters, own),
        "final": {"trials": "none"},
    }
    return check_search(method, source, mapping, run_given)


def _build_parameters(entries: Mapping[str, Any]) -> dict[str, Parameter]:
    try:
        return build_parameters(cast(dict[str, Any], number(entries)))
    except ConfigError as error:
        raise error.within("tuning") from None


def _blamed(error: ConfigError, method: str, settings: CampaignSettings) -> ConfigError:
    """An error of a method's search, where it stands in the campaign's file."""
    section, _, rest = error.key.partition(".")
    setting = rest if section == "overrides" else error.key
    if setting in flatten(settings.methods[method] or {}):
        return ConfigError(f"methods.{method}.{setting}", error.value, error.allowed)
    searched = section in TUNING_KEYS and (section != "objective" or rest in GOAL_KEYS)
    key = f"tuning.{error.key}" if searched else error.key
    return ConfigError(key, error.value, f"{error.allowed} (method {method})")


def _check_budget(settings: CampaignSettings, searches: Mapping[str, SearchConfig]) -> None:
    """Every method has as many trials, and what tuning chooses can be trained anew."""
    totals = {method: search.total_trials for method, search in searches.items()}
    same = f"as many trials for every method, not {totals}: a grid multiplies them"
    check(len(set(totals.values())) == 1, "tuning.num_trials", max(totals.values()), same)
    any_search = next(iter(searches.values()))
    schedule = "asha, hyperband, pareto, median or none: what pbt finds is a schedule, no setting"
    name = any_search.scheduler.name
    check(name != "pbt", "tuning.scheduler.name", name, schedule)
    target = any_search.budget.target
    check(target is None, "tuning.budget.target", target, "null: the budget is the same for all")
    timed = any_search.budget.wall_time_s or any_search.budget.gpu_hours
    timed = timed or any_search.budget.cpu_hours
    paid = "false with a budget in time: who finds trained trials would get more of them"
    check(not (timed and any_search.reuse), "tuning.reuse", True, paid)
    seed = any_search.base.seed
    fresh = f"without tuning.seed = {seed}: settings were chosen by what they did under it"
    check(seed not in settings.seeds, "seeds", settings.seeds, fresh)
