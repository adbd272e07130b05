"""The ``ladder`` of a search: how trials are measured on the way up, and verified at the end."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from morel_core.config import AttackConfig, RungConfig
from morel_core.errors import ConfigError, MorelError, check
from orchestrator.config import RunConfig

if TYPE_CHECKING:
    from orchestrator.search_settings import SchedulerConfig


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


def milestones(scheduler: SchedulerConfig, epochs: int) -> list[int]:
    """Epochs at which ASHA compares trials, and at which they are saved."""
    if scheduler.name != "asha" or not scheduler.grace_period or not scheduler.reduction_factor:
        return []
    epoch, found = scheduler.grace_period, list[int]()
    while epoch < epochs:
        found.append(epoch)
        epoch *= scheduler.reduction_factor
    return found


def check_ladder(ladder: LadderConfig, scheduler: SchedulerConfig, base: RunConfig) -> None:
    """Raise `ConfigError` where a search would rank numbers of different rungs, or cannot verify.

    Args:
        ladder: of the search file.
        scheduler: who stops trials early.
        base: the run that the trials change, with the ladder's rungs.
    """
    if base.evaluation.rungs:
        check(
            scheduler.name != "median",
            "scheduler.name",
            scheduler.name,
            "asha or none with evaluation rungs: the median rule ranks trials by the mean over "
            "their epochs so far, which would mix numbers of different rungs",
        )
        every = base.evaluation.every
        for epoch in milestones(scheduler, base.training.epochs):
            check(
                epoch % every == 0,
                "scheduler.grace_period",
                scheduler.grace_period,
                f"with evaluation rungs asha's milestones, of which {epoch} is one, must be "
                f"measured epochs: multiples of evaluation.every = {every}",
            )
    verify = ladder.verify
    check(
        verify.num_images is None or verify.num_images <= base.data.holdout,
        "ladder.verify.num_images",
        verify.num_images,
        f"at most data.holdout = {base.data.holdout}",
    )
    for name in verify.attacks:
        _check_attack(name, base.evaluation.attack)


def _check_attack(name: str, ball: AttackConfig) -> None:
    from morel_core.attacks.catalogue import make_attacks

    try:
        make_attacks([name], ball)
    except MorelError as error:
        raise ConfigError("ladder.verify.attacks", name, str(error)) from None
