"""When a scheduler compares trials."""

from __future__ import annotations

from orchestrator.search.settings import SchedulerConfig


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
