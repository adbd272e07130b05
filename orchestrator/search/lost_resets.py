"""What Ray Tune 2.60 does wrong with a reused actor that has died."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from ray.tune.execution.tune_controller import TuneController
from ray.tune.experiment import Trial


@contextmanager
def lost_resets_retried() -> Generator[None]:
    """Inside, a trial whose reused actor is gone before it could begin is run again, in another.

    Tune hears of such a death twice, from the actor and from its last task. By the second time the
    trial is pending again, and Tune gives up what fails while it is pending, whatever
    ``max_failures`` says. The class is changed, as Tune makes the controller itself.
    """
    inner: Any = TuneController._trial_task_failure  # pyright: ignore[reportPrivateUsage]
    heard: dict[str, Any] = {}

    def trial_task_failure(self: Any, trial: Trial, exception: Exception) -> None:
        actor = getattr(exception, "actor_id", None)
        if actor is not None and heard.get(trial.trial_id) == actor:
            return
        heard[trial.trial_id] = actor
        self._resetting_trials.discard(trial)
        if trial.status == Trial.PENDING:  # as Tune does it where a new actor dies
            self._set_trial_status(trial, Trial.RUNNING)
            self._unstage_trial_with_resources(trial)
        inner(self, trial, exception)

    changed: Any = TuneController
    changed._trial_task_failure = trial_task_failure
    try:
        yield
    finally:
        changed._trial_task_failure = inner
