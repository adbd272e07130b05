"""One search for real: trials stopped by hand, a pause, more trials, a budget; and its status."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import recorded
import yaml

from orchestrator.driver import control
from orchestrator.search import status
from orchestrator.search.result import SearchResult
from orchestrator.search.space import SearchConfig, load_search
from orchestrator.search.watch import Paused
from orchestrator.tune import tune

SPACE: dict[str, Any] = {
    "recipe": "digits",
    "overrides": {
        "data.holdout": 60,
        "data.train_size": 320,
        "data.test_size": 60,
        "model.width": 4,
        "attack.num_steps": 2,
        "evaluation.attack.num_steps": 3,
        "training.epochs": 400,
    },
    "scheduler": {"name": "none"},
    "num_trials": 2,
    "parameters": {"objective.alpha": {"type": "float", "low": 1e-6, "high": 1, "log": True}},
    "baselines": {"paper": {"objective.alpha": 1e-5}},
}


class Hand:
    """Asks for something as soon as the trials are so far."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.asked: set[str] = set()

    def say(self, line: str) -> None:
        """Nobody listens."""

    def update(self, trials: Any) -> None:
        states = {trial.number: trial for trial in trials}
        if 1 in states and states[1].epoch >= 2 and "stop" not in self.asked:
            self.asked.add("stop")
            control.ask_stop(self.folder, 1)
        done = 1 in states and states[1].state == "stopped"
        if done and 2 in states and states[2].epoch >= 2 and "pause" not in self.asked:
            self.asked.add("pause")
            control.ask_pause(self.folder)


@pytest.fixture(scope="module")
def load(shared_storage: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("spaces") / "operated.yaml"
    path.write_text(yaml.safe_dump(SPACE, sort_keys=False))

    def load(*overrides: str) -> SearchConfig:
        return load_search(
            str(path), [f"storage_path={shared_storage}", "name=operated", *overrides]
        )

    return load


@pytest.fixture(scope="module")
def paused(local_ray: Any, load: Any, shared_storage: Path) -> dict[str, Any]:
    """The status of a search of which trial 1 was stopped, and which was then paused."""
    folder = f"{shared_storage}/operated"
    with pytest.raises(Paused, match=r"the same command \(with name=operated\) goes on"):
        tune(load(), view=Hand(folder))
    found = status.read(folder)
    assert found is not None
    return found


def test_a_trial_stops_by_hand_and_the_search_pauses(
    paused: dict[str, Any], shared_storage: Path
) -> None:
    first, second = paused["trials"]
    assert paused["state"] == "paused"
    assert first["state"] == "stopped"
    assert first["why"] == f"stopped by morel stop at epoch {first['epoch']}"
    runs = [recorded.one(shared_storage, trial["run_id"]) for trial in (first, second)]
    assert [run.info.status for run in runs] == ["FINISHED", "KILLED"]
    assert recorded.one(shared_storage, "operated").info.status == "KILLED"
    assert (second["state"], second["why"]) == ("waiting", status.GOES_ON)
    assert control.requests(paused["folder"]) == ["stop-1.json"]  # the pause was heard


def test_the_status_tells_what_a_person_asks(paused: dict[str, Any]) -> None:
    assert paused["there"] == {"cpus": 2.0, "gpus": 0.0}
    assert paused["best"]["number"] in (1, 2)
    assert paused["cost"]["cpu_seconds"] == pytest.approx(
        sum(trial["held_seconds"] for trial in paused["trials"])
    )
    assert 0 < paused["cost"]["cpu_seconds"] <= 2 * paused["cost"]["wall_seconds"]


@pytest.fixture(scope="module")
def grown(paused: dict[str, Any], load: Any) -> SearchResult:
    """The same search with a trial more, until a budget that is a little larger than the cost."""
    hours = (paused["cost"]["cpu_seconds"] + 12.0) / 3600
    return tune(load("num_trials=3", f"budget.cpu_hours={hours}"))


def test_it_goes_on_with_more_trials_until_its_budget_is_spent(
    grown: SearchResult, paused: dict[str, Any], shared_storage: Path
) -> None:
    first, second, third = grown.trials
    assert first.reason == paused["trials"][0]["why"]
    assert second.epoch > paused["trials"][1]["epoch"]
    assert second.last["iterations_since_restore"] < second.last["training_iteration"]
    for trial in (second, third):
        assert trial.reason == f"budget.cpu_hours spent at epoch {trial.epoch}"
    assert third.run_id not in [trial["run_id"] for trial in paused["trials"]]
    assert grown.cost.cpu_seconds >= paused["cost"]["cpu_seconds"] + 12.0
    assert grown.cost.wall_seconds > paused["cost"]["wall_seconds"]
    parent = recorded.one(shared_storage, "operated")
    assert parent.data.metrics["cost.cpu_seconds"] == pytest.approx(grown.cost.cpu_seconds)
    children = recorded.runs(shared_storage, f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    assert len(children) == 3
    run = recorded.one(shared_storage, second.run_id)
    assert recorded.steps(shared_storage, run, "holdout.clean") == list(range(1, second.epoch + 1))


def test_a_spent_budget_stays_spent(grown: SearchResult) -> None:
    started = time.perf_counter()
    again = tune(grown.search)
    assert time.perf_counter() - started < 10
    assert [(t.run_id, t.reason) for t in again.trials] == [
        (t.run_id, t.reason) for t in grown.trials
    ]
    assert json.loads(json.dumps(status.read(f"{grown.search.base.storage_path}/operated")))


def test_an_ended_search_goes_on_with_more_trials(grown: SearchResult, load: Any) -> None:
    """What has ended stays, also what the budget has cut off; the new trial is number 4."""
    hours = (grown.cost.cpu_seconds + 5.0) / 3600
    more = tune(load("num_trials=4", f"budget.cpu_hours={hours}"))
    assert [(t.run_id, t.reason) for t in more.trials[:3]] == [
        (t.run_id, t.reason) for t in grown.trials
    ]
    (new,) = more.trials[3:]
    assert new.number == 4
    assert new.epoch > 0
    assert new.params not in [trial.params for trial in grown.trials]
