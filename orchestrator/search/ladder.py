"""The ``ladder`` of a search: how trials are measured on the way up, and verified at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from morel_core.config import AttackConfig, RungConfig
from morel_core.errors import ConfigError, MorelError, check
from orchestrator.config import RunConfig

if TYPE_CHECKING:
    from orchestrator.search.settings import GoalConfig, SchedulerConfig


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


def milestones(scheduler: SchedulerConfig, epochs: int, every: int = 1) -> list[int]:
    """Epochs at which a scheduler compares trials, and at which they are saved.

    Args:
        scheduler: halving has grace_period · reduction_factor^k; pbt multiples of its interval.
        epochs: of a whole run; its end is no milestone.
        every: ``evaluation.every``; a milestone between two measured epochs moves to the later.
    """
    found = list[int]()
    if scheduler.interval:
        found = list(range(scheduler.interval, epochs, scheduler.interval))
    elif scheduler.grace_period and scheduler.reduction_factor:
        epoch = scheduler.grace_period
        while epoch < epochs:
            found.append(epoch)
            epoch *= scheduler.reduction_factor
    measured = {-(-epoch // every) * every for epoch in found}
    return sorted(epoch for epoch in measured if epoch < epochs)


def check_scheduler(scheduler: SchedulerConfig, goal: GoalConfig, base: RunConfig) -> None:
    """Raise `ConfigError` where a scheduler would rank what cannot be compared.

    Args:
        scheduler: who stops trials early.
        goal: what the search makes better.
        base: the run that the trials change, with the ladder's rungs.
    """
    name, epochs, every = scheduler.name, base.training.epochs, base.evaluation.every
    both = goal.metric == "tradeoff" and name in ("asha", "hyperband", "median")
    allowed = "pareto, pbt or none with objective.metric: tradeoff; this one ranks by one number"
    check(not both, "scheduler.name", name, allowed)
    grace = scheduler.grace_period
    allowed = f"at most training.epochs = {epochs}"
    check(grace is None or grace <= epochs, "scheduler.grace_period", grace, allowed)
    compared = milestones(scheduler, epochs, every)
    brackets = scheduler.brackets or 1
    allowed = (
        f"at most {len(compared) + 1}: in {epochs} epochs trials are compared {len(compared)} times"
    )
    check(brackets <= len(compared) + 1, "scheduler.brackets", brackets, allowed)
    if not base.evaluation.rungs:
        return
    allowed = (
        "asha, hyperband, pareto or none with evaluation rungs: this one would mix numbers of "
        "different rungs"
    )
    check(name not in ("median", "pbt"), "scheduler.name", name, allowed)
    for epoch in milestones(scheduler, epochs):
        allowed = (
            f"with evaluation rungs {name}'s milestones, of which {epoch} is one, must be "
            f"measured epochs: multiples of evaluation.every = {every}"
        )
        check(epoch % every == 0, "scheduler.grace_period", scheduler.grace_period, allowed)


def check_ladder(ladder: LadderConfig, base: RunConfig) -> None:
    """Raise `ConfigError` where a search could not verify as its ladder says.

    Args:
        ladder: of the search file.
        base: the run that the trials change, with the ladder's rungs.
    """
    verify = ladder.verify
    check(
        verify.num_images is None or verify.num_images <= base.data.holdout,
        "ladder.verify.num_images",
        verify.num_images,
        f"at most data.holdout = {base.data.holdout}",
    )
    check_attacks("ladder.verify.attacks", verify.attacks, base.evaluation.attack)


def check_attacks(key: str, names: Sequence[str], ball: AttackConfig) -> None:
    """Raise `ConfigError` for ``key`` unless each name is an attack of the catalogue."""
    from morel_core.attacks.catalogue import make_attacks

    for name in names:
        try:
            make_attacks([name], ball)
        except MorelError as error:
            raise ConfigError(key, name, str(error)) from None
