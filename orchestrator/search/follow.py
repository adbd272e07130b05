"""Tune's callback and its stopper: both call the `Watch` of the search in the driver.

Tune pickles them with its state. What is pickled here is the search's folder alone; the watch is
looked up in the process that runs or resumes the search.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from ray.tune import Callback, Stopper

from orchestrator.search.watch import Watch

_WATCHES: dict[str, Watch] = {}


@contextmanager
def following(folder: str, watch: Watch) -> Generator[None]:
    """Inside, the search in ``folder`` is followed by ``watch``."""
    _WATCHES[folder] = watch
    try:
        yield
    finally:
        del _WATCHES[folder]


class Follow(Callback):
    """Passes Tune's events on; holds nothing but the search's folder."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def on_step_begin(self, iteration: int, trials: Any, **info: Any) -> None:
        """Before each turn of Tune's loop."""
        _WATCHES[self.folder].turn(trials)

    def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """A trial has its resources."""
        _WATCHES[self.folder].book.start(trial)

    def on_trial_result(
        self, iteration: int, trials: Any, trial: Any, result: Any, **info: Any
    ) -> None:
        """A report arrived."""
        _WATCHES[self.folder].report(trial, result)

    def on_checkpoint(
        self, iteration: int, trials: Any, trial: Any, checkpoint: Any, **info: Any
    ) -> None:
        """A checkpoint was written."""
        _WATCHES[self.folder].saved(trial)

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """A trial ended by itself or was stopped."""
        _WATCHES[self.folder].book.complete(trial)

    def on_trial_recover(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """A trial failed, and is run again."""
        _WATCHES[self.folder].book.retry(trial)

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """A trial failed for good."""
        _WATCHES[self.folder].book.error(trial)


class Limit(Stopper):
    """Ends trials that somebody stopped, and all of them when the budget is spent."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __call__(self, trial_id: str, result: Any) -> bool:
        """Whether this trial ends with its newest report."""
        return _WATCHES[self.folder].stops(trial_id)

    def stop_all(self) -> bool:
        """Whether all trials end now."""
        return _WATCHES[self.folder].over()
