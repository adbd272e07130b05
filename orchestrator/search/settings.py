"""The sections of a search file, each checked by itself."""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, cast

from morel_core.config import RungConfig
from morel_core.errors import ConfigError, check
from orchestrator.search.parameters import Values

CONSTRAINT = re.compile(r"^\s*(\w+)\s*(>=|<=)\s*(\d+\.?\d*|\.\d+)\s*$")
CONSTRAINED = ("clean_accuracy", "robust_accuracy", "train_seconds")


@dataclass(frozen=True, kw_only=True)
class Constraint:
    """What a trial must keep to be a result: ``clean_accuracy >= 0.8``."""

    metric: str
    """clean_accuracy or robust_accuracy of its best epoch on the held-out split, or train_seconds,
    the wall seconds of its epochs and their measurements, those too that a twin had trained."""
    sign: Literal[">=", "<="]
    bound: float

    @staticmethod
    def parse(text: str) -> Constraint:
        """Raises `ConfigError` for anything but ``metric >= number`` or ``metric <= number``."""
        match = CONSTRAINT.match(text)
        if match is None or match[1] not in CONSTRAINED:
            allowed = f"as in 'clean_accuracy >= 0.8', of {', '.join(CONSTRAINED)}"
            raise ConfigError("constraints", text, allowed)
        metric, bound = match[1], float(match[3])
        check(metric == "train_seconds" or bound <= 1, "constraints", text, fraction(bound))
        return Constraint(metric=metric, sign=cast(Any, match[2]), bound=bound)

    def violation(self, value: float) -> float:
        """By how much ``value`` misses the bound; 0 or less where it keeps it."""
        return self.bound - value if self.sign == ">=" else value - self.bound

    def __str__(self) -> str:
        return f"{self.metric} {self.sign} {self.bound:g}"


@dataclass(frozen=True, kw_only=True)
class GoalConfig:
    """What the search makes better, measured on the held-out split."""

    metric: Literal["robust_accuracy", "clean_accuracy", "tradeoff"] = "robust_accuracy"
    """tradeoff: clean and robust accuracy together; the result is their Pareto front."""
    constraints: list[str] = field(default_factory=lambda: list[str]())
    """As in ``clean_accuracy >= 0.8``: trials that miss one do not win."""

    def __post_init__(self) -> None:
        for text in self.constraints:
            Constraint.parse(text)

    @property
    def bounds(self) -> list[Constraint]:
        """``constraints``, read."""
        return [Constraint.parse(text) for text in self.constraints]

    @property
    def scalar(self) -> Literal["robust_accuracy", "clean_accuracy"]:
        """The metric where only one can be: of a trade-off robust accuracy."""
        return "robust_accuracy" if self.metric == "tradeoff" else self.metric


@dataclass(frozen=True, kw_only=True)
class SearcherConfig:
    """Who proposes points.

    tpe (Bergstra et al. 2011), the genetic nsga2 and nsga3 (Deb et al. 2002, 2014), chance, a Sobol
    sequence, or every point in turn.
    """

    name: Literal["tpe", "nsga2", "nsga3", "random", "quasi_random", "grid"] = "tpe"
    """Which of them."""
    startup_trials: int | None = None
    """tpe only: trials of a Sobol sequence before the model is used; default 10."""
    population_size: int | None = None
    """nsga2, nsga3: trials of a generation; default 20."""

    def __post_init__(self) -> None:
        genetic = ("nsga2", "nsga3")
        if self.name == "tpe" and self.startup_trials is None:
            object.__setattr__(self, "startup_trials", 10)
        if self.name in genetic and self.population_size is None:
            object.__setattr__(self, "population_size", 20)
        for key, least, users in (
            ("startup_trials", 0, ("tpe",)),
            ("population_size", 2, genetic),
        ):
            value = cast(int | None, getattr(self, key))
            only_with(key, value, self.name, users)
            check(value is None or value >= least, key, value, f"must be >= {least}")


HALVING = ("asha", "hyperband", "pareto")
PATIENT = (*HALVING, "median")


@dataclass(frozen=True, kw_only=True)
class SchedulerConfig:
    """Who stops trials early, or lets them learn from each other. In epochs.

    asha (Li et al. 2020), hyperband (its brackets, run asynchronously), pareto (successive halving
    by non-domination, Schmucker et al. 2021), the median rule, population-based training (Jaderberg
    et al. 2017), or nobody.
    """

    name: Literal["asha", "hyperband", "pareto", "median", "pbt", "none"] = "asha"
    """Which of them."""
    grace_period: int | None = None
    """asha, hyperband, pareto, median: no trial stops before this many epochs. Default: a quarter
    of the run, since adversarial training's first epochs say little about its last ones."""
    reduction_factor: int | None = None
    """asha, hyperband, pareto: of so many trials at a milestone one goes on; they are as far apart.
    Default 2."""
    brackets: int | None = None
    """hyperband: brackets, each with a later first milestone than the one before; default 3."""
    interval: int | None = None
    """pbt: epochs between two exchanges; default 1."""
    quantile: float | None = None
    """pbt: share of the population, in (0, 0.5], that takes over what the best such share have
    learned; default 0.25."""
    resample: float | None = None
    """pbt: probability that a parameter taken over is drawn anew, not perturbed; default 0.25."""

    def __post_init__(self) -> None:
        for key, users, default, low, high in (
            ("grace_period", PATIENT, None, 1, None),  # see `patient`
            ("reduction_factor", HALVING, 2, 2, None),
            ("brackets", ("hyperband",), 3, 1, None),
            ("interval", ("pbt",), 1, 1, None),
            ("quantile", ("pbt",), 0.25, 0.01, 0.5),
            ("resample", ("pbt",), 0.25, 0.0, 1.0),
        ):
            if self.name in users and getattr(self, key) is None:
                object.__setattr__(self, key, default)
            value = cast(float | None, getattr(self, key))
            only_with(key, value, self.name, users)
            allowed = f"must be >= {low}" if high is None else f"from {low:g} to {high:g}"
            right = value is None or (value >= low and (high is None or value <= high))
            check(right, key, value, allowed)

    def patient(self, epochs: int, every: int) -> SchedulerConfig:
        """With the default ``grace_period`` of runs of ``epochs``, measured ``every`` so many."""
        if self.name not in PATIENT or self.grace_period is not None:
            return self
        quarter = math.ceil(epochs / 4 / every) * every
        return replace(self, grace_period=min(quarter, epochs))


@dataclass(frozen=True, kw_only=True)
class BudgetConfig:
    """What ends a search before its trials are done. Running trials end too, and are kept.

    It bounds the training of trials: verification and test set come on top.
    """

    wall_time_s: float | None = None
    """Seconds since the search began, interruptions left out."""
    gpu_hours: float | None = None
    """Of all trials together: GPUs of a trial × hours of its training."""
    cpu_hours: float | None = None
    """As ``gpu_hours``, for searches without GPUs."""
    target: float | None = None
    """Enough of ``objective.metric``, reached on the last rung by a trial trained to its end."""

    def __post_init__(self) -> None:
        for key in ("wall_time_s", "gpu_hours", "cpu_hours", "target"):
            value = cast(float | None, getattr(self, key))
            check(value is None or value > 0, key, value, "null or > 0")
        if self.target is not None:
            check(self.target <= 1, "target", self.target, fraction(self.target))


@dataclass(frozen=True, kw_only=True)
class ResourcesConfig:
    """What one trial gets."""

    workers: int = 1
    """Data-parallel workers of a trial."""
    cpus_per_worker: int = 1
    """CPUs reserved for each."""
    gpus_per_worker: float = 0.0
    """GPUs for each, also a part of one."""

    def __post_init__(self) -> None:
        check(self.workers >= 1, "workers", self.workers, "must be >= 1")
        check(self.cpus_per_worker >= 1, "cpus_per_worker", self.cpus_per_worker, "must be >= 1")
        check(self.gpus_per_worker >= 0, "gpus_per_worker", self.gpus_per_worker, "must be >= 0")

    def cost(self, seconds: float) -> dict[str, float]:
        """What trials cost that hold this for so many seconds altogether, as recorded."""
        return {
            "cost.cpu_seconds": seconds * self.workers * self.cpus_per_worker,
            "cost.gpu_seconds": seconds * self.workers * self.gpus_per_worker,
        }


@dataclass(frozen=True, kw_only=True)
class FinalConfig:
    """What is measured on the test set, once, when the search is over."""

    trials: Literal["winner", "all", "none"] = "winner"
    """Whose best networks; all: of every trial that came to its end."""
    attacks: list[str] = field(default_factory=lambda: list[str]())
    """By name, in the ball of the evaluation attack; default: the evaluation attack itself."""


@dataclass(frozen=True, kw_only=True)
class VerifyConfig:
    """The best trials are measured again on the held-out split before one of them wins."""

    top: int = 0
    """So many candidates, by their search numbers; 0: the largest search number wins as it is."""
    attacks: list[str] = field(default_factory=lambda: list[str]())
    """By name, in the ball of the evaluation attack; default: autoattack. The worst case counts."""
    num_images: int | None = None
    """Only the first so many held-out images; default: all."""

    def __post_init__(self) -> None:
        check(self.top >= 0, "top", self.top, "0 (off) or a number of candidates >= 1")
        if self.top and not self.attacks:
            object.__setattr__(self, "attacks", ["autoattack"])
        for key in ("attacks", "num_images"):
            value = getattr(self, key)
            check(self.top > 0 or not value, key, value, "only with top >= 1: who is verified")
        images = self.num_images
        check(images is None or images >= 1, "num_images", images, "null (all) or >= 1")


@dataclass(frozen=True, kw_only=True)
class LadderConfig:
    """Cheap measurements early, strong ones late, AutoAttack for the few that could win."""

    rungs: list[RungConfig] = field(default_factory=lambda: list[RungConfig]())
    """Become the runs' ``evaluation.rungs``, the same for every trial."""
    verify: VerifyConfig = field(default_factory=VerifyConfig)

    def overrides(self) -> dict[str, Any]:
        """What it sets in the run of every trial."""
        return {"evaluation.rungs": [asdict(rung) for rung in self.rungs]} if self.rungs else {}


@dataclass(frozen=True, kw_only=True)
class SearchSettings:
    """The keys of a search file."""

    description: str = ""
    """For people."""
    recipe: str = "digits"
    """The run that every trial changes: a recipe by name or file."""
    overrides: dict[str, Any] = field(default_factory=lambda: Values())
    """Fixed settings on top of the recipe, by dotted key."""
    objective: GoalConfig = field(default_factory=GoalConfig)
    searcher: SearcherConfig = field(default_factory=SearcherConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    num_trials: int = 10
    """Points tried, baselines among them; each is crossed with every grid combination."""
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    max_concurrent: int | None = None
    """Trials at a time; default: what the cluster holds."""
    warm_start: list[str] = field(default_factory=lambda: list[str]())
    """Earlier searches, by name, whose trials in MLflow the searcher learns from."""
    seed: int = 0
    """Of the searcher. What trials train with is the recipe's own ``seed``."""
    reuse: bool = True
    """Take over trials, and verifications, of earlier searches in the same ``storage_path`` that
    have the same settings, seed, data, code and number of workers. Not with the scheduler pbt."""
    resources: ResourcesConfig = field(default_factory=ResourcesConfig)
    ladder: LadderConfig = field(default_factory=LadderConfig)
    final: FinalConfig = field(default_factory=FinalConfig)
    parameters: dict[str, Any] = field(default_factory=lambda: Values())
    """What is searched, by dotted key; a name without a dot is a helper variable."""
    baselines: dict[str, Any] = field(default_factory=lambda: Values())
    """Points tried first, by name; ``paper``, the published setting, is required."""

    def __post_init__(self) -> None:
        check(self.num_trials >= 1, "num_trials", self.num_trials, "must be >= 1")
        target, both = self.budget.target, self.objective.metric == "tradeoff"
        single = "null with objective.metric: tradeoff, of which no single number is enough"
        check(target is None or not both, "budget.target", target, single)
        concurrent = self.max_concurrent
        check(concurrent is None or concurrent >= 1, "max_concurrent", concurrent, "null or >= 1")
        check(self.seed >= 0, "seed", self.seed, "must be >= 0")


def fraction(percent: float) -> str:
    """What is allowed where an accuracy was given as ``percent``."""
    return f"accuracies are in [0, 1]: {percent:g} % is written {percent / 100:g}"


def only_with(key: str, value: object, name: str, users: tuple[str, ...]) -> None:
    """Refuse an option that the chosen algorithm would not read."""
    readers = ", ".join(users)
    check(value is None or name in users, key, value, f"only with name: {readers}, not {name}")
