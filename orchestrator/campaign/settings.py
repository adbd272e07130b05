"""The keys of a campaign file, each checked by itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from morel_core.errors import check
from morel_core.registry import suggestion
from orchestrator.config import check_name
from orchestrator.search.parameters import Values
from orchestrator.search.settings import ResourcesConfig


@dataclass(frozen=True, kw_only=True)
class PrimaryConfig:
    """The number that the comparisons are about, fixed before the first trial."""

    metric: Literal["robust_accuracy", "clean_accuracy"] = "robust_accuracy"
    """Accuracy under ``attack``, or on clean images."""
    attack: str = "pgd20"
    """By name, in the ball of the evaluation attack; every replicate is measured with it."""


@dataclass(frozen=True, kw_only=True)
class CampaignSettings:
    """The keys of a campaign file."""

    description: str = ""
    """For people."""
    recipe: str = "digits"
    """The run that every method changes: a recipe by name or file."""
    overrides: dict[str, Any] = field(default_factory=lambda: Values())
    """Fixed settings on top of the recipe, the same for all methods, by dotted key."""
    methods: dict[str, Any] = field(default_factory=lambda: Values())
    """Method → the dotted settings that make it."""
    pairs: dict[str, Any] = field(default_factory=lambda: Values())
    """Method → the one it is compared with: the difference is the first less the second."""
    tuning: dict[str, Any] = field(default_factory=lambda: Values())
    """A search's own keys, for every method alike: searcher, scheduler, num_trials, budget, seed,
    objective, ladder, parameters, baselines. A method does not search over what it sets, nor over
    a parameter whose ``when`` its settings do not meet. Without parameters nothing is tuned.
    ``seed`` is the searcher's and what its trials train with."""
    seeds: list[int] = field(default_factory=lambda: list[int]())
    """What every method's replicates train with: the same for all, so that they pair."""
    primary: PrimaryConfig = field(default_factory=PrimaryConfig)
    report_attacks: list[str] = field(default_factory=lambda: list[str]())
    """Further attacks that every replicate is measured with."""
    resources: ResourcesConfig = field(default_factory=ResourcesConfig)
    """Of one trial, and of one replicate."""
    max_concurrent: int | None = None
    """Of those at a time; default: what the cluster holds."""

    def __post_init__(self) -> None:
        check(len(self.methods) >= 2, "methods", list(self.methods), "at least two to compare")
        for method in self.methods:
            check_name("methods", method)
            check("." not in method, "methods", method, "no '.' in a method's name")
        check(bool(self.pairs), "pairs", self.pairs, "at least one, as in morel-trades: trades")
        for first, second in self.pairs.items():
            for method in (first, second):
                known = suggestion(str(method), list(self.methods))
                check(method in self.methods, f"pairs.{first}", second, f"not a method; {known}")
            check(first != second, f"pairs.{first}", second, "another method than itself")
        few = "at least two, all different and >= 0: intervals come from their spread"
        right = len(set(self.seeds)) == len(self.seeds) >= 2 and min(self.seeds) >= 0
        check(right, "seeds", self.seeds, few)
        attacks = self.attacks
        twice = "each attack once, the primary one not among them"
        check(len(set(attacks)) == len(attacks), "report_attacks", self.report_attacks, twice)

    @property
    def attacks(self) -> list[str]:
        """What every replicate is measured with, the primary attack first."""
        return [self.primary.attack, *self.report_attacks]
