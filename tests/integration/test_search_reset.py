"""A reused actor that dies between two trials costs neither of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import dying_resets
from ray import tune

from orchestrator.search.lost_resets import lost_resets_retried


def trained(folder: Path) -> list[tuple[int, str, int]]:
    """Number, state and failures of each of four trials, one after the other in one actor.

    It dies as the third begins.
    """
    found = tune.run(
        dying_resets.Dying,
        config={"number": tune.grid_search([1, 2, 3, 4]), "marker": str(folder / "died")},
        storage_path=str(folder),
        name="search",
        max_failures=2,
        reuse_actors=True,
        max_concurrent_trials=1,
        raise_on_failed_trial=False,
        resources_per_trial={"cpu": 2},
        verbose=0,
    )
    assert os.path.exists(folder / "died")
    trials: list[Any] = sorted(found.trials, key=lambda trial: trial.config["number"])
    return [(trial.config["number"], trial.status, trial.num_failures) for trial in trials]


def test_the_trial_is_run_again(local_ray: Any, tmp_path: Path) -> None:
    with lost_resets_retried():
        assert trained(tmp_path) == [
            (1, "TERMINATED", 0),
            (2, "TERMINATED", 0),
            (3, "TERMINATED", 1),
            (4, "TERMINATED", 0),
        ]


def test_tune_itself_gives_it_up(local_ray: Any, tmp_path: Path) -> None:
    """When this fails Ray has mended it, and `orchestrator.search.lost_resets` can go."""
    states = [state for _, state, _ in trained(tmp_path)]
    assert states == ["TERMINATED", "TERMINATED", "ERROR", "TERMINATED"]
