"""Tune's callback: calls the `TrialBook` of the search in the driver.

Tune pickles its callbacks with its state. What is pickled here is the search's folder alone; the
book is looked up in the process that runs or resumes the search.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from ray.tune import Callback

from orchestrator.trials import TrialBook

_BOOKS: dict[str, TrialBook] = {}


@contextmanager
def following(folder: str, book: TrialBook) -> Generator[None]:
    """Inside, the search in ``folder`` is followed by ``book``."""
    _BOOKS[folder] = book
    try:
        yield
    finally:
        del _BOOKS[folder]


class Follow(Callback):
    """Passes Tune's events on; holds nothing but the search's folder."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def on_step_begin(self, iteration: int, trials: Any, **info: Any) -> None:
        """Before each turn of Tune's loop."""
        _BOOKS[self.folder].adopt(trials)

    def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """A trial has its resources."""
        _BOOKS[self.folder].start(trial)

    def on_trial_result(
        self, iteration: int, trials: Any, trial: Any, result: Any, **info: Any
    ) -> None:
        """A report arrived."""
        _BOOKS[self.folder].result(trial, result)

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """A trial ended by itself or was stopped."""
        _BOOKS[self.folder].complete(trial)

    def on_trial_recover(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """A trial failed, and is run again."""
        _BOOKS[self.folder].retry(trial)

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """A trial failed for good."""
        _BOOKS[self.folder].error(trial)
