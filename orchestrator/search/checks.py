"""What the parts of a search must agree on, before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence

from morel_core.config import AttackConfig
from morel_core.errors import ConfigError, MorelError, check
from orchestrator.config import RunConfig
from orchestrator.search.milestones import milestones
from orchestrator.search.parameters import DerivedParameter, GridParameter, SearchSpace, is_setting
from orchestrator.search.settings import GoalConfig, LadderConfig, SchedulerConfig, SearchSettings

ALLOWED_DATA = ("augmentation", "crop_padding", "erasing", "cutmix", "extra_ratio")
FIXED = {
    *("seed", "objective.morel", "optimizer.name", "optimizer.no_decay_on_norm_and_bias"),
    *("training.patience", "training.ema_decay", "training.swa_start_epoch"),
}
"""Settings that cannot change while a network trains, beside all of ``model`` and of ``data`` all
but ``ALLOWED_DATA``."""


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
    allowed = (
        f"a multiple of evaluation.every = {every} with several brackets, which would otherwise "
        "begin at the same measured epoch"
    )
    check(brackets == 1 or (grace or 1) % every == 0, "scheduler.grace_period", grace, allowed)
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
